"""Tables in files of text: CSV in its dialects and JSON lines, both also compressed by gzip or Zstandard."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import logging
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from fuxictr_mm.data.parquet import SEPARATORS
from fuxictr_mm.encoding.csv_files import blank_rows, count_short_rows, find_long_row, find_stray_quote, scan_csv
from fuxictr_mm.encoding.text_encodings import PACKED, UTF8, Encoding, convert, opened
from fuxictr_mm.errors import DataError, first_line

logger = logging.getLogger(__name__)

#: Endings of tables whose columns are separated by a character, or by two colons; of JSON lines.
CSV = (".csv", ".tsv", ".txt", ".dat", ".data", ".inter", ".item", ".user")
LINES = (".jsonl", ".ndjson", ".json")

#: What separates columns in files of MovieLens; in copies it is a tab.
COLONS = "::"


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


def separator_in(path: Path, encoding: Encoding = UTF8, names: Sequence[str] = ()) -> str:
    """Return what separates the columns of a CSV file, by its first line; a tab in place of two colons.

    ``names`` are those of the columns of a file without a header.
    """
    return separator_of(_header(path, encoding.of(path), names))


def has_names(path: Path, encoding: Encoding, names: Sequence[str]) -> bool:
    """Whether the first line of a CSV file holds all of some names, as a header does."""
    with _named_errors(path, encoding=encoding):
        first = _header(path, encoding.of(path))
    return set(names) <= {value.strip() for value in next(csv.reader([first], delimiter=separator_of(first)), ())}


def schema_of(path: Path, encoding: Encoding = UTF8, names: Sequence[str] = ()) -> dict[str, pl.DataType]:
    """Return the columns of a file and their types; those of a CSV file are texts.

    ``names`` are those of the columns of a CSV file without a header.
    """
    with _named_errors(path, encoding=encoding):
        if form_of(path) in LINES:
            if encoding.of(path) is None:  # which polars unpacks
                return dict(pl.scan_ndjson(path, infer_schema_length=None).collect_schema())
            with _plain(path, None, encoding) as plain:
                return dict(pl.scan_ndjson(plain, infer_schema_length=None).collect_schema())
        header = _header(path, encoding.of(path), names)  # of a compressed file, polars would unpack all into memory
        if "\0" in header:
            found = f"is not a text file in {encoding.name or 'UTF-8'}, perhaps in UTF-16 without a byte order mark"
            raise DataError(f"{path}: {found}; {encoding.advice}")
        if "\ufffd" in header:
            raise DataError(f"{path}: its first line is not text in {encoding.name or 'UTF-8'}; {encoding.advice}")
        if "\r" in re.sub(r'"[^"]*"', "", header).rstrip("\r\n"):
            raise DataError(f"{path}: its lines end in CR, expected LF or CR LF; convert the file")
        schema = pl.read_csv(io.BytesIO(header.encode()), separator=separator_of(header), infer_schema=False).schema
    twice = next((name for name in schema if re.search(r"_duplicated_\d+$", name)), None)
    if twice is not None:  # polars' name for it
        raise DataError(f"{path}: has the column '{twice.rpartition('_duplicated_')[0]}' twice; rename one")
    return dict(schema)


@contextmanager
def scanned(
    path: Path,
    folder: Path | None = None,
    warn: bool = False,
    encoding: Encoding = UTF8,
    names: Sequence[str] = (),
) -> Iterator[pl.LazyFrame]:
    """Yield the rows of a file, lazily; its types are those of ``schema_of``, and blank lines are skipped.

    A compressed file is unpacked temporarily, and one that is not in UTF-8, has no header or has two colons between
    columns is converted, into ``folder`` or the folder of temporary files. ``warn`` logs rows of fewer fields than the
    header, whose last columns are missing values.

    Raises
    ------
    DataError
        The file cannot be read; of a CSV file with the row.
    """
    with _plain(path, folder, encoding, names) as plain, _named_errors(path, plain, encoding):
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
def _plain(path: Path, folder: Path | None, encoding: Encoding, names: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a file that polars reads: the file itself, or a temporary copy in ``folder``.

    It is not compressed and in UTF-8, and a CSV file has a header and one character between columns.
    """
    with _named_errors(path):
        codec = encoding.of(path)
        has_colons = form_of(path) in CSV and _has_colons(_first_line(path, codec), names)
        header = f"{_header(path, codec, names)}\n" if names else ""
    if path.suffix not in PACKED and codec is None and not has_colons and not header:
        yield path
        return
    with TemporaryDirectory(prefix=".unpacked-", dir=folder) as unpacked:
        plain = Path(unpacked) / unpacked_name(path).name
        with _named_errors(path), opened(path) as stream, plain.open("wb") as copy:
            copy.write(header.encode())
            target = _WithTabs(copy) if has_colons else copy
            if codec is None:
                target.write(stream.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8))
                shutil.copyfileobj(stream, target)
            else:
                convert(stream, target, codec, path, encoding)
            if has_colons:
                target.close()
        yield plain


