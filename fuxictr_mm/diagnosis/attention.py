"""Attention: how far from uniform, what its weights and its heads are worth.

Shape letters: B rows, H heads, P pairs of heads, A attention width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from fuxictr.pytorch import layers as fuxictr_layers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from fuxictr_mm.diagnosis.scorer import Scorer, by_bucket
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers.din_attention import DINAttention
from fuxictr_mm.layers.target_attention import MultiHeadTargetAttention
from fuxictr_mm.layers.transformer import Buckets, JaggedTransformerLayer

#: Entries of weights that are looked at together; bounds the memory of those of self-attention.
CHUNK_ENTRIES = 1 << 22


class WeightStatistics(NamedTuple):
    """Of each row, averaged over its queries; NaN where there is nothing to tell.

    Parameters
    ----------
    lengths : Tensor
        ``(B,)`` int64, keys of the row.
    entropy_ratio : Tensor
        ``(B, H)`` entropy against that of uniform weights; NaN for fewer than two keys or weights that are all zero.
    largest : Tensor
        ``(B, H)`` the largest share of one key; NaN as before.
    silent : Tensor
        ``(B, H)`` share of queries whose weights are all zero; NaN for a row without keys.
    divergence : Tensor
        ``(B, P)`` Jensen-Shannon divergence of each pair of heads in bits, 0 for equal weights and 1 for weights on
        different keys; pairs in the order of ``torch.triu_indices(H, H, 1)``.
    """

    lengths: Tensor
    entropy_ratio: Tensor
    largest: Tensor
    silent: Tensor
    divergence: Tensor


def look_at(weights: Tensor, keys: Tensor, queries: Tensor) -> WeightStatistics:
    r"""Describe the weights of a batch.

    .. math::
        p_n = \frac{|w_n|}{\sum_m |w_m|}, \qquad r = \frac{-\sum_n p_n \log p_n}{\log L}, \qquad
        \mathrm{JS} = H\Big(\frac{p + q}{2}\Big) - \frac{H(p) + H(q)}{2}

    Parameters
    ----------
    weights : Tensor
        ``(B, H, Q, L)``; they need not sum to one, nor be positive.
    keys : Tensor
        ``(B, L)`` bool, which keys are real.
    queries : Tensor
        ``(B, Q)`` bool, which queries are real.

    Examples
    --------
    >>> weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).view(1, 2, 1, 2)
    >>> found = look_at(weights, torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool))
    >>> found.entropy_ratio.tolist(), round(float(found.divergence), 4)
    ([[1.0, 0.0]], 0.3113)
    """
    rows = max(1, CHUNK_ENTRIES // max(1, weights[0].numel())) if weights.shape[0] else 1
    parts = [_look_at(*chunk) for chunk in zip(weights.split(rows), keys.split(rows), queries.split(rows), strict=True)]
    return join(parts)


def join(parts: list[WeightStatistics]) -> WeightStatistics:
    """Put rows below each other."""
    return WeightStatistics(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _look_at(weights: Tensor, keys: Tensor, queries: Tensor) -> WeightStatistics:
    sizes = weights.double().abs() * keys[:, None, None]
    totals = sizes.sum(dim=-1)
    real = queries[:, None].expand_as(totals) & (keys.sum(dim=1) > 0)[:, None, None]
    speaks = real & (totals > 0)
    shares = sizes / totals.where(speaks, torch.ones_like(totals)).unsqueeze(-1)
    lengths = keys.sum(dim=1)
    told = speaks & (lengths >= 2)[:, None, None]
    entropy = _entropy(shares)
    ratio = entropy / lengths.clamp(min=2).double().log()[:, None, None]
    first, second = torch.triu_indices(weights.shape[1], weights.shape[1], 1)
    divergence = [
        _mean_over_rows(
            (_entropy((shares[:, i] + shares[:, j]) / 2) - (entropy[:, i] + entropy[:, j]) / 2) / math.log(2),
            told[:, i] & told[:, j],
        )
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    ]
    return WeightStatistics(
        lengths.cpu(),
        _mean_over_rows(ratio, told).cpu(),
        _mean_over_rows(shares.amax(dim=-1) if shares.shape[-1] else totals, told).cpu(),
        _mean_over_rows((totals == 0).double(), real).cpu(),
        torch.stack(divergence, dim=1).cpu() if divergence else torch.zeros(len(lengths), 0, dtype=torch.float64),
    )


def _entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum(dim=-1)


def _mean_over_rows(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over the last dimension of what is counted, NaN where nothing is."""
    return (values * counted).sum(dim=-1) / counted.sum(dim=-1)


