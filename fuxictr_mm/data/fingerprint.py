"""Fingerprint of a dataset's files, by which a result, a run or a study detects that its data has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fuxictr_mm.data.parquet import part_files
from fuxictr_mm.data.remote import is_remote, path_of
from fuxictr_mm.errors import MissingFileError
from fuxictr_mm.files import StrPath
from fuxictr_mm_serving.folders import partition_values

#: Bytes of a block; blocks that are read of a file (256 MiB) and of a folder (4 GiB), and the fewest of each file.
BLOCK_BYTES, BLOCKS, FOLDER_BLOCKS, FEWEST_BLOCKS = 1 << 16, 1 << 12, 1 << 16, 16


def data_hashes(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of every existing data file or folder of settings, by setting; paths are as they are opened."""
    ending = f".{params.get('data_format') or 'parquet'}"
    found = {}
    for setting, path in data_paths(params):
        try:
            found[setting] = hash_files(path, ending, strict=False)
        except (MissingFileError, FileNotFoundError):
            continue
    return found


def changed_data(before: Mapping[str, str] | None, params: Mapping[str, Any]) -> str | None:
    """Return the first setting, with its path, whose files differ from the hashes of ``data_hashes``.

    Deleted files, and files without a saved hash (older versions), do not count as changed.
    """
    if not before:
        return None
    now, paths = data_hashes(params), dict(data_paths(params))
    changed = next((setting for setting, found in now.items() if before.get(setting, found) != found), None)
    return None if changed is None else f"{changed}: {paths[changed]}"


def hash_files(path: StrPath, ending: str = ".parquet", *, strict: bool = True) -> str:
    """Return a hash of a file, or of the files of a folder with their names and the columns of Hive partitions.

    A file of up to ``BLOCKS * BLOCK_BYTES`` bytes is read as a whole. Of a larger one, its size and as many blocks
    count, from its first byte to its last. Many files of a folder share ``FOLDER_BLOCKS``; one in an object store,
    where each block is a request, has ``FEWEST_BLOCKS``. The time of the last change does not count, so that a copy is
    the same file. Files that are not read have no part in it; where ``strict``, ``part_files`` refuses them.
    """
    hashed = hashlib.sha256()
    files = part_files(path, ending, strict=strict)
    blocks = FEWEST_BLOCKS if is_remote(path) else min(BLOCKS, max(FOLDER_BLOCKS // len(files), FEWEST_BLOCKS))
    for file in files:
        status = file.stat()
        name = file.relative_to(path) if file.is_relative_to(path) else "."
        columns = {column: value for column, (value, _) in partition_values(file).items()}  # also of folders above
        content = _hash_file(str(file), status.st_size, status.st_mtime_ns, blocks)
        hashed.update(f"{name} {columns} {content}\n".encode())
    return hashed.hexdigest()


@lru_cache(maxsize=10_000)
def _hash_file(file: str, size: int, modified: int, blocks: int) -> str:
    """Return the hash of a file, which is read again where its size or the time of its last change differs."""
    hashed = hashlib.sha256(str(size).encode())  # in hardware on most CPUs, and then twice as fast as BLAKE2b
    with path_of(file).open("rb") as stream:
        if size <= blocks * BLOCK_BYTES:
            while part := stream.read(FEWEST_BLOCKS * BLOCK_BYTES):
                hashed.update(part)
        else:
            for block in range(blocks):
                stream.seek((size - BLOCK_BYTES) * block // (blocks - 1))
                hashed.update(stream.read(BLOCK_BYTES))
    return hashed.hexdigest()


def data_paths(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the settings that name data, each with its path."""
    for setting in ("train_data", "valid_data", "test_data"):
        if params.get(setting):
            yield setting, params[setting]
    items = params.get("item_info") or []
    for number, path in enumerate([items] if isinstance(items, str) else items):
        yield f"item_info[{number}]" if number else "item_info", path
    for column in params.get("feature_cols") or ():
        if column.get("pretrained_emb"):
            yield f"pretrained_emb of {column['name']}", column["pretrained_emb"]
    if params.get("initial_weights"):
        from fuxictr_mm.runs.paths import file_of_weights  # a package that imports this module

        yield "initial_weights", str(file_of_weights(Path(params["initial_weights"])))
