"""Attention by collisions of hashes."""

import math

import torch

from fuxictr_mm.layers import HashAttention, Jagged


def test_by_hand():
    layer = HashAttention(2, num_groups=2, hash_width=1).double()
    layer.hyperplanes = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    items = torch.tensor([[3.0, 4.0], [5.0, -12.0], [-1.0, 1.0]], dtype=torch.float64)
    assert layer.signatures(items).tolist() == [[1, 1], [1, 0], [0, 1]]
    target = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = layer(target, Jagged(items, torch.tensor([0, 3, 3])))
    # First hash: the items 0 and 1, sum (8, -8). Second: 0 and 2, sum (2, 5).
    first, second = torch.tensor([1.0, -1.0]) / math.sqrt(2), torch.tensor([2.0, 5.0]) / math.sqrt(29)
    torch.testing.assert_close(found, torch.stack([(first + second) / 2, torch.zeros(2)]).double())


def test_items_collide_as_often_as_their_angle_says():
    layer = HashAttention(2, num_groups=20_000, hash_width=2)
    angle = math.pi / 3
    items = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    of_target, of_item = layer.signatures(items)
    assert abs(float((of_target == of_item).float().mean()) - (1 - angle / math.pi) ** 2) < 0.015


def test_a_signature_is_of_the_direction_alone():
    layer = HashAttention(5, num_groups=4, hash_width=63)
    items = torch.randn(7, 5)
    assert torch.equal(layer.signatures(items), layer.signatures(8 * items))
    assert layer.signatures(items).unique(dim=0).shape[0] > 1
    assert "hyperplanes" in layer.state_dict()
