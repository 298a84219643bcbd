"""Predictions as a table: a row for each row of a file, with the ids and times that they are joined by.

Files of ``fuxictr-mm prepare`` have numbers in place of the owner's ids, which are written.

Shape letters: R rows, T labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fuxictr_mm.config import Roles, label_names, per_label
from fuxictr_mm.data import parquet
from fuxictr_mm.data.vocabulary import Vocabulary
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.files import atomic_path, read_json
from fuxictr_mm.metric_names import ERRORS
from fuxictr_mm.metrics import evaluate_metrics
from fuxictr_mm_serving.numbering import is_numbered
from fuxictr_mm_serving.prepared import (
    ITEM_FILE,
    MANIFEST,
    SOURCE_ID,
    SOURCE_ROW,
    SOURCE_TIME,
    SOURCE_USER,
    VOCABULARIES,
)

#: Endings of the files that can be written.
SUFFIXES = (".parquet", ".csv")

PREDICTION, LABEL = "prediction", "label"

#: Number of a row in its file or folder, from 0.
ROW = "row"


def is_table(path: Path) -> bool:
    """Whether a path names a table of predictions, and not the folder of a submission."""
    return path.suffix.lower() in SUFFIXES


def check_table(path: Path) -> None:
    """Refuse to replace a file that is not a table of predictions.

    Raises
    ------
    ConfigError
        It exists and is of another kind.
    """
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a folder; give the name of a file")
    if path.exists() and path.stat().st_size and not any(name.startswith(PREDICTION) for name in _names_in(path)):
        raise ConfigError(
            f"--out {path}: already exists and is not a table of predictions; give another name, or delete the file"
        )


def _names_in(path: Path) -> list[str]:
    """Return the columns of a table; nothing of a file that is none."""
    try:
        if path.suffix.lower() == ".parquet":
            return list(pq.read_schema(path).names)
        with path.open(encoding="utf-8", errors="replace") as stream:
            return [name.strip('"') for name in stream.readline(1 << 16).strip().split(",")]
    except (OSError, pa.ArrowException):
        return []


@dataclass(frozen=True)
class JoinColumn:
    """A column that is written next to the predictions."""

    #: Its name, and that in the file of rows.
    name: str
    source: str
    values: Vocabulary | None = None  #: Of which the file holds numbers.

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the column of some rows."""
        array = batch.column(self.source)
        if pa.types.is_floating(array.type):  # a label that is missing is NaN in the rows
            array = pa.array(array.to_numpy(zero_copy_only=False), from_pandas=True)
        return array if self.values is None else self.values.decode(array.to_numpy())


def join_columns(rows: str, settings: Mapping[str, Any]) -> list[JoinColumn]:
    """Return the columns of user, item, time, row of the source and labels that a file or folder of rows has.

    Roles among the settings of the experiment name the columns.
    """
    file = parquet.part_files(rows)[0]
    present, roles = parquet.schema_of(file).names, Roles.read(settings.get("roles") or {}, "roles")
    folder = _prepared_folder(file)
    labels = [column for column in _label_columns(settings) if column.source in present]
    if folder is None:
        names = [name for name in (roles.user, roles.target, roles.time or "") if name in present]
        return [*(JoinColumn(name, name) for name in dict.fromkeys(names)), *labels]
    items = pq.read_table(folder / ITEM_FILE, columns=["item_id", SOURCE_ID]).sort_by("item_id")
    found = [JoinColumn("item_id", "item_id", Vocabulary(items[SOURCE_ID].combine_chunks()))]
    users = folder / VOCABULARIES / "user_id.parquet"
    if SOURCE_USER in present:
        found.insert(0, JoinColumn("user_id", SOURCE_USER))
    elif users.is_file():
        values = pq.read_table(users).sort_by("code")["value"].combine_chunks()
        found.insert(0, JoinColumn("user_id", "user_id", Vocabulary(values)))
    return [*found, *(JoinColumn(name, name) for name in (SOURCE_TIME, SOURCE_ROW) if name in present), *labels]


def _label_columns(settings: Mapping[str, Any]) -> list[JoinColumn]:
    """Return ``label``, or ``label_NAME`` of each of several labels: those that ``prediction`` is compared with."""
    names = label_names(settings)
    return [JoinColumn(f"{LABEL}_{name}" if len(names) > 1 else LABEL, name) for name in names]


class Unit(NamedTuple):
    """A label that ``prepare log`` standardised: its column in the log, and the statistics of its training rows."""

    column: str
    mean: float
    std: float


def units_of(rows: str, settings: Mapping[str, Any]) -> dict[str, Unit]:
    """Return the units of labels by their names: those of the training files or, where these are gone, of ``rows``."""
    for data in (settings.get("train_data"), rows):
        try:
            folder = _prepared_folder(parquet.part_files(data)[0]) if data else None
            columns = {} if folder is None else read_json(folder / MANIFEST).get("columns", {})
        except UserError:
            continue
        if facts := columns.get("interactions", {}).get("labels"):
            return {name: Unit(of["column"], of["mean"], of["std"]) for name, of in facts.items()}
    return {}


