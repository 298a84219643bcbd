"""Attention and tiers by content against plain padded re-computations."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import BucketAttention, SemanticAttention, SimTier, tiers

LENGTHS = [[3, 0, 1, 5], [1], [0], [4, 4], [2, 0, 1, 3, 1, 2, 0]]  # rows, fewer and more than distinct items


def softmax_over(scores, mask):
    """Return softmax over positions ``(B, L, H)``, zero where nothing is real."""
    return torch.softmax(scores.masked_fill(~mask[..., None].bool(), -1e30), dim=1) * mask[..., None]


def heads_of(values, heads):
    return values.view(*values.shape[:-1], heads, -1)


@pytest.fixture(params=LENGTHS, ids=str)
def given(request, make_history, pad, side):
    """Target, history and cosines, and the padded history and cosines with their mask."""
    history = make_history(request.param, 6)
    cosines = 2 * torch.rand(history.num_values, dtype=torch.float64) - 1
    padded, mask = pad(history, side)
    padded_cosines = torch.full(mask.shape, 0.3, dtype=torch.float64)
    padded_cosines[mask.bool()] = cosines
    target = torch.randn(len(request.param), 6, dtype=torch.float64).requires_grad_()
    return target, history, cosines, padded, padded_cosines, mask


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("form", ["paper", "code"])
def test_semantic_attention(given, assert_same, form, heads):
    target, history, cosines, padded, padded_cosines, mask = given
    ours = SemanticAttention(6, 8, heads, form).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    theirs = copy.deepcopy(ours)
    q, k, v = theirs.W_q(target), theirs.W_k(padded), theirs.W_v(padded)
    r = padded_cosines[..., None].expand(-1, -1, heads)
    if form == "code":
        q, k, v = q * torch.sigmoid(q), k * torch.sigmoid(k), v * torch.sigmoid(v)
        r = r / theirs.temperature
    else:
        q = q / (8 / heads) ** 0.5
    x = (heads_of(q, heads)[:, None] * heads_of(k, heads)).sum(-1)
    weights = softmax_over(theirs.gamma[0] * x + theirs.gamma[1] * r + theirs.gamma[2] * x * r, mask)
    expected = torch.einsum("blh,blhd->bhd", weights, heads_of(v, heads)).flatten(1)
    assert_same(ours(target, history, cosines), expected, [target, history.distinct], ours, theirs)


@pytest.mark.parametrize("heads", [1, 4])
def test_bucket_attention(given, assert_same, heads):
    target, history, cosines, padded, padded_cosines, mask = given
    ours = BucketAttention(6, 8, heads, num_tiers=4).double()
    with torch.no_grad():
        ours.tier_keys.normal_()
        ours.tier_values.normal_()
    theirs = copy.deepcopy(ours)
    bucket = torch.bucketize(padded_cosines, torch.tensor([-1.0, -0.5, 0.0, 0.5], dtype=torch.float64))
    key = theirs.W_k(padded) + theirs.tier_keys[bucket]
    value = theirs.W_v(padded) + theirs.tier_values[bucket]
    scores = (heads_of(theirs.W_q(target), heads)[:, None] * heads_of(key, heads)).sum(-1) / (8 / heads) ** 0.5
    expected = torch.einsum("blh,blhd->bhd", softmax_over(scores, mask), heads_of(value, heads)).flatten(1)
    assert_same(ours(target, history, cosines), expected, [target, history.distinct], ours, theirs)


def test_tiers_are_counted(given, assert_same):
    _, history, cosines, _, padded_cosines, mask = given
    ours = SimTier(20).double()
    theirs = copy.deepcopy(ours)
    tier = torch.ceil(padded_cosines * 10).long() + 10
    counts = torch.stack([((tier == j) & mask.bool()).sum(1) for j in range(21)], dim=1)
    expected = torch.log(1.0 + counts.double()) * theirs.weight
    assert_same(ours(history.with_values(cosines)), expected, [], ours, theirs)


def test_the_last_tier_has_what_rounding_puts_beyond_one():
    assert tiers(torch.tensor([1.0000001, -1.0000001]), 20).tolist() == [20, 0]


@pytest.mark.parametrize("num_tiers", [1, 4, 5, 20])
def test_tiers_are_of_equal_length(num_tiers):
    ends = torch.linspace(-1, 1, num_tiers + 1, dtype=torch.float64)
    assert tiers(ends[1:] - 1e-6, num_tiers).tolist() == list(range(1, num_tiers + 1))
    assert tiers(ends[:-1] + 1e-6, num_tiers).tolist() == list(range(1, num_tiers + 1))
    assert tiers(ends[:1], num_tiers).tolist() == [0]


class Largest(TorchDispatchMode):
    """Keeps the bytes of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.bytes = max(self.bytes, found.untyped_storage().nbytes())
        return found


@torch.no_grad()
@pytest.mark.parametrize("length", [0, 1, 50])
def test_candidates_of_one_user(length):
    count, heads = 20, 2
    attention, tiers_of = BucketAttention(6, 8, heads).double(), SimTier().double()
    torch.nn.init.normal_(attention.tier_keys)
    history, target = torch.randn(length, 6, dtype=torch.float64), torch.randn(count, 6, dtype=torch.float64)
    cosines = 2 * torch.rand(count, length, dtype=torch.float64) - 1
    rows = Jagged(history.repeat(count, 1), torch.arange(count + 1) * length)
    expected = attention(target, rows, cosines.flatten()), tiers_of(rows.with_values(cosines.flatten()))
    keys_and_values = attention.keys_and_values(history)
    with Largest() as largest:
        found = attention.attend(target, *keys_and_values, cosines), tiers_of.of_user(cosines)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if length > 21:  # nothing has an axis of tiers beside those of candidates and history
        assert largest.bytes <= 8 * heads * count * length


def test_entries_that_are_not_found_are_in_no_tier():
    cosines = torch.tensor([[0.5, -torch.inf, -1.0]])
    counts = SimTier(2)
    assert (counts.of_user(cosines) / counts.weight).expm1().round().tolist() == [[1.0, 0.0, 1.0]]
