"""Splits of a raw dataset on disk, CSV or Parquet: reading them lazily, and errors with the row and the value."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_mm.data.fingerprint import hash_files
from fuxictr_mm.data.parquet import SEPARATORS, open_parquet, part_files, require_columns
from fuxictr_mm.encoding.columns import RawColumn, refused
from fuxictr_mm.encoding.csv_files import (
    blank_rows,
    count_short_rows,
    find_long_row,
    find_stray_quote,
    plain_numbers,
    scan_csv,
    with_partitions,
)
from fuxictr_mm.errors import DataError, first_line

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class RawFiles:
    """A split on disk: a file or a folder of part files, CSV or Parquet."""

    path: Path  #: The file or folder.
    form: str  #: Format of the files: "csv", "parquet".
    separator: str = ","  #: Separator of the columns of CSV files.

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
        if found and not label.is_optional:
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
            for is_bad, expected in refused(column, schema[column.source]):
                bad = frame.select(value).with_row_index("row").filter(value.is_not_null(), is_bad)
                try:
                    found = bad.head(1).collect(engine="streaming")
                except pl.exceptions.PolarsError:  # the file is damaged in another way
                    return
                if len(found):
                    raise DataError(
                        f"{file}: {column.source}: row {found['row'][0]} holds {found[column.source][0]!r}, {expected}"
                    )


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
