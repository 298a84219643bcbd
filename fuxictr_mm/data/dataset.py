"""Load the dataset of an experiment."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap

from fuxictr_mm.data.interactions import InteractionFiles, InteractionTable, Summary, concatenate
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.memory import choose_in_memory
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ, ITEM_SOURCE, Feature, build_feature_map, complete, parse_features
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.runtime import device_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Features, items and the requested splits of a dataset.

    A split that does not fit into memory is read and checked once, and stays on disk.
    """

    features: list[Feature]
    feature_map: FeatureMap
    items: ItemTable
    splits: dict[str, InteractionTable | InteractionFiles]
    summaries: dict[str, Summary]


def load_dataset(params: Mapping[str, Any], needs_labels: Mapping[str, bool]) -> Dataset:
    """Read and check a dataset.

    Parameters
    ----------
    params : mapping
        Checked parameters of an experiment.
    needs_labels : mapping of str to bool
        Which of ``train``, ``valid`` and ``test`` to read, and whether each must have labels.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        For anything in the files that would fail later.
    """
    started = time.perf_counter()
    features = parse_features(params)
    names = {f.name for f in features}
    if ITEM_ID not in names:
        features.append(Feature(ITEM_ID, "meta", ITEM_SOURCE))
    if params.get("group_id") and params["group_id"] not in names:
        # FuxiCTR's models look up every column of a batch in the feature map.
        features.append(Feature(params["group_id"], "meta"))
    for split in needs_labels:
        if not params.get(f"{split}_data"):
            raise ConfigError(f"dataset {params['dataset_id']}: {split}_data is missing; name the split's file")
    items = ItemTable.from_parquet(params["item_info"], features)
    files = {
        split: InteractionFiles(
            Path(params[f"{split}_data"]),
            features,
            items.known.numpy(),
            label=params["label_col"]["name"],
            group_id=params.get("group_id"),
            max_len=params.get("max_len"),
            needs_label=needs_label,
            binary_label=params.get("task", "binary_classification") == "binary_classification",
        )
        for split, needs_label in needs_labels.items()
    }
    resident = choose_in_memory(files, params.get("resident", "auto"), device_of(params.get("gpu", -1)))
    tables = {split: _read(files[split], split in resident) for split in needs_labels}
    dims = {f.name: items[f.name].shape[1] for f in features if f.is_item and f.type in ("sequence", "embedding")}
    features = complete(features, dims, _vocabulary_sizes(features, items, {n: s for n, (_, s) in tables.items()}))
    feature_map = build_feature_map(features, params)
    for split, (_, summary) in tables.items():
        mean = summary.num_history_items / summary.num_rows
        where = "in memory" if split in resident else "streamed"
        logger.info(f"{split}: {summary.num_rows} rows, {mean:.2f} history items each, {where} ({files[split].path})")
    logger.info("Items: %d. Files read in %.1f s.", items.num_items - 1, time.perf_counter() - started)
    splits = {split: table for split, (table, _) in tables.items()}
    return Dataset(features, feature_map, items, splits, {split: summary for split, (_, summary) in tables.items()})


def _vocabulary_sizes(
    features: Sequence[Feature], items: ItemTable, summaries: Mapping[str, Summary]
) -> dict[str, int]:
    """Return the vocabulary sizes that follow from the item files; those of context columns must be configured."""
    sizes = {ITEM_ID: items.num_items, ITEM_SEQ: items.num_items}
    for feature in features:
        if feature.name == ITEM_SEQ and feature.vocab_size is not None and feature.vocab_size < items.num_items:
            raise ConfigError(
                f"feature '{ITEM_SEQ}': vocab_size is {feature.vocab_size}, expected {items.num_items} or more, "
                "one for every item and one for padding"
            )
        if feature.vocab_size is not None or feature.type not in ("categorical", "sequence") or feature.name in sizes:
            continue
        if not feature.is_item:
            # The splits hold different ids, so an inferred size would change between training and scoring.
            found = 1 + max(summary.largest[feature.name] for summary in summaries.values())
            raise ConfigError(
                f"feature '{feature.name}': vocab_size is missing; ids of {', '.join(summaries)} are below {found}, "
                f"write vocab_size: {found} or more"
            )
        sizes[feature.name] = 1 + int(items[feature.name].max())
    return sizes


def _read(files: InteractionFiles, resident: bool) -> tuple[InteractionTable | InteractionFiles, Summary]:
    """Return a split, in memory or on disk, with its statistics; all rows are checked."""
    if resident:
        table = concatenate(files.chunks())
        return table, files.summarize([table])
    started = time.perf_counter()
    summary = files.summarize()
    logger.info(f"{files.path}: {summary.num_rows} rows checked in {time.perf_counter() - started:.1f} s")
    return files, summary
