"""Scores of a file of rows of any size: read in pieces, written in pieces, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.export import MANIFEST, Export, checksum, read_manifest

#: Rows that are scored at a time, and rows of a part.
BATCH_ROWS, PART_ROWS = 2048, 131072


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


@dataclass(frozen=True)
class Part:
    """Some rows of a file, in whole row groups."""

    file: Path
    groups: tuple[int, ...]


def split(path: str | os.PathLike[str], part_rows: int) -> list[Part]:
    """Return a file or folder as parts of about ``part_rows`` rows, in its order."""
    parts = []
    for file in part_files(path):
        try:
            metadata = pq.read_metadata(file)
        except (OSError, pa.ArrowException) as error:
            raise ServingError(f"{file}: is no Parquet file or damaged ({error})") from None
        groups: list[int] = []
        rows = 0
        for group in range(metadata.num_row_groups):
            groups.append(group)
            rows += metadata.row_group(group).num_rows
            if rows >= part_rows or group == metadata.num_row_groups - 1:
                parts.append(Part(file, tuple(groups)))
                groups, rows = [], 0
    return parts


def read_part(part: Part, columns: list[str], batch_rows: int = BATCH_ROWS) -> Iterator[dict[str, pa.Array]]:
    """Yield the columns of a part, some rows at a time.

    Raises
    ------
    ServingError
        A damaged file, or a column is missing.
    """
    try:
        with pq.ParquetFile(part.file) as reader:
            missing = [name for name in columns if name not in reader.schema_arrow.names]
            if missing:
                raise ServingError(f"{part.file}: has no column '{missing[0]}', which the model reads")
            for batch in reader.iter_batches(batch_rows, row_groups=list(part.groups), columns=columns):
                yield {name: batch.column(name) for name in columns}
    except (OSError, pa.ArrowException) as error:
        raise ServingError(f"{part.file}: is damaged ({error})") from None


def score_file(
    folder: str | os.PathLike[str],
    rows: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    processes: int = 1,
    threads: int = 1,
    part_rows: int = PART_ROWS,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Score a file of rows into a Parquet file with a column ``score``, in the order of the rows.

    Parts are kept in ``.OUT.parts`` until the file is complete: a run that was stopped is resumed.

    Parameters
    ----------
    folder : path
        The export.
    rows : path
        A Parquet file, or a folder of part files, with the columns of training except the label.
    out : path
        The file to write.
    processes, threads : int
        Processes, and threads of each.
    part_rows : int
        Rows of a part, about.
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
    folder, out = Path(folder), Path(out)
    read_manifest(folder)
    scratch = out.parent / f".{out.name}.parts"
    parts = split(rows, part_rows)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        _keep_parts_of(scratch, _identity(folder, parts, part_rows))
        files = [scratch / f"{number:06d}.npy" for number in range(len(parts))]
        todo = [(part, file) for part, file in zip(parts, files, strict=True) if not file.exists()]
        count = sum(_length(file) for file in files if file.exists())
        for length in _score_parts(folder, todo, processes, threads):
            count += length
            progress(count)
        temporary = scratch / "scores.parquet"
        with pq.ParquetWriter(temporary, pa.schema([("score", pa.float32())])) as writer:
            for file in files:
                writer.write_table(pa.table({"score": np.load(file, allow_pickle=False)}))
        temporary.replace(out)
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()
    except OSError as error:
        raise ServingError(f"{out}: could not be written ({error.strerror or error})") from error
    return count


def _score_parts(folder: Path, todo: list[tuple[Part, Path]], processes: int, threads: int) -> Iterator[int]:
    """Score and write parts; yields the number of rows of each."""
    if processes <= 1 or len(todo) <= 1:
        export = Export(folder, threads=threads) if todo else None
        for part, file in todo:
            assert export is not None
            yield _score_part(export, part, file)
        return
    context = get_context("spawn")  # ONNX Runtime's threads do not survive a fork
    with ProcessPoolExecutor(min(processes, len(todo)), context, _open_export, (folder, threads)) as pool:
        yield from pool.map(_score_in_process, todo)


_export: Export | None = None


def _open_export(folder: Path, threads: int) -> None:
    global _export
    _export = Export(folder, threads=threads)


def _score_in_process(task: tuple[Part, Path]) -> int:
    assert _export is not None
    return _score_part(_export, *task)


def _score_part(export: Export, part: Part, file: Path) -> int:
    scores = [export.score_rows(columns, str(part.file)) for columns in read_part(part, export.columns)]
    joined = np.concatenate(scores) if scores else np.zeros(0, np.float32)
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.save(stream, joined)
    temporary.replace(file)
    return len(joined)


def _length(file: Path) -> int:
    return len(np.load(file, mmap_mode="r", allow_pickle=False))


def _identity(folder: Path, parts: list[Part], part_rows: int) -> str:
    """Return what scored parts belong to: the export, the files of rows, and the size of a part."""
    files = {str(p.file.absolute()): (p.file.stat().st_size, p.file.stat().st_mtime_ns) for p in parts}
    content = json.dumps([checksum(folder / MANIFEST), files, part_rows])
    return hashlib.sha256(content.encode()).hexdigest()


def _keep_parts_of(scratch: Path, identity: str) -> None:
    """Remove parts of another export or of other rows."""
    name = scratch / "identity"
    if name.exists() and name.read_text() == identity:
        return
    for path in scratch.iterdir():
        path.unlink()
    name.write_text(identity)
