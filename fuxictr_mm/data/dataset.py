"""The dataset of an experiment, read from Parquet files of our layout."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from fuxictr_mm.config import DatasetConfig, ExperimentConfig
from fuxictr_mm.data.feature_map import build_feature_map
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import InteractionTable, concatenate
from fuxictr_mm.data.item_columns import is_zero_padded
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.memory import choose_in_memory
from fuxictr_mm.data.numbering import check_numbering
from fuxictr_mm.data.numbers import Scale, scale_of
from fuxictr_mm.data.remote import path_of
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ, ITEM_SOURCE, Feature, complete, parse_features
from fuxictr_mm.data.shards import Shard
from fuxictr_mm.data.summary import Summary, summarize
from fuxictr_mm.data.vocabulary import Conversion, Vocabularies
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.fuxictr_imports import FeatureMap
from fuxictr_mm.metric_names import takes_one_class
from fuxictr_mm.runtime import device_of, return_freed_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Features, items, the requested splits and the vocabularies of a dataset.

    A split that does not fit into memory is read and checked once, and stays on disk. Of several processes, each has
    its part of a split in memory, and of a split that is scored; the summaries are of all rows.
    """

    features: list[Feature]
    feature_map: FeatureMap
    items: ItemTable
    splits: dict[str, InteractionTable | InteractionFiles]
    summaries: dict[str, Summary]
    vocabularies: Vocabularies = field(default_factory=Vocabularies)
    #: All rows of each split, on disk.
    files: dict[str, InteractionFiles] = field(default_factory=dict)


def read_dataset(
    config: ExperimentConfig,
    needs_labels: Mapping[str, bool | None],
    vocabularies: Vocabularies | None = None,
    shard: Shard | None = None,
) -> Dataset:
    """Read and check a dataset.

    Parameters
    ----------
    config : ExperimentConfig
        Of the experiment.
    needs_labels : mapping of str to bool or None
        Which of ``train``, ``valid`` and ``test`` to read, and whether each must have labels; None: they are not read.
    vocabularies : Vocabularies, optional
        Those of the run whose weights are used; built from the data by default, those of context from ``train_data``.
    shard : Shard, optional
        The part of every split that this process reads; all rows by default.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        The files contain something that would fail later.
    """
    started = time.perf_counter()
    shard = Shard() if shard is None else shard
    vocabularies = Vocabularies() if vocabularies is None else vocabularies
    features = _features(config)
    for split in needs_labels:
        config.require_split(split)
    items = _read_items(config, features, needs_labels, vocabularies)
    conversion = _conversion(config, items)
    files_of = partial(_files_of, config, features, items, conversion)
    files = {split: files_of(split, needs_label) for split, needs_label in needs_labels.items()}
    if config.dataset.item_files:
        row_files = [pair for split in files.values() for pair in split.metadata.items()]
        check_numbering(config.dataset.item_files, row_files, features, vocabularies)
    train_files = partial(files_of, "train", False)
    _build_vocabularies(config, files, train_files, vocabularies)
    scales = _scales(config, features, train_files, vocabularies)
    conversion = replace(conversion, vocabularies={**vocabularies, **conversion.vocabularies}, scales=scales)
    files = {split: file.changed(conversion=conversion) for split, file in files.items()}
    splits, summaries = _read_splits(config, files, shard)
    dims = {f.name: items.dim(f.name) for f in features if f.is_item and f.type in ("sequence", "embedding")}
    _check_dims(features, summaries)
    features = complete(features, dims, _vocabulary_sizes(features, items, summaries, vocabularies))
    logger.info("Items: %d. Files read in %.1f s.", items.num_items - 1, time.perf_counter() - started)
    return_freed_memory()
    return Dataset(features, build_feature_map(features, config), items, splits, summaries, vocabularies, files)


def _features(config: ExperimentConfig) -> list[Feature]:
    """Return the features, with the item id and the group where no column lists them."""
    features = parse_features(config.columns)
    names = {f.name for f in features}
    if config.columns.has_items and ITEM_ID not in names:
        features.append(Feature(ITEM_ID, "meta", ITEM_SOURCE))
    # FuxiCTR's models look up every column of a batch in the feature map.
    others = [name for name in (config.group_id, config.dataset.sample_weight) if name and name not in names]
    return features + [Feature(name, "meta") for name in others]


def _read_items(
    config: ExperimentConfig, features: Sequence[Feature], splits: Iterable[str], vocabularies: Vocabularies
) -> ItemTable:
    """Return the items of the item files, else those that the ids of the interactions are."""
    dataset = config.dataset
    if not dataset.item_info:
        return _ids_only(features)
    return ItemTable.from_parquet(
        dataset.item_info,
        features,
        target=dataset.roles.target,
        ids=dataset.ids,
        vocabularies=vocabularies,
        zero_is_padding=partial(_zero_is_padding, dataset, splits),
    )


