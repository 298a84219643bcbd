"""Scores of a file of rows of any size, read and written in chunks, and resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm_serving.errors import ServingError, UnknownItemError
from fuxictr_mm_serving.export import Export
from fuxictr_mm_serving.manifest import MANIFEST, checksum, read_manifest
from fuxictr_mm_serving.numbering import for_file, how_to_score_new_items
from fuxictr_mm_serving.parquet import Part, pa, pq, read_part, schema_of, split
from fuxictr_mm_serving.processes import end_with_parent, reason_of, start
from fuxictr_mm_serving.row_ids import RowIds, as_schema

logger = logging.getLogger("fuxictr_mm_serving")

#: What the metadata of a file of scores says.
SCORED = {b"fuxictr_mm.table": b"scores"}

#: Rows of a part.
PART_ROWS = 131072


class RefusedRowsError(ServingError):
    """Rows cannot be scored: they, or the export, have to change, and what is scored so far is of no use."""


def score_file(
    folder: str | os.PathLike[str],
    rows: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    processes: int = 1,
    threads: int = 1,
    engine: str = "processes",
    part_rows: int = PART_ROWS,
    progress: Callable[[int, int, int], None] = lambda done, total, earlier: None,
) -> int:
    """Score a file of rows into a Parquet file, in the order of the rows.

    Its column is ``score``; of several labels it has a column ``score_LABEL`` for each. Before it are the ids of the
    rows (``RowIds``).
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
    engine : {"processes", "ray"}
        Who runs the processes: this one, or Ray Data on the cluster that ``RAY_ADDRESS`` names or on this machine. All
        nodes of a cluster must see the files under the same paths.
    part_rows : int
        Rows of a part, about.
    progress : callable
        Called after each part with the number of rows that are scored, of all rows, and of rows that an earlier,
        stopped run had scored.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    ServingError
        A value that training would refuse, by file and column; a file that cannot be written, or is there and has no
        scores.
    """
    folder, out = Path(folder), Path(out)
    for name, value in (("processes", processes), ("threads", threads)):
        if value < 1:
            raise ServingError(f"{name}: is {value}, expected 1 or more")
    labels = read_manifest(folder).labels
    scratch = out.parent / f".{out.name}.parts"
    parts = split(rows, part_rows)
    if not (total := sum(part.rows for part in parts)):
        raise ServingError(f"{rows}: has no rows, expected one or more")
    read = {part.file.resolve() for part in parts}
    if out.resolve() in read or Path(rows).resolve() in out.resolve().parents:
        raise ServingError(f"{out}: is inside the rows to score, {rows}; give another file")
    names = ["score"] if len(labels) == 1 else [f"score_{label}" for label in labels]
    _check_replaceable(out)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with _locked(scratch / "lock", out), _removed_if_of_no_use(scratch):
            _keep_parts_of(scratch, _identity(folder, parts))
            files = [scratch / f"{number:06d}.npy" for number in range(len(parts))]
            todo = [(part, file) for part, file in zip(parts, files, strict=True) if not _is_scored(part, file)]
            count = earlier = total - sum(part.rows for part, _ in todo)
            run = _score_on_ray if engine == "ray" and todo else _score_parts
            for length in run(folder, todo, processes, threads):
                count += length
                progress(count, total, earlier)
            temporary = scratch / "scores.parquet"
            _write_scores(temporary, parts, files, names, read_manifest(folder).items.target)
            temporary.replace(out)
            _remove(scratch)
    except OSError as error:
        raise ServingError(f"{out}: could not be written ({error.strerror or error})") from error
    return count


def _write_scores(out: Path, parts: list[Part], files: list[Path], names: list[str], target: str) -> None:
    """Write the scores of all parts with the ids of their rows, a part at a time."""
    ids, writer, first = RowIds(parts, target), None, 0
    try:
        for part, file in zip(parts, files, strict=True):
            scores = np.load(file, allow_pickle=False).reshape(-1, len(names))
            table = ids.of(part, first)
            for name, values in zip(names, np.ascontiguousarray(scores.T), strict=True):
                table = table.append_column(name, pa.array(values))
            table = table.replace_schema_metadata(SCORED)
            writer = writer or pq.ParquetWriter(out, table.schema)
            writer.write_table(as_schema(table, writer.schema, part.file))
            first += part.rows
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    """Keep other runs from the same parts; the system unlocks the file when a process ends, however it does."""
    if find_spec("fcntl") is None:  # of Windows: nothing is locked
        yield
        return
    import fcntl

    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServingError(f"{out}: another run is writing it; wait until it ends, or give another file") from None
        except OSError:
            logger.warning(f"{path}: cannot be locked; no other run may write {out}")
        yield


@contextmanager
def _removed_if_of_no_use(scratch: Path) -> Iterator[None]:
    """Remove the parts after an error that makes them useless, or before which none is scored."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, RefusedRowsError) or not any(scratch.glob("*.npy")):
            with suppress(OSError):  # of an actor of Ray that still writes
                _remove(scratch)
        raise


def _remove(scratch: Path) -> None:
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()


def _check_replaceable(out: Path) -> None:
    """Refuse to replace a file that is not of scores: one of an earlier version has only their columns."""
    if not out.exists() or (out.is_file() and not out.stat().st_size):
        return
    if out.is_dir():
        raise ServingError(f"{out}: is a folder, expected a file to write")
    schema = schema_of(out)
    is_scored = (schema.metadata or {}).items() >= SCORED.items()
    of_scores = [name == "score" or name.startswith("score_") for name in schema.names]
    if not is_scored and not (of_scores and all(of_scores)):
        raise ServingError(f"{out}: already exists and is not a file of scores; give another file, or delete it")


