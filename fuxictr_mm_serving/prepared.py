"""Names of the files that ``fuxictr-mm prepare`` writes into the folder of a dataset, of their columns and metadata.

Here and not in ``fuxictr_mm``, because a server knows them too and does without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

#: What was read, how columns were scaled, and what is finished.
MANIFEST = "manifest.json"

#: Folders of rows.
SPLITS = ("train", "valid", "test")

#: Columns of the numbers of users and items.
USER_ID, ITEM_ID = "user_id", "item_id"

#: The items, with their ids in the source.
ITEM_FILE = "items.parquet"

#: Their column of the ids in the source.
SOURCE_ID = "source_id"

#: Columns of the rows of a log that are not features: the user's id in the source, the time, the number of the row, and
#: the weight of the row, if the log has one.
SOURCE_USER, SOURCE_TIME, SOURCE_ROW, SOURCE_WEIGHT = "source_user", "source_time", "source_row", "source_weight"
ROW_SOURCES = (SOURCE_USER, SOURCE_TIME, SOURCE_ROW, SOURCE_WEIGHT)

#: Folder of the newest history of every user, which a later log continues.
HISTORIES = "histories"

#: Folder of the values of every code, a file for each column.
VOCABULARIES = "vocabularies"

#: What the metadata of a file says that it wrote: its ids are numbers, and its numbers are scaled.
NUMBERED = {b"fuxictr_mm.ids": b"numbers"}

#: What is said of a file that ``prepare`` wrote and another program has rewritten without its metadata.
REWRITTEN = (
    "was written by fuxictr-mm prepare (it has source_row) and rewritten without its Parquet metadata fuxictr_mm.ids "
    "and fuxictr_mm.numbering, which say how its ids are numbered; write it with them, in Polars: "
    "frame.write_parquet(FILE, metadata=polars.read_parquet_metadata(ORIGINAL))"
)

#: Key in the metadata of a file of the digests of the numbers of each column.
NUMBERING = "fuxictr_mm.numbering"

#: Key in the metadata of files of a log that extends another: by column, the digest and the number of values of each
#: numbering that its own begins with.
EXTENDS = "fuxictr_mm.extends"

#: The column of the digest of all items of a later log, new ones included: its rows are read with its items.
ALL_ITEMS = "item_id and new items"

#: Key in the metadata of files of a log after a later one: digests of all items of the later logs before it, whose
#: numbers its own continue.
EARLIER_ITEMS = "fuxictr_mm.earlier_items"

#: What a number of a log is named after it was scaled.
SCALED = "_scaled"


def has_columns_of_prepare(kinds: Mapping[str, object]) -> bool:
    """Whether a file of these columns and types is one of rows that ``prepare`` wrote: users are numbers there."""
    return SOURCE_ROW in kinds and str(kinds.get("user_id")).startswith(("int", "uint"))


def base_of_later_log(file: Path) -> str:
    """Return the folder that a file's log was prepared ``--like``, as its manifest has it; "another folder" if not."""
    for folder in list(file.absolute().parents)[:2]:
        try:
            base = json.loads((folder / MANIFEST).read_text("utf-8"))["log"]["trained"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if base:
            return str(base)
    return "another folder"
