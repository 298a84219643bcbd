"""Predictions of other programs: a CSV or Parquet file of scores, in row order or joined by ids.

Shape letters: n examples of a split, R rows of a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fuxictr_mm.errors import DataError, MissingFileError, UserError, first_line
from fuxictr_mm.files import StrPath
from fuxictr_mm.runs import Predictions, Run

if TYPE_CHECKING:
    import pyarrow as pa

#: Endings of files of predictions.
ENDINGS = (".csv", ".parquet")

#: Names of a column of scores, in this order and in any case; without one of them, the only column of fractions.
SCORES = ("prediction", "score", "probability", "y_pred", "pred", "logit", "task1", "task2", "task1&2")

#: Names of an index that pandas wrote, in any case: it numbers the rows of one file, and joins none.
INDEXES = ("", "unnamed: 0", "__index_level_0__")

#: Names of a column that counts the rows from 0, in any case.
ROW_NUMBERS = ("id", "row", "row_id", "index", *INDEXES)


@dataclass(frozen=True)
class PredictionFile(Run):
    """Predictions of another program, in the place of a run; ``path`` is the file."""

    #: What ``all_rows`` returns, of the split that the file was read for.
    rows: Predictions = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def all_rows(self, split: str = "valid", task: str | None = None) -> Predictions:
        """Return label, prediction and group."""
        return self.rows


def is_prediction_file(name: StrPath) -> bool:
    """Whether a name is that of a CSV or Parquet file, not of a run."""
    return Path(name).suffix.lower() in ENDINGS


def read_file(name: StrPath, like: Run, split: str = "valid", task: str | None = None) -> PredictionFile:
    """Read predictions of another program, ``.csv`` or ``.parquet``, for the examples that a run was evaluated on.

    The file has a column of scores (``SCORES``). Columns that the data file of the split has as well, such as user_id
    and item_id, join the rows; else a column of row numbers (``ROW_NUMBERS``) orders them; else they are in the order
    of the split's file. The ``description`` of the result says which. A column of labels must hold the same labels.

    Raises
    ------
    MissingFileError, DataError
        No such file, no scores in it, or they do not fit the examples; or there are columns to join by, but the data
        file cannot be read, or is not the one that the run was evaluated on.
    """
    path = Path(name)
    label, _, group = like.all_rows(split, task)
    if label is None:
        raise DataError(f"{like.path}: the {split} rows have no labels; compare on --split valid")
    table = _read(path)
    column = _score_column(path, table)
    label_name = task or _label_name(like)
    known = label == label
    others = [n for n in table.column_names if n not in (column, label_name) and n.lower() not in INDEXES]
    if _has_owners_ids(table, like, split):
        others = [name for name in others if name not in ("user_id", "item_id")]
    keys = _keys_of(path, table.select(others), like, split, label_name, label) if others else {}
    table = _with_types_of(path, table, keys)
    order, how = _order(path, table, column, len(label), keys)
    score = table[column].to_numpy()[order].astype(np.float64)
    if not np.isfinite(score).all():
        raise DataError(f"{path}: {column}: {int((~np.isfinite(score)).sum())} scores are not finite numbers")
    if label_name in table.column_names:
        found = table[label_name].to_numpy()[order]
        if not _same_labels(found[known], label[known]):
            raise DataError(
                f"{path}: {label_name}: differs from the label of {like.run}, first in row "
                f"{int(np.argmax(known & (found != label)))} of {split}; give predictions of the same file in its "
                "order, or ids"
            )
    return PredictionFile(
        path=path,
        run=path.name,
        expid=path.stem,
        dataset_id=like.dataset_id,
        config={
            **{key: like.config[key] for key in ("label_col", "metrics", "task") if key in like.config},
            "predictions": str(path.resolve()),
            "description": f"rows {how}",
        },
        finished=True,
        rows=Predictions(label, score, group).of_known_labels,
    )


def _has_owners_ids(table: pa.Table, like: Run, split: str) -> bool:
    """Whether ``predict --out`` or ``score`` wrote a table of rows of ``prepare``, whose ids are numbers."""
    from fuxictr_mm.data.parquet import part_files
    from fuxictr_mm_serving.numbering import is_numbered
    from fuxictr_mm_serving.prepared import SOURCE_ROW

    if not (data := like.config.get(f"{split}_data")) or not {SOURCE_ROW, "row"} & set(table.column_names):
        return False
    try:
        return like.config.get("data_format") != "csv" and is_numbered(part_files(data)[0])
    except UserError:
        return False


def _same_labels(found: np.ndarray, label: np.ndarray) -> bool:
    """Whether labels are the same in float32, as which a run keeps those of a regression."""
    return found.dtype.kind in "biuf" and np.array_equal(found.astype(np.float32), label.astype(np.float32))


def _label_name(run: Run) -> str:
    label = run.config.get("label_col", "label")
    return str(label.get("name", "label")) if isinstance(label, Mapping) else "label"


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected predictions of another program")
    try:
        table = csv.read_csv(path) if path.suffix.lower() == ".csv" else pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); expected a table of scores") from None
    if len(set(table.column_names)) < table.num_columns:
        raise DataError(f"{path}: columns have the same name ({', '.join(table.column_names)})")
    return table


def _score_column(path: Path, table: pa.Table) -> str:
    import pyarrow as pa

    by_lower_case = {name.lower(): name for name in reversed(table.column_names)}
    found = next((by_lower_case[name] for name in SCORES if name in by_lower_case), None)
    fractions = [name for name in table.column_names if pa.types.is_floating(table[name].type)]
    if found is None and len(fractions) == 1:
        found = fractions[0]
    there = ", ".join(table.column_names)
    if found is None:
        raise DataError(f"{path}: no column of scores (columns: {there}); name it prediction")
    kind = table[found].type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)) or table[found].null_count:
        what = f"{table[found].null_count} nulls" if table[found].null_count else str(kind)
        raise DataError(f"{path}: {found}: holds {what}, expected one number per row")
    return found


def _keys_of(
    path: Path, columns: pa.Table, like: Run, split: str, label_name: str, label: np.ndarray
) -> dict[str, pa.ChunkedArray]:
    """Return those of some columns that the rows of a run have as well, integers or texts, each ``(n,)``."""
    import pyarrow as pa

    from fuxictr_mm.data.arrow_types import is_plain_text

    names = columns.column_names
    texts = [field.name for field in columns.schema if is_plain_text(field.type)]
    try:
        table = _read_data(like, f"{split}_data", [*names, label_name], texts)
        if label_name not in table.column_names:
            raise DataError(f"{like.config[f'{split}_data']} has no column {label_name}")
        if split == "valid" and len(table) != len(label) and like.config.get("train_data"):
            # Out-of-fold predictions are of train and valid, by time without the rows at the beginning.
            table = pa.concat_tables(
                [_read_data(like, "train_data", table.column_names, texts), table], promote_options="permissive"
            )
            table = table.slice(max(len(table) - len(label), 0))
    except (UserError, pa.ArrowException) as error:
        unknown = [name for name in names if name.lower() not in (*SCORES, *ROW_NUMBERS)]
        if not unknown:
            return {}
        reason = first_line(error)
        raise DataError(
            f"{path}: {', '.join(unknown)}: cannot be looked up ({reason}); write only the scores, in the "
            "order of the rows"
        ) from None
    kinds = (pa.types.is_integer, is_plain_text)
    shared = [f.name for f in table.schema if f.name != label_name and any(kind(f.type) for kind in kinds)]
    known = label == label
    theirs = table[label_name].to_numpy()
    if shared and not (len(theirs) == len(label) and _same_labels(theirs[known], label[known])):
        raise DataError(
            f"{path}: {', '.join(shared)}: cannot be looked up, {like.config[f'{split}_data']} does not hold the rows "
            f"that {like.run} was evaluated on; write only the scores, in the order of the run"
        )
    return {name: table[name] for name in shared}


def _with_types_of(path: Path, table: pa.Table, keys: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """Return a table with the columns of a CSV file, which has no types, cast to other types where possible."""
    import pyarrow as pa
    from pyarrow import csv

    kinds = {name: column.type for name, column in keys.items() if table[name].type != column.type}
    for name, kind in kinds.items() if path.suffix.lower() == ".csv" else ():
        try:
            options = csv.ConvertOptions(include_columns=[name], column_types={name: kind})
            read = csv.read_csv(path, convert_options=options)
        except pa.ArrowException:  # a text among integers, which _order refuses
            continue
        table = table.set_column(table.column_names.index(name), name, read[name])
    return table


def _comparable(path: Path, name: str, ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return two columns as arrays that NumPy compares without rounding: as objects, where integers become floats."""
    import pyarrow as pa

    if pa.types.is_integer(ours.type) != pa.types.is_integer(theirs.type):
        raise DataError(f"{path}: {name}: holds {theirs.type}, expected {ours.type} as in the data file")
    found = [
        np.array(column.to_pylist(), dtype=object)
        if column.null_count and pa.types.is_integer(column.type)
        else column.to_numpy()
        for column in (ours, theirs)
    ]
    if np.result_type(*found).kind == "f":  # of uint64 and int64
        found = [values.astype(object) for values in found]
    return found[0], found[1]


