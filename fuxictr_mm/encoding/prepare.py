"""Encode the splits of a dataset, or read them from the cache."""

from __future__ import annotations

import logging
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile

import numpy as np
import polars as pl

from fuxictr_mm.config import DatasetConfig, EncodedFeature, ExperimentConfig
from fuxictr_mm.data.fingerprint import hash_files
from fuxictr_mm.data.parquet import part_files
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.encoding.cache import Cache
from fuxictr_mm.encoding.columns import RawColumn, columns_of
from fuxictr_mm.encoding.encode import ROW_GROUP, Encoding, RawSplit
from fuxictr_mm.encoding.files import RawFiles
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, first_line
from fuxictr_mm.files import write_json

logger = logging.getLogger(__name__)

#: Keys of a feature that decide how it is encoded.
ENCODING_KEYS = {
    "name", "type", "dtype", "fill_na", "remap", "splitter", "max_len", "min_categr_count", "normalizer", "preprocess",
    "share_embedding", "pretrained_emb", "history",
}  # fmt: skip

#: Errors of files that are damaged, cut off or of another format.
_DAMAGED = (ValueError, OSError, EOFError, NotImplementedError, BadZipFile, zlib.error, pl.exceptions.PolarsError)


def encode(
    config: ExperimentConfig,
    paths: Mapping[str, str],
    needs_labels: Mapping[str, bool | None],
    root: Path,
    scratch: Path | None = None,
    vocabularies: Vocabularies | None = None,
) -> tuple[dict[str, Any], Path]:
    """Encode splits, unless they are in the cache.

    Returns the settings of the dataset that read the result, files and ``feature_cols``, and the folder where it is.

    Parameters
    ----------
    config, needs_labels
        As of ``read_dataset``.
    paths : mapping of str to str
        The splits to encode.
    root : Path
        The dataset's folder, for the cache.
    scratch : Path, optional
        Folder for the encoded test split, if it is not one of the dataset's own files.
    vocabularies : Vocabularies, optional
        Those of the run whose weights are used, which determine the encoding; otherwise it is added to them.
    """
    changes: dict[str, Any] = {}
    vocabularies = Vocabularies() if vocabularies is None else vocabularies
    dataset, columns = config.dataset, columns_of(config.dataset)
    raw = {
        split: RawFiles(Path(path), dataset.data_format, dataset.sep)
        for split, path in _splits_to_fit(config, columns, scratch).items()
    }
    keys = {c.name: Path(c.spec.pretrained_emb) for c in columns if c.spec.pretrained_emb}
    cache = _find_cache(dataset, columns, raw, keys, root, "train" in paths, bool(vocabularies.settings))
    with cache.locked(), TemporaryDirectory(prefix=".", dir=cache.folder) as temporary:
        parsed = _ParsedSplits(columns, Path(temporary))
        encoding = cache.load()
        if encoding is None:
            encoding = _fit(dataset, columns, raw, keys, cache, parsed, needs_labels)
        encoding, cache = _as_trained(cache, encoding, columns, keys, dataset, vocabularies, raw["train"].path)
        for split, path in paths.items():
            of_user = scratch if split == "test" else None
            changes[f"{split}_data"] = str(
                _encode_split(split, path, dataset, encoding, cache, parsed, needs_labels.get(split), of_user)
            )
    changes["feature_cols"] = [_encoded_spec(c, encoding) for c in columns if c.type != "label"]
    return changes, cache.folder


class _ParsedSplits:
    """The splits that were parsed, each once, with temporary files in a folder."""

    def __init__(self, columns: Sequence[RawColumn], folder: Path) -> None:
        self.columns, self.folder = columns, folder
        self._found: dict[str, RawSplit] = {}

    def of(self, name: str, files: RawFiles, needs_label: bool | None) -> RawSplit:
        """Return a split, parsed."""
        if name not in self._found:
            self._found[name] = RawSplit(files, self.columns, self.folder / f"{name}.parquet", needs_label)
        return self._found[name]


def _fit(
    dataset: DatasetConfig,
    columns: Sequence[RawColumn],
    raw: Mapping[str, RawFiles],
    keys: Mapping[str, Path],
    cache: Cache,
    parsed: _ParsedSplits,
    needs_labels: Mapping[str, bool | None],
) -> Encoding:
    """Build an encoding from the training split and write it into the cache."""
    started = time.perf_counter()
    splits = [parsed.of(split, files, needs_labels.get(split, False)) for split, files in raw.items()]
    tokens = {name: _keys(name, path) for name, path in keys.items()}
    encoding = Encoding.fit(columns, splits[0], splits[1:], dataset.min_categr_count, tokens, dataset.roles)
    _write_pretrained(cache, encoding, keys, dataset.roles.target)
    cache.save(encoding)
    logger.info(f"{raw['train'].path}: vocabularies built in {time.perf_counter() - started:.1f} s")
    return encoding


