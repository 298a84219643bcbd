"""Item files whose ids are no small integers, or whose key has another name: the stages see integers from 1.

``Numbering.find`` looks what files have; while it is ``active``, all stages read ids as numbers and write ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from fuxictr_mm.config import Roles
from fuxictr_mm.data import arrow_types, decoding, parquet
from fuxictr_mm.data.arrow_types import is_list
from fuxictr_mm.data.decoding import MAX_IDS
from fuxictr_mm.data.numbering import digests_in, to_metadata
from fuxictr_mm.data.schema import ITEM_ID, key_of_items
from fuxictr_mm.data.vocabulary import UNKNOWN, Vocabulary, as_text, plain
from fuxictr_mm.embeddings.item_tables import names_of, read_table, table_files
from fuxictr_mm.encoding.text_files import is_text
from fuxictr_mm.errors import DataError, UserError

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Numbering:
    """Names of columns, and the vocabularies of ids; by default ids are as they are, and 0 is padding."""

    roles: Roles = field(default_factory=Roles)  #: Of the columns of interactions; the target is the key of item files.
    items: Vocabulary | None = None  #: By which ids of items become integers from 1.
    users: Vocabulary | None = None  #: The same of users.
    digest: str | None = None  #: Of the numbers that ``fuxictr-mm prepare`` gave the items of the files.

    @classmethod
    def find(cls, files: Sequence[StrPath], roles: Roles, ids: str = "auto", train: StrPath | None = None) -> Numbering:
        """Return how the ids of item files, and of a training split, are numbered.

        Items are numbered where an id is a text, negative, or 2**31 or more, or where ``ids`` is ``vocabulary``: those
        of the item files in their order, then those of the training split. Files that cannot be read are left to the
        stages.

        Raises
        ------
        DataError
            Files whose items ``fuxictr-mm prepare`` numbered in different orders.
        """
        names = cls(roles, digest=_digest_of([*files, *([] if train is None else [train])]))
        try:
            keys = list(names._read(files, None))
            items = Vocabulary.build(keys) if keys and _is_needed(keys, ids) else None
            users = None
            if train is not None:
                if items is not None:
                    items = Vocabulary.build([items.values, *names._read([train], roles.target)])
                    items = Vocabulary.build([items.values, *names._read([train], roles.history)])
                found = Vocabulary.build(names._read([train], roles.user))
                users = found if len(found) and _is_needed([found.values], "auto", 2**32) else None
        except UserError:
            return names
        if items is not None and not (ids == "vocabulary" and items.is_integer):
            items = items.without_padding()
        return replace(names, items=items, users=users)

    def _read(self, files: Sequence[StrPath], column: str | None) -> Iterator[pa.Array]:
        """Yield the ids of a column, or of the keys, also those in lists."""
        for file in (part for path in files for part in table_files(path)):
            name = column or self.key(names_of(file))
            for _, batch in read_table(file, [name], name):
                where = f"{file}: {name}"
                in_lists = is_list(batch.column(0).type)
                yield plain(decoding.list_entries(batch.column(0), where)[0] if in_lists else batch.column(0), where)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the stages number ids so."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)

    def key(self, present: Sequence[str]) -> str:
        """Return the name of the key of an item file with these columns."""
        return key_of_items(self.roles.target, present)

    def numbers(self, array: pa.Array, where: str, row: int, known: bool = True) -> np.ndarray:
        """Return the items ``(R,)`` int64, 0 for padding; ``where`` and ``row`` are for errors.

        An id that no item file has is an error, unless ``known`` is False: then it is 0.
        """
        if self.items is None:
            ids = decoding.scalars(array, where, row)
            decoding.check_ids(ids, None, where, row)
            return ids
        found = self.items.encode(array, where)
        if not known:
            found[found == UNKNOWN] = 0
        if (found == UNKNOWN).any():
            bad = int(np.flatnonzero(found == UNKNOWN)[0])
            raise DataError(f"{where}: row {row + bad} holds {array[bad].as_py()!r}, which no item file has")
        return found

    def lists(self, array: pa.Array, where: str, row: int, known: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return the entries of all lists ``(N,)``, as ``numbers`` but not checked, and the offsets of each row."""
        if self.items is None:
            return decoding.lists(array, where, row)
        entries, offsets = decoding.list_entries(array, where)
        return self.numbers(entries, where, row, known), offsets

    def ids(self, numbers: np.ndarray) -> pa.Array:
        """Return the ids ``(n,)`` of items, to write; null for padding."""
        if self.items is None:
            return pa.array(numbers.astype(np.int64, copy=False))
        return self.items.decode(numbers).cast(self.type)

    def show(self, number: int) -> object:
        """Return the id of an item, for messages and reports."""
        return number if self.items is None else as_text(self.items.decode(np.array([number]))[0].as_py())

    def name(self, number: int) -> str:
        """Return the key and the id of an item, for messages."""
        return f"{self.roles.target} {self.show(int(number))}"

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Metadata of a file of items, by which training refuses it where they were numbered again since."""
        return {} if self.digest is None else to_metadata({ITEM_ID: self.digest})

    @property
    def type(self) -> pa.DataType:
        """Type of the ids in files."""
        if self.items is None:
            return pa.int64()
        kind = self.items.values.type
        return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)


_active: ContextVar[Numbering] = ContextVar("numbering", default=Numbering())  # noqa: B039 - immutable


def numbering() -> Numbering:
    """Return the numbering that is active."""
    return _active.get()


def _digest_of(paths: Sequence[StrPath]) -> str | None:
    """Return the digest of the items' numbers in the metadata of the files that have one."""
    found: dict[str, Path] = {}
    for path in paths:
        try:
            files = [file for file in table_files(path) if not is_text(file)]
            digests = [(file, digests_in(parquet.open_parquet(file).metadata.metadata)) for file in files]
        except UserError:  # of which the stage says more
            continue
        for file, digest in ((file, numbers[ITEM_ID]) for file, numbers in digests if ITEM_ID in numbers):
            found.setdefault(digest, file)
            if len(found) > 1:
                first = next(iter(found.values()))
                raise DataError(f"{file}: numbers '{ITEM_ID}' in another order than {first}; give files of one folder")
    return next(iter(found), None)


def _is_needed(keys: Sequence[pa.Array], ids: str, most: int = MAX_IDS) -> bool:
    if ids != "auto":
        return ids == "vocabulary"
    if any(not pa.types.is_integer(array.type) for array in keys):
        return True
    values = [arrow_types.numbers(array.drop_null()) for array in keys]
    return any(len(v) and (int(v.min()) < 0 or int(v.max()) >= most) for v in values)
