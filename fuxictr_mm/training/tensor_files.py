"""Tensors in folders of safetensors files, written and read by any number of processes.

Several processes use torch.distributed.checkpoint: each writes its rows of tensors that are spread over them, and its
part of the other tensors, which are the same on all. One process writes a file of the same form by itself, as the
import of that engine takes a second.
"""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from fuxictr_mm.errors import UserError, first_line
from fuxictr_mm.tables.sharded import is_distributed
from fuxictr_mm.training.checkpoints import read_safetensors
from fuxictr_mm_serving.manifest import checksum

#: The only file of one process.
NAME = "model.safetensors"


class TensorFiles:
    """Writes and reads folders of tensors. All processes call each method together."""

    def __init__(self) -> None:
        self._processes: Any = None
        self._pending: tuple[Path, Any] | None = None

    def save(
        self,
        tensors: Mapping[str, Tensor],
        folder: Path,
        finish: Callable[[Mapping[str, str]], None],
        in_background: bool = False,
    ) -> None:
        """Write tensors to a folder that does not exist, on a disk that all processes see.

        A ``DTensor`` is spread over the processes; the others are the same on all of them. The main process calls
        ``finish`` with the hash of every file by its name, when all of them are complete. ``in_background``: copy the
        tensors, and write in a thread, whose errors ``wait`` or the next ``save`` raises.

        Raises
        ------
        UserError
            The folder cannot be written or the disk is full.
        """
        self.wait()
        with _reported(folder):
            if not (dist.is_initialized() or in_background):
                folder.mkdir(parents=True)
                finish({NAME: _write(tensors, folder / NAME)})
                return
            dcp = _engine()
            save = dcp.async_save if in_background else dcp.save
            done = save(dict(tensors), storage_writer=_make_writer(folder, finish), **self._group())
            if in_background:
                self._pending = folder, done

    def wait(self) -> None:
        """Wait until what is written in the background is complete; raises as ``save``."""
        if self._pending is not None:
            (folder, done), self._pending = self._pending, None
            with _reported(folder):
                done.result()

    def load(
        self, folder: Path, spread: Mapping[str, Tensor], hashes: Mapping[str, str] | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors of a folder that any number of processes wrote, checked by the ``hashes`` of its files.

        Each process reads its own rows into the ``DTensor`` of ``spread``.

        Raises
        ------
        UserError
            A file is damaged or missing.
        """
        _check_hashes(folder, hashes or {})
        if not dist.is_initialized() and (folder / NAME).is_file():
            try:
                return {name: value.clone() for name, value in read_safetensors(folder / NAME).items()}
            except UserError as error:
                raise damaged(folder, str(error)) from error
        dcp = _engine()
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            reader = dcp.HuggingFaceStorageReader(str(folder))
            tensors = {
                name: spread[name] if name in spread else torch.empty(found.size, dtype=found.properties.dtype)
                for name, found in reader.read_metadata().state_dict_metadata.items()
            }
            dcp.load(tensors, storage_reader=reader, **self._group())
        except (OSError, SafetensorError, ValueError, CheckpointException) as error:
            raise damaged(folder, _reason(error)) from error
        return tensors

    def _group(self) -> dict[str, Any]:
        """Return the processes, as a group of their own: messages of two threads in one group would be mixed up."""
        if not dist.is_initialized():
            return {"no_dist": True}
        if self._processes is None:
            self._processes = dist.new_group(backend="gloo")
        return {"process_group": self._processes}


def damaged(folder: Path, reason: str) -> UserError:
    """Return the error of a training checkpoint that cannot be read, with what to do."""
    return UserError(
        f"{folder}: the training checkpoint is damaged ({reason}); delete this folder: --resume then "
        "uses the one before it, if it was kept; otherwise start again"
    )


def _check_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    """Refuse files other than those that were written; each process reads its part of them."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    names = sorted(hashes)
    bad = next((i for i in range(rank, len(names), size) if _hash_or_none(folder / names[i]) != hashes[names[i]]), -1)
    if dist.is_initialized():
        found = torch.tensor([bad])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        bad = int(found)
    if bad >= 0:
        state = "has changed since it was written" if (folder / names[bad]).exists() else "is missing"
        raise damaged(folder, f"{names[bad]} {state}")


def _hash_or_none(path: Path) -> str | None:
    try:
        return checksum(path)
    except OSError:
        return None


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> str:
    """Write a file, without a copy of the tensors in memory; return its SHA-256 hash."""
    from safetensors.torch import save_file

    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, path, metadata)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return checksum(path)


def _make_writer(folder: Path, finish: Callable[[Mapping[str, str]], None]) -> Any:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY

    class Writer(HuggingFaceStorageWriter):
        """Writes without torch's copy of all tensors in memory, and then calls ``finish``."""

        def write_data(self, plan: Any, planner: Any) -> Any:
            tensors = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            places = {item.index.fqn: {SAVED_OFFSETS_KEY: item.tensor_data.chunk.offsets} for item in plan.items}
            written = []
            if tensors:
                name = f"rank-{plan.storage_data['shard_index']:05}.safetensors"
                written = [(name, _write(tensors, folder / name, {CUSTOM_METADATA_KEY: json.dumps(places)}))]
            done: Any = torch.futures.Future()
            done.set_result(written)
            return done

        def finish(self, metadata: Any, results: Any) -> None:
            finish(dict(itertools.chain(*results)))

    return Writer(str(folder), save_distributed=True)


def _engine() -> Any:
    """Return torch.distributed.checkpoint, without its warning that one process is not several."""
    import torch.distributed.checkpoint as dcp

    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    return dcp


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Turn what a full disk or a folder without permission raises into an error of one line."""
    try:
        yield
    except BaseException as error:
        # CheckpointException is not an Exception; the loss of a process is not an error of the folder.
        if not (isinstance(error, OSError | SafetensorError) or hasattr(error, "failures")):
            raise
        raise UserError(f"{folder}: could not be written ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """Return the first line of an error, that of the first process of several."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    strerror = getattr(error, "strerror", None)
    return strerror or first_line(error)


def take_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return nested dicts and lists as JSON has them, and put their tensors into ``tensors`` by name.

    A tensor with several names, such as a table of several features, is put there once.
    """
    return _take(value, "", tensors, {})


def _take(value: Any, name: str, tensors: dict[str, Tensor], names: dict[Any, str]) -> Any:
    if isinstance(value, Tensor):
        is_plain = value.numel() and not is_distributed(value)
        key: Any = (value.data_ptr(), value.shape, value.stride()) if is_plain else id(value)
        if key not in names:
            names[key] = name
            tensors[name] = value.detach()
        return {"tensor": names[key], "shape": list(value.shape)}
    if isinstance(value, Mapping):
        return {"dict": [[k, _take(v, f"{name}/{k}".strip("/"), tensors, names)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_take(v, f"{name}/{i}", tensors, names) for i, v in enumerate(value)]
    return value


def put_tensors(value: Any, tensors: Mapping[str, Tensor], folder: Path) -> Any:
    """Return what ``take_tensors`` has taken apart, with tensors read from ``folder``; tuples are lists.

    Raises
    ------
    UserError
        A tensor is missing, or not complete.
    """
    if isinstance(value, list):
        return [put_tensors(v, tensors, folder) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" not in value:
        return {key: put_tensors(v, tensors, folder) for key, v in value["dict"]}
    found = tensors.get(value["tensor"])
    if found is None or list(found.shape) != value["shape"]:
        raise damaged(folder, f"it has no {value['tensor']} {tuple(value['shape'])}")
    return found