def even(weights: Tensor, keys: Tensor) -> Tensor:
    """Give every key of a row the mean of its weights ``(B, H, Q, L)``, so that their sum stays; padding gets none."""
    lengths = keys.sum(dim=1).clamp(min=1)[:, None, None, None]
    mean = (weights * keys[:, None, None]).sum(dim=-1, keepdim=True) / lengths
    return mean * keys[:, None, None]


#: Takes weights ``(B, H, Q, L)``, real keys ``(B, L)`` and real queries ``(B, Q)``; returns other weights, or None.
OnWeights = Callable[[Tensor, Tensor, Tensor], Tensor | None]


class Probe(ABC):
    """One attention module.

    Parameters
    ----------
    name : str
        Of the module inside the model.
    module : nn.Module
        The module.
    """

    kind = ""

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.module = module
        self.num_heads = 1
        #: The linear map that joins the heads, None where the heads stand side by side in the module's output.
        self.projection: Any = None

    @abstractmethod
    def on_weights(self, see: OnWeights) -> list[RemovableHandle]:
        """Call ``see`` on the weights of each batch; what it returns takes their place."""

    def on_heads(self, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call ``change`` on the heads' outputs, side by side ``(.., A)``, before they are joined."""
        if self.projection is None:
            return self.module.register_forward_hook(lambda _, arguments, output: change(output))

        def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            changed = change(arguments[0])
            return None if changed is None else (changed, *arguments[1:])

        return self.projection.register_forward_pre_hook(before)

    def contributions(self, heads: Tensor) -> Tensor:
        """Return how long a vector each head adds to the module's output, ``(.., H)``, for outputs ``(.., A)``."""
        parts = heads.detach().chunk(self.num_heads, dim=-1)
        if self.projection is not None:
            weights = self.projection.weight.detach().chunk(self.num_heads, dim=1)
            parts = tuple(F.linear(part, weight) for part, weight in zip(parts, weights, strict=True))
        return torch.stack([part.norm(dim=-1) for part in parts], dim=-1)

    @contextmanager
    def silenced(self, heads: Sequence[int]) -> Iterator[None]:
        """Set the outputs of some heads to zero."""

        def change(outputs: Tensor) -> Tensor:
            parts = list(outputs.chunk(self.num_heads, dim=-1))
            for head in heads:
                parts[head] = torch.zeros_like(parts[head])
            return torch.cat(parts, dim=-1)

        handle = self.on_heads(change)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def weighing(self, see: OnWeights) -> Iterator[None]:
        """Call ``see`` on the weights of each batch inside the block."""
        handles = self.on_weights(see)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _JaggedProbe(Probe):
    """A module called with a target and a jagged history, one of whose modules has the ``(N, H)`` weights."""

    @abstractmethod
    def watched(self) -> tuple[nn.Module, bool]:
        """Return the module that the weights pass through, and whether they are its input (or else its output)."""

    def on_weights(self, see: OnWeights) -> list[RemovableHandle]:
        history: list[Jagged] = []

        def remember(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            history[:] = [arguments[1]]

        module, is_input = self.watched()

        def read(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            weights_NH = arguments[0] if is_input else output
            rows = history[0].with_values(self.normalized(history[0], weights_NH))
            padded_BLH, keys = rows.to_padded(side="right")
            queries = keys.new_ones(len(keys), 1)
            changed = see(padded_BLH.transpose(1, 2).unsqueeze(2), keys, queries)
            return None if changed is None else changed.squeeze(2).transpose(1, 2)[keys].to(output.dtype)

        return [self.module.register_forward_pre_hook(remember), module.register_forward_hook(read)]

    def normalized(self, history: Jagged, weights_NH: Tensor) -> Tensor:
        """Return the weights that the history is summed with."""
        return weights_NH


class TargetAttentionProbe(_JaggedProbe):
    """``MultiHeadTargetAttention`` of this library; its weights pass through its dropout."""

    kind = "multi_head"

    def __init__(self, name: str, module: MultiHeadTargetAttention) -> None:
        super().__init__(name, module)
        self.num_heads = module.num_heads
        # With one head the output map is folded into another product, and never called.
        self.projection = module.W_o if module.use_qkvo and module.num_heads > 1 else None

    def watched(self) -> tuple[nn.Module, bool]:
        """Return the dropout, which takes the weights."""
        return self.module.dropout, True


class ActivationUnitProbe(_JaggedProbe):
    """``DINAttention`` of this library; its weights come out of the last layer of its MLP."""

    kind = "activation_unit"

    def watched(self) -> tuple[nn.Module, bool]:
        """Return the last layer of the MLP, which gives the weights."""
        return self.module.attention_layer.mlp[-1], False

    def normalized(self, history: Jagged, weights_NH: Tensor) -> Tensor:
        """Return the weights that the history is summed with."""
        return history.with_values(weights_NH).softmax().values if self.module.use_softmax else weights_NH


class EncoderProbe(Probe):
    """A transformer's layer over jagged rows; the weights of each bucket of rows pass through its dropout."""

    kind = "self_attention"

    def __init__(self, name: str, module: JaggedTransformerLayer) -> None:
        super().__init__(name, module)
        self.num_heads = module.self_attn.num_heads
        self.projection = module.self_attn.out_proj

    def on_weights(self, see: OnWeights) -> list[RemovableHandle]:
        """Call ``see`` on the weights of each batch; what it returns takes their place."""
        masks: list[Tensor] = []

        def remember(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            buckets: Buckets = arguments[1]
            masks[:] = buckets.masks

        def read(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            mask = masks.pop(0)
            return see(arguments[0], mask, mask)

        watched = self.module.attention_dropout
        return [self.module.register_forward_pre_hook(remember), watched.register_forward_hook(read)]


class PaddedTargetAttentionProbe(Probe):
    """FuxiCTR's ``MultiHeadTargetAttention`` over padded histories."""

    kind = "multi_head"

    def __init__(self, name: str, module: Any) -> None:
        super().__init__(name, module)
        self.num_heads = module.num_heads
        self.projection = module.W_o if module.use_qkvo else None

    def on_weights(self, see: OnWeights) -> list[RemovableHandle]:
        """Call ``see`` on the weights of each batch; what it returns takes their place."""

        def read(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> Any:
            _, weights = output
            mask = named.get("mask")
            keys = torch.ones_like(weights[:, 0, 0]) if mask is None else mask.reshape(weights.shape)[:, 0, 0]
            changed = see(weights, keys.bool(), keys.new_ones(len(keys), 1).bool())
            return None if changed is None else (changed.to(weights.dtype) @ arguments[2], changed)

        return [self.module.dot_attention.register_forward_hook(read, with_kwargs=True)]


class PaddedActivationUnitProbe(Probe):
    """FuxiCTR's ``DIN_Attention`` over padded histories."""

    kind = "activation_unit"

    def on_weights(self, see: OnWeights) -> list[RemovableHandle]:
        """Call ``see`` on the weights of each batch; what it returns takes their place."""
        seen: list[Tensor] = []

        def remember(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            mask = named.get("mask", arguments[2] if len(arguments) > 2 else None)
            history = named.get("history_sequence", arguments[1] if len(arguments) > 1 else None)
            assert history is not None
            seen[:] = [torch.ones(history.shape[:2], device=history.device) if mask is None else mask]

        def read(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            keys = seen[0].bool()
            weights = output.view(keys.shape)
            if self.module.use_softmax:
                weights = torch.softmax(weights.masked_fill(~keys, -1e9), dim=-1)
            changed = see(weights[:, None, None], keys, keys.new_ones(len(keys), 1))
            return None if changed is None else changed.reshape(output.shape).to(output.dtype)

        return [
            self.module.register_forward_pre_hook(remember, with_kwargs=True),
            self.module.attention_layer.register_forward_hook(read),
        ]


def find_probes(model: nn.Module) -> list[Probe]:
    """Return a probe for each attention module whose weights can be read, in the order of the model."""
    kinds: dict[type, Callable[[str, Any], Probe]] = {
        MultiHeadTargetAttention: TargetAttentionProbe,
        DINAttention: ActivationUnitProbe,
        JaggedTransformerLayer: EncoderProbe,
        fuxictr_layers.MultiHeadTargetAttention: PaddedTargetAttentionProbe,
        fuxictr_layers.DIN_Attention: PaddedActivationUnitProbe,
    }
    return [kinds[type(module)](name, module) for name, module in model.named_modules() if type(module) in kinds]


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