class _WithTabs:
    """A stream of bytes in which two colons become a tab."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._rest = stream, b""

    def write(self, content: bytes) -> None:
        content = (self._rest + content).replace(b"::", b"\t")
        end = len(content) - content.endswith(b":")  # the other one may follow
        self._stream.write(content[:end])
        self._rest = content[end:]

    def close(self) -> None:
        self._stream.write(self._rest)


@contextmanager
def _named_errors(path: Path, plain: Path | None = None, encoding: Encoding = UTF8) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        # Damaged archives are errors without a number.
        is_of_system = isinstance(error, OSError) and error.errno is not None and not isinstance(error, PermissionError)
        if is_of_system or isinstance(error, FileNotFoundError) or is_disk_full(error):
            raise
        where, fix = "", "correct it, or write it as Parquet"
        if wrong := _find_other_encoding(path if plain is None else plain):
            where, fix = wrong, encoding.advice
        elif plain is not None and form_of(path) in CSV:
            where = _find_damage(plain)
        raise DataError(f"{path}: cannot be read ({where or first_line(error)}); {fix}") from None


def is_disk_full(error: BaseException) -> bool:
    """Whether polars, whose errors have no number, could not write."""
    return f"os error {errno.ENOSPC}" in str(error)


def _first_line(path: Path, codec: str | None = None) -> str:
    """Return the first line that is not empty; polars takes one of spaces as well."""
    name = codec or "utf-8-sig"
    with opened(path) as stream, io.TextIOWrapper(stream, name, errors="replace", newline="\n") as lines:
        return next((line for line in lines if line.strip("\r\n")), "").removeprefix("\ufeff")


def _has_colons(line: str, names: Sequence[str] = ()) -> bool:
    """Whether two colons separate columns: no character does so more often; of two columns, they have ``names``."""
    others = ("\t", *SEPARATORS)
    first, *rest = line.split(COLONS)
    if len(names) == 2 and len(rest) == 1:  # the second text may hold commas, as of titles
        return not any(mark in first for mark in others)
    return len(rest) >= max(2, *map(line.count, others))


def _header(path: Path, codec: str | None = None, names: Sequence[str] = ()) -> str:
    """Return the first line with a tab in place of two colons, or the names of the columns of a file without one.

    Raises
    ------
    DataError
        The first line has another number of values than there are names.
    """
    first = _first_line(path, codec)
    first = first.replace(COLONS, "\t") if _has_colons(first, names) else first
    if not names:
        return first
    separator = separator_of(first)
    values = next(csv.reader([first], delimiter=separator))
    if len(values) != len(names):
        raise DataError(
            f"{path}: --header has {len(names)} names, but the first line {len(values)} values ({first.strip()[:80]}); "
            "give a name for each, in their order"
        )
    return separator.join(names)


def _find_damage(path: Path) -> str:
    """Return what is wrong in a CSV file and where, as far as it is known."""
    separator = separator_in(path)
    if line := find_stray_quote(path, separator):
        return f"line {line} has a quote that is not closed, or one inside a text"
    if found := find_long_row(path, separator):
        return "row {} has {} fields, expected {}".format(*found)
    return ""


def _find_other_encoding(path: Path) -> str:
    """Return where a file is not in UTF-8: of a CSV file row and column, of JSON lines the line."""
    options: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    with suppress(csv.Error, OSError, EOFError, zlib.error), opened(path) as stream:
        lines = io.TextIOWrapper(stream, **options)
        if form_of(path) in LINES:
            number = next((number for number, line in enumerate(lines, 1) if _is_not_text(line)), 0)
            return f"line {number} is not text in UTF-8" if number else ""
        for number, row in enumerate(csv.DictReader(lines, delimiter=separator_in(path))):
            wrong = next((name for name, text in row.items() if _is_not_text(text)), None)
            if wrong is not None:
                return f"row {number}: {wrong} is not text in UTF-8"
    return ""


def _is_not_text(text: str | None) -> bool:
    return any("\udc80" <= c <= "\udcff" for c in text or "")
