"""Averages of weights in closed form."""

import torch
from torch import nn

from fuxictr_mm.training.weight_average import WeightAverage
from tests.tensors import assert_equal_tensors


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
