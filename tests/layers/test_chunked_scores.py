from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import chunked_scores as module
from fuxictr_mm.layers.chunked_scores import relu_layers
from fuxictr_mm.layers.din_attention import DINAttention
from fuxictr_mm.layers.dropout import replace_dropout

DIM, UNITS = 5, [6, 4]


@pytest.fixture
def layer() -> DINAttention:
    torch.manual_seed(3)
    layer = DINAttention(DIM, UNITS, dropout_rate=0.3, output_activation="Sigmoid").double()
    replace_dropout(layer)
    return layer


@pytest.fixture(params=[[3, 0, 5, 1, 7], [0, 0], [1]], ids=str)
def inputs(request) -> tuple[torch.Tensor, Jagged]:
    torch.manual_seed(4)
    offsets = torch.tensor([0, *request.param]).cumsum(0)
    index = torch.randint(0, 9, (int(offsets[-1]),))
    target = torch.randn(len(request.param), DIM, dtype=torch.float64, requires_grad=True)
    return target, Jagged(torch.randn(9, DIM, dtype=torch.float64, requires_grad=True), offsets, index)


def weights_of(layer: DINAttention, target: torch.Tensor, history: Jagged, masks: list[torch.Tensor]) -> torch.Tensor:
    """The formula of the paper, one matrix for the four parts, with given masks of dropout."""
    t, s = target[history.rows], history.values
    hidden = torch.cat([t, s, t - s, t * s], dim=1)
    linears = [m for m in layer.attention_layer.mlp if isinstance(m, nn.Linear)]
    for linear, mask in zip(linears[:-1], masks, strict=True):
        hidden = linear(hidden).relu() * mask
    return linears[-1](hidden).squeeze(1).sigmoid()


@pytest.fixture(params=[1, 2, 3])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("chunk", [2, 3, 4, 1024])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("multiple", [1, 5])
def test_chunks_equal_the_formula(monkeypatch, layer, inputs, threads, chunk, training, multiple):
    monkeypatch.setattr(module, "MULTIPLES", {torch.float64: multiple})
    target, history = inputs
    layer.train(training)
    parts: list[list[list[torch.Tensor]]] = []  # of the masks that each part has drawn, for every layer
    keep_mask, make_generators = module.keep_mask, module._generators

    def remember_generators(count):
        generators = make_generators(count)
        parts.extend([[] for _ in UNITS] for _ in generators)
        numbers.update({generator: n for n, generator in enumerate(generators)})
        return generators

    def remember(x, p, generator):
        mask, scale = keep_mask(x, p, generator)
        parts[numbers[generator]][UNITS.index(x.shape[1])].append(mask * scale)
        return mask, scale

    numbers: dict[torch.Generator | None, int] = {}
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "_generators", remember_generators)
    monkeypatch.setattr(module, "keep_mask", remember)
    seen: list[torch.Tensor] = []
    layer.weights.register_forward_hook(lambda _, arguments, output: seen.append(output))
    found = layer(target, history)
    assert torch.get_num_threads() == threads
    masks = [
        torch.cat([torch.ones(0, n, dtype=torch.float64), *(mask for part in parts for mask in part[k])])
        for k, n in enumerate(UNITS)
    ]
    if training:
        assert all(len(mask) == -(-history.num_values // multiple) * multiple for mask in masks)
        masks = [mask[: history.num_values] for mask in masks]
    else:
        assert not parts
        masks = [torch.ones(history.num_values, n, dtype=torch.float64) for n in UNITS]
    weights = weights_of(layer, target, history, masks)
    torch.testing.assert_close(seen[0], weights, rtol=1e-12, atol=1e-12)
    expected = history.with_values(history.values * weights.unsqueeze(1)).sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = [target, history.distinct, *layer.parameters()]
    direction = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(o, wanted, direction) for o in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    # As DistributedDataParallel's buckets have them.
    assert [g.stride() for g in ours[2:]] == [p.stride() for p in layer.parameters()]
    with torch.no_grad():
        if not training:
            torch.testing.assert_close(layer(target, history), found, rtol=0, atol=0)


def test_the_seed_and_the_number_of_threads_decide(monkeypatch, layer, threads):
    monkeypatch.setattr(module, "CHUNK", 8)
    target = torch.randn(64, DIM, dtype=torch.float64)
    history = Jagged(torch.randn(9, DIM, dtype=torch.float64), torch.arange(65) * 5, torch.randint(0, 9, (320,)))
    assert len(module._parts(history.rows)) == threads
    found = []
    for _ in range(3):
        torch.manual_seed(5)
        layer.zero_grad()
        layer(target, history).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in layer.parameters()]))
    assert all(torch.equal(found[0], other) for other in found[1:])
    torch.manual_seed(6)
    assert not torch.equal(layer(target, history), layer(target, history))
    with torch.inference_mode():
        layer.eval()(target, history)


def test_bfloat16_sums_over_items_in_float32(layer):
    layer = layer.float().eval()
    target = torch.randn(64, DIM)
    history = Jagged(torch.randn(9, DIM), torch.arange(65) * 100, torch.randint(0, 9, (6400,)))
    gradients = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            layer(target, history).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in layer.parameters()]))
    exact, half = gradients
    assert (half - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    "options",
    [{"hidden_activations": "Tanh"}, {"hidden_activations": "Dice"}, {"batch_norm": True}, {"attention_units": []}],
)
def test_other_layers_are_left_to_the_mlp(options):
    mlp = DINAttention(DIM, **{"attention_units": [4, 3], **options}).attention_layer.mlp
    assert relu_layers(mlp[1:]) is None
