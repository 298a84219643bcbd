"""Squashing and routing, by hand."""

import pytest
import torch

from fuxictr_mm.layers import InterestCapsules
from fuxictr_mm.layers.capsules import squash


def test_squash_by_hand():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    squashed = squash(vectors)
    # Length 5 becomes 25 / 26.
    expected = torch.tensor([[3 / 5 * 25 / 26, 4 / 5 * 25 / 26], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(squashed, expected)
    squashed.sum().backward()
    assert vectors.grad.isfinite().all()


def test_one_round_by_hand(make_history):
    """Equal starts give equal weights, so each capsule is the squashed mean share of the sum."""
    history = make_history([4, 0], 3)
    layer = InterestCapsules(3, num_capsules=2, num_rounds=1).double()
    layer.item_map.weight.data = torch.eye(3, dtype=torch.float64)
    capsules, present = layer(history, torch.zeros(4, 2, dtype=torch.float64))
    assert present.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(capsules[0], squash(history.values.sum(dim=0) / 2).expand(2, 3))
    assert not capsules[1].any()


def test_two_rounds_by_hand(make_history):
    history = make_history([4], 3)
    layer = InterestCapsules(3, num_capsules=2, num_rounds=2).double()
    layer.item_map.weight.data = torch.eye(3, dtype=torch.float64)
    start, items = 0.1 * torch.arange(8, dtype=torch.float64).square().view(4, 2), history.values
    first = squash(start.softmax(dim=1).t() @ items)
    expected = squash((start + items @ first.t()).softmax(dim=1).t() @ items)
    torch.testing.assert_close(layer(history, start)[0][0], expected)


@pytest.mark.parametrize(("length", "count"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3), (64, 4)])
def test_a_history_of_n_items_has_log2_n_interests(make_history, length, count):
    capsules, present = InterestCapsules(2, num_capsules=4).double()(make_history([length], 2), torch.zeros(length, 4))
    assert int(present.sum()) == count
    assert not capsules[0, count:].any()


def test_routing_parts_two_tastes(make_history):
    """Items of two directions, with a start that favours either a little, end in a capsule each."""
    history = make_history([16], 2, repeated=False)
    taste = torch.arange(16) % 2
    history = history.with_values(3 * torch.eye(2, dtype=torch.float64)[taste])
    layer = InterestCapsules(2, num_capsules=2, num_rounds=5).double()
    layer.item_map.weight.data = torch.eye(2, dtype=torch.float64)
    start = 0.1 * torch.eye(2, dtype=torch.float64)[taste]
    capsules, _ = layer(history, start)
    assert capsules[0].argmax(dim=1).tolist() == [0, 1]
    assert float(capsules[0].diagonal().min().detach()) > 0.9
    assert float(capsules[0].flip(1).diagonal().max().detach()) < 0.1
