"""Scores of a file of rows of any size: read in pieces, written in pieces, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.export import MANIFEST, Export, checksum

#: Rows that are scored at a time, and written at a time.
BATCH_ROWS, PART_ROWS = 2048, 262144


def part_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return a Parquet file, or those of a folder in the order of their numbers.

    Raises
    ------
    ServingError
        There is none.
    """
    path = Path(path)
    path = path if path.exists() or path.suffix == ".parquet" else path.with_name(f"{path.name}.parquet")
    found = sorted(path.glob("*.parquet"), key=_natural) if path.is_dir() else [path]
    if not found or not found[0].exists():
        raise ServingError(f"{path}: no such file; expected Parquet")
    return found


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path.name)]


def read_rows(
    path: str | os.PathLike[str], columns: list[str], skip: int = 0, batch_rows: int = BATCH_ROWS
) -> Iterator[dict[str, pa.Array]]:
    """Yield the columns of a file or a folder of part files, some rows at a time, from row ``skip`` on.

    Raises
    ------
    ServingError
        No such file, a damaged one, or a column is missing.
    """
    for file in part_files(path):
        try:
            reader = pq.ParquetFile(file)
        except (OSError, pa.ArrowException) as error:
            raise ServingError(f"{file}: is no Parquet file or damaged ({error})") from None
        with reader:
            missing = [name for name in columns if name not in reader.schema_arrow.names]
            if missing:
                raise ServingError(f"{file}: has no column '{missing[0]}', which the model reads")
            if skip >= reader.metadata.num_rows:
                skip -= reader.metadata.num_rows
                continue
            for batch in reader.iter_batches(batch_rows, columns=columns):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                batch, skip = batch.slice(skip), 0
                yield {name: batch.column(name) for name in columns}


def score_file(
    export: Export,
    rows: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    part_rows: int = PART_ROWS,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Score a file of rows into a Parquet file with a column ``score``, in the order of the rows.

    Parts are kept in ``.OUT.parts`` until the file is complete: a run that was stopped is resumed from the last part.

    Parameters
    ----------
    export : Export
        The model.
    rows : path
        A Parquet file, or a folder of part files, with the columns of training except the label.
    out : path
        The file to write.
    part_rows : int
        Rows of a part.
    progress : callable
        Called with the number of rows that are scored.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    ServingError
        A value that training would refuse, by file and column; a file that cannot be written.
    """
    out = Path(out)
    parts = out.parent / f".{out.name}.parts"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        done = _resume(parts, _identity(export, rows, part_rows))
        count = len(done) * part_rows
        for scores in _parts_of(export, rows, count, part_rows):
            path = parts / f"{len(done):06d}.npy"
            _write(path, scores)
            done.append(path)
            count = (len(done) - 1) * part_rows + len(scores)
            progress(count)
        temporary = parts / "scores.parquet"
        with pq.ParquetWriter(temporary, pa.schema([("score", pa.float32())])) as writer:
            for path in done:
                writer.write_table(pa.table({"score": np.load(path, allow_pickle=False)}))
        count = pq.read_metadata(temporary).num_rows
        temporary.replace(out)
        for path in parts.iterdir():
            path.unlink()
        parts.rmdir()
    except OSError as error:
        raise ServingError(f"{out}: could not be written ({error.strerror or error})") from error
    return count


def _parts_of(export: Export, rows: str | os.PathLike[str], skip: int, part_rows: int) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    size = 0
    for columns in read_rows(rows, export.columns, skip):
        held.append(export.score_rows(columns, str(rows)))
        size += len(held[-1])
        while size >= part_rows:
            joined = np.concatenate(held)
            yield joined[:part_rows]
            held, size = [joined[part_rows:]], size - part_rows
    if size:
        yield np.concatenate(held)


def _identity(export: Export, rows: str | os.PathLike[str], part_rows: int) -> str:
    """Return what parts belong to: the export, the files of rows, and the size of a part."""
    files = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in part_files(rows)]
    content = json.dumps([checksum(export.folder / MANIFEST), files, part_rows])
    return hashlib.sha256(content.encode()).hexdigest()


def _resume(parts: Path, identity: str) -> list[Path]:
    """Return the complete parts of an earlier run; those of another export or other rows are removed."""
    name = parts / "identity"
    if not name.exists() or name.read_text() != identity:
        for path in parts.iterdir():
            path.unlink()
        name.write_text(identity)
    done = sorted(parts.glob("*.npy"))
    # The last part of a finished pass may be short; it is scored again.
    return [path for number, path in enumerate(done) if path.name == f"{number:06d}.npy"][:-1]


def _write(path: Path, scores: np.ndarray) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.save(stream, scores)
    temporary.replace(path)


def summary(manifest: Mapping[str, Any]) -> str:
    """Return a line that names an export."""
    return f"{manifest['model']} ({manifest['experiment']}, exported {manifest['created']})"
