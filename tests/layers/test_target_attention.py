from itertools import pairwise

import pytest
import torch
from fuxictr.pytorch.layers import MultiHeadTargetAttention as DenseAttention

from fuxictr_mm.layers import Jagged, MultiHeadTargetAttention
from tests.errors import raises_naming
from tests.layers.conftest import same_weights, target_of

WIDTH = 6
WITH_EMPTY = [[3, 0, 5, 1], [2], [0], [0, 0]]
WITHOUT_EMPTY = [[3, 5, 1], [2]]
OPTIONS = [
    {"attention_dim": 8},
    {"attention_dim": 8, "num_heads": 4},
    {"attention_dim": 6, "num_heads": 2, "use_scale": False},
    {"num_heads": 3, "use_qkvo": False},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", WITHOUT_EMPTY)
@pytest.mark.parametrize("repeated", [True, False])
def test_equals_fuxictr(assert_same_attention, side, lengths, options, repeated):
    layers = same_weights(MultiHeadTargetAttention, DenseAttention, WIDTH, **options)
    assert_same_attention(*layers, lengths, WIDTH, side, repeated=repeated)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("projects_queries", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", WITH_EMPTY)
def test_equals_the_formula_head_by_head(
    monkeypatch, make_history, assert_same, lengths, options, projects_queries, sparse
):
    monkeypatch.setattr(MultiHeadTargetAttention, "_projects_queries", lambda *_: projects_queries)
    layer = MultiHeadTargetAttention(WIDTH, **options, sparse=sparse).double()
    history = make_history(lengths, WIDTH)
    target = target_of(history)
    same = torch.nn.Identity()
    query, key, value, output = (
        (layer.W_q, layer.W_k, layer.W_v, layer.W_o) if layer.use_qkvo else (same, same, same, same)
    )
    offsets = history.offsets.tolist()
    expected, expected_weights = [], []
    for t, (start, end) in zip(target, pairwise(offsets), strict=True):
        items = history.values[start:end]
        heads, weights_by_head = [], []
        for q, k, v in zip(
            query(t).chunk(layer.num_heads),
            key(items).chunk(layer.num_heads, dim=1),
            value(items).chunk(layer.num_heads, dim=1),
            strict=True,
        ):
            scores = k @ q / (layer.head_dim**0.5 if options.get("use_scale", True) else 1)
            weights = scores.relu() if sparse else scores.softmax(0)
            weights_by_head.append(weights)
            heads.append(weights @ v)
        expected_weights.append(torch.stack(weights_by_head, dim=1))
        expected.append(output(torch.cat(heads)))
    result, weights = layer(target, history, return_weights=True)
    assert_same(result, torch.stack(expected), [target, history.distinct], layer, layer)
    assert result[history.lengths == 0].abs().sum() == 0
    torch.testing.assert_close(weights.values, torch.cat(expected_weights), rtol=1e-10, atol=1e-10)
    assert torch.equal(weights.offsets, history.offsets)


def test_projects_queries_of_several_heads_where_most_items_are_distinct():
    layer = MultiHeadTargetAttention(64, 64, num_heads=2)
    for distinct, expected in ((200, True), (5, False)):
        history = Jagged(torch.randn(distinct, 64), torch.tensor([0, 100, 200]), torch.arange(200) % distinct)
        assert layer._projects_queries(history) is expected


def test_sparse_weights_are_zero_where_the_item_speaks_against_the_target():
    layer = MultiHeadTargetAttention(2, use_qkvo=False, use_scale=False, sparse=True)
    history = Jagged(torch.tensor([[3.0, 0.0], [-5.0, 1.0]]), torch.tensor([0, 2]))
    result, weights = layer(torch.tensor([[2.0, 0.0]]), history, return_weights=True)
    assert weights.values.tolist() == [[6.0], [0.0]]
    assert result.tolist() == [[18.0, 0.0]]


def test_dropout_drops_attention_weights_in_training_only():
    layer = MultiHeadTargetAttention(2, use_qkvo=False, dropout_rate=0.5)
    history = Jagged(torch.ones(200, 2), torch.arange(201))  # one item per row: its weight is 1, then 0 or 2
    result, weights = layer(torch.randn(200, 2), history, return_weights=True)
    assert set(result.flatten().tolist()) == {0.0, 2.0}
    assert set(weights.values.flatten().tolist()) == {1.0}
    assert set(layer.eval()(torch.randn(200, 2), history).flatten().tolist()) == {1.0}


@pytest.mark.parametrize("options", [{"attention_dim": 8}, {"input_dim": 6, "use_qkvo": False}])
def test_heads_that_do_not_divide_the_width(options):
    with raises_naming(ValueError, "_dim", "num_heads=5"):
        MultiHeadTargetAttention(**options, num_heads=5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", WITH_EMPTY)
def test_float32_and_bfloat16_autocast(make_history, lengths, options, sparse, autocast):
    layer = MultiHeadTargetAttention(WIDTH, **options, sparse=sparse)
    exact = make_history(lengths, WIDTH)
    history = Jagged(exact.distinct.detach().float().requires_grad_(), exact.offsets, exact.index)
    target = target_of(history).detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        result = layer(target, history)
    result.float().sum().backward()
    expected = layer.double()(target.double(), exact).float()
    close = {"rtol": 0.1, "atol": 0.05} if autocast else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(result.float(), expected, **close)
    for leaf in (target, history.distinct, *layer.parameters()):
        assert leaf.grad.isfinite().all()
