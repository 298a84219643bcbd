"""Items that an export does not hold, by their content: embeddings, codes and numbers as in the item files.

Shape letters: M items, D dim of a row of the item table, A dim of an embedding, C codes of an item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.features import ContextField, Items
from fuxictr_mm_serving.manifest import CodesEntry, ContentEntry, Files, IdsEntry, ItemsEntry, NumberEntry
from fuxictr_mm_serving.tables import Ids, check_shape, integers

#: Length below which an embedding is zero.
SMALLEST = 1e-12


@dataclass(frozen=True)
class ItemRows:
    """Rows of the item table ``(M, D)`` float32, and codes ``(M, C)`` int64 where the model reads them."""

    values: np.ndarray
    codes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> ItemRows:
        return ItemRows(self.values[rows], None if self.codes is None else self.codes[rows])

    def joined(self, other: ItemRows) -> ItemRows:
        """Return these rows, then the others."""
        codes = None if self.codes is None or other.codes is None else np.concatenate([self.codes, other.codes])
        return ItemRows(np.concatenate([self.values, other.values]), codes)


@dataclass(frozen=True)
class NewItem:
    """Content of an item: column of the item files to its numbers."""

    embeddings: Mapping[str, Sequence[float]] = field(default_factory=dict)
    codes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """An embedding of the item files: how it is normalised, and which columns of the item table it fills."""

    dim: int  #: A.
    #: Normalisation and factor, as in training.
    norm: str | None
    scale: float
    #: ``(.., A)`` projection of a field of the model, which fills the columns from ``start`` on.
    weight: np.ndarray | None
    start: int
    content_start: int | None  #: First of A columns that hold the embedding at length 1.

    @classmethod
    def of(cls, files: Files, entry: ContentEntry, row_dim: int) -> Content:
        """Return the content of an entry of the manifest, for rows of ``row_dim`` columns."""
        dim, start, content_start = entry.dim, entry.start, entry.content_start
        ends = [dim] if content_start is None else [dim, content_start + dim]
        weight = None
        if entry.file is not None:
            weight = files.array(entry.file)
            check_shape(files, entry.file, weight, 2, 0)
            ends.append(start + len(weight))
        if (
            min(dim, start, content_start or 0) < 0
            or max(ends[1:], default=0) > row_dim
            or (weight is not None and weight.shape[1] != dim)
        ):
            raise ServingError(f"{files.folder}: columns of new items are not in a row of {row_dim}; export again")
        return cls(dim, entry.norm, entry.scale, weight, start, content_start)

    def write(self, row: np.ndarray, what: str, values: Sequence[float]) -> None:
        """Write an embedding into a row of the item table ``(D,)``."""
        with np.errstate(over="ignore"):
            vector = np.asarray(values, dtype=np.float32)
        if vector.shape != (self.dim,) or not np.isfinite(vector).all():
            raise ServingError(f"{what} is not {self.dim} finite number{'s' if self.dim > 1 else ''}")
        vector = vector.astype(np.float64)
        if self.norm == "layer" and vector.any():
            vector = vector - vector.mean()
            vector /= vector.std() if vector.std() > SMALLEST else 1
        at_length_1 = vector / max(float(np.linalg.norm(vector)), SMALLEST)
        if self.weight is not None:
            scaled = self.scale * (at_length_1 if self.norm == "l2" else vector)
            with np.errstate(over="ignore", invalid="ignore"):  # the scores are checked
                row[self.start : self.start + len(self.weight)] = self.weight @ scaled.astype(np.float32)
        if self.content_start is not None:
            row[self.content_start : self.content_start + self.dim] = at_length_1


@dataclass(frozen=True)
class Number:
    """A number of the item files: how it is scaled, and which columns of the item table it fills."""

    shift: float
    scale: float
    content: Content

    @classmethod
    def of(cls, files: Files, entry: NumberEntry, row_dim: int) -> Number:
        """Return the number of an entry of the manifest, for rows of ``row_dim`` columns."""
        place = ContentEntry(norm=None, scale=1.0, dim=1, file=entry.file, start=entry.start)
        return cls(entry.shift, entry.scale, Content.of(files, place, row_dim))

    def write(self, row: np.ndarray, what: str, value: float) -> None:
        """Write a number into a row of the item table ``(D,)``."""
        self.content.write(row, what, [(value - self.shift) / self.scale])


@dataclass(frozen=True)
class IdField:
    """A field of ids: its place in a row of the item table, and how many ids it pools there."""

    start: int
    dim: int
    max_len: int
    pooling: str  #: ``sum`` or ``mean``.
    #: Returns embeddings ``(N, dim)`` of N ids; also takes what they are, for errors.
    embed: Callable[[Sequence[Any], str], np.ndarray]

    @classmethod
    def of(cls, files: Files, entry: IdsEntry, items: Items, ids: Ids | None) -> IdField:
        """Return the field of an entry of the manifest."""
        start, dim, own = entry.start, entry.dim, entry.items_start or 0
        field = ContextField.of(files, entry, ids)

        def of_items(given: Sequence[Any], what: str) -> np.ndarray:
            return items.table.rows(np.maximum(items.numbers(given, what), 0))[:, own : own + dim]

        if max(start, own) + dim > items.table.values.shape[1]:
            raise ServingError(f"{files.folder}: '{entry.name}' is not in a row of the items; export again")
        return cls(start, dim, entry.max_len, entry.pooling, field.encode if entry.items_start is None else of_items)

    def write(self, row: np.ndarray, what: str, ids: Sequence[Any]) -> None:
        """Write the pooled embeddings of ids into a row of the item table ``(D,)``."""
        if len(ids) > self.max_len:
            raise ServingError(f"{what} has {len(ids)} ids, expected {self.max_len} or fewer")
        padded = [*[None] * (self.max_len - len(ids)), *ids]  # as in the item files: null is number 0
        found = self.embed(padded, what)
        count = (found.sum(axis=1) != 0).sum() if self.pooling == "mean" else 1
        row[self.start : self.start + self.dim] = found.sum(axis=0) / max(count, 1)


@dataclass(frozen=True)
class NewItems:
    """What can be given of a new item, by the columns of the item files."""

    contents: Mapping[str, Content]
    code_counts: Mapping[str, int]  #: Codes of each column, in the order of the model.
    #: Codes of a column are below; without an entry, of an earlier export, any code is taken.
    vocab_sizes: Mapping[str, int] = field(default_factory=dict)
    ids: Mapping[str, IdField] = field(default_factory=dict)
    #: Columns whose codes are given as the owner has them: texts, or what ``fuxictr-mm prepare`` wrote numbers of.
    #: Returns the numbers of codes; also takes what they are, for errors.
    words: Mapping[str, Callable[[Sequence[Any], str], np.ndarray]] = field(default_factory=dict)
    numbers: Mapping[str, Number] = field(default_factory=dict)
    lists: Sequence[str] = ()  #: Columns of which an item may have fewer codes.

    @classmethod
    def of(cls, files: Files, entry: ItemsEntry, items: Items, ids: Mapping[str, Ids]) -> NewItems:
        """Return those of the manifest's entry of the items, by the vocabularies of columns of texts."""
        row_dim = items.table.values.shape[1]
        contents = {name: Content.of(files, content, row_dim) for name, content in entry.contents.items()}
        codes = entry.codes or CodesEntry(file="none", columns={})
        fields = {e.name: IdField.of(files, e, items, ids.get(e.name)) for e in entry.ids}
        words = {name: ids[name].encode for name in codes.columns if name in ids}
        words |= dict.fromkeys(codes.of_items, items.numbers)
        numbers = {name: Number.of(files, number, row_dim) for name, number in entry.numbers.items()}
        return cls(contents, codes.columns, codes.vocab_sizes, fields, words, numbers, codes.lists)

    def rows(self, items: Sequence[NewItem], unseen: ItemRows) -> ItemRows:
        """Return rows of the items; what is not given is that of an item that training has not seen."""
        zeros = np.zeros(len(items), dtype=np.int64)
        values, codes = unseen.values[zeros], None if unseen.codes is None else unseen.codes[zeros]
        starts = dict(zip(self.code_counts, np.cumsum([0, *self.code_counts.values()])[:-1].tolist(), strict=True))
        for number, item in enumerate(items):
            for name, numbers in item.embeddings.items():
                what = f"new_items.{number}: '{name}'"
                _check(name, f"{what} is not an embedding", self.contents)
                self.contents[name].write(values[number], what, numbers)
            for name, value in item.numbers.items():
                what = f"new_items.{number}: '{name}'"
                _check(name, f"{what} is not a number", self.numbers)
                self.numbers[name].write(values[number], what, value)
            for name, given in item.codes.items():
                what = f"new_items.{number}: '{name}'"
                _check(name, f"{what} is not a list of codes", {**self.code_counts, **self.ids})
                if name in self.ids:
                    self.ids[name].write(values[number], what, given)
                if name in self.code_counts:
                    assert codes is not None
                    found = self._codes_of(name, given, what)
                    codes[number, starts[name] : starts[name] + len(found)] = found
        return ItemRows(values, codes)

    def _codes_of(self, name: str, given: Sequence[Any], what: str) -> np.ndarray:
        """Return the codes ``(K,)`` of a column; fewer, or none, are padded as in the item files."""
        count, takes_fewer = self.code_counts[name], name in self.lists or name in self.ids
        if len(given) > count or (len(given) < count and not takes_fewer):
            expected = f"{count} or fewer" if takes_fewer else f"{count}, or to be left out"
            raise ServingError(f"{what} has {len(given)} ids, expected {expected}")
        if name in self.words:
            found = np.maximum(self.words[name](given, what), 0)
        else:
            found, limit = integers(given, what), self.vocab_sizes.get(name, 2**31)
            if (wrong := found[(found < 0) | (found >= limit)]).size:
                raise ServingError(f"{what} holds {wrong[0]}, expected 0 to {limit - 1}")
        return np.pad(found, (count - len(given), 0))


def _check(name: str, what: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ServingError(f"{what} that can be given ({', '.join(known) or 'there are none'})")
