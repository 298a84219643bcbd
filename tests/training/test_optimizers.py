"""Optimisers by name."""

import pytest
import torch
from torch import nn

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.training.optim import clip_gradients, make_optimizer


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