def _encode_split(
    split: str,
    path: str,
    dataset: DatasetConfig,
    encoding: Encoding,
    cache: Cache,
    parsed: _ParsedSplits,
    needs_label: bool | None,
    of_user: Path | None,
) -> Path:
    """Return the file of an encoded split, written unless it is in the cache; ``of_user``: a folder to write it to."""
    suffix = Path(path).suffix[1:]
    kind = suffix if of_user is not None and suffix in ("csv", "parquet") else dataset.data_format
    files = RawFiles(Path(path), kind, dataset.sep)
    target = cache.split_path(split, files.hash) if of_user is None else of_user / "test.parquet"
    if needs_label is None and not target.exists() and of_user is None:
        # Without its labels, which a later run may read.
        target = cache.split_path(f"unlabelled-{split}", files.hash)
    if target.exists():
        logger.info(f"{path}: already encoded, {target} is used")
        return target
    started = time.perf_counter()
    source = parsed.of(split if of_user is None else "other", files, needs_label)
    cache.write(target, partial(encoding.write, source))
    logger.info(f"{path}: encoded in {time.perf_counter() - started:.1f} s, written to {target}")
    return target


def _find_cache(
    dataset: DatasetConfig,
    columns: Sequence[RawColumn],
    raw: Mapping[str, RawFiles],
    keys: Mapping[str, Path],
    root: Path,
    trains: bool,
    has_run: bool,
) -> Cache:
    """Return the cache of an encoding, by its settings and files; to score, one whose files are gone is enough."""
    settings = {
        "data_format": dataset.data_format,
        "sep": dataset.sep,
        "min_categr_count": dataset.min_categr_count,
        "columns": [_encoding_settings(column) for column in columns],
    }
    if dataset.roles.target in keys and dataset.roles.target != ITEM_ID:
        # Whose vocabulary FuxiCTR's layers look up by the name that it has in a model.
        settings["target"] = dataset.roles.target
    try:
        for name, file in keys.items():
            if not file.is_file():
                raise MissingFileError(f"feature '{name}': pretrained_emb: {file}: no such file")
        files_of = {split: files.hash for split, files in raw.items()}
        return Cache(root, {**settings, "files": files_of, "pretrained": [hash_files(path) for path in keys.values()]})
    except MissingFileError:
        kept = None if trains else Cache.find(root, settings, has_run)
        if kept is None:
            raise
        logger.info(f"{kept.folder}: its vocabularies are used, although a file that they were built from is missing")
        return kept


def _encoding_settings(column: RawColumn) -> dict[str, Any]:
    """Return what decides how a column is encoded, as it was given."""
    given = column.spec.model_dump(include=ENCODING_KEYS, exclude_unset=True)
    return given | {"type": column.type} | ({"copied": column.copied} if column.copied else {})


def _as_trained(
    cache: Cache,
    encoding: Encoding,
    columns: Sequence[RawColumn],
    keys: Mapping[str, Path],
    dataset: DatasetConfig,
    vocabularies: Vocabularies,
    path: Path,
) -> tuple[Encoding, Cache]:
    """Return the encoding of the run whose vocabularies are given, or of initial weights; else this one.

    It is added to vocabularies that are not of a run.
    """
    has_run, of_texts = bool(vocabularies.settings), dataset.data_format == "csv"
    before = vocabularies if has_run or vocabularies.earlier is None else vocabularies.earlier
    has_before = bool(before.settings)
    if has_before and not (trained := encoding.of_run(columns, before, of_texts=of_texts)).equals(encoding):
        logger.info(f"{path}: has changed since training; the vocabularies of {before.path} are used")
        encoding, cache = trained, _cache_of_run(cache, before)
        _write_pretrained(cache, encoding, keys, dataset.roles.target)
    if vocabularies.path is None:
        encoding.keep(columns, vocabularies)
    elif not has_before:  # of an earlier version
        logger.warning(
            f"{vocabularies.path}: holds no vocabularies of raw columns; they are built from {path}, and the scores "
            "are wrong if it has changed since training"
        )
    return encoding, cache


def _cache_of_run(cache: Cache, vocabularies: Vocabularies) -> Cache:
    """Return where splits are kept that are encoded as a run was trained, of other files than those of today."""
    assert vocabularies.path is not None
    of_run = Cache(cache.root, {**cache.made_from, "run": hash_files(vocabularies.path)})
    of_run.folder.mkdir(exist_ok=True)  # under the lock of the root
    return of_run


def _splits_to_fit(config: ExperimentConfig, columns: Sequence[RawColumn], scratch: Path | None) -> dict[str, str]:
    """Return the splits that decide the encoding: the vocabularies of meta columns cover all of them."""
    if not config.dataset.train_data:
        raise ConfigError(f"dataset {config.dataset_id}: train_data is missing; vocabularies are built from it")
    splits = ["train"]
    if any(c.type == "meta" and c.has_vocabulary for c in columns):
        splits += ["valid"] if scratch is not None else ["valid", "test"]
    return {split: path for split in splits if (path := config.dataset.path_of(split))}


