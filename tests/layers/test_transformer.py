"""The jagged encoder equals PyTorch's padded one."""

import pytest
import torch
from torch import nn

from fuxictr_mm.layers import TargetTransformer
from fuxictr_mm.layers.transformer import Buckets, JaggedTransformerLayer, rotate
from tests.errors import raises_naming


def reference_of(layer, dropout=0.0):
    attention = layer.self_attn
    reference = nn.TransformerEncoderLayer(
        attention.embed_dim, attention.num_heads, layer.linear1.out_features, dropout, batch_first=True
    ).double()
    reference.load_state_dict(layer.state_dict())
    return reference


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("lengths", [[3, 1, 9, 5, 9], [1], [70, 2]])
def test_layer_equals_pytorch(make_history, pad, assert_same, side, num_heads, lengths):
    layer = JaggedTransformerLayer(6, num_heads, dim_feedforward=7, dropout=0.0).double()
    reference = reference_of(layer)
    history = make_history(lengths, 6)
    padded, mask = pad(history, side)
    expected = reference(padded, src_key_padding_mask=mask == 0)[mask.bool()]
    found = layer(history.values, Buckets.of(history.offsets))
    assert_same(found, expected, [history.distinct], layer, reference)


@pytest.mark.parametrize("limits", [(), (1,), (2, 4, 6, 8)])
def test_buckets_do_not_change_the_result(make_history, limits):
    layer = JaggedTransformerLayer(4, 2, dim_feedforward=3, dropout=0.0).double()
    history = make_history([5, 1, 9, 2, 2, 7, 3], 4)
    one = layer(history.values, Buckets.of(history.offsets, limits=()))
    many = layer(history.values, Buckets.of(history.offsets, limits=limits))
    torch.testing.assert_close(many, one, rtol=1e-12, atol=1e-12)
    assert [mask.shape[1] for mask in Buckets.of(history.offsets, limits=(2, 4, 6, 8)).masks] == [2, 3, 5, 7, 9]


@pytest.mark.parametrize("max_pool", [True, False])
def test_target_transformer_equals_pytorch(make_history, pad, assert_same, side, max_pool):
    width, lengths = 3, [2, 6, 1, 4]
    ours = TargetTransformer(width, num_layers=2, num_heads=2, dim_feedforward=5, max_pool=max_pool).double()
    history, target = make_history(lengths, width), torch.randn(4, width, dtype=torch.float64, requires_grad=True)
    padded, mask = pad(history, side)
    tokens = torch.cat([padded, target.unsqueeze(1).expand_as(padded)], dim=-1)
    for layer in ours.transformer_encoder["layers"]:
        tokens = reference_of(layer)(tokens, src_key_padding_mask=mask == 0)
    # By hand: the last three outputs, zeros before them.
    rows = [row[keep.bool()] for row, keep in zip(tokens, mask, strict=True)]
    last = [torch.cat([row.new_zeros(max(3 - len(row), 0), 2 * width), row[-3:]]).flatten() for row in rows]
    parts = [torch.stack(last)]
    if max_pool:
        parts.append(ours.out_linear(torch.stack([row.max(dim=0).values for row in rows])))
    slots = torch.tensor([[-1, 0, 1], [5, 6, 7], [-1, -1, 8], [10, 11, 12]])
    found = ours(target, history, slots)
    torch.testing.assert_close(found, torch.cat(parts, dim=1), rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(found)
    inputs = [history.distinct, target]
    for a, b in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(torch.cat(parts, dim=1), inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_names_and_shapes_are_those_of_pytorch():
    layer = nn.TransformerEncoderLayer(8, 1, 5, batch_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).state_dict()
    ours = TargetTransformer(4, num_layers=2, dim_feedforward=5, max_pool=False).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {f"transformer_encoder.{k}": v.shape for k, v in theirs.items()}


def test_heads_must_divide_the_dim():
    with raises_naming(ValueError, "num_heads=3", "8"):
        TargetTransformer(4, num_heads=3)


def test_dropout_is_drawn_in_training_only(make_history):
    layer = JaggedTransformerLayer(4, 1, dim_feedforward=3, dropout=0.5).double()
    history = make_history([5, 3], 4)
    buckets = Buckets.of(history.offsets)
    assert not torch.equal(layer(history.values, buckets), layer(history.values, buckets))
    layer.eval()
    assert torch.equal(layer(history.values, buckets), layer(history.values, buckets))


@pytest.mark.parametrize("lengths", [[2, 0, 7, 0], [0, 0], []])
def test_buckets_leave_out_empty_rows(lengths):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.randn(sum(lengths), 3)
    buckets = Buckets.of(offsets, limits=[4])
    assert torch.equal(buckets.apply(values, lambda padded, mask: padded + mask[..., None]), values + 1)


def test_rotations_are_exact_at_far_positions_in_half_precision():
    values, positions = torch.randn(1000, 8), torch.arange(1000)
    exact = rotate(values.double(), positions)
    assert rotate(values.bfloat16(), positions).dtype == torch.bfloat16
    torch.testing.assert_close(rotate(values.bfloat16(), positions).double(), exact, rtol=0.0, atol=0.1)
    torch.testing.assert_close(rotate(values, positions).double(), exact, rtol=0.0, atol=1e-3)
