"""How the ids of the files of a stage are numbered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from fuxictr_mm.config import Roles
from fuxictr_mm.data import parquet
from fuxictr_mm.data.ids import Numbering, entries_of, number_ids, why_numbered
from fuxictr_mm.data.numbering import digests_in
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.data.vocabulary import Vocabulary, plain
from fuxictr_mm.embeddings.item_tables import names_of, read_table, table_files
from fuxictr_mm.encoding.text_encodings import UTF8, Encoding
from fuxictr_mm.encoding.text_files import is_text
from fuxictr_mm.errors import DataError, UserError
from fuxictr_mm.files import StrPath


def find_numbering(
    files: Sequence[StrPath], roles: Roles, ids: str = "auto", train: StrPath | None = None, encoding: Encoding = UTF8
) -> Numbering:
    """Return how the ids of item files, and of a training split, are numbered.

    The ids of the item files come first, in their order, then those of the training split. Files that cannot be read
    are left to the stages.

    Raises
    ------
    DataError
        Files whose items ``fuxictr-mm prepare`` numbered in different orders.
    """
    digest = _digest_of([*files, *([] if train is None else [train])])
    names = Numbering(roles, digest=digest)
    try:
        keys = list(_read(files, names, encoding=encoding))
        items = users = None
        if keys and why_numbered(keys, ids):
            rest = [train] if train is not None else []
            every = [keys, _read(rest, names, roles.target), _read(rest, names, roles.history)]
            items = number_ids((array for arrays in every for array in arrays), "ids", ids == "vocabulary")
        if train is not None:
            found = Vocabulary.build(_read([train], names, roles.user))
            users = found if len(found) and why_numbered([found.values], "auto", 2**32) else None
    except UserError:
        return names
    return Numbering(roles, items, users, digest)


def _digest_of(paths: Sequence[StrPath]) -> str | None:
    """Return the digest of the items' numbers in the metadata of the files that have one."""
    found: dict[str, Path] = {}
    for path in paths:
        try:
            files = [file for file in table_files(path) if not is_text(file)]
            digests = [(file, digests_in(parquet.metadata_of(file))) for file in files]
        except UserError:  # of which the stage says more
            continue
        for file, digest in ((file, numbers[ITEM_ID]) for file, numbers in digests if ITEM_ID in numbers):
            found.setdefault(digest, file)
            if len(found) > 1:
                first = next(iter(found.values()))
                raise DataError(
                    f"{file}: numbers '{ITEM_ID}' in another order than {first}; give files of the same folder"
                )
    return next(iter(found), None)


def _read(
    files: Sequence[StrPath], names: Numbering, column: str | None = None, encoding: Encoding = UTF8
) -> Iterator[pa.Array]:
    """Yield the ids of a column, or of the keys, also those in lists."""
    for file in (part for path in files for part in table_files(path)):
        name = column or names.key(names_of(file, encoding))
        for _, batch in read_table(file, [name], name, encoding=encoding):
            where = f"{file}: {name}"
            yield plain(entries_of(batch.column(0), where), where)
