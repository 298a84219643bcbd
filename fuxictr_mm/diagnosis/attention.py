"""Section on attention: how far its weights are from uniform, and the AUC drop without weights and without heads.

Shape letters: B examples, H heads, P pairs of heads, Q queries, L keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fuxictr_mm.diagnosis.attention_hooks import AttentionHooks
from fuxictr_mm.diagnosis.findings import NOTE, PROBLEM, WARNING, Finding, Scale
from fuxictr_mm.diagnosis.scorer import Cost, Scorer, by_bucket
from fuxictr_mm.runs import cost_name
from fuxictr_mm.terminal import format_table

#: Attention weights whose statistics are computed at once; bounds the memory for self-attention.
CHUNK_ENTRIES = 1 << 22


#: Bins of the histogram of entropy ratios, from 0 to 1.
HISTOGRAM_BINS = 20


#: Attention with an entropy ratio above this, and a negligible AUC drop with uniform weights, is uniform.
UNIFORM_RATIO = 0.98


#: A head whose output norm is below this fraction of the largest one's is inactive.
INACTIVE_HEAD = 0.01


#: Heads whose weights diverge by less than this many bits attend to the same.
ALIKE_BITS = 0.001


class WeightStatistics(NamedTuple):
    """Statistics of attention weights by example, averaged over its queries; NaN where undefined."""

    lengths: Tensor  #: ``(B,)`` int64, number of keys.
    #: ``(B, H)`` entropy over that of uniform weights; NaN for fewer than two keys or weights that are all zero.
    entropy_ratio: Tensor
    largest: Tensor  #: ``(B, H)`` the largest normalized weight; NaN as before.
    all_zero: Tensor  #: ``(B, H)`` fraction of queries whose weights are all zero; NaN without keys.
    #: ``(B, P)`` Jensen-Shannon divergence of each pair of heads in bits, 0 for equal weights and 1 for weights on
    #: different keys; pairs in the order of ``torch.triu_indices(H, H, 1)``.
    divergence: Tensor


def weight_statistics(weights: Tensor, keys: Tensor, queries: Tensor) -> WeightStatistics:
    r"""Return the statistics of a batch of attention weights.

    .. math::
        p_n = \frac{|w_n|}{\sum_m |w_m|}, \qquad r = \frac{-\sum_n p_n \log p_n}{\log L}, \qquad
        \mathrm{JS} = H\Big(\frac{p + q}{2}\Big) - \frac{H(p) + H(q)}{2}

    Parameters
    ----------
    weights : Tensor
        ``(B, H, Q, L)``; they need not sum to one, nor be positive.
    keys : Tensor
        ``(B, L)`` bool, True for real keys.
    queries : Tensor
        ``(B, Q)`` bool, True for real queries.

    Examples
    --------
    >>> weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).view(1, 2, 1, 2)
    >>> found = weight_statistics(weights, torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool))
    >>> found.entropy_ratio.tolist(), round(float(found.divergence), 4)
    ([[1.0, 0.0]], 0.3113)
    """
    size = max(1, CHUNK_ENTRIES // max(1, weights[0].numel())) if weights.shape[0] else 1
    chunks = zip(weights.split(size), keys.split(size), queries.split(size), strict=True)
    return concatenate([_weight_statistics(*chunk) for chunk in chunks])


def concatenate(parts: Sequence[WeightStatistics]) -> WeightStatistics:
    """Concatenate statistics over examples."""
    return WeightStatistics(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _weight_statistics(weights: Tensor, keys: Tensor, queries: Tensor) -> WeightStatistics:
    sizes = weights.double().abs() * keys[:, None, None]
    totals = sizes.sum(dim=-1)
    lengths = keys.sum(dim=1)
    real = queries[:, None].expand_as(totals) & (lengths > 0)[:, None, None]
    nonzero = real & (totals > 0)
    p = sizes / totals.where(nonzero, 1.0).unsqueeze(-1)
    defined = nonzero & (lengths >= 2)[:, None, None]
    entropy = torch.special.entr(p).sum(dim=-1)
    divergence = []
    for i, j in _pairs(weights.shape[1]):
        of_mean = torch.special.entr((p[:, i] + p[:, j]) / 2).sum(dim=-1)
        bits = (of_mean - (entropy[:, i] + entropy[:, j]) / 2) / math.log(2)
        divergence.append(_mean_over_queries(bits, defined[:, i] & defined[:, j]))
    return WeightStatistics(
        lengths.cpu(),
        _mean_over_queries(entropy / lengths.clamp(min=2).double().log()[:, None, None], defined).cpu(),
        _mean_over_queries(p.amax(dim=-1) if p.shape[-1] else totals, defined).cpu(),
        _mean_over_queries((totals == 0).double(), real).cpu(),
        torch.stack(divergence, dim=1).cpu() if divergence else torch.zeros(len(lengths), 0, dtype=torch.float64),
    )


def _mean_over_queries(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over the last dimension where ``counted``, NaN without any."""
    return (values * counted).sum(dim=-1) / counted.sum(dim=-1)


