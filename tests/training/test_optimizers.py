"""Optimisers by name."""

import pytest
import torch
from torch import nn

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.training.optimizers import make_optimizer


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", "Adam"), ("ADAMW", "AdamW"), ("sgd", "SGD"), ("Adagrad", "Adagrad")]
)
def test_by_name(name, kind):
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    trained = nn.Parameter(torch.zeros(2))
    optimizer = make_optimizer(name, [frozen, trained], 0.1)
    assert type(optimizer) is getattr(torch.optim, kind)
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


@pytest.mark.parametrize("name", ["Optimizer", "LBFGS", "SparseAdam", "adan", "lr_scheduler", ""])
def test_others_are_refused_with_a_list(name):
    with pytest.raises(ConfigError, match=rf"optimizer: there is no '{name}'.*there are: .*Adam"):
        make_optimizer(name, [nn.Parameter(torch.zeros(1))], 0.1)


def test_the_nearest_is_suggested():
    with pytest.raises(ConfigError, match="did you mean 'Adam'"):
        make_optimizer("Adm", [nn.Parameter(torch.zeros(1))], 0.1)


def test_an_optimizer_that_does_not_take_the_model():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no optimiser that is so particular")
    with pytest.raises(ConfigError, match="Muon does not take this model"):
        make_optimizer("muon", [nn.Parameter(torch.zeros(1))], 0.1)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_learning_rate(rate):
    with pytest.raises(ConfigError, match="learning_rate is"):
        make_optimizer("adam", [nn.Parameter(torch.zeros(1))], rate)
