"""The average of touched rows is that of all rows at every update."""

import pytest
import torch
from torch import nn

from fuxictr_mm.training.weight_average import WeightAverage


class Model(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.table = nn.Embedding(8, 3, sparse=sparse, dtype=torch.float64)
        self.again = self.table  # shared: two names in the state dict
        self.net = nn.Linear(3, 1, dtype=torch.float64)


@pytest.mark.parametrize("options", [{"decay": 0.6}, {"start": 4}], ids=["ema", "swa"])
@pytest.mark.parametrize("evaluated", [(), (2, 5)], ids=["at the end", "in between"])
def test_the_average_equals_that_of_a_dense_table(evaluated, options):
    models, averages = [], []
    for sparse in (True, False):
        torch.manual_seed(0)
        models.append(Model(sparse))
        averages.append(WeightAverage(models[-1], **options))
    for step in range(9):
        ids = torch.tensor([[0, 2], [2, 2, 7], [5], [], [0, 5], [1], [2], [7], [3, 3]][step], dtype=torch.int64)
        for model, average in zip(models, averages, strict=True):
            model.zero_grad()
            model.net(model.table(ids)).square().sum().backward()
            average.before_update()
            model.net.weight.data += 0.1
            if len(ids):
                model.table.weight.data[ids] += 1 + step
            average.update()
        if step in evaluated:
            with averages[0].applied():
                pass
        if step == 6:  # a resumed run
            restored = WeightAverage(models[0], **options)
            restored.load(averages[0].state())
            averages[0] = restored
    for average in averages:
        assert average.updates == 9
    before = models[0].table.weight.detach().clone()
    with averages[0].applied(), averages[1].applied():
        for name, value in models[0].state_dict().items():
            torch.testing.assert_close(value, models[1].state_dict()[name], rtol=1e-12, atol=1e-12, msg=name)
        assert not torch.equal(models[0].table.weight, before)
    assert torch.equal(models[0].table.weight, before)
