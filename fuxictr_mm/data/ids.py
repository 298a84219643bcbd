"""Ids of items and users, and the indices by which a command represents them.

Ids are their own numbers where all are integers from 0 to 2**31 - 1, and 0 is padding; else a vocabulary gives the
numbers from 1 on. Training, ``check-data`` and the stages of ``embed`` share this rule, and each adds to it:

- Training (``item_numbers``) numbers sparse ids as well, whose tables would be mostly empty, and ids of which 0 is an
  item; a run's vocabulary stays.
- ``check-data`` (``check_data.numbering``) leaves integers of which few are wrong as they are: these are findings.
  Ids that no item file has get numbers, so that they can be reported.
- The stages (``embeddings.numbering``) build no tables, so that sparse ids stay, and see no histories: 0 is padding,
  unless ``ids`` is ``vocabulary``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from fuxictr_mm.config import Roles
from fuxictr_mm.data import arrow_types, decoding
from fuxictr_mm.data.decoding import MAX_IDS
from fuxictr_mm.data.numbering import to_metadata
from fuxictr_mm.data.schema import ITEM_ID, key_of_items
from fuxictr_mm.data.vocabulary import UNKNOWN, Vocabulary, as_text
from fuxictr_mm.errors import DataError


def why_numbered(chunks: Iterable[pa.Array], ids: str, most: int = MAX_IDS) -> str | None:
    """Return the reason why ids are numbered by a vocabulary, None if they are used as they are.

    ``chunks`` are as of ``vocabulary.plain``, ``ids`` is the setting, and numbers are below ``most``.
    """
    if ids != "auto":
        return "ids: vocabulary" if ids == "vocabulary" else None
    for chunk in chunks:
        if not pa.types.is_integer(chunk.type):
            return "texts"
        if len(found := beyond(chunk, most)):
            return f"the id {found[0]}"
    return None


def beyond(ids: pa.Array, most: int = MAX_IDS) -> np.ndarray:
    """Return the integers that are negative, or ``most`` or more."""
    values = arrow_types.numbers(ids.drop_null())
    return values[(values < 0) | (values >= most)]


def number_ids(chunks: Iterable[pa.Array], where: str, with_zero: bool) -> Vocabulary:
    """Return the vocabulary of ids, in which the integer 0 has a number only ``with_zero``, and the empty text never.

    Raises
    ------
    DataError
        Ids of several types.
    """
    found = Vocabulary.build(chunks, where)
    return found if with_zero and found.is_integer else found.without_padding()


def entries_of(array: pa.Array, where: str) -> pa.Array:
    """Return the ids of a column of ids or of lists of ids."""
    return decoding.list_entries(array, where)[0] if arrow_types.is_list(array.type) else array


@dataclass(frozen=True)
class Numbering:
    """Names of columns, and the vocabularies of ids; by default ids are as they are, and 0 is padding."""

    roles: Roles = field(default_factory=Roles)  #: Of the columns of interactions; the target is the key of item files.
    items: Vocabulary | None = None  #: By which ids of items become integers from 1.
    users: Vocabulary | None = None  #: The same of users.
    digest: str | None = None  #: Of the numbers that ``fuxictr-mm prepare`` gave the items of the files.

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
            raise DataError(
                f"{where}: row {row + bad} holds {array[bad].as_py()!r}, which no item file has; add the item or "
                "drop the row"
            )
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

    def shown(self, numbers: np.ndarray) -> list[object]:
        """Return the ids ``(n,)`` of items, for messages and reports."""
        found = numbers.tolist() if self.items is None else self.items.decode(numbers).to_pylist()
        return [as_text(value) for value in found]

    def show(self, number: int) -> object:
        """Return the id of an item, for messages and reports."""
        return self.shown(np.array([number]))[0]

    def name(self, number: int) -> str:
        """Return the key and the id of an item, for messages."""
        return f"{self.roles.target} {self.show(int(number))}"

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Metadata of a file of items, by which training detects that items were numbered again since."""
        return {} if self.digest is None else to_metadata({ITEM_ID: self.digest})

    @property
    def type(self) -> pa.DataType:
        """Type of the ids in files."""
        if self.items is None:
            return pa.int64()
        kind = self.items.values.type
        return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)


#: Ids are their own numbers, and columns have the names of the challenge.
AS_IS = Numbering()
