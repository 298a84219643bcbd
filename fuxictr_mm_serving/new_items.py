"""Items that an export does not hold, by their content: embeddings and codes as they are in the item files.

Shape letters: M items, D dim of a row of the item table, A dim of an embedding, C codes of an item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.manifest import Files
from fuxictr_mm_serving.tables import check_shape

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
    codes: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """An embedding of the item files: how it is normalised, and which columns of the item table it fills.

    Parameters
    ----------
    dim : int
        A.
    norm, scale : str or None, float
        As in training.
    weight : ndarray, optional
        ``(.., A)`` projection of a field of the model, which fills the columns from ``start`` on.
    start : int
        See ``weight``.
    content_start : int, optional
        First of A columns that hold the embedding at length 1.
    """

    dim: int
    norm: str | None
    scale: float
    weight: np.ndarray | None
    start: int
    content_start: int | None

    @classmethod
    def of(cls, files: Files, entry: Mapping[str, Any], row_dim: int) -> Content:
        """Return the content of an entry of the manifest, for rows of ``row_dim`` columns.

        Raises
        ------
        ServingError
            It does not fit them.
        """
        dim, start, content_start = entry["dim"], entry.get("start", 0), entry.get("content_start")
        ends = [dim] if content_start is None else [dim, content_start + dim]
        weight = files.array(entry["file"]) if entry.get("file") else None
        if weight is not None:
            check_shape(files, entry["file"], weight, 2, 0)
            ends.append(start + len(weight))
        if (
            min(dim, start, content_start or 0) < 0
            or max(ends[1:], default=0) > row_dim
            or (weight is not None and weight.shape[1] != dim)
        ):
            raise ServingError(f"{files.folder}: columns of new items are not in a row of {row_dim}; export again")
        return cls(dim, entry["norm"], entry["scale"], weight, start, content_start)

    def write(self, row: np.ndarray, name: str, values: Sequence[float]) -> None:
        """Write an embedding into a row of the item table ``(D,)``.

        Raises
        ------
        ServingError
            It is of another dim, or not finite.
        """
        with np.errstate(over="ignore"):
            vector = np.asarray(values, dtype=np.float32)
        if vector.shape != (self.dim,) or not np.isfinite(vector).all():
            raise ServingError(f"new_items: '{name}' is not {self.dim} finite numbers")
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
class NewItems:
    """What can be given of a new item.

    Parameters
    ----------
    contents : mapping of str to Content
        By the column of the item files.
    code_counts : mapping of str to int
        Codes of each column, in the order of the model.
    vocab_sizes : mapping of str to int
        Codes of a column are below; without an entry, of an earlier export, any code is taken.
    """

    contents: Mapping[str, Content]
    code_counts: Mapping[str, int]
    vocab_sizes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Files, entry: Mapping[str, Any], row_dim: int) -> NewItems:
        """Return those of the manifest's entry of the items, whose table has ``row_dim`` columns."""
        contents = {name: Content.of(files, content, row_dim) for name, content in entry.get("contents", {}).items()}
        codes = entry.get("codes") or {}
        return cls(contents, codes.get("columns", {}), codes.get("vocab_sizes", {}))

    def rows(self, items: Sequence[NewItem], unseen: ItemRows) -> ItemRows:
        """Return rows of the items; what is not given is that of an item that training has not seen.

        Raises
        ------
        ServingError
            A column that the model does not read, or values of another count.
        """
        zeros = np.zeros(len(items), dtype=np.int64)
        values, codes = unseen.values[zeros], None if unseen.codes is None else unseen.codes[zeros]
        starts = dict(zip(self.code_counts, np.cumsum([0, *self.code_counts.values()])[:-1].tolist(), strict=True))
        for number, item in enumerate(items):
            for name, numbers in item.embeddings.items():
                _check(name, "embedding", self.contents)
                self.contents[name].write(values[number], name, numbers)
            for name, given in item.codes.items():
                _check(name, "codes", self.code_counts)
                assert codes is not None
                limit = self.vocab_sizes.get(name, 2**31)
                if len(given) != self.code_counts[name] or not all(0 <= code < limit for code in given):
                    expected = f"{self.code_counts[name]} codes from 0 to {limit - 1}"
                    raise ServingError(f"new_items: '{name}' is not {expected}")
                codes[number, starts[name] : starts[name] + len(given)] = given
        return ItemRows(values, codes)


def _check(name: str, what: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ServingError(
            f"new_items: '{name}' is no {what} that can be given ({', '.join(known) or 'there are none'})"
        )
