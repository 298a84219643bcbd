"""Vocabularies by FuxiCTR's rules: the id of every value of a column.

Id 0 is padding, ids from 1 on are the values of the training split, the next one is for all other values (OOV),
and the keys of a file of embeddings follow. Texts are ordered by falling count, then by code points; numbers by value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import polars as pl


@dataclass(frozen=True)
class TokenVocabulary:
    """Ids of the values of a column, or of several that share their embedding table."""

    #: Values as texts: those of the training split, then keys of a file of embeddings that it does not have.
    tokens: pl.Series
    oov: int  #: Id of the values that are not in the vocabulary: ids before it are those of the training split.

    @property
    def size(self) -> int:
        """Number of ids, those of padding and OOV included."""
        return len(self.tokens) + 2

    @classmethod
    def of_counts(cls, counts: pl.DataFrame, min_count: int, missing: Any) -> TokenVocabulary:
        """Build a vocabulary from the columns ``value`` and ``len``, the count of each value in the training split.

        Values that occur less often than ``min_count`` are left out, and so is ``missing``, which stands for a missing
        one.
        """
        counts = counts.drop_nulls("value").filter(pl.col("len") >= min_count)
        if counts["value"].dtype == pl.String:
            values = counts.sort("len", "value", descending=[True, False])["value"]
        else:
            values = counts["value"].sort()
        if isinstance(missing, str) == (values.dtype == pl.String):
            values = values.filter(values != missing)
        return cls(as_text(values, values.dtype.is_float()), len(values) + 1)

    def merged(self, other: TokenVocabulary) -> TokenVocabulary:
        """Return this vocabulary with the values of another one that it does not have; neither has keys yet."""
        tokens = self._with(other.tokens)
        return TokenVocabulary(tokens, len(tokens) + 1)

    def with_keys(self, keys: pl.Series) -> TokenVocabulary:
        """Return this vocabulary with the keys of a file of embeddings that it does not have."""
        return replace(self, tokens=self._with(keys.unique(maintain_order=True)))

    def _with(self, tokens: pl.Series) -> pl.Series:
        return pl.concat([self.tokens, tokens.filter(~tokens.is_in(self.tokens.implode()))])

    def ids(self, values: pl.Expr) -> pl.Expr:
        """Return the ids of texts, as Int32."""
        # An Enum keeps its hash table from one batch to the next; a join or replace_strict would build it for each.
        place = values.cast(pl.Enum(self.tokens), strict=False).to_physical().cast(pl.Int32)
        behind = (place >= self.oov - 1).cast(pl.Int32) if self.oov <= len(self.tokens) else 0
        return (place + 1 + behind).fill_null(self.oov)

    def to_dict(self) -> dict[str, int]:
        """Return every value with its id, in FuxiCTR's form and in the order of ids."""
        names = ["__PAD__", *self.tokens[: self.oov - 1], "__OOV__", *self.tokens[self.oov - 1 :]]
        return {name: i for i, name in enumerate(names)}


def as_text(values: Any, is_float: bool) -> Any:
    """Return a series or an expression of texts or numbers as texts; 0.0 and -0.0 are one."""
    return (values + 0.0 if is_float else values).cast(pl.String)