def _read_data(run: Run, setting: str, names: Sequence[str], texts: Sequence[str]) -> pa.Table:
    """Return those of some columns that a data file of a run has; of CSV files, ``texts`` as texts."""
    import pyarrow as pa
    from pyarrow import csv

    from fuxictr_mm.data.parquet import part_files, read_rows, schema_of

    if not (data := run.config.get(setting)):
        raise DataError(f"{run.run} has no {setting}")
    if run.config.get("data_format") != "csv":
        present = [name for name in schema_of(part_files(data)[0]).names if name in names]
        batches = [pa.Table.from_batches([batch.select(present)]) for _, batch in read_rows(data, present)]
        return pa.concat_tables(batches, promote_options="permissive")
    parsing = csv.ParseOptions(delimiter=run.config.get("sep", ","), newlines_in_values=True)
    converting = csv.ConvertOptions(
        include_columns=names, include_missing_columns=True, column_types=dict.fromkeys(texts, pa.string())
    )
    tables = [
        csv.read_csv(file, parse_options=parsing, convert_options=converting) for file in part_files(data, ".csv")
    ]
    table = pa.concat_tables(tables, promote_options="permissive")
    return table.select([name for name in table.column_names if table[name].null_count < len(table)])


def _order(
    path: Path, table: pa.Table, score: str, rows: int, keys: Mapping[str, pa.ChunkedArray]
) -> tuple[np.ndarray | slice, str]:
    """Return which row of the file belongs to each example ``(n,)``, and how they were found."""
    if keys:
        how = f"joined by {', '.join(keys)}"
        pairs = [_comparable(path, name, column, table[name]) for name, column in keys.items()]
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if table.num_rows == rows and all(map(np.array_equal, ours, theirs)):
            return slice(None), how
        return _join(path, ours, theirs, list(keys)), how
    if table.num_rows != rows:
        raise DataError(f"{path}: {table.num_rows} predictions, expected {rows}, one per row")
    numbers = next((name for name in table.column_names if name.lower() in ROW_NUMBERS and name != score), None)
    if numbers is None:
        return slice(None), "in file order"
    found = table[numbers].to_numpy()
    order = np.argsort(found, kind="stable")
    named = numbers or "the column without a name"
    if not np.array_equal(found[order], np.arange(rows)):
        raise DataError(
            f"{path}: {named}: does not number {rows} rows from 0; remove it if the rows are in the order of the file"
        )
    return order, f"ordered by {named}"


def _join(path: Path, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    from pandas import factorize  # type: ignore[import-untyped]

    by = ", ".join(names)
    rows = len(ours[0])
    code = np.zeros(rows + len(theirs[0]), dtype=np.int64)
    for first, second in zip(ours, theirs, strict=True):
        index = factorize(np.concatenate([first, second]), use_na_sentinel=False)[0]  # texts may be null
        code = np.unique(code * (index.max() + 1) + index, return_inverse=True)[1]
    wanted, found = code[:rows], code[rows:]
    for what, codes in (("the data file", wanted), (str(path), found)):
        if len(np.unique(codes)) < len(codes):
            raise DataError(
                f"{path}: {by} repeat in {what}, so they do not identify rows; write all rows in the order of the file"
            )
    order = np.argsort(found, kind="stable")
    place = np.searchsorted(found[order], wanted).clip(max=len(found) - 1)
    missing = found[order][place] != wanted
    if missing.any():
        raise DataError(
            f"{path}: {int(missing.sum())} of {rows} rows have no prediction, first row {int(np.argmax(missing))}; "
            f"joined by {by}"
        )
    return order[place]