def _prepared_folder(file: Path) -> Path | None:
    """Return the folder that ``fuxictr-mm prepare`` wrote a file of rows into, None of all other files."""
    folder = next((f for f in list(file.absolute().parents)[:2] if (f / VOCABULARIES).is_dir()), None)
    has_items = folder is not None and (folder / ITEM_FILE).is_file()
    return folder if has_items and is_numbered(file) else None


def write_table(out: Path, rows: str, predictions: np.ndarray, settings: Mapping[str, Any]) -> None:
    """Write predictions with the columns that they are joined by, atomically; memory is that of some rows.

    ``rows`` is the file or folder that was scored, ``predictions`` are ``(R,)`` or ``(R, T)``. Of a label that
    ``prepare log`` standardised, also ``prediction_COLUMN``, in the unit of the log's column.

    Raises
    ------
    DataError
        There are not as many rows as predictions: the files have changed.
    UserError
        The table cannot be written.
    """
    check_table(out)
    if settings.get("data_format", "parquet") == "parquet" and (found := parquet.count_rows(rows)) != len(predictions):
        raise DataError(f"{rows}: has {found} rows, expected {len(predictions)}, as when it was scored; score it again")
    names = label_names(settings) or [""]
    of_label = dict(zip(names, predictions.reshape(len(predictions), -1).T, strict=True))
    named = {f"{PREDICTION}_{name}" if len(names) > 1 else PREDICTION: values for name, values in of_label.items()}
    units = units_of(rows, settings) if settings.get("data_format", "parquet") == "parquet" else {}
    for name, unit in ((name, units[name]) for name in names if name in units):
        named[f"{PREDICTION}_{unit.column}"] = of_label[name] * unit.std + unit.mean
    with atomic_path(out) as temporary:
        writer: Any = None
        at = 0
        try:
            for columns in _columns_of_rows(rows, settings, len(predictions)):
                stop = at + len(next(iter(columns.values())))
                table = pa.table(columns | {name: pa.array(values[at:stop]) for name, values in named.items()})
                writer = writer or _writer_of(out)(temporary, table.schema)
                writer.write_table(table)
                at = stop
        finally:
            if writer is not None:
                writer.close()


def _columns_of_rows(rows: str, settings: Mapping[str, Any], count: int) -> Iterator[dict[str, pa.Array]]:
    """Yield the columns beside the predictions, some rows at a time; rows have a number where the source names none."""
    columns = join_columns(rows, settings) if settings.get("data_format", "parquet") == "parquet" else []
    if not columns:
        yield {ROW: pa.array(np.arange(count))}
        return
    sources = list(dict.fromkeys(column.source for column in columns))
    is_numbered_by_source = any(column.source == SOURCE_ROW for column in columns)
    for row, batch in parquet.read_rows(rows, sources):
        own = {} if is_numbered_by_source else {ROW: pa.array(np.arange(row, row + batch.num_rows))}
        yield {**own, **{column.name: column.of(batch) for column in columns}}


def _writer_of(out: Path) -> Callable[[os.PathLike[str], pa.Schema], Any]:
    return pa_csv.CSVWriter if out.suffix.lower() == ".csv" else pq.ParquetWriter


def measure(rows: str, predictions: np.ndarray, settings: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return metrics by label, of the rows that have one: AUC where both classes occur, logloss; RMSE of a regression.

    Of a label that ``prepare log`` standardised, also by its name in the log: RMSE and MAE in its unit.
    """
    if settings.get("data_format", "parquet") != "parquet":
        return {}
    names = label_names(settings)
    tasks = per_label(settings.get("task", "binary_classification"), len(names))
    present = parquet.schema_of(parquet.part_files(rows)[0]).names
    found: dict[str, dict[str, float]] = {}
    units = units_of(rows, settings)
    for index, (name, task) in enumerate(zip(names, tasks, strict=True)):
        if name not in present:
            continue
        label = _numbers_of(rows, name)
        known = np.isfinite(label) if task == "regression" else (label == 0) | (label == 1)
        if not known.any() or (~known & ~np.isnan(label)).any():  # placeholders
            continue
        scores = (predictions if predictions.ndim == 1 else predictions[:, index])[known]
        truth = label[known]
        metrics = list(ERRORS) if task == "regression" else ["AUC", "logloss"]
        if task != "regression" and truth.min() == truth.max():
            metrics.remove("AUC")
        found[name] = {"rows": float(known.sum()), **evaluate_metrics(truth, scores, metrics)}
        if task == "regression" and name in units:
            of_unit = {metric: found[name][metric] * units[name].std for metric in metrics}
            found[units[name].column] = {"rows": found[name]["rows"], **of_unit}
    return found


def _numbers_of(rows: str, column: str) -> np.ndarray:
    """Return a column of numbers, ``(R,)`` float64, NaN where it has none; of texts all NaN."""
    chunks: Sequence[np.ndarray] = [_as_float(batch.column(0)) for _, batch in parquet.read_rows(rows, [column])]
    return np.concatenate([np.zeros(0), *chunks])


def _as_float(array: pa.Array) -> np.ndarray:
    try:
        return array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        return np.full(len(array), np.nan)
