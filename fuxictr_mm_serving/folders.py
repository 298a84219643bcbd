"""Folders of part files: which names are those of files, their order, and the columns that Hive partitions name.

Here and not in ``fuxictr_mm``, because a server knows them too and does without it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

#: Endings of Parquet files.
SUFFIXES = (".parquet", ".pq", ".parq")

#: Beginnings of the names of files and folders that hold no rows.
IGNORED = ("_", ".", "~")

#: The name of a folder of rows without a value.
NULL = "__HIVE_DEFAULT_PARTITION__"


def natural_key(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sort key that compares the digits in a name as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]  # "²" is a digit


def partition_values(file: Path, texts: Collection[str] = ()) -> dict[str, tuple[int | str | None, bool]]:
    """Return the columns that the folders of a file name, outermost first: value, and whether they hold integers.

    A column holds integers if all its values below one folder are integers, otherwise texts, as those in ``texts`` do.
    """
    folders = []
    root = file.parent
    while "=" in root.name:
        folders.append(root)
        root = root.parent
    if not folders:
        return {}
    values = _texts(root, root.stat().st_mtime_ns)
    columns: dict[str, tuple[int | str | None, bool]] = {}
    for name, text in map(_split, reversed(folders)):
        is_integer = name not in texts and all(re.fullmatch(r"[+-]?\d{1,18}", other) for other in values[name])
        columns[name] = (int(text) if is_integer and text is not None else text, is_integer and bool(values[name]))
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
