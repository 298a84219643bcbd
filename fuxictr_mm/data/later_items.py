"""Item files of a later log, which ``fuxictr-mm prepare log --like`` writes beside its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import pyarrow.parquet as pq

from fuxictr_mm.data.numbering import NUMBERING, known_items
from fuxictr_mm.data.parquet import part_files
from fuxictr_mm.data.prepared import ITEM_FILE, MANIFEST
from fuxictr_mm.data.remote import is_remote
from fuxictr_mm.errors import DataError, UserError
from fuxictr_mm.files import read_json


def folder_of_later_log(rows: str) -> Path | None:
    """Return the folder of a file of rows, or of a folder of them, if it is a later log; None of all other rows."""
    if is_remote(rows):
        return None
    for folder in list(Path(rows).absolute().parents)[:2]:
        items = folder / ITEM_FILE
        if items.is_file() and known_items(pq.read_metadata(items).metadata or {}) is not None:
            return folder
    return None


def refuse_folder_of_splits(rows: str) -> None:
    """Refuse the folder of a prepared dataset, whose rows are in folders of their own.

    Raises
    ------
    DataError
        ``fuxictr-mm prepare`` wrote it.
    """
    if is_remote(rows) or not (Path(rows) / MANIFEST).is_file():
        return
    splits = [str(Path(rows) / split) for split in ("test", "valid", "train") if (Path(rows) / split).is_dir()]
    if splits and (Path(rows) / ITEM_FILE).is_file():
        raise DataError(f"{rows}: is the folder of a prepared dataset; give that of its rows: {' or '.join(splits)}")


def item_files_of(rows: str, item_files: str | Sequence[str]) -> list[str]:
    """Return the item files that rows are read with: of a later log its own, where it has one of the name.

    Parameters
    ----------
    rows : str
        A file of rows, or a folder of part files.
    item_files : str or sequence of str
        Those of the dataset, by which all other rows are read.
    """
    files = [item_files] if isinstance(item_files, str) else list(item_files)
    folder = folder_of_later_log(rows)
    if folder is None:
        return files
    own = [folder / Path(file).name for file in files]
    return [str(mine) if mine.exists() else file for mine, file in zip(own, files, strict=True)]


def of_unprepared(rows: str, item_files: str | Sequence[str] | None) -> str:
    """Return how rows are prepared that ``prepare`` did not write, where it wrote those of training; else nothing."""
    if item_files is None or is_remote(rows):
        return ""
    try:
        is_prepared = NUMBERING.encode() in (pq.read_metadata(part_files(rows)[0]).metadata or {})
    except (OSError, UserError):
        return ""
    files = [item_files] if isinstance(item_files, str) else item_files
    folder = next((Path(file).parent for file in files if _is_of_log(Path(file))), None)
    if is_prepared or folder is None:
        return ""
    return f"; prepare rows of your own with fuxictr-mm prepare log --like {quote(str(folder))}, and give their path"


def _is_of_log(item_file: Path) -> bool:
    manifest = item_file.parent / MANIFEST
    if item_file.name != ITEM_FILE or not manifest.is_file():
        return False
    try:
        return "log" in read_json(manifest)
    except UserError:
        return False
