"""Tensors by their names, of a state dict or a batch, compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the weights in a file."""
    return torch.load(path, weights_only=True)


def assert_equal_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Assert that both have the same names and that tensors of one name are equal."""
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
