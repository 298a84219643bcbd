r"""Checks of how a split differs from the earliest one.

The population stability index (PSI) of two histograms, with half an example added to each of K bins, p and q being
fractions:

.. math::
    \mathrm{PSI} = \sum_k (p_k - q_k) \ln(p_k / q_k)

Above 0.25 (for labels 0.1), and unlikely to be noise (chi-squared test, below 1 in 1000), it is a finding.

Shape letters: B examples of a split, K bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from fuxictr_mm.check_data.checks import WARNING, Fault, Measure, check
from fuxictr_mm.check_data.splits import UNLIKELY, SplitPair
from fuxictr_mm.check_data.translation import LABEL
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ

#: A PSI above it is a finding, if the histograms would differ as much less often than ``UNLIKELY``.
PSI_MOST, PSI_LABEL = 0.25, 0.1
#: Bins of a histogram of lengths or counts.
BINS = 10


class Comparison(SplitPair):
    """A split with the earliest one, from which it should not differ much."""

    def judge(
        self, column: str, counts: Sequence[np.ndarray], text: str, most: float = PSI_MOST
    ) -> Iterator[Fault | Measure]:
        """Yield the PSI of a column's histograms ``(K,)`` of both, and a fault where it is large."""
        psi = population_stability(*counts)
        yield Measure(("psi", f"{self.earlier.name}-{self.later.name}", column), round(psi, 4))
        if psi > most and is_unlikely(*counts):
            yield Fault(self.later.file, column, found=f"{text} (PSI {psi:.3f})")


def population_stability(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the PSI of two histograms ``(K,)``.

    Examples
    --------
    >>> population_stability(np.array([10, 10]), np.array([20, 20]))
    0.0
    """
    from scipy.stats import entropy

    p, q = reference + 0.5, other + 0.5
    return float(entropy(p, q) + entropy(q, p))


def is_unlikely(reference: np.ndarray, other: np.ndarray) -> bool:
    """Whether two histograms ``(K,)`` of one distribution would seldom differ as much (chi-squared test)."""
    from scipy.stats import chi2_contingency

    table = np.stack([reference, other])[:, (reference + other) > 0]
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return False
    return float(chi2_contingency(table).pvalue) < UNLIKELY


def histograms(reference: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """Return histograms of two samples of integers; each bin holds about a tenth of the first."""
    edges = np.unique(np.quantile(reference, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    edges = edges[edges < max(reference.max(), other.max())]
    return [np.bincount(np.digitize(v, edges, right=True), minlength=len(edges) + 1) for v in (reference, other)]


@check(Comparison, WARNING, f"PSI of at most {PSI_LABEL}")
def label_drift(pair: Comparison) -> Iterator[Fault | Measure]:
    """Fraction of positives different from train."""
    if pair.earlier.has_label and pair.later.has_label:
        labels = [s.rows["click"].drop_nulls().to_numpy() for s in (pair.earlier, pair.later)]
        text = f"the fraction of positives is {labels[1].mean():.3f}, in {pair.earlier.file} {labels[0].mean():.3f}"
        yield from pair.judge(LABEL, [np.bincount(part, minlength=2) for part in labels], text, PSI_LABEL)


@check(Comparison, WARNING, f"PSI of at most {PSI_MOST}")
def context_drift(pair: Comparison) -> Iterator[Fault | Measure]:
    """Distribution of categories different from train."""
    for name in pair.earlier.context:
        if name not in pair.later.context:
            continue
        then, now = (split.context[name].tally for split in (pair.earlier, pair.later))
        both = then.values.join(now.values, on="value", how="full", coalesce=True, suffix="_now").sort("value")
        if both.is_empty() or not (then.is_complete and now.is_complete):
            continue
        counts = [both[column].fill_null(0).cast(pl.Int64).to_numpy() for column in ("n", "n_now")]
        before, after = (n / max(n.sum(), 1) for n in counts)
        most = int(np.abs(before - after).argmax())
        text = f"{both['value'][most]:g} in {after[most]:.1%} of the rows, "
        text += f"in {before[most]:.1%} of {pair.earlier.file}"
        yield from pair.judge(name, counts, text)


@check(Comparison, WARNING, f"PSI of at most {PSI_MOST}")
def history_drift(pair: Comparison) -> Iterator[Fault | Measure]:
    """Distribution of history lengths different from train."""
    if pair.earlier.has_history and pair.later.has_history:
        then, now = (split.rows["length"].to_numpy() for split in (pair.earlier, pair.later))
        text = f"{now.mean():.1f} items on average, in {pair.earlier.file} {then.mean():.1f}"
        yield from pair.judge(ITEM_SEQ, histograms(then, now), text)


@check(Comparison, WARNING, f"PSI of at most {PSI_MOST}")
def popularity_drift(pair: Comparison) -> Iterator[Fault | Measure]:
    """Popularity of the targets different from train."""
    if pair.earlier.name != "train":
        return
    counts = map(pair.earlier.popularity_of, (pair.earlier, pair.later))
    then, now = (n[n > 0] for n in counts)  # cold targets have their own check
    if then.size and now.size:
        text = f"a median of {np.median(now):g} training rows per target that has any, "
        text += f"in {pair.earlier.file} {np.median(then):g}"
        yield from pair.judge(ITEM_ID, histograms(then, now), text)
