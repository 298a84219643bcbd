"""Hooks on attention modules: their weights read and replaced, their heads removed.

Shape letters: B examples, H heads, Q queries, L keys, N history items of a batch, A attention dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from fuxictr_mm.fuxictr_imports import fuxictr_layers
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers.din_attention import DINAttention
from fuxictr_mm.layers.target_attention import MultiHeadTargetAttention
from fuxictr_mm.layers.transformer import JaggedTransformerLayer

#: Reads attention weights ``(B, H, Q, L)``, real keys ``(B, L)`` and queries ``(B, Q)``; returns new weights or None.
OnWeights = Callable[[Tensor, Tensor, Tensor], Tensor | None]


@dataclass(frozen=True)
class AttentionHooks:
    """Hooks on one attention module."""

    name: str  #: Of the module in the model.
    kind: str  #: ``multi_head``, ``activation_unit`` or ``self_attention``.
    module: Any
    #: Takes the module and an ``OnWeights``; registers hooks that call it on the weights of each batch.
    hook_weights: Callable[[Any, OnWeights], list[RemovableHandle]]
    num_heads: int = 1  #: H.
    projection: Any = None  #: The layer that joins the heads, None where the module's output is the heads concatenated.

    @contextmanager
    def on_weights(self, see: OnWeights) -> Iterator[None]:
        """Inside the block, call ``see`` on the weights of each batch, and replace them by what it returns."""
        with ExitStack() as stack:
            for handle in self.hook_weights(self.module, see):
                stack.enter_context(handle)
            yield

    def on_heads(self, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Return a context in which ``change`` replaces the concatenated outputs of the heads ``(.., A)``."""
        if self.projection is None:
            return self.module.register_forward_hook(lambda _, arguments, output: change(output))

        def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            changed = change(arguments[0])
            return None if changed is None else (changed, *arguments[1:])

        return self.projection.register_forward_pre_hook(before)

    def zeroed(self, heads: Sequence[int]) -> RemovableHandle:
        """Return a context in which the outputs of these heads are zero."""

        def change(outputs: Tensor) -> Tensor:
            parts = enumerate(outputs.chunk(self.num_heads, dim=-1))
            return torch.cat([torch.zeros_like(part) if head in heads else part for head, part in parts], dim=-1)

        return self.on_heads(change)

    def norms(self, heads: Tensor) -> Tensor:
        """Return the norm of what each head adds to the output ``(.., H)``, from concatenated outputs ``(.., A)``."""
        parts = heads.detach().chunk(self.num_heads, dim=-1)
        if self.projection is not None:
            weights = self.projection.weight.detach().chunk(self.num_heads, dim=1)
            parts = tuple(F.linear(part, weight) for part, weight in zip(parts, weights, strict=True))
        return torch.stack([part.norm(dim=-1) for part in parts], dim=-1)


def _hook_jagged(module: nn.Module, see: OnWeights, inner: nn.Module) -> list[RemovableHandle]:
    """Hook a module called with target and history, whose weights ``(N, H)`` or ``(N,)`` pass through ``inner``.

    Of several calls with one history, each has its tensor of keys: these are queries of the same rows.
    """
    history: list[Jagged] = []

    def remember(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        history[:] = [arguments[1]]

    def replace(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        weights, keys = arguments[0], history[0].mask
        jagged = history[0].with_values(weights.unsqueeze(1) if weights.dim() == 1 else weights)
        padded_BLH = jagged.to_padded(side="right")[0]
        changed = see(padded_BLH.transpose(1, 2).unsqueeze(2), keys, keys.new_ones(len(keys), 1))
        if changed is None:
            return None
        return changed.squeeze(2).transpose(1, 2)[keys].to(output.dtype).view_as(output)

    return [module.register_forward_pre_hook(remember), inner.register_forward_hook(replace)]


def _hook_target_attention(module: MultiHeadTargetAttention, see: OnWeights) -> list[RemovableHandle]:
    """Hook the dropout that the weights pass through."""
    return _hook_jagged(module, see, module.dropout)


def _hook_activation_unit(module: DINAttention, see: OnWeights) -> list[RemovableHandle]:
    """Hook the module that the weights pass through."""
    return _hook_jagged(module, see, module.weights)


def _hook_encoder(module: JaggedTransformerLayer, see: OnWeights) -> list[RemovableHandle]:
    """Hook the dropout that the weights of each bucket of rows pass through."""
    masks: list[Tensor] = []

    def remember(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        masks[:] = arguments[1].masks  # those of the buckets

    def replace(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        mask = masks.pop(0)
        return see(arguments[0], mask, mask)

    return [module.register_forward_pre_hook(remember), module.attention_dropout.register_forward_hook(replace)]


def _hook_padded_target_attention(module: Any, see: OnWeights) -> list[RemovableHandle]:
    """Hook the scaled dot product, which returns its weights."""

    def replace(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> Any:
        _, weights = output
        mask = named.get("mask")
        keys = torch.ones_like(weights[:, 0, 0]) if mask is None else mask.reshape(weights.shape)[:, 0, 0]
        changed = see(weights, keys.bool(), keys.new_ones(len(keys), 1).bool())
        return None if changed is None else (changed.to(weights.dtype) @ arguments[2], changed)

    return [module.dot_attention.register_forward_hook(replace, with_kwargs=True)]


def _hook_padded_activation_unit(module: Any, see: OnWeights) -> list[RemovableHandle]:
    """Hook the MLP, whose output the weights are."""
    masks: list[Tensor] = []

    def remember(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        mask = named.get("mask", arguments[2] if len(arguments) > 2 else None)
        history = named.get("history_sequence", arguments[1] if len(arguments) > 1 else None)
        assert history is not None
        masks[:] = [torch.ones(history.shape[:2], device=history.device) if mask is None else mask]

    def replace(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        keys = masks[0].bool()
        weights = output.view(keys.shape)
        if module.use_softmax:
            weights = torch.softmax(weights.masked_fill(~keys, -1e9), dim=-1)
        changed = see(weights[:, None, None], keys, keys.new_ones(len(keys), 1))
        return None if changed is None else changed.reshape(output.shape).to(output.dtype)

    return [
        module.register_forward_pre_hook(remember, with_kwargs=True),
        module.attention_layer.register_forward_hook(replace),
    ]


def find_attention(model: nn.Module) -> list[AttentionHooks]:
    """Return hooks for each attention module whose weights can be read, in the order of the model."""
    found = [_hooks_of(name, module) for name, module in model.named_modules()]
    return [hooks for hooks in found if hooks is not None]


def _hooks_of(name: str, module: Any) -> AttentionHooks | None:
    kind = type(module)
    if kind is MultiHeadTargetAttention:
        # With one head W_o is folded into another product, and never called.
        projection = module.W_o if module.use_qkvo and module.num_heads > 1 else None
        return AttentionHooks(name, "multi_head", module, _hook_target_attention, module.num_heads, projection)
    if kind is DINAttention:
        return AttentionHooks(name, "activation_unit", module, _hook_activation_unit)
    if kind is JaggedTransformerLayer:
        attention = module.self_attn
        return AttentionHooks(name, "self_attention", module, _hook_encoder, attention.num_heads, attention.out_proj)
    if kind is fuxictr_layers.MultiHeadTargetAttention:
        projection = module.W_o if module.use_qkvo else None
        return AttentionHooks(name, "multi_head", module, _hook_padded_target_attention, module.num_heads, projection)
    if kind is fuxictr_layers.DIN_Attention:
        return AttentionHooks(name, "activation_unit", module, _hook_padded_activation_unit)
    return None
