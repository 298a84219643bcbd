"""A signal planted in the histories of batches, which a model learns in a few steps."""

from collections.abc import Callable

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged

LENGTH, ROWS = 8, 256


def auc_after_training(model, context: dict[str, Tensor], draw: Callable[[Tensor], Tensor], steps: int) -> float:
    """Train on fresh rows of random histories; the AUC of further rows.

    ``draw`` returns histories ``(ROWS, LENGTH)`` for labels ``(ROWS,)``; all rows have the same context and target.
    """

    def batch():
        label = torch.randint(2, (ROWS,))
        history = Jagged(draw(label).flatten(), torch.arange(ROWS + 1) * LENGTH)
        columns = {name: column[:1].expand(ROWS) for name, column in context.items()}
        return Batch(columns, torch.ones(ROWS, dtype=torch.int64), history, label.float())

    torch.manual_seed(0)
    model.train()
    for _ in range(steps):
        model.train_step(batch())
    model.eval()
    rows = [batch() for _ in range(4)]
    with torch.no_grad():
        scores = torch.cat([model(one)["logit"].squeeze(1) for one in rows])
    return roc_auc_score(torch.cat([one.label for one in rows]), scores)
