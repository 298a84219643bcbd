"""Submission files of the challenge: a zip with one ``prediction.csv``, columns ``ID`` and the name of the task."""

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, first_line
from fuxictr_mm.files import StrPath, write_beside

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

TASKS = ("Task1", "Task2", "Task1&2")
MEMBER = "prediction.csv"
MAX_BYTES = 1 << 30  # of the CSV, unpacked: the challenge's own is 8 MB
_ID = r"^\d{1,18}$"
_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True)
class SubmissionReport:
    """Summary of a submission."""

    rows: int  #: Predictions.
    task: str  #: One of ``TASKS``.
    #: Of the predictions.
    min: float
    max: float
    mean: float


def write_submission(path: StrPath, predictions: Any, task: str = "Task2", expected_rows: int | None = None) -> Path:
    """Check predictions and write them as a submission; the same predictions give the same bytes.

    Every number is the shortest decimal that round-trips in its type, float32 or float64.

    Parameters
    ----------
    path : path
        The zip to write, by an atomic write.
    predictions : array_like
        ``(n,)`` probabilities, one per row of the test file, in its order.
    task : str
        Name of the second column, one of ``TASKS``.
    expected_rows : int, optional
        Rows of the test file.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        The task is not one of the challenge's.
    DataError
        Predictions are not one per row, not finite, outside [0, 1] or constant; nothing is written then.
    UserError
        The file cannot be written.
    """
    import numpy as np

    path = Path(path)
    _check_task(task)
    values = np.asarray(predictions)
    if values.ndim != 1:
        raise DataError(f"{path}: predictions have shape {values.shape}, expected one number per row, (n,)")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    _check_values(str(path), values, expected_rows)
    content = _csv_bytes(values, task)
    member = zipfile.ZipInfo(MEMBER, date_time=(1980, 1, 1, 0, 0, 0))
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = 3  # Unix, whatever the system that writes it
    member.external_attr = 0o644 << 16

    def write(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(member, content)

    write_beside(path, write)
    return path


def _csv_bytes(values: "np.ndarray", task: str) -> bytes:
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv

    table = pa.table({"ID": np.arange(len(values)), task: values})
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink, csv.WriteOptions(include_header=False))
    # Written separately, because pyarrow puts names in quotes.
    return f"ID,{task}\n".encode() + sink.getvalue().to_pybytes()


def check_submission(path: StrPath, rows: int | None = None, task: str | None = None) -> SubmissionReport:
    """Check a file by the rules of the challenge's server.

    Parameters
    ----------
    path : path
        The zip.
    rows : int, optional
        Rows of the test file; None: not checked.
    task : str, optional
        The expected task; None: any of ``TASKS``.

    Returns
    -------
    SubmissionReport

    Raises
    ------
    MissingFileError
        The file does not exist.
    ConfigError
        ``task`` is not one of the challenge's.
    DataError
        The first problem, with the line of the CSV.
    """
    path = Path(path)
    if task is not None:
        _check_task(task)
    content = _read_member(path)
    where = f"{path}: {MEMBER}"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = content[error.start]
        raise DataError(f"{where} line {line}: byte 0x{found:02x} is not UTF-8 text; write plain CSV") from None
    found_task = _check_header(where, content, task)
    ids, texts = _read_columns(where, content)
    _check_ids(where, ids)
    values = _numbers(where, texts)
    _check_values(where, values, rows)
    return SubmissionReport(len(values), found_task, float(values.min()), float(values.max()), float(values.mean()))


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ConfigError(f"task {task!r} is not one of the challenge's: expected one of {', '.join(TASKS)}")


def _read_member(path: Path) -> bytes:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected a submission such as submission/EXPID.zip")
    try:
        with zipfile.ZipFile(path) as archive:
            member = _check_members(path, archive.infolist())
            return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a complete zip file ({error}); write it again with fuxictr-mm predict") from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    for member in members:
        name = member.filename
        if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
            raise DataError(f"{path}: member {name!r} points outside the folder it is unpacked in; expected {MEMBER}")
    names = [member.filename for member in members]
    if names != [MEMBER]:
        listing = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"
        raise DataError(f"{path}: holds {listing}; expected exactly one member, {MEMBER}, in no folder")
    member = members[0]
    if member.flag_bits & 0x1:
        raise DataError(f"{path}: {MEMBER} is encrypted; zip it without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {MEMBER} has compression method {member.compress_type}; expected plain zip (deflate)")
    if member.file_size > MAX_BYTES:
        raise DataError(f"{path}: {MEMBER} unpacks to {member.file_size} bytes; expected at most {MAX_BYTES}")
    return member


