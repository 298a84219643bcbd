from itertools import pairwise

import pytest
import torch
from fuxictr.pytorch.layers import DIN_Attention

from fuxictr_mm.layers import DINAttention, Jagged
from tests.layers.conftest import same_weights, target_of

WIDTH = 6
WITH_EMPTY = [[3, 0, 5, 1], [2], [0], [0, 0]]
WITHOUT_EMPTY = [[3, 5, 1], [2]]
OPTIONS = [
    {},
    {"attention_units": [8, 5], "hidden_activations": ["Tanh", "Sigmoid"], "output_activation": "Sigmoid"},
    {"attention_units": []},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", WITH_EMPTY)
@pytest.mark.parametrize("repeated", [True, False])
def test_equals_fuxictr_without_softmax(assert_same_attention, side, lengths, options, repeated):
    layers = same_weights(DINAttention, DIN_Attention, WIDTH, **options)
    assert_same_attention(*layers, lengths, WIDTH, side, repeated=repeated)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", WITHOUT_EMPTY)
def test_equals_fuxictr_with_softmax(assert_same_attention, side, lengths, options):
    layers = same_weights(DINAttention, DIN_Attention, WIDTH, use_softmax=True, **options)
    assert_same_attention(*layers, lengths, WIDTH, side)


@pytest.mark.parametrize("options", [{"hidden_activations": "Dice"}, {"batch_norm": True}])
@pytest.mark.parametrize("training", [True, False])
def test_batch_statistics_equal_fuxictr_on_full_histories(assert_same_attention, options, training):
    ours, theirs = same_weights(DINAttention, DIN_Attention, WIDTH, **options)
    for layer in (ours, theirs):
        layer.train(training)
        for name, parameter in layer.named_parameters():
            if name.endswith("alpha"):
                torch.nn.init.constant_(parameter, 0.3)
    assert_same_attention(ours, theirs, [4, 4, 4], WIDTH, "left")
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("use_softmax", [False, True])
@pytest.mark.parametrize("lengths", WITH_EMPTY)
def test_equals_the_formula_item_by_item(make_history, assert_same, lengths, use_softmax):
    layer = DINAttention(WIDTH, [7], hidden_activations="Tanh", use_softmax=use_softmax).double()
    history = make_history(lengths, WIDTH)
    target = target_of(history)
    offsets = history.offsets.tolist()
    expected = []
    for t, (start, end) in zip(target, pairwise(offsets), strict=True):
        interest = 0 * (t + history.distinct.sum(0))
        scores = [layer.attention_layer(torch.cat([t, s, t - s, t * s])) for s in history.values[start:end]]
        if scores:
            weights = torch.cat(scores)
            weights = weights.softmax(0) if use_softmax else weights
            interest = interest + weights @ history.values[start:end]
        expected.append(interest + 0 * sum(parameter.sum() for parameter in layer.parameters()))
    result = layer(target, history)
    assert_same(result, torch.stack(expected), [target, history.distinct], layer, layer)
    assert result[history.lengths == 0].abs().sum() == 0


def test_dropout_acts_in_training_only(make_history):
    layer = DINAttention(WIDTH, [64], dropout_rate=0.5).double()
    history = make_history([4, 2], WIDTH)
    target = target_of(history)
    assert not torch.equal(layer(target, history), layer(target, history))
    layer.eval()
    assert torch.equal(layer(target, history), layer(target, history))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("use_softmax", [False, True])
@pytest.mark.parametrize("lengths", WITH_EMPTY)
def test_float32_and_bfloat16_autocast(make_history, lengths, autocast, use_softmax):
    layer = DINAttention(WIDTH, [8], use_softmax=use_softmax)
    exact = make_history(lengths, WIDTH)
    history = Jagged(exact.distinct.detach().float().requires_grad_(), exact.offsets, exact.index)
    target = target_of(history).detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        result = layer(target, history)
    result.sum().backward()
    assert result.dtype == torch.float32
    expected = layer.double()(target.double(), exact).float()
    torch.testing.assert_close(result, expected, rtol=0.1 if autocast else 1e-4, atol=0.05 if autocast else 1e-5)
    for leaf in (target, history.distinct, *layer.parameters()):
        assert leaf.grad.isfinite().all()


def test_a_second_backward_of_a_kept_graph_gives_the_same_gradients():
    layer = DINAttention(2, (3, 2))
    history = Jagged(torch.randn(4, 2, requires_grad=True), torch.tensor([0, 3, 3, 5]), torch.tensor([0, 1, 0, 3, 3]))
    loss, inputs = layer(torch.randn(3, 2), history).sum(), [history.distinct, *layer.parameters()]
    first, second = (torch.autograd.grad(loss, inputs, retain_graph=True) for _ in range(2))
    (loss * 1).backward()  # nothing reads the graph again
    for one, other, last in zip(first, second, (tensor.grad for tensor in inputs), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(last, one)
