"""Hive partitions: columns whose values are the names of folders, such as ``train/day=3/part.parquet``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

#: The name of a folder of rows without a value.
NULL = "__HIVE_DEFAULT_PARTITION__"


def partition_columns(file: Path, texts: Collection[str] = ()) -> dict[str, pa.Scalar]:
    """Return the columns that the folders of a file name, outermost first, each with its value in all rows of the file.

    A column is int64 if all its values below one folder are integers, otherwise a text; those in ``texts`` are texts.
    """
    folders = []
    root = file.parent
    while "=" in root.name:
        folders.append(root)
        root = root.parent
    if not folders:
        return {}
    values = _texts(root, root.stat().st_mtime_ns)
    columns = {}
    for name, text in map(_split, reversed(folders)):
        is_integer = name not in texts and all(re.fullmatch(r"[+-]?\d{1,18}", other) for other in values[name])
        value = None if text is None else int(text) if is_integer else text
        columns[name] = pa.scalar(value, pa.int64() if is_integer and values[name] else pa.string())
    return columns


@lru_cache(maxsize=64)
def _texts(root: Path, modified: int) -> dict[str, set[str]]:
    """Return the values of every partition column below a folder, as they are written."""
    found: dict[str, set[str]] = {}
    for name, text in _pairs(root):
        found.setdefault(name, set())
        if text is not None:
            found[name].add(text)
    return found


def _pairs(folder: Path) -> Iterator[tuple[str, str | None]]:
    for child in folder.iterdir():
        if "=" in child.name and child.is_dir():
            yield _split(child)
            yield from _pairs(child)


def _split(folder: Path) -> tuple[str, str | None]:
    name, _, text = folder.name.partition("=")
    return unquote(name), None if text == NULL else unquote(text)
