"""Vocabularies by FuxiCTR's rules: the id of every value of a column.

Id 0 is padding, ids from 1 on are the values of the training split, the next one is that of all other values (OOV),
and the keys of a file of embeddings follow. Texts are ordered by falling count, then by code points; numbers by value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl


def _no_tokens() -> pl.Series:
    return pl.Series([], dtype=pl.String)


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the values of a column, or of several that share their embedding table.

    Parameters
    ----------
    tokens : Series
        Values as texts; their ids are 1, 2, ...
    extra : Series
        Keys of a file of embeddings that the training split does not have; their ids follow the one of OOV.
    """

    tokens: pl.Series = field(default_factory=_no_tokens)
    extra: pl.Series = field(default_factory=_no_tokens)

    @property
    def oov(self) -> int:
        """Id of the values that are not in the vocabulary."""
        return len(self.tokens) + 1

    @property
    def size(self) -> int:
        """Number of ids, that of padding included."""
        return self.oov + 1 + len(self.extra)

    @classmethod
    def of_counts(cls, counts: pl.DataFrame, min_count: int, missing: Any) -> Vocabulary:
        """Build a vocabulary from the columns ``value`` and ``len``.

        Parameters
        ----------
        counts : DataFrame
            Every value of the training split with its count.
        min_count : int
            Values that occur less often are left out.
        missing : str or number
            The value that stands for a missing one, left out as well.
        """
        counts = counts.drop_nulls("value").filter(pl.col("len") >= min_count)
        if counts["value"].dtype == pl.String:
            values = counts.sort("len", "value", descending=[True, False])["value"]
        else:
            values = counts["value"].sort()
        if isinstance(missing, str) == (values.dtype == pl.String):
            values = values.filter(values != missing)
        return cls(as_text(values, values.dtype.is_float()))

    def merged(self, other: Vocabulary) -> Vocabulary:
        """Return this vocabulary with the values of another one that it does not have."""
        new = other.tokens.filter(~other.tokens.is_in(self.tokens.implode()))
        return replace(self, tokens=pl.concat([self.tokens, new]))

    def with_keys(self, keys: pl.Series) -> Vocabulary:
        """Return this vocabulary with the keys of a file of embeddings that it does not have."""
        known = pl.concat([self.tokens, self.extra])  # keys of another file, where several features share a table
        new = keys.unique(maintain_order=True)
        return replace(self, extra=pl.concat([self.extra, new.filter(~new.is_in(known.implode()))]))

    def ids(self, values: pl.Expr) -> pl.Expr:
        """Return the ids of texts, as Int32."""
        # An Enum keeps its hash table from one batch to the next; a join or replace_strict would build it for each.
        known = pl.Enum(pl.concat([self.tokens, self.extra]))
        place = values.cast(known, strict=False).to_physical().cast(pl.Int32)
        behind = (place >= len(self.tokens)).cast(pl.Int32) if len(self.extra) else 0
        return (place + 1 + behind).fill_null(self.oov)

    def to_dict(self) -> dict[str, int]:
        """Return every value with its id, in FuxiCTR's form and in the order of ids."""
        known = {"__PAD__": 0, **{token: i for i, token in enumerate(self.tokens, start=1)}, "__OOV__": self.oov}
        return known | {token: i for i, token in enumerate(self.extra, start=self.oov + 1)}


def as_text(values: Any, is_float: bool) -> Any:
    """Return a series or an expression of texts or numbers as texts; 0.0 and -0.0 are one."""
    return (values + 0.0 if is_float else values).cast(pl.String)
