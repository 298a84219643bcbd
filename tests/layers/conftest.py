"""Histories, their padded form, and the comparison of two modules' values and gradients."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fuxictr_mm.layers import Jagged


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def same_weights(ours: type[nn.Module], theirs: type[nn.Module], *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Return our layer and FuxiCTR's with the same parameters, in float64; the state dict of each fits the other."""
    torch.manual_seed(1)
    their_layer = theirs(*arguments, **options).double()
    our_layer = ours(*arguments, **options).double()
    our_layer.load_state_dict(their_layer.state_dict())
    their_layer.load_state_dict(our_layer.state_dict())
    return our_layer, their_layer


def target_of(history: Jagged) -> Tensor:
    """Return a target ``(B, D)`` for each row of a history."""
    return torch.randn(history.num_rows, history.distinct.shape[1], dtype=torch.float64, requires_grad=True)


@pytest.fixture(params=["left", "right"])
def side(request) -> str:
    return request.param


@pytest.fixture
def make_history() -> Callable[..., Jagged]:
    """History of the given lengths over five distinct items, each of which therefore stands at several places."""

    def make(lengths: list[int], width: int, *, repeated: bool = True) -> Jagged:
        generator = torch.Generator().manual_seed(sum(lengths) + width)
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        num_values = int(offsets[-1])
        index = torch.randint(5, (num_values,), generator=generator) if repeated else None
        distinct = torch.randn(5 if repeated else num_values, width, dtype=torch.float64, generator=generator)
        return Jagged(distinct.requires_grad_(), offsets, index)

    return make


@pytest.fixture
def pad() -> Callable[[Jagged, str], tuple[Tensor, Tensor]]:
    """Padded ``(B, L, D)`` and mask of a history, one entry after the other; the padding is garbage, not zero."""

    def pad_one_by_one(history: Jagged, side: str) -> tuple[Tensor, Tensor]:
        offsets = history.offsets.tolist()
        longest = max(1, *(end - start for start, end in pairwise(offsets)))
        entries = history.distinct if history.index is None else history.distinct[history.index]
        garbage = torch.full((1, entries.shape[1]), 7.0, dtype=entries.dtype)
        rows, mask = [], torch.zeros(history.num_rows, longest)
        for row, (start, end) in enumerate(pairwise(offsets)):
            real = entries[start:end]
            padding = garbage.expand(longest - len(real), -1)
            rows.append(torch.cat([padding, real] if side == "left" else [real, padding]))
            mask[row, slice(len(padding), None) if side == "left" else slice(len(real))] = 1.0
        return torch.stack(rows), mask

    return pad_one_by_one


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Check that two results and their gradients to all inputs and parameters agree to 1e-10."""

    def check(ours: Tensor, theirs: Tensor, inputs: list[Tensor], our_layer: nn.Module, their_layer: nn.Module) -> None:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        direction = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(0))
        our_parameters, their_parameters = dict(our_layer.named_parameters()), dict(their_layer.named_parameters())
        assert our_parameters.keys() == their_parameters.keys()
        our_gradients = torch.autograd.grad(ours, [*inputs, *our_parameters.values()], direction, retain_graph=True)
        their_gradients = torch.autograd.grad(theirs, [*inputs, *their_parameters.values()], direction)
        for name, ours_, theirs_ in zip(
            [*map(str, range(len(inputs))), *our_parameters], our_gradients, their_gradients, strict=True
        ):
            torch.testing.assert_close(ours_, theirs_, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")

    return check


@pytest.fixture
def assert_same_attention(make_history, pad, assert_same) -> Callable[..., None]:
    """Check our attention of a target to histories of given lengths against one on their padded form."""

    def check(ours: nn.Module, theirs: nn.Module, lengths: list[int], width: int, side: str, **options: bool) -> None:
        history = make_history(lengths, width, **options)
        target = target_of(history)
        result, expected = ours(target, history), theirs(target, *pad(history, side))
        assert_same(result, expected, [target, history.distinct], ours, theirs)

    return check
