"""The slots of an encoder are those of a padded rectangle; products that leave zeros out equal dense ones."""

import pytest
import torch
from fuxictr.pytorch.layers import CrossNetV2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fuxictr_mm.layers import Jagged, StaircaseCrossNetV2
from fuxictr_mm.layers.structured_zeros import (
    Span,
    block_linear,
    input_blocks,
    last_items,
    merge_spans,
    padding_items,
    square_blocks,
)

lengths_of_rows = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(lengths=lengths_of_rows, num_slots=st.integers(1, 6), every=st.booleans())
def test_slots_are_those_of_a_padded_rectangle(lengths, num_slots, every):
    """Written out: a row of ``max_len`` places, items last; kept are the real ones, or the padding."""
    max_len = 6
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    history = Jagged(torch.arange(1, int(offsets[-1]) + 1), offsets)
    rectangle = history.to_padded(max_len)[0].tolist()
    last, padding = last_items(history, num_slots), padding_items(history, num_slots, max_len, every=every)
    for row, places in enumerate(rectangle):
        is_empty, is_full = lengths[row] == 0, lengths[row] == max_len
        wanted = [i if i or (is_empty and p == max_len - 1) else None for p, i in enumerate(places)]
        check(last, row, wanted, num_slots)
        wanted = [0 if not i else (i if is_full and p == max_len - 1 else None) for p, i in enumerate(places)]
        check(padding, row, wanted, num_slots)
        if every:
            seen = padding.items.values[padding.items.offsets[row] : padding.items.offsets[row + 1]].tolist()
            assert seen == [i for i in wanted if i is not None]


def check(seen, row, wanted, num_slots):
    found = [seen.items.values[slot].item() if slot >= 0 else None for slot in seen.slots[row].tolist()]
    assert found == wanted[-num_slots:]
    order = list(seen.fill_order)[: seen.filled[row]]
    assert all(found[slot] is None or slot in order for slot in range(num_slots))


def staircase(spans, num_rows):
    width = max(span.stop for span in spans)
    x = torch.randn(num_rows, width, dtype=torch.float64)
    for start, stop, rows in spans:
        x[rows:, start:stop] = 0
    return x


STAIRCASES = [
    [Span(0, 2, 4), Span(7, 9, 4), Span(5, 7, 3), Span(4, 5, 1), Span(2, 4, 0)],  # from the right, one empty
    [Span(0, 2, 4), Span(7, 9, 4), Span(2, 5, 2), Span(5, 7, 1)],  # from the left
    [Span(0, 9, 4)],
]


@pytest.mark.parametrize("spans", STAIRCASES)
def test_staircase_cross_net_equals_the_dense_one(spans):
    ours, theirs = StaircaseCrossNetV2(9, 3).double(), CrossNetV2(9, 3).double()
    theirs.load_state_dict(ours.state_dict())
    given_x = staircase(spans, 4)
    filled = given_x != 0
    x, y = given_x.clone().requires_grad_(), given_x.clone().requires_grad_()
    found, expected = ours(x, merge_spans(spans)), theirs(y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(found)
    found.backward(direction)
    expected.backward(direction)
    torch.testing.assert_close(x.grad[filled], y.grad[filled], rtol=1e-12, atol=1e-12)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours(given_x), theirs(given_x))


@pytest.mark.parametrize("spans", STAIRCASES)
def test_staircase_linear_equals_the_dense_one(spans):
    linear = nn.Linear(9, 5).double()
    given_x = staircase(spans, 4)
    x, y = given_x.clone().requires_grad_(), given_x.clone().requires_grad_()
    found, expected = block_linear(x, linear, input_blocks(spans, 5)), linear(y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(found)
    ours = torch.autograd.grad(found, [x, linear.weight, linear.bias], direction)
    theirs = torch.autograd.grad(expected, [y, linear.weight, linear.bias], direction)
    torch.testing.assert_close(ours[0][given_x != 0], theirs[0][given_x != 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(5)), rows=st.lists(st.integers(0, 4), min_size=5, max_size=5))
def test_blocks_cover_every_weight_once(order, rows):
    spans = [Span(2 * n, 2 * n + 2, r) for n, r in zip(order, sorted(rows, reverse=True), strict=True)]
    covered = torch.zeros(10, 10)
    for _, outputs, inputs in square_blocks(merge_spans(spans)):
        covered[outputs, inputs] += 1
    assert (covered == 1).all()


def test_staircase_under_autocast():
    layer, spans = StaircaseCrossNetV2(9, 2), STAIRCASES[0]
    x = staircase(spans, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, spans)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, layer(x), rtol=0.05, atol=0.05)
    found.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