def _mean_of_calls(calls: Sequence[WeightStatistics]) -> WeightStatistics:
    """Return the mean over calls with the same examples, each of one query."""
    if len(calls) == 1:
        return calls[0]
    lengths, *others = zip(*calls, strict=True)
    return WeightStatistics(lengths[0], *(torch.stack(parts).nanmean(dim=0) for parts in others))


def _pairs(num_heads: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(num_heads) for j in range(i + 1, num_heads)]


def uniform(weights: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """Return uniform weights of the same sum over the real keys ``(B, H, Q, L)``; padding gets 0."""
    lengths = keys.sum(dim=1).clamp(min=1)[:, None, None, None]
    mean = (weights * keys[:, None, None]).sum(dim=-1, keepdim=True) / lengths
    return mean * keys[:, None, None]


class RecordedAttention:
    """Weights and head outputs of one attention module, recorded while examples are scored."""

    def __init__(self, hooks: AttentionHooks) -> None:
        self.hooks = hooks
        self._statistics: list[list[WeightStatistics]] = []  #: Of the calls with each history, a query each.
        self._norms: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record inside the block."""
        last: list[Tensor] = []

        def on_weights(weights: Tensor, keys: Tensor, queries: Tensor) -> None:
            if not last or last[0] is not keys:
                last[:] = [keys]
                self._statistics.append([])
            self._statistics[-1].append(weight_statistics(weights.detach(), keys, queries))

        def on_heads(heads: Tensor) -> None:
            self._norms.append(self.hooks.norms(heads).flatten(0, -2).cpu())

        with self.hooks.on_heads(on_heads), self.hooks.on_weights(on_weights):
            yield

    @property
    def is_empty(self) -> bool:
        """Whether the module was not called."""
        return not (self._statistics and self._norms)

    @property
    def statistics(self) -> WeightStatistics:
        """Of all examples, in the order in which they were computed."""
        return concatenate([_mean_of_calls(calls) for calls in self._statistics])

    @property
    def output_norms(self) -> np.ndarray:
        """``(H,)`` mean norm of what each head adds to the output."""
        return torch.cat(self._norms).double().mean(dim=0).numpy()


def number_of_passes(found: Sequence[AttentionHooks]) -> int:
    """Return how often ``measure`` scores the examples."""
    alone = {1: 0, 2: 2}
    return sum(2 + alone.get(hooks.num_heads, 2 * hooks.num_heads) for hooks in found)


def measure(scorer: Scorer, recorded: Sequence[RecordedAttention]) -> dict[str, Any]:
    """Return the sections ``attention`` and ``heads``, as ``docs/diagnosis.md`` describes them; none without attention.

    ``recorded`` was recorded during ``scorer.score_base``.
    """
    recorded = [recording for recording in recorded if not recording.is_empty]
    if not recorded:
        return {}
    attention = []
    for recording in recorded:
        with recording.hooks.on_weights(uniform):
            drop = scorer.cost(scorer.score())
        entry = {**describe(recording), "uniform_auc_lost": drop.value, "uniform_noise": drop.noise}
        attention.append(entry)
    return {"attention": attention, "heads": [measure_heads(scorer, recording) for recording in recorded]}


def describe(recording: RecordedAttention) -> dict[str, Any]:
    """Return how uniform the weights are, over examples with two history items or more, by length and by head."""
    found = recording.statistics
    lengths, ratio = found.lengths.numpy(), found.entropy_ratio.numpy()
    defined = ~np.isnan(ratio)

    def by_length(head: int | slice, counted: np.ndarray) -> list[dict[str, Any]]:
        return by_bucket(lengths, counted, lambda rows: {"entropy_ratio": _mean(ratio[rows, head])})

    counts, edges = np.histogram(ratio[defined].clip(0, 1), bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    return {
        "name": recording.hooks.name,
        "kind": recording.hooks.kind,
        "num_heads": recording.hooks.num_heads,
        "rows": int(defined.any(axis=1).sum()),
        "entropy_ratio": _mean(ratio),
        "entropy_ratio_deviation": float(np.std(ratio[defined])) if defined.any() else None,
        "silent_share": _mean(found.all_zero.numpy()),
        "by_length": by_length(slice(None), defined.any(axis=1)),
        "histogram": [
            {"low": float(low), "high": float(high), "count": int(count)}
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
        "per_head": [
            {
                "head": head,
                "entropy_ratio": _mean(ratio[:, head]),
                "largest_weight": _mean(found.largest[:, head].numpy()),
                "silent_share": _mean(found.all_zero[:, head].numpy()),
                "by_length": by_length(head, defined[:, head]),
            }
            for head in range(ratio.shape[1])
        ],
    }


def measure_heads(scorer: Scorer, recording: RecordedAttention) -> dict[str, Any]:
    """Return how the heads differ, and what the metric loses without each of them and with only each of them."""
    hooks, norms = recording.hooks, recording.output_norms
    everything = range(hooks.num_heads)

    @cache  # of two heads, one without the other is the other alone
    def without(heads: tuple[int, ...]) -> Cost:
        with hooks.zeroed(heads):
            return scorer.cost(scorer.score())

    all_removed = without(tuple(everything))
    heads = []
    for head in everything:
        others = tuple(other for other in everything if other != head)
        removed, alone = (without((head,)), without(others)) if others else (all_removed, Cost(0.0, 0.0))
        heads.append(
            {
                "head": head,
                "output_norm": float(norms[head]),
                "output_share": float(norms[head] / norms.sum()) if norms.sum() > 0 else 0.0,
                "removed_auc_lost": removed.value,
                "removed_noise": removed.noise,
                "alone_auc_lost": alone.value,
                "alone_noise": alone.noise,
            }
        )
    divergence = recording.statistics.divergence.numpy()
    return {
        "attention": hooks.name,
        "num_heads": hooks.num_heads,
        "all_removed_auc_lost": all_removed.value,
        "all_removed_noise": all_removed.noise,
        "divergence": _mean(divergence),
        "pairs": [
            {"first": first, "second": second, "divergence": _mean(divergence[:, pair])}
            for pair, (first, second) in enumerate(_pairs(hooks.num_heads))
        ],
        "heads": heads,
    }


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of values that are not NaN, None without any."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return the tables of attention modules and of heads."""
    if "attention" not in result:
        return []
    cost = cost_name(Scale.of(result).metric)
    modules = [
        [
            entry["name"],
            entry["kind"],
            _ratio(entry["entropy_ratio"]),
            " ".join(f"{bucket['name']}: {_ratio(bucket['entropy_ratio'])}" for bucket in entry["by_length"]),
            _drop(entry, "uniform"),
        ]
        for entry in result["attention"]
    ]
    heads: list[list[object]] = []
    for entry in result["heads"]:
        name = entry["attention"]
        for head in entry["heads"]:
            share = f"{head['output_share']:.1%}"
            heads.append([f"{name} {head['head']}", share, _drop(head, "removed"), _drop(head, "alone")])
        if entry["num_heads"] > 1:
            heads.append([f"{name} all", "100.0%", _drop(entry, "all_removed"), None])
    return [
        format_table(["attention", "kind", "entropy / uniform", "by history length", f"{cost} if uniform"], modules),
        format_table(["head", "of output", f"{cost} without it", f"{cost} with it alone"], heads),
    ]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _drop(entry: Mapping[str, Any], change: str) -> str:
    return f"{entry[f'{change}_auc_lost']:+.4f} ± {entry[f'{change}_noise']:.4f}"


def findings(result: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings on attention modules and their heads."""
    scale = Scale.of(result)
    uniform_modules = set()
    for entry in result.get("attention", []):
        name, ratio, drop, noise = (entry[k] for k in ("name", "entropy_ratio", "uniform_auc_lost", "uniform_noise"))
        if ratio is not None and ratio > UNIFORM_RATIO and scale.is_negligible(drop, noise):
            uniform_modules.add(name)
            yield Finding(
                PROBLEM,
                "attention",
                "uniform_attention",
                name,
                f"{name} attends uniformly: its weights have {ratio:.1%} of the entropy of uniform ones, and uniform "
                f"weights cost {drop:.4f} {scale.metric} (noise {noise:.4f})",
                "it is equivalent to a mean: train longer or with a higher learning rate, use fewer heads "
                "or a larger attention_dim, or set interest: mean",
            )
        yield from scale.find_harmful("attention", name, "replacing its weights by uniform ones", drop, noise)
    for entry in result.get("heads", []):
        yield from _findings_of_heads(entry, scale, is_uniform=entry["attention"] in uniform_modules)


def _findings_of_heads(entry: Mapping[str, Any], scale: Scale, is_uniform: bool) -> Iterator[Finding]:
    name, largest = entry["attention"], max(head["output_norm"] for head in entry["heads"])
    for head in entry["heads"]:
        number, drop = head["head"], head["removed_auc_lost"]
        if head["output_norm"] <= INACTIVE_HEAD * largest and scale.is_negligible(drop, head["removed_noise"]):
            output = "zero" if head["output_norm"] == 0 else f"{head['output_share']:.2%} of that of all heads"
            yield Finding(
                PROBLEM,
                "heads",
                "silent_head",
                f"{name} head {number}",
                f"head {number} of {name} is inactive: removing it costs {drop:.4f} {scale.metric}; its output is "
                f"{output}",
                "unless it was set to zero deliberately, use fewer heads or less weight decay on the attention",
            )
        if entry["num_heads"] > 1:
            yield from scale.find_harmful("heads", f"{name} head {number}", "removing it", drop, head["removed_noise"])
    if entry["divergence"] is not None and entry["divergence"] < ALIKE_BITS and not is_uniform:
        yield Finding(
            NOTE,
            "heads",
            "heads_alike",
            name,
            f"the heads of {name} attend to the same items: their weights differ by {entry['divergence']:.5f} of 1 bit",
            "fewer heads, or one, may be sufficient",
        )
    drop, noise = entry["all_removed_auc_lost"], entry["all_removed_noise"]
    yield from scale.find_harmful("heads", name, "removing its output", drop, noise)
    if scale.is_negligible(drop, noise):
        yield Finding(
            WARNING,
            "heads",
            "attention_does_nothing",
            name,
            f"{name} has no measurable effect: without its output the model loses {drop:.4f} {scale.metric} (noise "
            f"{noise:.4f})",
            f"see the {cost_name(scale.metric)} of permuting the history; the model may use another path from the "
            "history to the logit",
        )
