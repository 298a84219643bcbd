"""Tables in files of text: CSV in its dialects and JSON lines, both also compressed by gzip or Zstandard."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import logging
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pyarrow as pa

from fuxictr_mm.data.parquet import SEPARATORS
from fuxictr_mm.encoding.csv_files import blank_rows, count_short_rows, find_long_row, find_stray_quote, scan_csv
from fuxictr_mm.errors import DataError, first_line

logger = logging.getLogger(__name__)

CSV, LINES = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson", ".json")

#: Endings of compressed files.
PACKED = (".gz", ".zst")


def form_of(path: Path) -> str:
    """Return the ending that says how a file is read, without that of its compression."""
    return unpacked_name(path).suffix.lower()


def unpacked_name(path: Path) -> Path:
    """Return the path of a file without the ending of its compression."""
    return path.with_suffix("") if path.suffix in PACKED else path


def is_text(path: Path) -> bool:
    """Whether a file is one of text by its name."""
    return form_of(path) in (*CSV, *LINES)


def separator_of(header: str) -> str:
    """Return what separates the names of the first line: tabs, or what stands there most often outside of quotes.

    Examples
    --------
    >>> separator_of('user;"price, without tax, EUR";time')
    ';'
    """
    header = re.sub(r'"[^"]*"', "", header)
    return "\t" if "\t" in header else max(SEPARATORS, key=header.count)


def separator_in(path: Path) -> str:
    """Return what separates the columns of a CSV file, by its first line."""
    return separator_of(_header(path))


def schema_of(path: Path) -> dict[str, pl.DataType]:
    """Return the columns of a file and their types; those of a CSV file are texts."""
    with _named_errors(path):
        if form_of(path) in LINES:
            return dict(pl.scan_ndjson(path, infer_schema_length=None).collect_schema())
        header = _header(path)  # of a compressed file, polars would unpack all into memory
        if "\0" in header:
            raise DataError(f"{path}: is not a text file in UTF-8, perhaps in UTF-16; convert the file to UTF-8")
        if "\r" in re.sub(r'"[^"]*"', "", header).rstrip("\r\n"):
            raise DataError(f"{path}: its lines end in CR, expected LF or CR LF; convert the file")
        schema = pl.read_csv(io.BytesIO(header.encode()), separator=separator_of(header), infer_schema=False).schema
    twice = next((name for name in schema if re.search(r"_duplicated_\d+$", name)), None)
    if twice is not None:  # polars' name for it
        raise DataError(f"{path}: has the column '{twice.rpartition('_duplicated_')[0]}' twice; rename one")
    return dict(schema)


@contextmanager
def scanned(path: Path, folder: Path | None = None, warn: bool = False) -> Iterator[pl.LazyFrame]:
    """Yield the rows of a file, lazily; its types are those of ``schema_of``, and blank lines are skipped.

    A compressed file is unpacked temporarily, into ``folder`` or the folder of temporary files. ``warn`` logs rows of
    fewer fields than the header, whose last columns are missing values.

    Raises
    ------
    DataError
        The file cannot be read; of a CSV file with the row.
    """
    with TemporaryDirectory(prefix=".unpacked-", dir=folder) as unpacked:
        plain = path
        if path.suffix in PACKED:
            plain = Path(unpacked) / path.stem
            with _named_errors(path), _opened(path) as stream, plain.open("wb") as copy:
                shutil.copyfileobj(stream, copy)
        with _named_errors(path, plain):
            if form_of(path) in LINES:
                yield pl.scan_ndjson(plain, infer_schema_length=None)
                return
            separator = separator_in(plain)
            count, row = count_short_rows(plain, separator) if warn else (0, 0)
            if count:
                logger.warning(f"{path}: {count} rows have fewer fields than the header, first row {row}")
            # Always true; polars finds rows of too many fields only if it reads all columns.
            is_read = pl.sum_horizontal(pl.all().is_null()) >= 0
            yield scan_csv(plain, separator, blank_rows(plain, separator)).filter(is_read)


@contextmanager
def _named_errors(path: Path, plain: Path | None = None) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        # Damaged archives are errors without a number.
        is_of_system = isinstance(error, OSError) and error.errno is not None and not isinstance(error, PermissionError)
        if is_of_system or isinstance(error, FileNotFoundError) or is_disk_full(error):
            raise
        where = _find_damage(plain) if plain is not None and form_of(path) in CSV else ""
        raise DataError(
            f"{path}: cannot be read ({where or first_line(error)}); correct it, or write it as Parquet"
        ) from None


def is_disk_full(error: BaseException) -> bool:
    """Whether polars, whose errors have no number, could not write."""
    return f"os error {errno.ENOSPC}" in str(error)


def _header(path: Path) -> str:
    """Return the first line that is not empty; polars takes one of spaces as well."""
    with _opened(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="\n") as lines:
        return next((line for line in lines if line.strip("\r\n")), "")


def _opened(path: Path) -> Any:
    """Return the bytes of a file, unpacked."""
    if path.suffix == ".zst":
        return pa.input_stream(path, compression="zstd")
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _find_damage(path: Path) -> str:
    """Return what is wrong in a CSV file and where, as far as it is known."""
    separator = separator_in(path)
    if line := find_stray_quote(path, separator):
        return f"line {line} has a quote that is not closed, or one inside a text"
    if found := find_long_row(path, separator):
        return "row {} has {} fields, expected {}".format(*found)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream, suppress(csv.Error):
        for number, row in enumerate(csv.DictReader(stream, delimiter=separator)):
            wrong = next(
                (name for name, text in row.items() if any("\udc80" <= c <= "\udcff" for c in text or "")), None
            )
            if wrong is not None:
                return f"row {number}: {wrong} is not text in UTF-8; convert the file to UTF-8"
    return ""