def _check_header(where: str, content: bytes, task: str | None) -> str:
    line = content.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    names = [name.strip('"') for name in line.split(",")]
    known = TASKS if task is None else (task,)
    if len(names) != 2 or names[0] != "ID" or names[1] not in known:
        expected = " or ".join(f"'ID,{name}'" for name in known)
        raise DataError(f"{where} line 1: the header is {line[:80]!r}; expected {expected}")
    return names[1]


def _read_columns(where: str, content: bytes) -> tuple["pa.Array", "pa.Array"]:
    """Return the two columns below the header as strings, ``(n,)`` each."""
    import pyarrow as pa
    from pyarrow import csv

    _, _, body = content.partition(b"\n")
    if not body:
        raise DataError(f"{where}: no predictions below the header; expected one line per row of the test file")
    bad_rows: list[csv.InvalidRow] = []

    def remember(row: csv.InvalidRow) -> str:
        bad_rows.append(row)
        return "error"

    # Single-threaded, so that pyarrow counts lines; one chunk, so that lines may have any length.
    read = csv.ReadOptions(use_threads=False, column_names=["ID", "value"], block_size=len(body) + 1)
    parse = csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=remember)
    convert = csv.ConvertOptions(column_types={"ID": pa.string(), "value": pa.string()}, strings_can_be_null=False)
    try:
        table = csv.read_csv(pa.BufferReader(body), read, parse, convert)
    except pa.ArrowInvalid as error:
        if not bad_rows:
            raise DataError(f"{where}: not a CSV file ({first_line(error)})") from error
        row = bad_rows[0]
        raise DataError(
            f"{where} line {row.number + 1}: {row.text[:80]!r} has {row.actual_columns} columns; expected 2, ID and "
            "prediction"
        ) from None
    return table["ID"].combine_chunks(), table["value"].combine_chunks()


def _first(wrong: "pa.Array | np.ndarray") -> int | None:
    import numpy as np

    indices = np.flatnonzero(np.asarray(wrong))
    return int(indices[0]) if len(indices) else None


def _check_ids(where: str, ids: "pa.Array") -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    row = _first(pc.invert(pc.match_substring_regex(ids, _ID)))
    if row is not None:
        raise DataError(
            f"{where} line {row + 2}: ID is {ids[row].as_py()[:80]!r}; expected {row}, the row counted from 0"
        )
    numbers = ids.cast(pa.int64()).to_numpy()
    row = _first(numbers != np.arange(len(numbers)))
    if row is not None:
        raise DataError(
            f"{where} line {row + 2}: ID is {numbers[row]}; expected {row}: "
            "IDs count the rows of the test file from 0, in order, without gaps or repeats"
        )


def _numbers(where: str, texts: "pa.Array") -> "np.ndarray":
    """Return the predictions as ``(n,)`` float64; NaN and infinities pass here."""
    import pyarrow as pa
    import pyarrow.compute as pc

    special = pc.is_in(
        pc.utf8_lower(texts), value_set=pa.array(["nan", "inf", "+inf", "-inf", "infinity", "-infinity"])
    )
    row = _first(pc.invert(pc.or_(pc.match_substring_regex(texts, _NUMBER), special)))
    if row is not None:
        raise DataError(
            f"{where} line {row + 2}: the prediction is {texts[row].as_py()[:80]!r}; expected a number from 0 to 1"
        )
    return pc.replace_substring(texts, "+", "", max_replacements=1).cast(pa.float64()).to_numpy()


def _check_values(where: str, values: "np.ndarray", rows: int | None) -> None:
    """Refuse predictions that are not one per row, not finite, outside [0, 1] or constant."""
    import numpy as np

    if rows is not None and len(values) != rows:
        raise DataError(
            f"{where}: {len(values)} predictions; expected {rows}, one per row of the test file: "
            "score the whole file, once"
        )
    if len(values) == 0:
        raise DataError(f"{where}: no predictions; expected one per row of the test file")
    # Line 1 is the header.
    row = _first(~np.isfinite(values))
    if row is not None:
        raise DataError(
            f"{where} line {row + 2}: the prediction is {values[row]}; expected a finite number from 0 to 1: "
            "the model's weights or inputs hold NaN or infinity"
        )
    row = _first((values < 0) | (values > 1))
    if row is not None:
        raise DataError(
            f"{where} line {row + 2}: the prediction is {values[row]}; expected a probability from 0 to 1: "
            "write probabilities, not logits"
        )
    if len(values) > 1 and values.min() == values.max():
        raise DataError(
            f"{where}: all {len(values)} predictions are {values[0]}; expected more than one value: the model does not "
            "distinguish rows"
        )
