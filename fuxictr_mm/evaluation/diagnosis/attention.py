"""Attention: how far from uniform, what its weights and its heads are worth.

Shape letters: B rows, H heads, P pairs of heads, A attention width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_mm.evaluation.diagnosis.attention_weights import WeightStatistics, even, join, look_at
from fuxictr_mm.evaluation.diagnosis.buckets import by_bucket
from fuxictr_mm.evaluation.diagnosis.probes import Probe
from fuxictr_mm.evaluation.diagnosis.scoring import Scorer

#: Bins of the histogram of entropy ratios, from 0 to 1.
HISTOGRAM_BINS = 20


class Watched:
    """What was seen of one attention module while the rows were scored."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.parts: list[WeightStatistics] = []
        self.norms: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect, inside the block, the weights and the outputs of the heads."""

        def see(weights: Tensor, keys: Tensor, queries: Tensor) -> None:
            self.parts.append(look_at(weights.detach(), keys, queries))

        def hear(heads: Tensor) -> None:
            self.norms.append(self.probe.contributions(heads).flatten(0, -2).cpu())

        handle = self.probe.on_heads(hear)
        try:
            with self.probe.weighing(see):
                yield
        finally:
            handle.remove()

    @property
    def statistics(self) -> WeightStatistics:
        """Of all rows, in whatever order they came."""
        return join(self.parts)

    @property
    def output_norms(self) -> np.ndarray:
        """``(H,)`` mean length of what each head adds to the output."""
        return torch.cat(self.norms).double().mean(dim=0).numpy()


def number_of_passes(probes: Sequence[Probe]) -> int:
    """Return how often ``measure_evenly`` and ``measure_heads`` score the rows."""
    return sum(2 + (2 * p.num_heads if p.num_heads > 1 else 0) for p in probes)


def describe_entropy(watched: Watched) -> dict[str, Any]:
    """Return how near to uniform the weights are, over all rows with two history items or more, by length and head."""
    seen = watched.statistics
    lengths, ratio = seen.lengths.numpy(), seen.entropy_ratio.numpy()
    told = ~np.isnan(ratio)

    def of_head(head: int | slice) -> Callable[[np.ndarray], dict[str, Any]]:
        return lambda rows: {"entropy_ratio": _mean(ratio[rows, head])}

    per_head = [
        {
            "head": head,
            "entropy_ratio": _mean(ratio[:, head]),
            "largest_weight": _mean(seen.largest[:, head].numpy()),
            "silent_share": _mean(seen.silent[:, head].numpy()),
            "by_length": by_bucket(lengths, told[:, head], of_head(head)),
        }
        for head in range(ratio.shape[1])
    ]
    counts, edges = np.histogram(ratio[told].clip(0, 1), bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    return {
        "name": watched.probe.name,
        "kind": watched.probe.kind,
        "num_heads": watched.probe.num_heads,
        "rows": int(told.any(axis=1).sum()),
        "entropy_ratio": _mean(ratio),
        "entropy_ratio_deviation": float(np.std(ratio[told])) if told.any() else None,
        "silent_share": _mean(seen.silent.numpy()),
        "by_length": by_bucket(lengths, told.any(axis=1), of_head(slice(None))),
        "histogram": [
            {"low": float(low), "high": float(high), "count": int(count)}
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
        "per_head": per_head,
    }


def measure_evenly(scorer: Scorer, probe: Probe) -> dict[str, float]:
    """Return the AUC that is lost when each history item gets the mean of its row's weights."""

    def see(weights: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
        return even(weights, keys)

    with probe.weighing(see):
        cost = scorer.cost(scorer.score())
    return {"uniform_auc_lost": cost.auc_lost, "uniform_noise": cost.noise}


def measure_heads(scorer: Scorer, watched: Watched) -> dict[str, Any]:
    """Return how unlike the heads are, and the AUC that is lost without each of them and with each alone."""
    probe = watched.probe
    everything = list(range(probe.num_heads))
    norms = watched.output_norms
    all_removed = _without(scorer, probe, everything)
    heads = []
    for head in everything:
        others = [h for h in everything if h != head]
        removed = _without(scorer, probe, [head]) if others else all_removed
        alone = _without(scorer, probe, others) if others else {"auc_lost": 0.0, "noise": 0.0}
        heads.append(
            {
                "head": head,
                "output_norm": float(norms[head]),
                "output_share": float(norms[head] / norms.sum()) if norms.sum() > 0 else 0.0,
                "removed_auc_lost": removed["auc_lost"],
                "removed_noise": removed["noise"],
                "alone_auc_lost": alone["auc_lost"],
                "alone_noise": alone["noise"],
            }
        )
    pairs = torch.triu_indices(probe.num_heads, probe.num_heads, 1).t().tolist()
    divergence = watched.statistics.divergence.numpy()
    return {
        "attention": probe.name,
        "num_heads": probe.num_heads,
        "all_removed_auc_lost": all_removed["auc_lost"],
        "all_removed_noise": all_removed["noise"],
        "divergence": _mean(divergence) if pairs else None,
        "pairs": [
            {"first": first, "second": second, "divergence": _mean(divergence[:, number])}
            for number, (first, second) in enumerate(pairs)
        ],
        "heads": heads,
    }


def _without(scorer: Scorer, probe: Probe, heads: Sequence[int]) -> dict[str, float]:
    with probe.silenced(heads):
        cost = scorer.cost(scorer.score())
    return {"auc_lost": cost.auc_lost, "noise": cost.noise}


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of what is no NaN, None without any."""
    told = values[~np.isnan(values)]
    return float(told.mean()) if told.size else None
