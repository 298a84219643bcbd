"""Columns of a raw dataset, as FuxiCTR's ``feature_cols`` and ``label_col`` describe them, and how they are read."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_mm.config import DatasetConfig, FeatureSpec
from fuxictr_mm.config.columns import listed_twice, split_entries
from fuxictr_mm.data.fingerprint import hash_files
from fuxictr_mm.data.parquet import SEPARATORS, open_parquet, part_files, require_columns
from fuxictr_mm.encoding.csv_files import (
    blank_rows,
    count_short_rows,
    find_long_row,
    find_stray_quote,
    plain_numbers,
    scan_csv,
    to_numbers,
    with_partitions,
)
from fuxictr_mm.errors import ConfigError, DataError, first_line

logger = logging.getLogger(__name__)

TYPES = {"str": pl.String, "int": pl.Int64, "float": pl.Float64}

#: First bytes of files that are named as CSV and no text may begin with, what they are, and what to do.
NO_TEXT = {
    rb"\x1f\x8b": ("compressed by gzip", "unpack it with gunzip -k"),
    rb"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it with unzstd"),
    rb"x[\x01\x9c\xda]": ("compressed by zlib", "unpack it"),
    rb"BZh[1-9]1AY&SY": ("compressed by bzip2", "unpack it with bunzip2 -k"),
    rb"\xfd7zXZ": ("compressed by xz", "unpack it with unxz -k"),
    rb"\x04\x22\x4d\x18": ("compressed by lz4", "unpack it with unlz4 -k"),
    rb"\xff\x06\x00\x00sNaPpY": ("compressed by snappy", "unpack it"),
    rb"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or save it as CSV UTF-8"),
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an Excel workbook", "save it as CSV UTF-8"),
    rb"ARROW1\x00\x00": ("Feather or Arrow", "write it as CSV or Parquet"),
    rb"(?i:\s*<(!doctype html|html)\b)": ("a web page", "download the file again"),
    rb"PAR1.*PAR1\Z": (
        "Parquet", "write data_format: parquet and rebuild_dataset: True in the dataset's entry"
    ),
    rb"\xff\xfe|\xfe\xff|.{0,3}\x00": ("in UTF-16", "save it as CSV UTF-8"),
}  # fmt: skip

#: What FuxiCTR puts in place of a missing value.
MISSING: dict[str, Any] = {"str": "", "int": 0, "float": 0.0}


@dataclass(frozen=True)
class RawColumn:
    """A column to encode.

    Parameters
    ----------
    spec : FeatureSpec
        Its entry of ``feature_cols``; of a label, the name, type and ``fill_na`` of its entry of ``label_col``.
    copied : str, optional
        The ``dtype`` of a column of numbers that ``copy_from`` copies: texts are then those of the numbers, so that 1
        and 1.0 are one value.
    is_optional : bool
        Whether files may not have it: only those that are trained on need weights.
    """

    spec: FeatureSpec
    copied: str | None = None
    is_optional: bool = False

    @property
    def name(self) -> str:
        """Name of the encoded column."""
        return str(self.spec.name)

    @property
    def type(self) -> str:
        """Kind of feature, or ``label``."""
        return self.spec.type or "label"

    @property
    def dtype(self) -> str:
        """Type of the stored values; sequences are texts."""
        return "str" if self.type == "sequence" else self.spec.dtype or "float"

    @property
    def source(self) -> str:
        """Name of the column of the files."""
        preprocess = self.spec.preprocess
        if not preprocess:
            return self.name
        copied = re.fullmatch(r"copy_from\(([^()]+)\)", preprocess)
        if copied is None:
            raise ConfigError(
                f"feature '{self.name}': preprocess: {preprocess}; only copy_from(COLUMN) is supported, "
                "functions of your own FeatureProcessor are not called; write the column into the files instead"
            )
        return copied[1].strip()

    @property
    def missing(self) -> Any:
        """The value that FuxiCTR's tokenizer takes for a missing one."""
        value = self.spec.fill_na
        return "" if value is None else value

    @property
    def is_number(self) -> bool:
        """Whether the entries of a sequence along a history are numbers."""
        return self.type == "sequence" and bool(self.spec.history) and self.spec.dtype == "float"

    @property
    def has_vocabulary(self) -> bool:
        """Whether values are replaced by ids."""
        if self.type == "meta":
            return self.spec.remap is not False
        return self.type in ("categorical", "sequence") and not self.is_number

    def merges_integers(self, source: pl.DataType) -> bool:
        """Whether identifiers are read as floating-point numbers, of which several large integers are one."""
        is_id = self.type in ("categorical", "meta") or (self.type == "sequence" and bool(self.copied))
        kind = self.copied if source == pl.String and self.copied else self.dtype
        return is_id and kind == "float" and not source.is_float()

    @property
    def splitter(self) -> str:
        """What separates the entries of a sequence."""
        return self.spec.splitter or "^"

    def check(self) -> None:
        """Raise an error for settings that FuxiCTR 2.3.10 does not support or computes wrongly.

        Raises
        ------
        ConfigError
            A setting is not supported; the error names the feature and the key.
        """
        where = f"feature '{self.name}'"
        if self.spec.category_processor:
            raise ConfigError(
                f"{where}: category_processor: {self.spec.category_processor}; FuxiCTR 2.3.10 fails with it, and it "
                "is not supported here; write the buckets into the files"
            )
        if self.type in ("categorical", "sequence") and self.spec.remap is False:
            raise ConfigError(
                f"{where}: remap: False; FuxiCTR 2.3.10 fails with it; leave it out, or give encoded Parquet files"
            )
        if self.spec.pretrained_emb and self.type not in ("categorical", "sequence"):
            raise ConfigError(f"{where}: pretrained_emb with type: {self.type}, expected categorical or sequence")
        if self.spec.splitter == "":
            raise ConfigError(f"{where}: splitter is empty, expected what separates the entries, such as ^")
        if self.dtype == "list" and self.type != "embedding":
            raise ConfigError(f"{where}: dtype is list, expected int, float or str for type: {self.type}")

    def select(self, schema: Mapping[str, Any]) -> pl.Expr:
        """Return the expression that reads the column, with missing values filled."""
        values = pl.col(self.source)
        if isinstance(schema[self.source], pl.List | pl.Array):
            if self.type == "sequence":
                values = values.cast(pl.List(pl.String)).list.eval(pl.element().fill_null(str(self.missing)))
            return values.alias(self.name)
        if self.type == "embedding":
            raise ConfigError(f"feature '{self.name}': type: embedding needs lists in Parquet files")
        if self.type == "meta" and schema[self.source].is_float():  # a user NaN is none, as in files of integers
            values = values.fill_nan(None)
        if self.merges_integers(schema[self.source]):
            values = values.map_batches(_refuse_merged, schema[self.source], is_elementwise=True)
        if schema[self.source] == pl.String and self.dtype != "str":
            values = to_numbers(values, TYPES[self.dtype])
        elif schema[self.source].is_float() and self.dtype == "int":
            values = values.map_batches(_to_integers, pl.Int64, is_elementwise=True)
        elif schema[self.source] == pl.String and self.copied:
            values = to_numbers(values, TYPES[self.copied]).cast(pl.String)
        else:
            values = values.cast(TYPES[self.dtype])
        fill = self.spec.fill_na
        if fill is None and self.type not in ("label", "meta"):  # a row without a group has none
            fill = MISSING[self.dtype]
        if fill is not None:
            try:
                values = values.fill_null(pl.lit({"str": str, "int": int, "float": float}[self.dtype](fill)))
            except ValueError:
                raise ConfigError(
                    f"'{self.name}': fill_na is {fill!r}, expected a value of dtype {self.dtype}"
                ) from None
        return values.alias(self.name)


