import copy

import pytest
import torch
from torch import Tensor, nn

from fuxictr_mm.layers import QuadraticLayer, QuadraticNetwork
from fuxictr_mm.layers.dropout import replace_dropout
from fuxictr_mm.layers.quadratic import PReLU

WIDTH = 5


def quadratic(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Sum over r of x * (W_r x + b_r), row by row and map by map."""
    maps = list(zip(weight.split(WIDTH), bias.split(WIDTH), strict=True))
    return torch.stack([sum(row * (w @ row + b) for w, b in maps) for row in x])


class DenseNetwork(nn.Module):
    """The network by its formula, every map of a layer on its own; no dropout."""

    def __init__(self, num_layers: int, num_row: int, batch_norm: bool):
        super().__init__()
        self.layer = nn.ModuleList(nn.Module() for _ in range(num_layers))
        for layer in self.layer:
            layer.linear = nn.Sequential(nn.Linear(WIDTH, num_row * WIDTH))
        self.norm = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(num_layers if batch_norm else 0))
        self.activation = nn.ModuleList(nn.PReLU() for _ in range(num_layers))
        self.fc = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layer):
            crossed = quadratic(layer.linear[0].weight, layer.linear[0].bias, x)
            if len(self.norm):
                crossed = self.norm[index](crossed)
            x = torch.where(crossed > 0, crossed, self.activation[index].weight * crossed) + x
        return self.fc(x)


def test_by_hand():
    layer = QuadraticLayer(2, num_row=2, net_dropout=0.0)
    with torch.no_grad():
        layer.linear[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 0.0]]))
        layer.linear[0].bias.copy_(torch.tensor([1.0, 0.0, 0.0, -1.0]))
    # x = (2, 3): 2 * (2 + 1) + 2 * 6 = 18 and 3 * 3 + 3 * (6 - 1) = 24.
    assert layer(torch.tensor([[2.0, 3.0]])).tolist() == [[18.0, 24.0]]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("num_layers", "num_row"), [(1, 1), (2, 4), (3, 2)])
def test_equals_the_formula(assert_same, num_layers, num_row, batch_norm, training):
    ours = QuadraticNetwork(WIDTH, num_layers, num_row, net_dropout=0.0, batch_norm=batch_norm).double()
    theirs = DenseNetwork(num_layers, num_row, batch_norm).double()
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value)
    ours.load_state_dict(theirs.state_dict())
    ours.train(training)
    theirs.train(training)
    x = torch.randn(7, WIDTH, dtype=torch.float64, requires_grad=True)
    assert_same(ours(x), theirs(x), [x], ours, theirs)


def test_training_with_dropout_and_scoring_by_the_sum_agree():
    """With hardly any dropout the way of training, every map on its own, gives what the sum of the maps does."""
    layer = QuadraticLayer(WIDTH, 4, net_dropout=1e-12).double()
    x = torch.randn(6, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_inside_a_layer(dtype):
    """Each map of each entry is dropped on its own, and what is kept is scaled; gradients take the same masks."""
    layer = QuadraticLayer(400, num_row=3, net_dropout=0.25).to(dtype)
    with torch.no_grad():
        layer.linear[0].weight.zero_()
        layer.linear[0].bias.copy_(torch.tensor([1.0, 4.0, 16.0], dtype=dtype).repeat_interleave(400))
    x = torch.ones(500, 400, dtype=dtype, requires_grad=True)
    y = layer(x)
    kept = (y * 0.75).round().long()
    assert set(kept.unique().tolist()) == {a + b + c for a in (0, 1) for b in (0, 4) for c in (0, 16)}
    for value in (1, 4, 16):
        assert (kept & value > 0).double().mean().sub(0.75).abs() < 0.01
    (gradient,) = torch.autograd.grad(y.sum(), layer.linear[0].bias, retain_graph=True)
    counts = torch.stack([(kept & value > 0).sum(dim=0) for value in (1, 4, 16)]).flatten()
    torch.testing.assert_close(gradient.float(), counts / 0.75, rtol=1e-2, atol=0)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y.detach())
    assert not torch.equal(layer(x), y)


def test_gradients_of_dropout_are_those_of_its_mask():
    layer = QuadraticLayer(4, num_row=3, net_dropout=0.5).double()
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def seeded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(3)
        return torch.func.functional_call(layer, {"linear.0.weight": weight, "linear.0.bias": bias}, x)

    assert torch.autograd.gradcheck(seeded, (x, *layer.linear[0].parameters()))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_all_or_nothing_is_dropped(p):
    layer = QuadraticLayer(3, num_row=2, net_dropout=p)
    x = torch.randn(4, 3)
    assert torch.equal(layer(x), torch.zeros(4, 3)) == (p == 1)


def test_the_sum_of_the_maps_follows_the_weights():
    """No sum of an earlier state of the weights is left over, whatever changed them."""
    network = QuadraticNetwork(WIDTH, 2, 4, net_dropout=0.3, batch_norm=True).double()
    dense = DenseNetwork(2, 4, True).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.randn(8, WIDTH, dtype=torch.float64)

    def check() -> None:
        dense.load_state_dict(network.state_dict())
        torch.testing.assert_close(network.eval()(x), dense.eval()(x), rtol=1e-12, atol=1e-12)
        network.train()

    check()
    network(x).square().sum().backward()
    optimizer.step()
    check()
    network.load_state_dict(QuadraticNetwork(WIDTH, 2, 4, 0.3, True).double().state_dict())
    check()
    for parameter in network.parameters():
        parameter.data += 0.1
    check()


def test_a_row_alone_equals_the_row_in_a_batch():
    network = QuadraticNetwork(WIDTH, 2, 3, batch_norm=True).double().eval()
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    alone = torch.cat([network(row.unsqueeze(0)) for row in x])
    torch.testing.assert_close(alone, network(x), rtol=1e-12, atol=1e-12)
    assert network(x[:0]).shape == (0, 1)


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_autocast_is_close_and_has_finite_gradients(training):
    network = QuadraticNetwork(16, 2, 4, net_dropout=0.0, batch_norm=True).train(training)
    replace_dropout(network)
    x = torch.randn(32, 16, requires_grad=True)
    expected = copy.deepcopy(network)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logit = network(x)
    torch.testing.assert_close(logit.float(), expected, rtol=0.1, atol=0.1)
    logit.float().sum().backward()
    for leaf in (x, *network.parameters()):
        assert leaf.grad.dtype == torch.float32
        assert leaf.grad.isfinite().all()
    assert all(norm.running_mean.dtype == torch.float32 for norm in network.norm)


@pytest.mark.parametrize("slope", [0.25, -0.5, 1.5])
def test_prelu_equals_torch(assert_same, slope):
    x = torch.randn(9, 4, dtype=torch.float64)
    x[0, 0] = 0.0
    x.requires_grad_()
    ours, theirs = PReLU(init=slope).double(), nn.PReLU(init=slope).double()
    assert_same(ours(x), theirs(x), [x], ours, theirs)
