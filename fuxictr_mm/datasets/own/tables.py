"""Tables as people have them: CSV in its dialects, Parquet, JSON lines; of one file or several, never held whole."""

from __future__ import annotations

import csv
import gzip
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_mm.errors import ConfigError, DataError, first_line, nearest

PARQUET, LINES, CSV = (".parquet", ".pq", ".parq"), (".jsonl", ".ndjson", ".json"), (".csv", ".tsv", ".txt")
SEPARATORS = ",\t;|"

#: What stands for no number in a CSV file.
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")

#: Numbers as they are written; 007 is an id or a code.
INTEGER = r"^-?(?:0|[1-9]\d{0,17})$"
FLOAT = r"^[+-]?(?:0|[1-9]\d*)?(?:\.\d*)?(?:[eE][+-]?\d+)?$"


def form_of(path: Path) -> str:
    """Return the ending that says how a file is read, without that of gzip."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


@dataclass(frozen=True)
class Table:
    """A table of one file or several with the same columns.

    Parameters
    ----------
    paths : sequence of Path
        The files.
    scratch : Path
        Folder for the files as Parquet.
    option : str
        The option that names them, for errors.
    texts : sequence of str
        Columns of ids, whose texts stay texts: 007 and 7 are two.
    """

    paths: Sequence[Path]
    scratch: Path
    option: str
    texts: Sequence[str] = ()

    def __post_init__(self) -> None:
        for path in self.paths:
            if form_of(path) not in (*PARQUET, *LINES, *CSV):
                raise ConfigError(
                    f"--{self.option} {path}: expected a name that ends in .csv, .tsv, .txt or .jsonl, with or without "
                    ".gz, or in .parquet"
                )

    @cached_property
    def schema(self) -> dict[str, pl.DataType]:
        """Columns and their types in the files; those of a CSV file are texts."""
        schema: dict[str, pl.DataType] = {}
        for path in self.paths:
            try:
                schema = {**_scan(path).collect_schema(), **schema}
            except (pl.exceptions.PolarsError, OSError) as error:
                raise DataError(f"{path}: cannot be read ({first_line(error)})") from None
        twice = next((name for name in schema if re.search(r"_duplicated_\d+$", name)), None)
        if twice is not None:  # polars' name for it
            raise DataError(
                f"{self.paths[0]}: has the column '{twice.rpartition('_duplicated_')[0]}' twice; rename one"
            )
        return schema

    def check(self, column: str, what: str) -> None:
        """Raise a ConfigError where a column is not there."""
        if column not in self.schema:
            raise ConfigError(
                f"{what}: {self.paths[0]} has no column '{column}'{nearest(column, self.schema)} (it has: "
                f"{', '.join(self.schema)})"
            )

    @cached_property
    def _parts(self) -> list[Path]:
        return [_as_parquet(path, self.scratch / f"{self.option}-{n}.parquet") for n, path in enumerate(self.paths)]

    @cached_property
    def frame(self) -> pl.LazyFrame:
        """All rows, lazily: texts of CSV files that are numbers in all rows as numbers, categories as texts."""
        frame = pl.concat([pl.scan_parquet(part) for part in self._parts], how="diagonal_relaxed")
        texts, floats = pl.Categorical | pl.Enum | pl.Boolean, pl.Decimal | pl.Float32
        kinds = frame.collect_schema().items()
        casts = [
            pl.col(n).cast(pl.String if isinstance(t, texts) else pl.Float64)
            for n, t in kinds
            if isinstance(t, texts | floats)
        ]
        frame = frame.with_columns(casts)
        return frame.with_columns(self._numbers(frame))

    def _numbers(self, frame: pl.LazyFrame) -> list[pl.Expr]:
        """Return casts of the columns of CSV files whose texts are all numbers."""
        if not any(form_of(path) in CSV for path in self.paths):
            return []
        kinds = frame.collect_schema().items()
        names = [name for name, kind in kinds if kind == pl.String and name not in self.texts]
        tests = []
        for name in names:
            text = pl.col(name).str.strip_chars()
            for kind, pattern in (("integer", INTEGER), ("float", FLOAT)):
                is_number = text.is_null() | text.is_in(MISSING) | text.str.contains(pattern)
                tests.append(is_number.all().alias(f"{kind} {name}"))
        found = frame.select(tests).collect(engine="streaming").row(0, named=True) if tests else {}
        types = {n: pl.Int64 if found[f"integer {n}"] else pl.Float64 for n in names if found[f"float {n}"]}
        return [pl.col(name).str.strip_chars().cast(kind, strict=False) for name, kind in types.items()]

    def where(self, row: int) -> str:
        """Return file and row, counted from 0 after the header, of a row of ``frame``."""
        for path, part in zip(self.paths, self._parts, strict=True):
            rows = pl.scan_parquet(part).select(pl.len()).collect().item()
            if row < rows:
                return f"{path}: row {row}"
            row -= rows
        return str(self.paths[-1])

    def refuse(self, bad: pl.Expr, column: str, expected: str) -> None:
        """Raise a DataError that names the first row for which ``bad`` is true, where there is one."""
        rows = self.frame.with_row_index(":row").filter(bad).select(":row", value=pl.col(column)).head(1)
        for row, value in rows.collect(engine="streaming").iter_rows():
            raise DataError(f"{self.where(row)}: {column} is {value!r}, expected {expected}")


def _scan(path: Path) -> pl.LazyFrame:
    if form_of(path) in PARQUET:
        return pl.scan_parquet(path)
    if form_of(path) in LINES:
        return pl.scan_ndjson(path, infer_schema_length=None)
    options: dict[str, Any] = {"separator": _separator(path), "infer_schema": False}
    return pl.scan_csv(path, **options)


def _separator(path: Path) -> str:
    """Return the separator that stands most often in the first line."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline()
    return max(SEPARATORS, key=header.count)


def _as_parquet(path: Path, target: Path) -> Path:
    """Return a file as Parquet: itself, or what it is converted to, once."""
    if form_of(path) in PARQUET or target.exists():
        return path if form_of(path) in PARQUET else target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, unpacked = target.with_suffix(".partial"), target.with_suffix(".unpacked" + form_of(path))
    source = path
    if path.suffix == ".gz":
        source = unpacked
        with gzip.open(path) as stream, unpacked.open("wb") as copy:
            shutil.copyfileobj(stream, copy)
    try:
        _scan(source).sink_parquet(partial)
    except pl.exceptions.PolarsError as error:
        where = _find_long_row(source) if form_of(path) in CSV else None
        raise DataError(f"{path}: cannot be read ({where or first_line(error)})") from None
    finally:
        unpacked.unlink(missing_ok=True)
    partial.rename(target)
    return target


def _find_long_row(path: Path) -> str | None:
    """Return what is wrong with the first row that has more fields than the header, or is no text."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream, delimiter=_separator(path))
        header = next(rows, [])
        for number, row in enumerate(rows):
            if len(row) > len(header):
                return f"row {number} has {len(row)} fields, expected {len(header)}"
            fields = zip(header, row, strict=False)
            wrong = next((name for name, text in fields if any("\udc80" <= c <= "\udcff" for c in text)), None)
            if wrong is not None:
                return f"row {number}: {wrong} is no text in UTF-8; convert the file"
    return None