def _score_parts(folder: Path, todo: list[tuple[Part, Path]], processes: int, threads: int) -> Iterator[int]:
    """Score and write parts; yields the number of rows of each."""
    if processes <= 1 or len(todo) <= 1:
        export = Export(folder, threads=threads) if todo else None
        for part, file in todo:
            assert export is not None
            yield _score_part(export, part, file)
        return
    yield from _score_in_processes(folder, todo, processes, threads)


def _score_in_processes(folder: Path, todo: list[tuple[Part, Path]], processes: int, threads: int) -> Iterator[int]:
    """Score and write parts; yields the number of rows of each.

    A pool of ``concurrent.futures`` has semaphores, which a run that is killed leaves behind with a warning.
    """
    context = get_context("spawn")  # ONNX Runtime's threads do not survive a fork
    left = iter(todo)
    running: dict[Any, SpawnProcess] = {}
    try:
        for _ in range(min(processes, len(todo))):
            here, there = context.Pipe()
            with there:  # closed here, so that the end of the process is the end of the pipe
                args = (folder, threads, there)
                running[here] = start(context.Process(target=_score_what_is_told, args=args, daemon=True))
        while running:
            for pipe in wait([*running]):
                found, task = _exchange(pipe, running[pipe], left)
                if task is None:
                    running.pop(pipe).join()
                if found is not None:
                    yield found
    finally:
        for process in running.values():
            process.kill()
            process.join()


def _exchange(pipe: Any, process: SpawnProcess, left: Iterator[tuple[Part, Path]]) -> tuple[int | None, Any]:
    """Return how many rows a process has scored, None at its start, and what it is told to score, None at the end."""
    try:
        found = pipe.recv()
        task = None if isinstance(found, Exception) else next(left, None)
        pipe.send(task)
    except (EOFError, OSError):
        process.join()
        raise ServingError(
            f"processes: one {reason_of(process.exitcode or 0)}; finished chunks are kept, so run again, "
            "with fewer processes if memory is short"
        ) from None
    if isinstance(found, Exception):
        raise found
    return found, task


def _score_what_is_told(folder: Path, threads: int, pipe: Any) -> None:
    end_with_parent()
    try:
        export = Export(folder, threads=threads)
        pipe.send(None)
        while task := pipe.recv():
            pipe.send(_score_part(export, *task))
    except (ServingError, OSError) as error:
        with suppress(OSError):  # the parent has ended
            pipe.send(error)


class _Scorer:
    """What an actor of Ray does: scores a part into its file."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._export = Export(folder, threads=threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = Part(Path(row["source"]), tuple(row["groups"]), row["first"], row["rows"], row["skipped"])
        try:
            return {"rows": _score_part(self._export, part, Path(row["file"])), "error": ""}
        except ServingError as error:  # which Ray would show with two tracebacks
            return {"rows": 0, "error": str(error)}


def _score_on_ray(folder: Path, todo: list[tuple[Part, Path]], processes: int, threads: int) -> Iterator[int]:
    """Score and write parts by actors of Ray Data; yields the number of rows of each."""
    try:
        import ray
    except ImportError:
        raise ServingError("--engine ray needs Ray: pip install 'ray[data]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    actors = ray.data.ActorPoolStrategy(min_size=1, max_size=max(processes, 1))
    rows = [
        {
            "source": str(part.file.absolute()),
            "groups": list(part.groups),
            "first": part.first,
            "rows": part.rows,
            "skipped": part.skipped,
            "file": str(file.absolute()),
        }
        for part, file in todo
    ]
    scored = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Scorer, fn_constructor_args=(folder.absolute(), threads), num_cpus=threads, compute=actors
    )
    for row in scored.iter_rows():
        if row["error"]:
            raise RefusedRowsError(row["error"])
        yield row["rows"]


def _score_part(export: Export, part: Part, file: Path) -> int:
    scores: list[np.ndarray] = []
    first = part.first
    try:
        export = for_file(export, part.file)
        for columns in read_part(part, export.columns, texts=export.texts):
            scores.append(export.score_rows(columns, str(part.file), first))
            first += len(scores[-1])
    except UnknownItemError as error:
        raise RefusedRowsError(f"{error}{how_to_score_new_items(part.file)}") from None
    except ServingError as error:
        raise RefusedRowsError(str(error)) from None
    joined = np.concatenate(scores) if scores else np.zeros(0, np.float32)
    wrong = np.argwhere(~np.isfinite(joined))
    if len(wrong):
        raise RefusedRowsError(
            f"{part.file}: row {part.first + wrong[0, 0]}: its score is {joined[tuple(wrong[0])]}; export again"
        )
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.save(stream, joined)
    temporary.replace(file)
    return len(joined)


def _is_scored(part: Part, file: Path) -> bool:
    """Whether an earlier run has scored a part: a machine that fails may leave a file that is empty."""
    try:
        return len(np.load(file, mmap_mode="r", allow_pickle=False)) == part.rows
    except (OSError, ValueError, EOFError):
        return False


def _identity(folder: Path, parts: list[Part]) -> str:
    """Return what scored parts belong to: the export, the files of rows, and which rows each part has."""
    files = {str(p.file.absolute()): (p.file.stat().st_size, p.file.stat().st_mtime_ns) for p in parts}
    content = json.dumps([checksum(folder / MANIFEST), files, [(p.first, p.rows) for p in parts]])
    return hashlib.sha256(content.encode()).hexdigest()


def _keep_parts_of(scratch: Path, identity: str) -> None:
    """Remove parts of another export or of other rows."""
    name = scratch / "identity"
    if name.exists() and name.read_text() == identity:
        return
    for path in scratch.iterdir():
        if path.name != "lock":
            path.unlink()
    name.write_text(identity)
