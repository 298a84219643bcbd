r"""Differences between splits: labels, context, history lengths, popularity of the targets.

The population stability index of two histograms, with half a row added to each of K bins, p and q being shares:

.. math::
    \mathrm{PSI} = \sum_k (p_k - q_k) \ln(p_k / q_k)

Above 0.25 (for labels 0.1), and unlikely by chance (chi-squared, below 1 in 1000), it is a finding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.embeddings.quality.findings import Report
from fuxictr_mm.embeddings.quality.interactions import LABEL, MOST_CATEGORIES, Split

PSI_MOST, PSI_LABEL, UNLIKELY = 0.25, 0.1, 1e-3
COLD_MOST, COLD_DIFFERENCE = 0.5, 0.1
BINS = 10


def population_stability(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the PSI of two histograms ``(K,)``.

    Examples
    --------
    >>> population_stability(np.array([10, 10]), np.array([20, 20]))
    0.0
    """
    p, q = ((h + 0.5) / (h + 0.5).sum() for h in (reference, other))
    return float(((p - q) * np.log(p / q)).sum())


def is_unlikely(reference: np.ndarray, other: np.ndarray) -> bool:
    """Whether two histograms ``(K,)`` of one distribution would seldom differ as much (chi-squared test)."""
    from scipy.stats import chi2_contingency

    table = np.stack([reference, other])[:, (reference + other) > 0]
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return False
    return float(chi2_contingency(table).pvalue) < UNLIKELY


def check_drift(splits: Mapping[str, Split], report: Report) -> None:
    """Compare valid and test with train, and test with valid where there is no train; ratios go to the measures."""
    names = list(splits)
    for name in names[1:]:
        _compare(splits[names[0]], splits[name], report)
    if "train" in splits and len(names) > 1:
        _check_cold(splits["train"], [splits[n] for n in names[1:]], report)


def _compare(reference: Split, split: Split, report: Report) -> None:
    pair = f"{reference.path.stem}-{split.path.stem}"
    label = [np.bincount(s.labels[s.labels >= 0], minlength=2) for s in (reference, split)]
    if reference.has_label and split.has_label:
        rates = [h[1] / max(h.sum(), 1) for h in label]
        text = f"the share of positives is {rates[1]:.3f}, in {reference.name} {rates[0]:.3f}"
        _judge("label-drift", LABEL, label, text, split, pair, report, PSI_LABEL)
    for column in reference.context.keys() & split.context.keys():
        counts = reference.context[column], split.context[column]
        if max(map(len, counts)) > MOST_CATEGORIES:
            continue
        values = sorted(counts[0].keys() | counts[1].keys())
        histograms = [np.array([c[v] for v in values], dtype=np.int64) for c in counts]
        if values:
            shares = [h / max(h.sum(), 1) for h in histograms]
            most = int(np.abs(shares[0] - shares[1]).argmax())
            text = (
                f"{values[most]:g} in {shares[1][most]:.1%} of the rows, in {shares[0][most]:.1%} of {reference.name}"
            )
            _judge("context-drift", column, histograms, text, split, pair, report)
    width = max(len(reference.lengths), len(split.lengths))
    lengths = [np.pad(s.lengths, (0, width - len(s.lengths))) for s in (reference, split)]
    if all(h.sum() for h in lengths):
        means = [float(h @ np.arange(width)) / h.sum() for h in lengths]
        text = f"{means[1]:.1f} items on average, in {reference.name} {means[0]:.1f}"
        _judge("history-drift", ITEM_SEQ, _merge(lengths), text, split, pair, report)
    if reference.path.stem == "train":
        shown = [_popularity(reference, s) for s in (reference, split)]
        shown = [s[s > 0] for s in shown]  # cold targets are judged by themselves
        if all(len(s) for s in shown):
            medians = [np.median(s) for s in shown]
            text = (
                f"a median of {medians[1]:g} training rows per target that has any, in {reference.name} {medians[0]:g}"
            )
            histograms = _merge([np.bincount(s, minlength=max(map(np.max, shown)) + 1) for s in shown])
            _judge("popularity-drift", ITEM_ID, histograms, text, split, pair, report)


def _judge(
    check: str,
    column: str,
    histograms: list[np.ndarray],
    text: str,
    split: Split,
    pair: str,
    report: Report,
    most: float = PSI_MOST,
) -> None:
    if not report.wants(check):
        return
    psi = population_stability(*histograms)
    report.measures.setdefault("psi", {}).setdefault(pair, {})[column] = round(psi, 4)
    if psi > most and is_unlikely(*histograms):
        report.add(check, split.name, column, found=f"{text} (PSI {psi:.3f})")


def _merge(histograms: list[np.ndarray]) -> list[np.ndarray]:
    """Merge bins into ten of about equal size in the first histogram."""
    total = np.cumsum(histograms[0])
    edges = np.unique(np.searchsorted(total, total[-1] * np.arange(1, BINS) / BINS)) + 1
    starts = np.concatenate(([0], edges[edges < len(total)]))
    return [np.add.reduceat(h, starts) for h in histograms]


def _popularity(train: Split, split: Split) -> np.ndarray:
    """Return how many training rows show each target of a split."""
    items, counts = np.unique(train.targets, return_counts=True)
    if not items.size:
        return np.zeros(len(split.targets), dtype=np.int64)
    place = np.minimum(np.searchsorted(items, split.targets), len(items) - 1)
    return np.where(items[place] == split.targets, counts[place], 0)


def _check_cold(train: Split, splits: list[Split], report: Report) -> None:
    if not report.wants("cold-targets"):
        return
    shares = {s.path.stem: float((_popularity(train, s) == 0).mean()) for s in splits if len(s.targets)}
    report.measures["cold_share"] = {name: round(share, 4) for name, share in shares.items()}
    for split in splits:
        share = shares.get(split.path.stem, 0.0)
        if share > COLD_MOST:
            report.add("cold-targets", split.name, ITEM_ID, found=f"{share:.1%} of the targets are in no row of train")
    if len(shares) == 2 and abs(shares["valid"] - shares["test"]) > COLD_DIFFERENCE:
        text = f"{shares['test']:.1%} of the targets are in no row of train, in valid {shares['valid']:.1%}"
        report.add("cold-targets", "test.parquet", ITEM_ID, found=text)
