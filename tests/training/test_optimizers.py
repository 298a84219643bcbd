"""Optimizers by name equal those of torch; weight decay and learning rates of tables."""

import pytest
import torch
from torch import nn

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.training.optimizers import make_optimizer
from tests.errors import raises_naming


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