def columns_of(dataset: DatasetConfig) -> list[RawColumn]:
    """Return the active features in their order, the labels, and the weights of rows.

    Raises
    ------
    ConfigError
        A feature that is listed twice, or a setting that is not supported.
    """
    entries = split_entries(dataset.feature_cols or ())
    if twice := listed_twice(entries):
        raise ConfigError("; ".join(twice.values()))
    # Also of those that are not active, where it is given.
    dtypes = {entry.name: entry.dtype or ("float" if entry.active else "str") for entry in entries}
    features = [RawColumn(entry) for entry in entries if entry.active]
    labels = [FeatureSpec.model_construct(**label.model_dump(exclude_unset=True)) for label in dataset.labels]
    columns = [*features, *map(RawColumn, labels)]
    if (name := dataset.sample_weight) is not None:
        columns = [column for column in columns if column.name != name]
        columns.append(RawColumn(FeatureSpec.model_construct(name=name, dtype="float"), is_optional=True))
    for place, column in enumerate(columns):
        kind = dtypes.get(column.source)
        if column.source != column.name and column.dtype == "str" and kind in ("int", "float"):
            columns[place] = replace(column, copied=kind)
    for column in columns:
        column.check()
    return columns


@dataclass(frozen=True)
class RawFiles:
    """A split on disk: a file or a folder of part files, CSV or Parquet.

    Parameters
    ----------
    path : path
        The file or folder.
    form : {"csv", "parquet"}
        Format of the files.
    separator : str
        Separator of the columns of CSV files.
    """

    path: Path
    form: str
    separator: str = ","

    @property
    def files(self) -> list[Path]:
        """The files, in natural order."""
        return part_files(self.path, f".{self.form}")

    @property
    def hash(self) -> str:
        """The hash of the contents of the files."""
        return hash_files(self.path, f".{self.form}")

    def scan(self, columns: Sequence[RawColumn], needs_label: bool | None) -> tuple[pl.LazyFrame, list[RawColumn]]:
        """Return the columns with missing values filled, lazily, and the names of those that exist.

        Unless a label is needed, the label and ``meta`` columns may be missing, and a label of texts is left out. With
        None, no label is read.

        Raises
        ------
        DataError, MissingFileError
            A column or the file is missing.
        """
        if not needs_label:
            columns = [c for c in columns if c.type != "label" or (needs_label is False and not self._is_text(c))]
        frames: list[pl.LazyFrame] = []
        found: list[RawColumn] = []
        for file in self.files:
            if self.form == "csv":
                _check_is_text(file)
            with self._named_errors(file):
                schema = self._schema(file)
            optional = () if needs_label else ("label", "meta")
            present = [c for c in columns if not (c.is_optional or c.type in optional) or c.source in schema]
            if self.form == "csv":
                self._check_header(file, list(schema), [c.source for c in present])
            require_columns(file, list(schema), [c.source for c in present])
            if frames and found != present:
                names = ", ".join(sorted({c.source for c in found} ^ {c.source for c in present}))
                raise DataError(f"{self.path}: only some part files have {names}, expected it in all or in none")
            found = present
            frame = self._scan(file)
            if self.form == "csv":
                # Always true; polars finds rows of too many fields only if it reads all columns.
                frame = frame.filter(pl.sum_horizontal(pl.all().is_null()) >= 0)
            frames.append(frame.select(c.select(schema) for c in present))
        return pl.concat(frames), found

    def _check_header(self, file: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
        """Refuse another separator than the expected one, and two columns of one name."""
        for name in wanted:
            if name in names and f"{name}_duplicated_0" in names:  # as polars renames it
                raise DataError(f"{file}: two columns are named '{name}', expected one; drop the others")
        fields = {separator: names[0].split(separator) for separator in SEPARATORS if len(names) == 1}
        for separator in [separator for separator, found in fields.items() if set(wanted) <= set(found)]:
            if len(wanted) > 1:
                raise DataError(
                    f"{file}: the columns are separated by {separator!r}, expected {self.separator!r}; write sep: "
                    f"{json.dumps(separator)} in the dataset's entry"
                )

    def _is_text(self, label: RawColumn) -> bool:
        """Whether a label column holds texts and no number in any row; logged."""
        found = False
        for file in self.files:
            with self._named_errors(file):
                if self._schema(file).get(label.source) != pl.String:
                    continue
                frame = self._scan(file)
                value = pl.col(label.source)
                number = plain_numbers(value).cast(pl.Float64, strict=False).is_not_null().any()
                counts = frame.select(number.alias("number"), value.is_not_null().any().alias("text"))
                has_number, has_text = counts.collect(engine="streaming").row(0)
            if has_number:
                return False
            found |= has_text
        if found:
            logger.warning(
                f"{self.path}: {label.source} is text in all rows and is treated as a placeholder; no test "
                "metrics are computed"
            )
        return found

    def _scan(self, file: Path) -> pl.LazyFrame:
        if self.form == "csv":
            return scan_csv(file, self.separator, self._blank_rows[file])
        frame = with_partitions(pl.scan_parquet(file, hive_partitioning=False), file)
        # A cast of these to numbers would return the codes of the texts, which are others in each file.
        return frame.with_columns(pl.selectors.by_dtype(pl.Categorical, pl.Enum).cast(pl.String))

    @cached_property
    def _blank_rows(self) -> dict[Path, list[int]]:
        """Rows of each CSV file that are blank lines; logged."""
        found = {file: blank_rows(file, self.separator) for file in self.files}
        for file, rows in found.items():
            if rows:
                logger.warning(f"{file}: {len(rows)} blank lines are skipped")
        return found

    def warn_of_short_rows(self) -> None:
        """Log how many rows of CSV files have fewer fields than the header, whose last columns are missing values."""
        total, first = 0, ""
        for file in self.files:
            with self._named_errors(file):
                count, row = count_short_rows(file, self.separator)
            first = first or (f"row {row} of {file.name}" if count else "")
            total += count
        if total:
            logger.warning(
                f"{self.path}: {total} rows have fewer fields than the header, first {first}; the missing "
                "fields become missing values"
            )

    def _schema(self, file: Path) -> dict[str, Any]:
        if self.form == "parquet":
            open_parquet(file)
        return dict(self._scan(file).collect_schema())

    @contextmanager
    def named_errors(self, columns: Sequence[RawColumn]) -> Iterator[None]:
        """Turn an error of reading into one line with the file, the column, the row and the value."""
        try:
            yield
        except pl.exceptions.PolarsError as error:
            for file in self.files:
                if self.form == "csv":
                    self._find_long_row(file)
                self._find_bad_number(file, columns)
                self._find_stray_quote(file)
            raise DataError(f"{self.path}: cannot be read ({_reason(error)})") from None

    @contextmanager
    def _named_errors(self, file: Path) -> Iterator[None]:
        try:
            yield
        except pl.exceptions.PolarsError as error:
            self._find_stray_quote(file)
            raise DataError(f"{file}: cannot be read as {self.form} ({_reason(error)})") from None

    def _find_stray_quote(self, file: Path) -> None:
        """Raise a DataError for the first row of a CSV file whose quotes are not those of whole fields."""
        line = find_stray_quote(file, self.separator) if self.form == "csv" else 0
        if line:
            raise DataError(
                f"{file}: line {line} has a quote that is not closed, or one inside a text; close it, or put the whole "
                'text in quotes and double those inside: "5"" disk"'
            )

    def _find_long_row(self, file: Path) -> None:
        """Raise a DataError for the first row of a CSV file that has more fields than the header."""
        found = find_long_row(file, self.separator)
        if found:
            number, fields, expected = found
            raise DataError(
                f"{file}: row {number} has {fields} fields, expected {expected} as in the header; put texts that "
                f"hold {self.separator!r} in quotes"
            )

    def check_finite(self, column: RawColumn) -> None:
        """Raise a DataError for the first value of a column that is infinite or not a number."""
        for file in self.files:
            frame = self._scan(file)
            value = pl.col(column.source)
            text = frame.collect_schema()[column.source] == pl.String
            number = (plain_numbers(value) if text else value).cast(pl.Float64, strict=False)
            bad = frame.select(number).with_row_index("row").filter(~value.is_finite()).head(1)
            for row, value in bad.collect(engine="streaming").rows():
                raise DataError(
                    f"{file}: {column.source}: row {row} holds {value}, expected finite numbers; correct the file"
                )

    def _find_bad_number(self, file: Path, columns: Sequence[RawColumn]) -> None:
        """Raise a DataError for the first value of a column of numbers that is refused."""
        frame = self._scan(file)
        schema = frame.collect_schema()
        for column in columns:
            if column.source not in schema:
                continue
            value = pl.col(column.source)
            for is_bad, expected in _refused(column, schema[column.source]):
                bad = frame.select(value).with_row_index("row").filter(value.is_not_null(), is_bad)
                try:
                    found = bad.head(1).collect(engine="streaming")
                except pl.exceptions.PolarsError:  # the file is damaged in another way
                    return
                if len(found):
                    raise DataError(
                        f"{file}: {column.source}: row {found['row'][0]} holds {found[column.source][0]!r}, {expected}"
                    )


def _refused(column: RawColumn, source: pl.DataType) -> Iterator[tuple[pl.Expr, str]]:
    """Yield which values of a column that ``RawColumn.select`` refuses, and what is expected instead."""
    value = pl.col(column.source)
    kind = pl.Float64 if column.is_number else TYPES.get(column.copied or column.dtype, pl.String)
    if column.merges_integers(source):
        expected = (
            "expected integers below 2^53 (dtype: float), above which different integers become "
            "equal; write dtype: str for the column"
        )
        yield _merged(value, source), expected
    if source.is_float() and column.dtype == "int":
        is_bad = value.cast(kind, strict=False).cast(source).ne_missing(value)
    elif source == pl.String and kind != pl.String:
        number = plain_numbers(value)
        is_bad = number.is_not_null() & number.cast(kind, strict=False).is_null()
        if column.type == "sequence":
            entry = pl.element()
            entries = value.str.split(column.splitter)
            is_bad = entries.list.eval((entry != "") & entry.cast(kind, strict=False).is_null()).list.any()
    else:
        return
    dtype = column.copied or column.spec.dtype or "float"
    what, other = ("a number", "str") if source == pl.String else ("an integer", "float")
    is_fixed = column.type == "label" and source == pl.String  # no label is a text
    advice = "" if is_fixed else f", or write dtype: {other} for the column"
    yield is_bad, f"expected {what} (dtype: {dtype}); correct the file{advice}"


def _to_integers(values: pl.Series) -> pl.Series:
    """Return floating-point numbers as integers; fractions, which a cast would cut off, are an error."""
    if (values != values.floor()).any():
        raise pl.exceptions.InvalidOperationError("fractions in a column of integers")
    return values.cast(pl.Int64)


def _merged(values: pl.Expr, source: pl.DataType) -> pl.Expr:
    """Whether values are integers beyond 2^53, to which a cast to Float64 gives the number of others."""
    if source != pl.String:
        return values.cast(pl.Float64, strict=False).abs() >= 2**53
    texts = values.str.strip_chars(" \t")
    return texts.str.contains(r"^[+-]?\d{16,}$") & (texts.cast(pl.Float64, strict=False).abs() >= 2**53)


def _refuse_merged(values: pl.Series) -> pl.Series:
    """Return identifiers as they are; those that would be one number with others are an error."""
    if pl.select(_merged(pl.lit(values), values.dtype)).to_series().any():
        raise pl.exceptions.InvalidOperationError("integers beyond 2^53 in a column of floating-point numbers")
    return values


def _check_is_text(file: Path) -> None:
    """Refuse a file that is not text in UTF-8, by its ends: polars reads some of these, but no line of them."""
    with file.open("rb") as stream:
        start = stream.read(1 << 16)
        stream.seek(max(len(start), file.stat().st_size - 4))
        ends = start + stream.read()
    for magic, (what, fix) in NO_TEXT.items():
        if re.match(magic, ends, re.DOTALL):
            raise DataError(f"{file}: is {what}, expected a text file in UTF-8; {fix}")
    if b"\r" in start[:-1] and b"\n" not in start:
        raise DataError(f"{file}: its lines end in CR; save it with line ends LF or CR LF")


def _reason(error: Exception) -> str:
    reason = first_line(error)
    return f"{reason}; save the file in UTF-8" if "utf-8" in reason else reason
