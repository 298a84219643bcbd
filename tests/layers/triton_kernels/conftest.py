"""Kernels on a GPU, or in Triton's interpreter on the CPU (``TRITON_INTERPRET``, which tests/conftest.py sets)."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fuxictr_mm.layers import Jagged, triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def make_history() -> Callable[..., Jagged]:
    """History of the given lengths over a few distinct items, of norm about 1."""

    def make(lengths: Sequence[int], dim: int, distinct: int = 4, dtype: torch.dtype = torch.float32) -> Jagged:
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        index = torch.randint(distinct, (int(offsets[-1]),))
        return Jagged((torch.randn(distinct, dim) / dim**0.5).to(dtype).requires_grad_(), offsets, index).to(DEVICE)

    return make


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Check values and gradients to the inputs against those of a function in float64, by their norms.

    Gradients of the softmax may cancel out, to zero where all items of a row are equal. What is left is of the rounding
    of the terms, whose norm is about 1, since that of the items and of the gradient of the output is.
    """

    def check(found: Tensor, inputs: Sequence[Tensor], reference: Callable[..., Tensor], tolerance: float) -> None:
        exact = [x.detach().double().requires_grad_() for x in inputs]
        expected = reference(*exact)
        direction = torch.randn(*found.shape, 2, device=found.device).to(found.dtype)
        direction = (direction / direction[..., 0].norm().clamp(min=1))[..., 0]  # not contiguous
        gradients = torch.autograd.grad(found, inputs, direction)
        expected_gradients = torch.autograd.grad(expected, exact, direction.double())
        for x, y in zip((found, *gradients), (expected, *expected_gradients), strict=True):
            assert x.shape == y.shape
            assert (x - y).norm() <= tolerance * (y.norm() + 1)

    return check


@pytest.fixture
def always_takes(monkeypatch) -> None:
    """Let layers call the kernels on this device too."""
    monkeypatch.setattr(triton_kernels, "takes", lambda *_: True)
