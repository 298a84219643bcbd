from itertools import pairwise

import pytest
import torch

from fuxictr_mm import sparse_products
from fuxictr_mm.layers import Jagged, weighted_sum

LENGTHS = [[3, 0, 2, 1], [2], [0, 0]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("repeated", [True, False])
@pytest.mark.parametrize("heads", [None, 1, 3])
@pytest.mark.parametrize("small", [0, 2**17])
def test_weighted_sum_and_its_gradients(monkeypatch, make_history, lengths, repeated, heads, small):
    monkeypatch.setattr(sparse_products, "SMALL", small)
    history = make_history(lengths, 4, repeated=repeated)
    shape = (history.num_values,) if heads is None else (history.num_values, heads)
    weights = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours = weighted_sum(history, weights)

    starts = history.offsets.tolist()
    per_head = weights.unsqueeze(1) if heads is None else weights
    expected = torch.stack([per_head[a:b].t() @ history.values[a:b] for a, b in pairwise(starts)])  # (B, H, D)
    expected = expected.squeeze(1) if heads is None else expected
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(ours)
    for ours_, dense in zip(
        torch.autograd.grad(ours, [history.distinct, weights], direction),
        torch.autograd.grad(expected, [history.distinct, weights], direction),
        strict=True,
    ):
        torch.testing.assert_close(ours_, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entries", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float64, torch.float32, torch.bfloat16])
def test_result_has_the_wider_type(entries, weights):
    history = Jagged(torch.ones(3, 2, dtype=entries, requires_grad=True), torch.tensor([0, 2, 3]))
    result = weighted_sum(history, torch.ones(3, dtype=weights, requires_grad=True))
    assert result.dtype == torch.promote_types(entries, weights)
    assert result.tolist() == [[2.0, 2.0], [1.0, 1.0]]
    result.sum().backward()
    assert history.distinct.grad.dtype == entries
