"""A whole split, the statistics that checks compare, and tests for coincidence.

Shape letters: B examples of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from fuxictr_mm.check_data.checks import ERROR, INFO, WARNING, Fault, check
from fuxictr_mm.check_data.files import DataFile
from fuxictr_mm.check_data.number_columns import ContextColumn
from fuxictr_mm.check_data.translation import LABEL

#: Less probable events are significant.
UNLIKELY = 1e-3


@dataclass
class Split(DataFile):
    """The columns of a split that are kept."""

    #: ``row``, ``user``, ``target``, ``click`` and ``length`` as in ``Chunk``, ``history_key`` (equal where user and
    #: history are) and ``row_key`` (equal where everything but the label is, times and texts as well), ``(B,)``; and
    #: ``time``, a number, where there is a column of this role.
    rows: pl.DataFrame
    #: ``row``, ``user`` and first repeated ``item`` of the histories that have one.
    repeats: pl.DataFrame
    #: The history entries that are the target, see ``find_own``, and ``row``, ``user`` and ``item`` of those that the
    #: user clicks in a later split.
    own: pl.DataFrame
    future: pl.DataFrame
    #: Counts of ``count_again`` by ``click``.
    again: pl.DataFrame
    context: dict[str, ContextColumn]
    #: Names of the columns without a role.
    others: list[str]

    @property
    def has_label(self) -> bool:
        """Whether any example has a label."""
        return self.rows["click"].count() > 0

    @cached_property
    def has_both_labels(self) -> bool:
        """Whether labels tell which examples are clicks; where they are missing or all the same, every one is."""
        return self.rows["click"].drop_nulls().n_unique() == 2

    @property
    def times(self) -> list[str]:
        """The column ``time``, if the examples have one."""
        return [name for name in self.rows.columns if name == "time"]

    @property
    def has_history(self) -> bool:
        """Whether there is a column of histories."""
        return self.rows["length"].null_count() == 0

    @cached_property
    def target_counts(self) -> pl.DataFrame:
        """Targets, and the number ``n`` of examples that show each."""
        return _counts(self.rows["target"])

    @cached_property
    def history_counts(self) -> pl.DataFrame:
        """History keys, and the number ``n`` of examples with each."""
        return _counts(self.rows["history_key"])

    @cached_property
    def equal_rows(self) -> pl.DataFrame:
        """Examples that equal another, with the ``first`` of them, and the first with label 0 and with label 1."""
        row, label = pl.col("row"), pl.col("click")
        repeated = _counts(self.rows["row_key"]).filter(pl.col("n") > 1)
        return (
            self.rows.join(repeated, on="row_key", how="semi")
            .sort("row")
            .with_columns(
                first=row.min().over("row_key"),
                first_0=row.filter(label == 0).min().over("row_key"),
                first_1=row.filter(label == 1).min().over("row_key"),
            )
        )

    @cached_property
    def of_clicks(self) -> dict[str, int]:
        """The counts of ``count_again`` of the clicks; of all examples where labels are missing or all the same."""
        counts = self.again.filter(pl.col("click") == 1) if self.has_both_labels else self.again
        return counts.drop("click").sum().row(0, named=True)

    @property
    def click_rows(self) -> pl.DataFrame:
        """The examples that are clicks, the target as ``item``."""
        clicked = pl.col("click") == 1 if self.has_both_labels else pl.lit(True)
        rows = self.rows.filter(clicked & (pl.col("target") > 0) & pl.col("user").is_not_null())
        return rows.rename({"target": "item"})

    def clicks(self) -> pl.DataFrame:
        """Return ``user`` and ``item`` of the clicks, and the ``time`` of the first, where there is one."""
        return self.click_rows.group_by("user", "item").agg([pl.col(name).min() for name in self.times])

    def popularity_of(self, other: Split) -> np.ndarray:
        """Return how many examples of this split show each target of another, ``(B,)``, in any order."""
        counts = other.rows.select("target").join(self.target_counts, on="target", how="left")
        return counts["n"].fill_null(0).cast(pl.Int64).to_numpy()


@dataclass(frozen=True)
class SplitPair:
    """Two splits, the earlier one first."""

    earlier: Split
    later: Split


@dataclass(frozen=True)
class SplitInTime:
    """All splits in the order of time, and the index of one of them."""

    splits: Sequence[Split]
    index: int

    @property
    def split(self) -> Split:
        """The one."""
        return self.splits[self.index]


def _counts(values: pl.Series) -> pl.DataFrame:
    """Return the distinct values and how often each occurs; by sorting, which takes less memory than groups."""
    runs = values.sort().rle().struct.unnest()
    return runs.select(pl.col("value").alias(values.name), n=pl.col("len").cast(pl.Float64))


def severity_of_excess(found: float, expected: float) -> str:
    """Return the severity of so many where so many are expected by coincidence: a warning if that is unlikely."""
    from scipy.stats import poisson

    # Half more than expected, and a little: items are not met quite independently.
    return WARNING if poisson.sf(found - 1, 1.5 * expected + 0.05) < UNLIKELY else INFO


@check(Split, ERROR, "both 0 and 1")
def one_class(split: Split) -> Iterator[Fault]:
    """All labels are the same."""
    labels = split.rows["click"].drop_nulls()
    if labels.n_unique() == 1:
        severity = WARNING if split.name == "test" else ERROR  # in test they may be placeholders
        yield Fault(split.file, LABEL, found=f"all {len(labels):,} labels are {labels[0]}", severity=severity)
