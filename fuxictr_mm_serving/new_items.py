"""Items that an export does not hold, by their content: embeddings and codes as they are in the item files.

Shape letters: M items, D dim of a row of the item table, A dim of an embedding, C codes of an item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm_serving.errors import ServingError

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
    def of(cls, folder: Path, entry: Mapping[str, Any]) -> Content:
        """Return the content of an entry of the manifest."""
        weight = np.load(folder / entry["file"], allow_pickle=False) if entry.get("file") else None
        return cls(
            entry["dim"], entry["norm"], entry["scale"], weight, entry.get("start", 0), entry.get("content_start")
        )

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
    """

    contents: Mapping[str, Content]
    code_counts: Mapping[str, int]

    @classmethod
    def of(cls, folder: Path, entry: Mapping[str, Any]) -> NewItems:
        """Return those of the manifest's entry of the items."""
        contents = {name: Content.of(folder, content) for name, content in entry.get("contents", {}).items()}
        return cls(contents, entry["codes"]["columns"] if "codes" in entry else {})

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
                if len(given) != self.code_counts[name] or not all(0 <= code < 2**31 for code in given):
                    raise ServingError(f"new_items: '{name}' is not {self.code_counts[name]} codes from 0 on")
                codes[number, starts[name] : starts[name] + len(given)] = given
        return ItemRows(values, codes)


def _check(name: str, what: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ServingError(
            f"new_items: '{name}' is no {what} that can be given ({', '.join(known) or 'there are none'})"
        )
