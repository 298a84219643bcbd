"""ESMM equals the products of its steps' probabilities, and stays exact where they saturate."""

from itertools import accumulate

import pytest
import torch

from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.registry import load_model_class
from tests.errors import raises_naming


@pytest.mark.parametrize("labels", [(), ("label", "like")])
def test_equals_the_dense_model(equals_dense, din, labels, monkeypatch):
    monkeypatch.setattr(load_model_class("ESMM"), "is_checked", True)  # the labels here are no path

    def dense(model, p):
        fields = torch.cat([p.c, p.t, din(model.attention, p.t, p.s, p.mask)], dim=-1)
        steps = [torch.sigmoid(dnn(fields)) for dnn in model.steps]
        return torch.logit(torch.cat(list(accumulate(steps, torch.mul)), dim=-1))

    equals_dense("ESMM_tiny", dense, labels=labels)


def test_saturated_steps(build):
    model, _ = build("ESMM_tiny", labels=("label", "cart", "buy"))
    values = torch.tensor([[40.0, 30.0, -50.0], [-40.0, 100.0, 100.0], [100.0, 100.0, 100.0]], requires_grad=True)
    model.steps = torch.nn.ModuleList(_Column(number) for number in range(3))
    logits = model.path(values)
    exact = values.detach().double().sigmoid().cumprod(dim=1)
    failed = -torch.expm1(torch.nn.functional.logsigmoid(values.detach().double()).cumsum(dim=1))
    expected = exact.log() - failed.log()
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
    logits.sum().backward()
    assert values.grad.isfinite().all()


class _Column(torch.nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, fields):
        return fields[:, self.number : self.number + 1]


def test_a_regression_is_refused(build):
    with raises_naming(ConfigError, "task", "regression"):
        build("ESMM_tiny", task="regression", loss="mse_loss")


def test_labels_that_are_no_path(build, make_batch):
    model, dataset = build("ESMM_tiny", labels=("label", "like"))
    model.train()
    batch = make_batch(dataset.splits["train"], range(4))
    returned = model(batch)
    like_alone = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    with raises_naming(DataError, "like", "label", "label_col"):
        model.add_loss(returned, like_alone)
    model.is_checked = False
    missing = torch.tensor([[1.0, 1.0], [1.0, torch.nan], [0.0, 0.0], [torch.nan, 1.0]])
    assert model.add_loss(model(batch), missing).isfinite()