def _files_of(
    config: ExperimentConfig,
    features: Sequence[Feature],
    items: ItemTable,
    conversion: Conversion,
    split: str,
    needs_label: bool | None,
) -> InteractionFiles:
    """Return the files of a split."""
    labels, monitor = config.dataset.label_names, config.monitor
    is_trained = split == "train" or config.fold is not None
    metrics = [*config.metrics, *([monitor] if isinstance(monitor, str) else monitor)]
    return InteractionFiles(
        path_of(config.require_split(split)),
        features,
        items.known.numpy(),
        labels=() if needs_label is None else labels,
        group_id=config.group_id,
        max_len=config.max_len,
        needs_label=bool(needs_label),
        numeric_labels=[name for name, task in config.tasks.items() if task == "regression"],
        both_classes=split == "train" or len(labels) > 1 or not all(map(takes_one_class, metrics)),
        conversion=conversion,
        has_items=config.columns.has_items,
        weight=config.dataset.sample_weight if needs_label and is_trained else None,
    )


def _conversion(config: ExperimentConfig, items: ItemTable) -> Conversion:
    """Return how columns become numbers, as far as it is known before the rows of training are read."""
    roles, ids = config.dataset.roles, config.dataset.ids
    of_items = {} if items.vocabulary is None else {ITEM_ID: items.vocabulary}
    return Conversion(roles.target, roles.history, of_items, zero_ends=2 if ids == "vocabulary" else 1)


def _build_vocabularies(
    config: ExperimentConfig,
    files: Mapping[str, InteractionFiles],
    train_files: Callable[[], InteractionFiles],
    vocabularies: Vocabularies,
) -> None:
    """Add the vocabularies of context columns that some split needs; those that a run has not are built from train."""
    is_always = config.dataset.ids == "vocabulary"
    for path, feature in [(file.path, f) for file in files.values() for f in file.columns_of_ids(is_always)]:
        _refuse_texts(path, feature, vocabularies)
        build = partial(lambda column: train_files().build_vocabulary(column), feature.column)
        vocabularies.of(feature.name, build, feature.column)


def _scales(
    config: ExperimentConfig,
    features: Sequence[Feature],
    train_files: Callable[[], InteractionFiles],
    vocabularies: Vocabularies,
) -> dict[str, Scale]:
    """Return the scales of context columns with a ``normalizer``, by those of a run or by train."""
    found: dict[str, Scale] = {}
    for feature in [f for f in features if f.is_context and f.normalizer is not None]:
        moments = partial(lambda of: train_files().moments(of), feature)
        where = f"{config.dataset.train_data}: {feature.column}"
        found[feature.name] = scale_of(feature, vocabularies, moments, where)
    return found


def _read_splits(
    config: ExperimentConfig, files: Mapping[str, InteractionFiles], shard: Shard
) -> tuple[dict[str, InteractionTable | InteractionFiles], dict[str, Summary]]:
    """Return the rows of each split for this process, in memory where they fit, and the statistics of all rows."""
    own = {split: _own_rows(file, shard, split == "train") for split, file in files.items()}
    fitting = choose_in_memory(own, config.resident, device_of(config.gpu))
    # Of all processes, because the order of the rows depends on it.
    resident = set.intersection(*map(set, shard.exchange(sorted(fitting))))
    tables = {split: _read(file, split in resident, shard) for split, file in own.items()}
    summaries = {split: summary for split, (_, summary) in tables.items()}
    _log_splits(config, files, summaries, resident)
    splits = {split: table for split, (table, _) in tables.items()}
    if "train" in splits and "train" not in resident:
        splits["train"] = files["train"]  # of which the loader reads the streams of this process
    return splits, summaries


def _log_splits(
    config: ExperimentConfig,
    files: Mapping[str, InteractionFiles],
    summaries: Mapping[str, Summary],
    resident: Collection[str],
) -> None:
    """Log the sizes of the splits, and warn of rows without a group."""
    for split, summary in summaries.items():
        history = ""
        if config.columns.has_items:
            history = f"{summary.num_history_items / summary.num_rows:.2f} history items each, "
        where = "in memory" if split in resident else "streamed"
        logger.info(f"{split}: {summary.num_rows} rows, {history}{where} ({files[split].path})")
        if split != "train" and summary.labels and summary.without_group:
            logger.warning(
                f"{files[split].path}: {summary.without_group} of {summary.num_rows} rows have no "
                f"{config.group_id}; they are excluded from metrics within groups"
            )


