"""Optimizers by name, clipping, and penalties that equal FuxiCTR's in value and gradient."""

import pytest
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding
from fuxictr.pytorch.models import BaseModel
from torch import nn

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.training.optim import Penalty, Schedule, WeightAverage, clip_gradients, embedding_tables, make_optimizer
from tests.errors import raises_naming
from tests.tensors import assert_equal_tensors


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", "Adam"), ("ADAMW", "AdamW"), ("sgd", "SGD"), ("Adagrad", "Adagrad")]
)
def test_by_name(name, kind):
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    trained = nn.Parameter(torch.zeros(2))
    optimizer = make_optimizer(name, [frozen, trained], 0.1)
    assert isinstance(optimizer, getattr(torch.optim, kind))
    assert type(optimizer).__name__ == kind
    assert [p for g in optimizer.param_groups for p in g["params"]] == [trained]
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_fused_takes_the_same_steps(name):
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = make_optimizer(name, [ours], 0.03), getattr(torch.optim, name)([theirs], lr=0.03, foreach=False)
    for _ in range(5):
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (weight**4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "NAdam", "RMSprop", "Rprop", "Adagrad", "Adafactor"])
def test_steps_are_those_of_torch(name):
    """Bit by bit, a second group of parameters and a restored state among them."""
    kind = getattr(torch.optim, name, None)
    if kind is None:
        pytest.skip("this torch has no such optimizer")
    fused = {"fused": True} if name in ("Adam", "AdamW", "SGD") else {}

    def train(make):
        torch.manual_seed(1)
        weights = [nn.Parameter(torch.randn(5, 3)) for _ in range(2)]
        optimizer = make(weights[:1])
        optimizer.add_param_group({"params": weights[1:], "lr": 0.2})
        for step in range(6):
            optimizer.zero_grad()
            sum((weight**2).sum() for weight in weights).backward()
            optimizer.step()
            if step == 2:
                state, optimizer = optimizer.state_dict(), make(weights[:1])
                optimizer.add_param_group({"params": weights[1:], "lr": 0.2})
                optimizer.load_state_dict(state)
        assert not any(value.requires_grad for values in optimizer.state.values() for value in values.values())
        return weights

    try:
        theirs = train(lambda weights: kind(weights, lr=0.1, **fused))
    except KeyError:
        pytest.skip("with this torch, the optimizer takes no second group")
    ours = train(lambda weights: make_optimizer(name, weights, 0.1))
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_an_optimizer_that_does_not_take_the_model():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no optimiser that is so particular")
    with raises_naming(ConfigError, "Muon"):
        make_optimizer("muon", [nn.Parameter(torch.zeros(1))], 0.1)


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e6])
@pytest.mark.parametrize("broken", [False, True])
def test_clipping_is_that_of_torch(max_norm, broken):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2,))]
    theirs = [nn.Parameter(torch.zeros_like(p)) for p in ours]
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        one.grad = torch.randn_like(one)
        if broken:
            one.grad[0] = torch.nan
        other.grad = one.grad.clone()
    clip_gradients(ours, max_norm)
    nn.utils.clip_grad_norm_(theirs, max_norm)
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(one.grad, other.grad, equal_nan=True)
    assert ours[2].grad is None
    clip_gradients([], max_norm)


class Model(BaseModel):
    """An embedding with a projected vector, a layer, a frozen weight, and a table beside."""

    def __init__(self, embedding_regularizer, net_regularizer, tmp_path):
        feature_map = FeatureMap("d", str(tmp_path))
        feature_map.features["level"] = {"type": "categorical", "source": "", "vocab_size": 5, "padding_idx": 0}
        feature_map.features["vector"] = {"type": "embedding", "source": "", "pretrain_dim": 3, "embedding_dim": 4}
        super().__init__(
            feature_map, embedding_regularizer=embedding_regularizer, net_regularizer=net_regularizer,
            verbose=0, model_root=str(tmp_path), metrics=["AUC"],
        )  # fmt: skip
        self.embedding_layer = FeatureEmbedding(feature_map, 4)
        self.net = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.tables = nn.ModuleDict({"vector": nn.Embedding(5, 3)})
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        self.net.weight.data[0, 0] = 0.0  # where |w| has a kink


@pytest.mark.parametrize("embedding", [None, 0.0, 0.3, "l1(0.2)", "l2(1e-1)", "l1_l2(0.2, 0.1)"])
@pytest.mark.parametrize("net", [None, 0.05, "l1(0.4)", "l1_l2(0.3,0.7)"])
def test_equals_fuxictr(embedding, net, tmp_path):
    model = Model(embedding, net, tmp_path)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = model.regularization_loss() + 0 * sum(p.sum() for p in trained.values())
    gradients = torch.autograd.grad(expected, list(trained.values()))
    penalty = Penalty(model, embedding, net)
    torch.testing.assert_close(penalty.value().double(), expected.detach(), rtol=1e-12, atol=1e-12, check_dtype=False)
    for parameter in trained.values():
        parameter.grad = torch.ones_like(parameter)
    penalty.add_gradients()
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + gradient, rtol=1e-12, atol=1e-12, msg=name)
    assert model.frozen.grad is None


