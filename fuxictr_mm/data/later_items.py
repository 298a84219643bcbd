"""Item files of a later log, which ``fuxictr-mm prepare log --like`` writes next to its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from fuxictr_mm.data.numbering import digests_in, known_items
from fuxictr_mm.data.parquet import PACKED_SUFFIXES, metadata_of, open_parquet, part_files
from fuxictr_mm.data.remote import is_remote
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.files import read_json
from fuxictr_mm_serving.prepared import (
    ITEM_FILE,
    MANIFEST,
    NUMBERING,
    REWRITTEN,
    base_of_later_log,
    has_columns_of_prepare,
)

#: Endings of files of text.
RAW = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson"}


def folder_of_later_log(rows: str) -> Path | None:
    """Return the folder of a later log that a file or folder of rows belongs to; None for all other rows."""
    if is_remote(rows):
        return None
    for folder in list(Path(rows).absolute().parents)[:2]:
        items = folder / ITEM_FILE
        if items.is_file() and known_items(metadata_of(items)) is not None:
            return folder
    return None


def refuse_folder_of_splits(rows: str) -> None:
    """Refuse the folder of a prepared dataset, whose rows are in folders of their own."""
    if is_remote(rows) or not (Path(rows) / MANIFEST).is_file():
        return
    splits = [str(Path(rows) / split) for split in ("test", "valid", "train") if (Path(rows) / split).is_dir()]
    if splits and (Path(rows) / ITEM_FILE).is_file():
        raise DataError(f"{rows}: is the folder of a prepared dataset; give that of its rows: {' or '.join(splits)}")


def refuse_raw(rows: str, item_files: str | Sequence[str] | None) -> None:
    """Refuse a file of text, such as CSV, for a dataset of ``prepare log``: converted, it would be refused again."""
    endings = [ending.lower() for ending in Path(rows).suffixes if ending.lower() not in PACKED_SUFFIXES]
    folder = _folder_of_log(item_files or ())
    if folder is not None and RAW & {*endings[-1:]} and not is_remote(rows) and Path(rows).is_file():
        raise DataError(f"{rows}: is not Parquet{_how_to_prepare(folder)}")


def item_files_of(rows: str, item_files: str | Sequence[str]) -> list[str]:
    """Return the item files to read a file of rows with; a later log's own files replace those of the same name."""
    files = [item_files] if isinstance(item_files, str) else list(item_files)
    folder = folder_of_later_log(rows)
    return files if folder is None else _of_folder(folder, files)


def item_files_of_later_log(folder: Path, item_files: Sequence[str]) -> list[str]:
    """Return the item files of a later log, and those of the dataset that it has not."""
    items = folder / ITEM_FILE
    if not items.is_file():
        raise MissingFileError(f"{items}: no such file; expected a folder of fuxictr-mm prepare log --like")
    if known_items(metadata_of(items)) is None:
        raise ConfigError(f"{items}: holds items of no later log, expected those of fuxictr-mm prepare log --like")
    return _of_folder(folder, item_files)


def _of_folder(folder: Path, item_files: Sequence[str]) -> list[str]:
    own = [folder / Path(file).name for file in item_files]
    return [str(mine) if mine.exists() else file for mine, file in zip(own, item_files, strict=True)]


def of_unprepared(rows: str, item_files: str | Sequence[str] | None) -> str:
    """Return advice on preparing rows if ``prepare`` wrote the training rows but not these; else an empty text."""
    if item_files is None or is_remote(rows):
        return ""
    try:
        is_prepared = NUMBERING.encode() in metadata_of(part_files(rows)[0])
    except UserError:
        return ""
    folder = _folder_of_log(item_files)
    if is_prepared or folder is None:
        return ""
    fix = _how_to_prepare(folder)
    if has_columns_of_prepare({f.name: f.type for f in open_parquet(part_files(rows)[0]).schema_arrow}):
        fix += f"; or the file {REWRITTEN}"
    return fix


def _how_to_prepare(folder: Path) -> str:
    return f"; prepare your own rows with fuxictr-mm prepare log --like {quote(str(folder))}, and give their path"


def of_another_base(rows: str, item_files: str | Sequence[str] | None) -> str:
    """Return which folder a later log was prepared like, and which was expected; an empty text if it is the same."""
    later, folder = folder_of_later_log(rows), _folder_of_log(item_files or ())
    if later is None or folder is None:
        return ""
    its, own = (digests_in(metadata_of(path / ITEM_FILE)).get(ITEM_ID) for path in (later, folder))
    base = base_of_later_log(later / ITEM_FILE)
    return "" if its == own else f"; {later} was prepared --like {base}, expected --like {quote(str(folder))}"


def _folder_of_log(item_files: str | Sequence[str]) -> Path | None:
    files = [item_files] if isinstance(item_files, str) else item_files
    return next((Path(file).parent for file in files if _is_of_log(Path(file))), None)


def _is_of_log(item_file: Path) -> bool:
    manifest = item_file.parent / MANIFEST
    if item_file.name != ITEM_FILE or not manifest.is_file():
        return False
    try:
        return "log" in read_json(manifest)
    except UserError:
        return False
