"""Hooks on the attention modules of a model: read their weights, change them, silence heads.

Shape letters: B rows, N history items of a batch, H heads, Q queries, L keys, A attention width, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fuxictr.pytorch import layers as fuxictr_layers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from fuxictr_mm.layers.din_attention import DINAttention
from fuxictr_mm.layers.jagged import Jagged
from fuxictr_mm.layers.target_attention import MultiHeadTargetAttention
from fuxictr_mm.layers.transformer import Buckets, JaggedTransformerLayer

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