def _refuse_texts(path: Path, feature: Feature, vocabularies: Vocabularies) -> None:
    """Refuse texts where the weights were trained on numbers, which have no vocabulary."""
    is_trained = vocabularies.path is not None and vocabularies.path.exists()
    if is_trained and feature.name not in vocabularies and feature.vocab_size is not None:
        raise DataError(
            f"{path}: {feature.column} holds texts, expected numbers below {feature.vocab_size}, as in training"
        )


def _zero_is_padding(dataset: DatasetConfig, splits: Iterable[str]) -> bool:
    """Whether histories are padded with 0, by the training split or, where it is missing, the first that is read."""
    for split in ("train", *splits):
        path = dataset.path_of(split)
        if path and (path_of(path).exists() or path_of(f"{path}.parquet").exists()):
            return is_zero_padded(path, dataset.roles.history)
    return False


def _ids_only(features: Sequence[Feature]) -> ItemTable:
    """Return items without features, all ids of the vocabulary; of a dataset without items, the padding item alone."""
    num_items = next((f.vocab_size or 1 for f in features if f.is_item and f.name == ITEM_ID), 1)
    return ItemTable({}, torch.ones(num_items, dtype=torch.bool))


def _check_dims(features: Sequence[Feature], summaries: Mapping[str, Summary]) -> None:
    """Refuse a sequence or embedding of the interactions whose length is not configured: the splits would differ."""
    for feature in features:
        key = {"sequence": "max_len", "embedding": "pretrain_dim"}.get(feature.type)
        if key is not None and feature.is_context and feature.embedded and getattr(feature, key) is None:
            found = max((summary.longest.get(feature.name, 1) for summary in summaries.values()), default=1)
            raise ConfigError(f"feature '{feature.name}': {key} is missing; write {key}: {max(found, 1)}")


def _vocabulary_sizes(
    features: Sequence[Feature], items: ItemTable, summaries: Mapping[str, Summary], vocabularies: Vocabularies
) -> dict[str, int]:
    """Return the vocabulary sizes that follow from the files; context columns of numbers have theirs configured."""
    of_items = len(vocabularies[ITEM_ID]) + 1 if ITEM_ID in vocabularies else items.num_trained
    sizes = {name: len(vocabulary) + 1 for name, vocabulary in vocabularies.items()}
    sizes |= {f.name: of_items for f in features if f.is_history or (f.is_item and f.name == ITEM_ID)}
    for feature in features:
        follows = feature.is_history or feature.name in vocabularies
        if follows and feature.vocab_size is not None and feature.vocab_size < sizes[feature.name]:
            each = "item" if feature.name in (ITEM_ID, ITEM_SEQ) else "value"
            raise ConfigError(
                f"feature '{feature.column}': vocab_size is {feature.vocab_size}, expected {sizes[feature.name]} or "
                f"more, one for every {each} and one for padding"
            )
        if feature.vocab_size is not None or feature.type not in ("categorical", "sequence") or feature.name in sizes:
            continue
        if feature.is_number:
            continue
        if not feature.is_item:
            # The splits hold different ids, so an inferred size would change between training and scoring.
            found = 1 + max(summary.largest.get(feature.name, 0) for summary in summaries.values())
            raise ConfigError(
                f"feature '{feature.name}': vocab_size is missing; ids of {', '.join(summaries)} are below {found}, "
                f"write vocab_size: {found} or more"
            )
        shares_items = feature.share_embedding == ITEM_ID and ITEM_ID in vocabularies
        sizes[feature.name] = of_items if shares_items else 1 + int(items[feature.name].max())
    return sizes


def _own_rows(files: InteractionFiles, shard: Shard, training: bool) -> InteractionFiles:
    """Return the rows of a split that this process reads."""
    if shard.size == 1 or (training and shard.streams is None):
        return files
    return files.select(shard.train_rows(len(files)) if training else [shard.part(len(files))])


def _read(files: InteractionFiles, resident: bool, shard: Shard) -> tuple[InteractionTable | InteractionFiles, Summary]:
    """Return a split, in memory or on disk, with the statistics of all processes' rows; all rows are checked."""
    exchange = Shard().exchange if files.parts is None else shard.exchange
    if resident and len(files):
        table = concatenate(files.chunks())
        return table, summarize(files, [table], exchange)
    started = time.perf_counter()
    summary = summarize(files, exchange=exchange)
    if not resident:
        logger.info(f"{files.path}: {summary.num_rows} rows checked in {time.perf_counter() - started:.1f} s")
    return files, summary
