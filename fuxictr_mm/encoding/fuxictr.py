"""FuxiCTR's own datasets: CSV or Parquet files of raw columns, or files of integers with their ``feature_map.json``.

What is encoded or converted here is then read by ``fuxictr_mm.data`` as any Parquet file of integers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr_mm.config import EncodedFeature, ExperimentConfig, FeatureConfig, FeatureSpec, LabelConfig, Roles
from fuxictr_mm.config.columns import split_entries
from fuxictr_mm.data.dataset import Dataset, read_dataset
from fuxictr_mm.data.remote import is_remote
from fuxictr_mm.data.schema import ITEM_SOURCE
from fuxictr_mm.data.shards import Shard
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.files import read_json

logger = logging.getLogger(__name__)

#: Keys by which FuxiCTR's layers read a file of embeddings.
PRETRAINED_KEYS = ("pretrained_emb", "pretrain_usage", "pretrain_dim", "freeze_emb", "oov_idx")


def load_dataset(
    config: ExperimentConfig,
    needs_labels: Mapping[str, bool | None],
    vocabularies: Vocabularies | None = None,
    *,
    flat: bool,
    test_data: str | None = None,
    scratch: Path | None = None,
    shard: Shard | None = None,
) -> Dataset:
    """Read and check a dataset of any layout; raw columns of a dataset without item files are encoded first.

    Parameters
    ----------
    config, needs_labels, vocabularies, shard
        As of ``read_dataset``.
    flat : bool
        Whether the model takes a dict of columns, as FuxiCTR's do, rather than target and history.
    test_data : str, optional
        Read in place of the dataset's test split, with the same vocabularies; if encoded, in the folder ``scratch``.
    """
    given = config if test_data is None else config.with_dataset(test_data=test_data)
    if config.dataset.item_info is not None:
        return read_dataset(given, needs_labels, vocabularies, shard)
    paths = {split: given.require_split(split) for split in needs_labels}
    if config.dataset.data_format != "parquet" or config.dataset.rebuild_dataset:
        for path in filter(is_remote, paths.values()):
            raise ConfigError(f"{path}: must be on a local disk, because it is encoded first; copy it to a disk")
    vocabularies = Vocabularies() if vocabularies is None else vocabularies
    read, folder = as_integers(config, paths, needs_labels, vocabularies, None if test_data is None else scratch)
    read = _without_items(read) if flat else _with_items(read)
    try:
        loaded = read_dataset(read, needs_labels, vocabularies, shard)
    except DataError as error:  # of what the user has, not of what was made of it
        text = str(error)
        for split, path in paths.items():
            text = text.replace(str(read.dataset.path_of(split)), str(path))
        raise type(error)(text) from error
    loaded.feature_map.data_dir = str(folder)  # where FuxiCTR's layers look for files of embeddings
    return loaded


def as_integers(
    config: ExperimentConfig,
    paths: Mapping[str, str],
    needs_labels: Mapping[str, bool | None],
    vocabularies: Vocabularies,
    scratch: Path | None = None,
) -> tuple[ExperimentConfig, Path]:
    """Encode or convert splits without item files, unless they are Parquet files of integers.

    Returns the configuration that reads the result, and the folder where it is. Vocabularies of an encoding are added
    to ``vocabularies``. An encoded test split that is not one of the dataset's own files is put into ``scratch``.
    """
    dataset = config.dataset
    folder = Path(dataset.data_root or ".") / config.dataset_id
    read = config.with_dataset(**{f"{split}_data": path for split, path in paths.items()})
    if dataset.data_format == "csv" or dataset.rebuild_dataset:
        from fuxictr_mm.encoding.prepare import encode  # polars takes a while to import, and is seldom needed

        changes, folder = encode(config, paths, needs_labels, folder, scratch, vocabularies)
        return read.with_dataset(**changes), folder
    read = read.with_dataset(**_described(config, folder))
    _say_what_is_ignored(config)
    if dataset.data_format == "npz":
        from fuxictr_mm.encoding.prepare import convert

        read = read.with_dataset(**convert(paths, folder))
    return read, folder


def _say_what_is_ignored(config: ExperimentConfig) -> None:
    """Log a line for settings of numbers that have no effect on encoded files."""
    columns = [c for c in split_entries(config.dataset.feature_cols or ()) if c.active and c.type == "numeric"]
    form = config.dataset.data_format
    for key in ("normalizer", "fill_na"):
        if names := [str(c.name) for c in columns if getattr(c, key) is not None]:
            fix = "; set rebuild_dataset: True if these are raw columns" if form == "parquet" else ""
            logger.info(
                f"dataset {config.dataset_id}: {key} of {', '.join(names)} has no effect, because files of "
                f"data_format: {form} are encoded already{fix}"
            )


def _described(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """Return features and labels of a dataset of integers: those of its entry, else of ``feature_map.json``."""
    if config.dataset.feature_cols and config.dataset.label_col:
        return {}
    path = folder / "feature_map.json"
    if not path.is_file():
        raise MissingFileError(
            f"{path}: no such file; dataset {config.dataset_id} has no feature_cols and label_col; set "
            "them, or write FuxiCTR's feature_map.json"
        )
    content = read_json(path)
    try:
        labels = [LabelConfig(name=str(name)) for name in content["labels"]]
        specs = [(str(name), dict(spec)) for entry in content["features"] for name, spec in entry.items()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(f"{path}: expected FuxiCTR's feature map, with 'labels' and 'features'") from None
    if not labels:
        raise DataError(f"{path}: 'labels' is empty, expected one label or more")
    columns = []
    for name, spec in specs:
        known = {k: v for k, v in spec.items() if k in FeatureSpec.model_fields}
        FeatureSpec.read({**known, "name": name}, f"{path}: feature '{name}'")
        pretrained = {k: spec[k] for k in PRETRAINED_KEYS if k in spec} if "pretrained_emb" in spec else None
        # FuxiCTR leaves out the entry of a column without an encoder.
        given = {"feature_encoder": None, **known, "name": name, "pretrained": pretrained}
        columns.append(EncodedFeature.model_construct(**given))
    return {
        "feature_cols": config.dataset.feature_cols or columns,
        "label_col": config.dataset.label_col or (labels if len(labels) > 1 else labels[0]),
    }


def _without_items(config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration without roles; a sequence of numbers is not a feature of FuxiCTR's models."""
    columns = [c for c in config.dataset.feature_cols or () if not (c.history and c.dtype == "float")]
    return config.with_dataset(feature_cols=columns, roles=Roles())


