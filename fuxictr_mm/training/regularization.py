"""L1 and L2 regularizers as their exact gradients, outside the graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import Tensor, nn

from fuxictr_mm.config import Regularizer
from fuxictr_mm.errors import ConfigError


def parse_regularizer(value: Regularizer, name: str) -> list[tuple[int, float]]:
    """Return ``(norm, weight)`` pairs of a regularizer written as FuxiCTR does.

    FuxiCTR takes a whole number (``embedding_regularizer: 1``) for none at all; here it is L2 of that weight.

    Raises
    ------
    ConfigError
        Not a number, ``l1(x)``, ``l2(x)`` or ``l1_l2(x, y)``; a weight below zero.

    Examples
    --------
    >>> parse_regularizer("l1_l2(1e-4, 1e-5)", "net_regularizer")
    [(1, 0.0001), (2, 1e-05)]
    """
    if value is None:
        return []
    try:
        if isinstance(value, str):
            kind, _, rest = value.strip().partition("(")
            norms = {"l1": (1,), "l2": (2,), "l1_l2": (1, 2)}[kind.strip()]
            weights = [float(part) for part in rest.removesuffix(")").split(",")]
        else:
            norms, weights = (2,), [float(value)]
        pairs = list(zip(norms, weights, strict=True))
    except (KeyError, ValueError):
        raise ConfigError(f"{name} is {value!r}, expected a number, 'l1(x)', 'l2(x)' or 'l1_l2(x, y)'") from None
    if any(not 0 <= weight < float("inf") for _, weight in pairs):
        raise ConfigError(f"{name} is {value!r}, expected weights of 0 or more")
    return [(norm, weight) for norm, weight in pairs if weight]


class Penalty:
    """Sum over parameters of ``weight / p * ||w||_p^p``, as in FuxiCTR.

    Parameters of the feature embedding take ``embedding_regularizer``, all others ``net_regularizer``. The gradient,
    ``weight * sign(w)`` for p = 1 and ``weight * w`` for p = 2, is added after the backward pass, so that no norm of a
    whole table enters the graph.

    Parameters
    ----------
    model : nn.Module
        Its trainable parameters are regularized.
    embedding_regularizer, net_regularizer : float or str, optional
        See ``parse_regularizer``.
    tables : nn.Module, optional
        Holds embeddings that FuxiCTR's feature embedding does not.
    """

    def __init__(
        self,
        model: nn.Module,
        embedding_regularizer: Regularizer,
        net_regularizer: Regularizer,
        tables: nn.Module | None = None,
    ) -> None:
        embeddings = [m for m in model.modules() if isinstance(m, FeatureEmbeddingDict) or m is tables]
        inside = {id(p) for module in embeddings for p in module.parameters()}
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._groups = [
            (
                [p for p in trainable if id(p) in inside],
                parse_regularizer(embedding_regularizer, "embedding_regularizer"),
            ),
            ([p for p in trainable if id(p) not in inside], parse_regularizer(net_regularizer, "net_regularizer")),
        ]

    def _terms(self) -> Iterator[tuple[list[nn.Parameter], int, float]]:
        for parameters, pairs in self._groups:
            for norm, weight in pairs:
                if parameters:
                    yield parameters, norm, weight

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the gradient of the penalty to every parameter's ``grad``."""
        for parameters, norm, weight in self._terms():
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [p.grad for p in parameters if p.grad is not None]
            weights = [p.data for p in parameters]
            torch._foreach_add_(gradients, torch._foreach_sign(weights) if norm == 1 else weights, alpha=weight)

    def value(self) -> Tensor:
        """Return the penalty as a scalar that can be differentiated."""
        total = torch.zeros(())
        for parameters, norm, weight in self._terms():
            for parameter in parameters:
                total = total.to(parameter.device) + weight / norm * parameter.abs().pow(norm).sum()
        return total
