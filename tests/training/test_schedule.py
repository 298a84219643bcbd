"""Learning rates in closed form."""

import pytest
import torch
from torch import nn

from fuxictr_mm.training.schedule import Schedule


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