def _with_items(config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration with the ids of the target's vocabulary as items, named by ``roles``."""
    where, roles = f"dataset {config.dataset_id}", config.dataset.roles
    columns = {
        str(c.name): c.model_copy(update={"source": ""}) for c in split_entries(config.dataset.feature_cols or ())
    }
    wanted = [("target", roles.target, "categorical"), ("history", roles.history, "sequence")]
    role_of = {roles.short_history: "short_history"}
    wanted += [(role_of.get(name, "histories"), name, "sequence") for name in roles.histories]
    for role, name, kind in wanted:
        if name not in columns or columns[name].type != kind:
            raise ConfigError(
                f"{where}: roles: {role} is {name}, expected a column of type: {kind}"
                f" (there are: {', '.join(n for n, c in columns.items() if c.type == kind) or 'none'})"
            )
    for name in (roles.history, *roles.histories):
        if columns[name].share_embedding != roles.target:
            raise ConfigError(
                f"{where}: roles: {name} and {roles.target} have separate vocabularies; write "
                f"share_embedding: {roles.target} for {name}"
            )
    columns[roles.target] = columns[roles.target].model_copy(update={"source": ITEM_SOURCE})
    columns[roles.history] = FeatureConfig.model_construct(name=roles.history, type="meta")
    for name in roles.histories:
        columns[name] = FeatureConfig.model_construct(name=name, type="meta", max_len=columns[name].max_len)
    return config.with_dataset(feature_cols=[*columns.values()], item_info=[], ids="as_is")