def test_value_is_differentiable(tmp_path):
    model = Model(None, None, tmp_path)
    penalty = Penalty(model, "l1_l2(0.2, 0.1)", 0.5)
    (gradient,) = torch.autograd.grad(penalty.value(), [model.net.bias])
    torch.testing.assert_close(gradient, 0.5 * model.net.bias)


def test_a_parameter_without_gradient_gets_one(tmp_path):
    model = Model(None, None, tmp_path)
    Penalty(model, None, 0.5).add_gradients()
    torch.testing.assert_close(model.net.weight.grad, 0.5 * model.net.weight.data)
    assert all(p.grad is None for p in model.embedding_layer.parameters())


def test_tables_beside_count_as_embeddings(tmp_path):
    model = Model(None, None, tmp_path)
    table = model.tables["vector"].weight
    Penalty(model, 0.5, None, model.tables).add_gradients()
    torch.testing.assert_close(table.grad, 0.5 * table.data)
    assert model.net.weight.grad is None


def steps(optimizer, weights, count=4):
    for _ in range(count):
        optimizer.zero_grad()
        sum((weight**4).sum() for weight in weights).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weight_decay_is_that_of_adamw(name):
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)
    ours, theirs = ([nn.Parameter(start.clone()), nn.Parameter(2 * start)] for _ in range(2))
    steps(make_optimizer(name, ours, 0.03, weight_decay=0.2, tables=ours[1:], table_weight_decay=0.5), ours)
    groups = [{"params": theirs[:1], "weight_decay": 0.2}, {"params": theirs[1:], "weight_decay": 0.5}]
    steps(torch.optim.AdamW(groups, lr=0.03, foreach=False), theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_weight_decay_of_sgd_in_closed_form():
    weight = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    steps(make_optimizer("sgd", [weight], 0.1, weight_decay=0.5), [weight], count=1)
    expected = torch.tensor([2.0 * 0.95 - 0.1 * 4 * 8, -1 * 0.95 + 0.1 * 4], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize(
    ("name", "decays", "expected"),
    [("adam", {"weight_decay": 0.1}, [0.1, 0]), ("adamw", {"table_weight_decay": 0.1}, [0.01, 0.1])],
)
def test_a_decay_that_is_not_set_is_the_default(name, decays, expected):
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = make_optimizer(name, weights, 0.1, tables=weights[1:], **decays).param_groups
    assert [group["weight_decay"] for group in groups] == expected


def test_tables_have_their_own_learning_rate():
    weights = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    groups = make_optimizer("Adagrad", weights, 0.1, tables=weights[1:2], table_learning_rate=0.3).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.1, 2), (0.3, 1)]


def test_embedding_tables_are_no_projections(tmp_path):
    model = Model(None, None, tmp_path)
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for p in embedding_tables(model, model.tables)]
    assert found == ["embedding_layer.embedding_layer.embedding_layers.level.weight", "tables.vector.weight"]


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        (None, 0, [1, 1, 1, 1, 1]),
        ("plateau", 4, [0.25, 0.5, 0.75, 1, 1]),
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 2, [0.5, 1, 1, 2 / 3, 1 / 3]),
        ("cosine", 1, [1, 1, 0.853553390593, 0.5, 0.146446609407]),
    ],
)
def test_schedules_in_closed_form(kind, warmup, expected):
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.2, 0.4)], lr=1.0)
    schedule = Schedule(optimizer, kind, warmup)
    for step, factor in enumerate(expected, start=1):
        schedule.set_rates(step, 5)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.2 * factor, 0.4 * factor])
    assert schedule.decay(0.5, 1e-6) == pytest.approx(0.4 * expected[-1] * 0.5)
    schedule.set_rates(5, 5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * expected[-1] * 0.5)


@pytest.mark.parametrize(("warmup", "rate", "expected"), [(0, 4e-7, 4e-7), (2, 4e-7, 4e-7), (0, 4e-6, 1e-6)])
def test_a_learning_rate_below_the_least_one_does_not_rise(warmup, rate, expected):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=rate)
    schedule = Schedule(optimizer, "plateau", warmup)
    assert schedule.decay(0.1, 1e-6) == pytest.approx(expected)
    schedule.set_rates(3, 5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_the_plain_average_is_the_mean_of_the_weights_from_its_start_on():
    model = nn.Linear(2, 1, dtype=torch.float64)
    average, seen = WeightAverage(model, start=3), []
    for update in range(1, 8):
        model.weight.data += update
        average.update()
        seen.append(model.weight.detach().clone())
        with average.applied():
            torch.testing.assert_close(model.weight.detach(), torch.stack(seen[2:] or seen[-1:]).mean(dim=0))


def test_the_average_in_closed_form():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.3)
    expected = model.weight.detach().clone().double()
    for update in range(1, 6):
        model.weight.data += update
        model.running_mean += 1
        average.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-6, atol=0)
        assert model.running_mean[0] < 5
        inside = model.weight.detach().clone()
    assert_equal_tensors(before, model.state_dict())
    other = WeightAverage(model, 0.3)
    other.load(average.state())
    with other.applied():
        assert torch.equal(model.weight, inside)
    assert other.updates == 5
