"""The weights that squeeze and excitation gives to fields.

Shape letters: R rows, F fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.layers import SqueezeExcitation
from torch import Tensor, nn


class WatchedSENet:
    """The weights of one SENet while the rows are scored."""

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.module = module
        self.parts: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect the weights inside the block."""
        handle = self.module.excitation.register_forward_hook(
            lambda _, arguments, output: self.parts.append(output.detach().double().cpu())
        )
        try:
            yield
        finally:
            handle.remove()

    @property
    def weights(self) -> np.ndarray:
        """``(R, F)``."""
        return torch.cat(self.parts).numpy()


def find_senets(model: nn.Module) -> list[WatchedSENet]:
    """Return every SENet of a model, of this library or of FuxiCTR."""
    return [WatchedSENet(name, m) for name, m in model.named_modules() if isinstance(m, SqueezeExcitation)]


def name_fields(count: int, context: list[str], items: list[str]) -> list[str]:
    """Name the F fields: context, target and history, or context and target, or by number.

    Examples
    --------
    >>> name_fields(3, ["hour"], ["item_id"])
    ['context.hour', 'target.item_id', 'history.item_id']
    """
    names = [f"context.{n}" for n in context] + [f"target.{n}" for n in items]
    if count == len(names) + len(items):
        return names + [f"history.{n}" for n in items]
    return names if count == len(names) else [f"field.{number}" for number in range(count)]


def describe(name: str, weights: np.ndarray, fields: list[str]) -> dict[str, Any]:
    """Return mean, standard deviation and quantiles over rows of each field's weight ``(R, F)``."""
    low, median, high = np.quantile(weights, [0.05, 0.5, 0.95], axis=0)
    return {
        "name": name,
        "fields": [
            {
                "field": field,
                "mean": float(weights[:, i].mean()),
                "deviation": float(weights[:, i].std()),
                "low": float(low[i]),
                "median": float(median[i]),
                "high": float(high[i]),
            }
            for i, field in enumerate(fields)
        ],
    }
