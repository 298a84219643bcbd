"""Tables as people have them: CSV in its dialects, Parquet, JSON lines; of one file or several, never held whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from fuxictr_mm.data import parquet
from fuxictr_mm.datasets.own.amounts import PLAIN, Form
from fuxictr_mm.datasets.own.number_texts import NumberTexts
from fuxictr_mm.encoding.csv_files import with_partitions
from fuxictr_mm.encoding.text_files import (
    CSV,
    UTF8,
    Encoding,
    form_of,
    has_names,
    is_text,
    scanned,
    schema_of,
    separator_in,
)
from fuxictr_mm.errors import ConfigError, DataError, first_line, nearest

#: An integer as pandas writes it in a column with missing values.
WHOLE = r"^(-?(?:0|[1-9]\d*))\.0$"


@dataclass(frozen=True)
class Table:
    """A table of one file or several with the same columns."""

    paths: Sequence[Path]  #: The files.
    scratch: Path  #: Folder for the files as Parquet.
    option: str  #: The option that names them, for errors.
    texts: Sequence[str] = ()  #: Columns of ids, whose texts stay texts: 007 and 7 are two.
    types: Mapping[str, str] = field(default_factory=dict)  #: What columns are known to become, as ``--types`` has it.
    #: Whether floats that are integers in all rows are read as integers, by the column, and 12.0 among texts as 12. By
    #: default floats are if values are missing.
    as_integers: Mapping[str, bool] = field(default_factory=dict)
    encoding: Encoding = UTF8  #: Of files of text.
    header: Sequence[str] = ()  #: Names of the columns of CSV files without a header.
    date_order: Literal["dmy", "mdy", "ymd"] | None = None  #: Of dates that may be of two orders, such as 05/03/2024.
    #: How an earlier log writes the numbers of columns, whose types cannot be changed; None if there is none.
    known_forms: Mapping[str, Form] | None = None
    numeric: Collection[str] = ()  #: Columns that ``--types`` names as numbers.
    strict: Collection[str] = ()  #: Columns with a role and labels: of these, each text has to be a number.

    def __post_init__(self) -> None:
        for path in self.paths:
            if not (is_text(path) or form_of(path) in parquet.SUFFIXES):
                raise ConfigError(
                    f"--{self.option} {path}: expected a name that ends in {', '.join(CSV)} or .jsonl, with or without "
                    ".gz or .zst, or in .parquet"
                )
            if self.header and form_of(path) not in CSV:
                raise ConfigError(f"--header {self.option}: {path} has names of its own; leave it out")

    def _names_of(self, path: Path) -> Sequence[str]:
        """Return the names of the columns of a file; none if it has a header of them."""
        return () if self.header and has_names(path, self.encoding, self.header) else self.header

    def changed(self, **fields: Any) -> Table:
        """Return the table with other fields, but those of its files, whose columns are not read again."""
        table = replace(self, **fields)
        if "schema" in vars(self):
            table.__dict__["schema"] = self.schema
        return table

    @cached_property
    def schema(self) -> dict[str, pl.DataType]:
        """Columns and their types in the files; those of a CSV file are texts, and fields of structs are named a.b."""
        schema: dict[str, pl.DataType] = {}
        for path in self.paths:
            try:
                held = (
                    schema_of(path, self.encoding, self._names_of(path))
                    if is_text(path)
                    else pl.read_parquet_schema(path)
                )
                found = dict(with_partitions(pl.LazyFrame(schema=held), path.absolute()).collect_schema())
            except (pl.exceptions.PolarsError, OSError) as error:
                raise DataError(f"{path}: cannot be read ({first_line(error)})") from None
            schema = {**found, **schema}
        return {name: kind for name, kind, _ in _fields(schema, self.paths[0])}

    def check(self, column: str, what: str) -> None:
        """Raise a ConfigError if a column does not exist."""
        if column not in self.schema:
            self.check_header(column, what)
            lists = self.lists_with(lambda field: field == column.rpartition(".")[2])
            is_key = self.option != "interactions" and what.startswith("--roles ")
            raise ConfigError(
                f"{what}: {self.paths[0]} has no column '{column}'{nearest(column, self.schema)} (it has: "
                f"{', '.join(self.schema)})"
                f"{f'; rename the column of its ids to {column}, the name that they have in the log' if is_key else ''}"
                f"{lists}{self.of_folders(column) if what.startswith('--roles user=') else ''}"
            )

    def check_all(self, columns: Mapping[str, str]) -> None:
        """Raise a ConfigError that names all columns that do not exist; the keys say what asks for each."""
        missing = {what: column for what, column in columns.items() if column not in self.schema}
        for what, column in missing.items():
            if len(missing) == 1:
                self.check(column, what)
            self.check_header(column, what)
        if missing:
            names = ", ".join(f"'{column}'{nearest(column, self.schema)}" for column in missing.values())
            raise ConfigError(
                f"{', '.join(missing)}: {self.paths[0]} has no columns {names} (it has: {', '.join(self.schema)})"
            )

    def lists_with(self, is_wanted: Callable[[str], bool]) -> str:
        """Return what to do where the entries of a list have a field that is wanted as a column: a row for each."""
        for name, kind in self.schema.items():
            inner = kind.inner if isinstance(kind, pl.List) else None
            field = (
                next((f.name for f in inner.fields if is_wanted(f.name)), None)
                if isinstance(inner, pl.Struct)
                else None
            )
            if field is not None:
                return f"; {name} is a list whose entries have {field}: write a row for each (explode of Polars)"
        return ""

    def of_folders(self, column: str) -> str:
        """Return what to do where a column is missing and each of several files may be of one value, such as a user."""
        if len(self.paths) < 2:
            return ""
        return f"; if each file is of one {column}, move it into a folder that is named {column}=VALUE"

    def check_header(self, column: str, what: str) -> None:
        """Raise a ConfigError if the first line of a CSV file holds values, where a column is missing."""
        if form_of(self.paths[0]) in CSV and any(re.match(PLAIN["."], name) for name in self.schema):
            raise ConfigError(
                f"{what}: the first line of {self.paths[0]} holds values ({', '.join(self.schema)}), expected "
                f"names of columns; name them: --header {self.option}=NAME,NAME,... with {len(self.schema)} names, "
                f"one of them {column}"
            )

    @cached_property
    def _parts(self) -> list[Path]:
        targets = [self.scratch / f"{self.option}-{number}.parquet" for number in range(len(self.paths))]
        return [self._as_parquet(path, to) for path, to in zip(self.paths, targets, strict=True)]

    def _as_parquet(self, path: Path, target: Path) -> Path:
        """Return a file as Parquet: itself, or what it is converted to, once."""
        if not is_text(path) or target.exists():
            return target if is_text(path) else path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        with scanned(path, target.parent, warn=True, encoding=self.encoding, names=self._names_of(path)) as rows:
            rows.sink_parquet(partial)
        partial.rename(target)
        return target

    @cached_property
    def _rows(self) -> pl.LazyFrame:
        """All rows, lazily, with the texts of CSV files, and categories as texts."""
        pairs = zip(self._parts, self.paths, strict=True)
        parts = [with_partitions(pl.scan_parquet(part), path.absolute()) for part, path in pairs]
        frame = pl.concat(parts, how="diagonal_relaxed")
        frame = frame.select(value.alias(name) for name, _, value in _fields(frame.collect_schema(), self.paths[0]))
        casts: dict[str, type[pl.DataType]] = {}
        for name, kind in frame.collect_schema().items():
            if isinstance(kind, pl.Categorical | pl.Enum | pl.Boolean):
                casts[name] = pl.String
            elif isinstance(kind, pl.Decimal | pl.Float32):  # databases have integers of a scale of 0
                casts[name] = pl.Int64 if isinstance(kind, pl.Decimal) and not kind.scale else pl.Float64
        return frame.with_columns(pl.col(name).cast(kind) for name, kind in casts.items())

    @cached_property
    def frame(self) -> pl.LazyFrame:
        """All rows, lazily: texts of CSV files that are numbers in all rows as numbers, categories as texts."""
        frame = self._rows.with_columns(self._numbers[0])
        return frame.with_columns(self._integers(frame))

    def _integers(self, frame: pl.LazyFrame) -> list[pl.Expr]:
        """Return casts of floats that are integers with missing values: pandas writes 12 as 12.0 in such a column."""
        schema = frame.collect_schema().items()
        texts = [pl.col(name) for name, kind in schema if kind == pl.String and self.as_integers.get(name)]
        casts = [text.str.replace(WHOLE, "${1}") for text in texts]
        # 12 % is a quantity: as an integer, it could become a category.
        names = [name for name, kind in schema if kind == pl.Float64 and not self.forms.get(name, Form()).unit]
        if not names:
            return casts
        values = {name: pl.col(name).fill_nan(None) for name in names}
        tests = []
        for name, value in values.items():
            # Larger ones may have been rounded to floats.
            is_whole = (value.is_null() | ((value == value.round()) & (value.abs() < 2**53))).all()
            is_asked = pl.lit(self.as_integers[name]) if name in self.as_integers else value.is_null().any()
            tests.append((is_whole & is_asked).alias(name))
        found = frame.select(tests).collect(engine="streaming").row(0, named=True)
        return casts + [value.cast(pl.Int64) for name, value in values.items() if found[name]]

    @property
    def forms(self) -> dict[str, Form]:
        """How numbers are written in the texts of a column, if they have a unit or a decimal comma."""
        return self._numbers[1]

    @cached_property
    def _numbers(self) -> tuple[list[pl.Expr], dict[str, Form]]:
        """Return casts of the columns whose texts are numbers, and how these are written.

        Of files that are no CSV, only columns that are known to hold numbers are read so.
        """
        csv = [path for path in self.paths if form_of(path) in CSV]
        if not csv and "numeric" not in self.types.values():
            return [], {}
        # 12,5 is a number where commas separate no columns; of a category, it may be two ids.
        is_csv = len(csv) in (0, len(self.paths))
        has_commas = is_csv and all(separator_in(path, self.encoding, self._names_of(path)) != "," for path in csv)
        found = NumberTexts(
            self._rows, self.paths[0], self.option, self.texts, self.types, self.known_forms, has_commas,
            asked=self.numeric, strict=self.strict, only_asked=not csv,
        )  # fmt: skip
        return found.read()

    def where(self, row: int) -> str:
        """Return file and row, counted from 0 after the header, of a row of ``frame``."""
        for path, part in zip(self.paths, self._parts, strict=True):
            rows = pl.scan_parquet(part).select(pl.len()).collect().item()
            if row < rows:
                return f"{path}: row {row}"
            row -= rows
        return str(self.paths[-1])

    def refuse_texts(self, column: str, form: Form, why: str) -> None:
        """Raise a DataError that names the first text of a column that is no number of a form, where there is one."""
        of = f" with the unit {form.unit!r}" if form.unit else ""
        fix = "write all in this unit" if form.unit else "correct it, or leave it empty if it is missing"
        self.refuse(~form.fits(pl.col(column)), column, f"a number{of}{why}", lambda: fix)

    def refuse(self, bad: pl.Expr, column: str, expected: str, remedy: Callable[[], str] | None = None) -> None:
        """Raise a DataError that names the first row for which ``bad`` is true, where there is one, and what to do."""
        rows = self.frame.with_row_index(":row").filter(bad).select(":row", value=pl.col(column)).head(1)
        for row, value in rows.collect(engine="streaming").iter_rows():
            fix = "" if remedy is None else f"; {remedy()}"
            if row == 0 and self.header:
                names = ",".join(self.header)
                fix = f"; if the first line holds names of columns, write {names} there, in any order" + fix
            raise DataError(f"{self.where(row)}: {column} is {value!r}, expected {expected}{fix}")


def _fields(schema: Mapping[str, pl.DataType], path: Path) -> Iterator[tuple[str, pl.DataType, pl.Expr]]:
    """Yield name, type and value of each column, and ``a.b`` for the field ``b`` of a struct ``a``, however nested."""
    taken = set(schema)
    columns = [(name, kind, pl.col(name)) for name, kind in schema.items()]
    while columns:
        name, kind, value = columns.pop(0)
        if not isinstance(kind, pl.Struct):
            yield name, kind, value
            continue
        inner = [(f"{name}.{f.name}", f.dtype, value.struct.field(f.name)) for f in kind.fields]
        twice = next((field[0] for field in inner if field[0] in taken), None)
        if twice is not None:
            raise DataError(
                f"{path}: the field '{twice.removeprefix(name + '.')}' of '{name}' has the name of column '{twice}'; "
                "rename one"
            )
        taken.update(field[0] for field in inner)
        columns = [*inner, *columns]  # type: ignore[list-item]
