"""How the ids of a file are numbered: as ``fuxictr-mm prepare`` wrote them, and in the same order as for the export."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, TypeVar

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.parquet import schema_of
from fuxictr_mm_serving.prepared import (
    ALL_ITEMS,
    EARLIER_ITEMS,
    EXTENDS,
    ITEM_FILE,
    ITEM_ID,
    NUMBERED,
    NUMBERING,
    REWRITTEN,
    SPLITS,
    VOCABULARIES,
    base_of_later_log,
    has_columns_of_prepare,
)

if TYPE_CHECKING:
    from fuxictr_mm_serving.export import Export

T = TypeVar("T")


def is_numbered(file: Path) -> bool:
    """Whether ``fuxictr-mm prepare`` wrote a file of rows: it says so, or is where an earlier version wrote it."""
    metadata, split = schema_of(file).metadata or {}, file.resolve().parent
    is_beside = (split.parent / VOCABULARIES).is_dir() and (split.parent / ITEM_FILE).is_file()
    return metadata.items() >= NUMBERED.items() or (split.name in SPLITS and is_beside)


def for_file(export: Export, file: Path, *more: str) -> Export:
    """Return the export that reads the ids of a file; the numbering of columns ``more`` is checked as well."""
    check_numbering(export, file, *export.of_numbers.columns, *more)
    if export.is_prepared and is_numbered(file):
        return export.of_numbers
    if export.is_prepared and has_columns_of_prepare({field.name: field.type for field in schema_of(file)}):
        raise ServingError(f"{file}: {REWRITTEN}")
    return export


def check_numbering(export: Export, file: Path, *columns: str) -> None:
    """Refuse a file of ``fuxictr-mm prepare`` whose items, or values of columns, have other numbers than the export's.

    A file without digests, as other programs and earlier versions wrote it, is read as it is; so are rows of a folder
    that the one of the export extends.
    """
    given, expected = _digests(file), export.manifest.numbering
    for name in sorted({ITEM_ID, *columns} & given.keys() & expected.keys()):
        # The new items of a later log have the numbers of others here.
        is_earlier = ALL_ITEMS not in given and given[name] in export.manifest.extends.get(name, ())
        if given[name] != expected[name] and not is_earlier:
            extended: dict[str, dict[str, int]] = _json_in(file, EXTENDS, {})
            what = "was numbered in another order than for the export"
            remedy = "give files of the folder that it was trained on, or with source ids"
            if ALL_ITEMS in given:
                base = base_of_later_log(file)
                what = f"is numbered as in {base}, which its log was prepared --like, not as in the export"
                remedy = "prepare the log --like the folder that the export was trained on, or give source ids"
            elif expected[name] in extended.get(name, {}):
                what = "has more numbers than the export, which is of a log before it"
                remedy = "give files of the folder that the export was trained on, or an export of this one"
            raise ServingError(
                f"{file}: '{name}' {what} (digest {str(given[name])[:8]}, expected {expected[name][:8]}); {remedy}"
            )
    new, own = given.get(ALL_ITEMS), expected.get(ALL_ITEMS)
    if new is None or own is None or new == own or new in export.manifest.earlier_items:
        return
    if own not in _json_in(file, EARLIER_ITEMS, []):  # otherwise rows with newer items are refused as such
        raise ServingError(
            f"{file}: is of another later log than the items of the export (digest {str(new)[:8]}, expected "
            f"{own[:8]}), and neither log was prepared like the other; {_export_with_items(file)}"
        )


def how_to_score_new_items(file: Path) -> str:
    """Return what to do where a file holds items that the export does not, such as one of a later log."""
    if ALL_ITEMS in _digests(file):
        return f"; {_export_with_items(file)}"
    return "; add them to the item files and export again, or drop the rows"


def _export_with_items(file: Path) -> str:
    folder = next((f for f in list(file.parents)[:2] if (f / ITEM_FILE).is_file()), "DIR")
    return f"export again with --items {quote(str(folder))}, which has these items"


def _digests(file: Path) -> dict[str, str]:
    return _json_in(file, NUMBERING, {})


def _json_in(file: Path, key: str, default: T) -> T:
    """Return what the metadata of a file has of a key, of the type of the default."""
    try:
        found = json.loads((schema_of(file).metadata or {}).get(key.encode(), b"null"))
    except ValueError:
        found = ""
    if found is not None and not isinstance(found, type(default)):
        raise ServingError(f"{file}: its metadata {key} are damaged; prepare it again")
    return default if found is None else found