def _encoded_spec(column: RawColumn, encoding: Encoding) -> EncodedFeature:
    """Return the entry of ``feature_cols`` of an encoded column."""
    spec = column.spec
    changes: dict[str, Any] = {}
    if column.type in ("categorical", "sequence") and not column.is_number:
        changes["vocab_size"] = encoding.vocabularies[column.name].size
    if column.type == "sequence":
        changes["max_len"] = encoding.lengths[column.name]
    if spec.pretrained_emb:
        changes["pretrained"] = {
            "pretrained_emb": _pretrained_name(column.name, Path(spec.pretrained_emb)),
            "pretrain_usage": spec.pretrain_usage or "init",
            "freeze_emb": spec.freeze_emb,
            "oov_idx": encoding.vocabularies[column.name].oov,
            **({"pretrain_dim": spec.pretrain_dim} if spec.pretrain_dim else {}),
        }
    return EncodedFeature.model_construct(**spec.model_dump(exclude_unset=True) | changes)


def _pretrained_name(feature: str, path: Path) -> str:
    return f"pretrained_{feature}{path.suffix}"


def _keys(feature: str, path: Path) -> pl.Series:
    """Return the keys of a file of embeddings as texts."""
    where = f"feature '{feature}': pretrained_emb: {path}"
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                keys = arrays["key"]
        elif path.suffix == ".h5":
            import h5py

            with h5py.File(path) as file:
                keys = file["key"].asstr()[:] if h5py.check_string_dtype(file["key"].dtype) else file["key"][:]
        elif path.suffix == ".parquet":
            return pl.read_parquet(path, columns=["key"])["key"].cast(pl.String)
        else:
            raise ConfigError(f"{where}: expected a file .npz, .h5 or .parquet with 'key' and 'value'")
    except (KeyError, *_DAMAGED) as error:
        raise DataError(f"{where}: cannot be read ({first_line(error)}); expected arrays 'key' and 'value'") from None
    return pl.Series([str(key) for key in keys.tolist()], dtype=pl.String)


def _write_pretrained(cache: Cache, encoding: Encoding, keys: Mapping[str, Path], target: str) -> None:
    """Copy files of embeddings to where FuxiCTR's layers read them, with the vocabularies in FuxiCTR's form."""
    for name, path in keys.items():
        cache.write(cache.folder / _pretrained_name(name, path), partial(shutil.copyfile, path))
    if keys:
        named = {n: v.to_dict() for n, v in encoding.vocabularies.items()}
        if target in keys:
            named[ITEM_ID] = named[target]
        write_json(cache.folder / "feature_vocab.json", named)


def convert(paths: Mapping[str, str], root: Path) -> dict[str, Any]:
    """Convert the arrays of .npz files to Parquet, unless they are already converted; return the splits' new paths."""
    changes = {}
    cache = Cache(root, {"data_format": "npz"})
    with cache.locked():
        for split, path in paths.items():
            if Path(path).suffix == ".parquet":  # of a data frame to score
                continue
            target = cache.split_path(split, hash_files(path, ".npz"))
            changes[f"{split}_data"] = str(target)
            if target.exists():
                logger.info(f"{path}: already converted, {target} is used")
                continue
            cache.write(target, partial(_write_arrays, part_files(path, ".npz")))
            logger.info(f"{path}: converted to {target}")
    return changes


def _write_arrays(files: Sequence[Path], target: Path) -> None:
    frames: list[pl.DataFrame] = []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                frame = pl.DataFrame({name: _native(arrays[name]) for name in arrays.files})
        except (*_DAMAGED, TypeError) as error:
            raise DataError(
                f"{file}: cannot be read as .npz ({first_line(error)}); expected arrays of numbers"
            ) from None
        if objects := frame.select(pl.selectors.by_dtype(pl.Object)).columns:
            raise DataError(f"{file}: {objects[0]}: cannot be read as .npz, expected an array of numbers")
        frame = frame.with_columns(pl.selectors.by_dtype(pl.Array).arr.to_list())
        if frames and (differing := sorted(set(frame.columns) ^ set(frames[0].columns))):
            raise DataError(f"{file}: only some part files have {', '.join(differing)}, expected it in all or in none")
        frames.append(frame.select(frames[0].columns) if frames else frame)
    try:
        joined = pl.concat(frames, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{files[0].parent}: the part files have arrays of different types ({first_line(error)}); write "
            "them with the same types"
        ) from None
    joined.write_parquet(target, row_group_size=ROW_GROUP)


def _native(array: np.ndarray) -> np.ndarray:
    """Return an array in the byte order of the machine, the only one that polars reads."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)
