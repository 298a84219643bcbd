"""Regularization of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fuxictr_mm.config import Regularizer
from fuxictr_mm.config.model import parse_regularizer
from fuxictr_mm.fuxictr_imports import FeatureEmbeddingDict, PretrainedEmbedding
from fuxictr_mm.tables import Penalize, touched_parameters

#: Parts of parameters by id: dim, start and length, as ``Tensor.narrow`` takes them.
Parts = dict[int, tuple[int, int, int]]


class Penalty:
    """Sum over parameters of ``weight / p * ||w||_p^p``, as in FuxiCTR.

    Parameters of the feature embedding take ``embedding_regularizer``, all others ``net_regularizer``. The gradient,
    ``weight * sign(w)`` for p = 1 and ``weight * w`` for p = 2, is added after the backward pass, so that no norm of a
    whole table enters the graph. The optimizer of tables with sparse gradients asks for that of the rows it updates.

    ``tables`` holds embeddings that FuxiCTR's feature embedding does not. Of every field's embedding, the last
    ``apart`` numbers take L2 of the weight ``weight_apart`` instead.
    """

    def __init__(
        self,
        model: nn.Module,
        embedding_regularizer: Regularizer,
        net_regularizer: Regularizer,
        tables: nn.Module | None = None,
        apart: int = 0,
        weight_apart: float = 0.0,
    ) -> None:
        embeddings = [m for m in model.modules() if isinstance(m, FeatureEmbeddingDict) or m is tables]
        inside = {id(p) for module in embeddings for p in module.parameters()}
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._touched = {id(p) for p in touched_parameters(model)}
        first, last = _embedding_parts(embeddings, apart) if apart else ({}, {})
        in_tables, others = ([p for p in trainable if (id(p) in inside) is side] for side in (True, False))
        of_tables = parse_regularizer(embedding_regularizer, "embedding_regularizer")
        of_net = parse_regularizer(net_regularizer, "net_regularizer")
        of_apart = [(2, weight_apart)] if weight_apart else []
        groups: list[tuple[list[nn.Parameter], list[tuple[int, float]], Parts]] = [
            (in_tables, of_tables, first),
            (others, of_net, {}),
            ([p for p in trainable if id(p) in last], of_apart, last),
        ]
        self._terms = [
            (parameters, norm, weight, parts)
            for parameters, pairs, parts in groups
            for norm, weight in pairs
            if parameters
        ]

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the gradient of the penalty to every parameter's ``grad``."""
        for parameters, norm, weight, parts in self._terms:
            parameters = [p for p in parameters if id(p) not in self._touched]
            if not parameters:
                continue
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [_part(p, p.grad, parts) for p in parameters if p.grad is not None]
            weights = [_part(p, p.data, parts) for p in parameters]
            torch._foreach_add_(gradients, torch._foreach_sign(weights) if norm == 1 else weights, alpha=weight)

    @property
    def of_rows(self) -> Penalize | None:
        """Return the regularizer of tables with sparse gradients, None if they have none."""
        regularized = {id(p) for parameters, *_ in self._terms for p in parameters}
        return self._of_rows if regularized & self._touched else None

    def _of_rows(self, table: nn.Parameter, weights: Tensor, updates: Tensor, rate: float) -> Tensor:
        """Return the gradient ``(U, D)`` of rows that is due for several updates at a learning rate.

        It moves a weight by gradient descent as that many updates would, and by L1 to zero at most, or as one update.
        """
        gradient = torch.zeros_like(weights)
        # L2 first: L1 then takes what is left of a weight.
        for parameters, norm, weight, parts in sorted(self._terms, key=lambda term: -term[1]):
            if not any(p is table for p in parameters):
                continue
            kept, due = (_part(table, values, parts) for values in (weights, gradient))
            if norm == 2:
                due += weight * _sum_of_decays(updates, rate * weight) * kept
            else:
                left = kept.abs() / max(rate, 1e-30) - due.abs()  # it may be zero at the end of a schedule
                due += weight * torch.minimum(updates, (left / weight).clamp_(min=1)) * kept.sign()
        return gradient

    def value(self) -> Tensor:
        """Return the penalty of all weights, as a scalar that can be differentiated."""
        total = torch.zeros(())
        for parameters, norm, weight, parts in self._terms:
            for parameter in parameters:
                part = _part(parameter, parameter, parts)
                total = total.to(parameter.device) + weight / norm * part.abs().pow(norm).sum()
        return total


def _part(parameter: nn.Parameter, values: Tensor, parts: Parts) -> Tensor:
    """Return the part of a parameter's values that is regularized."""
    return values.narrow(*parts[id(parameter)]) if id(parameter) in parts else values


def _sum_of_decays(updates: Tensor, decay: float) -> Tensor:
    r"""Return :math:`\sum_{k<m} (1 - decay)^k` of m ``updates``: by how much of its first step L2 moves a weight."""
    if decay < 1e-12:
        return updates
    if decay >= 1:  # the first update has taken the weight to zero, or beyond
        return torch.ones_like(updates)
    return torch.expm1(updates.double() * math.log1p(-decay)).div_(-decay).to(updates.dtype)


def _embedding_parts(embeddings: Iterable[nn.Module], apart: int) -> tuple[Parts, Parts]:
    """Return the parts of all but the last numbers of embeddings, and of these."""
    first: Parts = {}
    last: Parts = {}
    for module in embeddings:
        if isinstance(module, FeatureEmbeddingDict):
            for layer in [*module.embedding_layers.values(), *module.feature_encoders.values()]:
                for weight, dim in _weights_of(layer):
                    length = weight.shape[dim] - apart
                    first[id(weight)], last[id(weight)] = (dim, 0, length), (dim, length, apart)
    return first, last


def _weights_of(layer: nn.Module) -> list[tuple[Tensor, int]]:
    """Return the weights that embeddings are of, or are computed by, each with the dim of the embedding."""
    if isinstance(layer, nn.Embedding):
        return [(layer.weight, 1)]
    if isinstance(layer, nn.Linear):
        return [(layer.weight, 0)]
    if not isinstance(layer, PretrainedEmbedding):
        return []
    # A projection of the embeddings of the file, of "concat" with those of the ids; "sum" adds these to it.
    read = layer.pretrain_embedding if layer.proj is None else layer.proj
    return [*_weights_of(read), *(_weights_of(layer.id_embedding) if layer.pretrain_usage == "sum" else [])]
