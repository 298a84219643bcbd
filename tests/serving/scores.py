"""Models of ``weights_of`` and their scores, without an export."""

import torch

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged

#: Of weights that are not trained: logits are large, and their rounding errors in float32 with them.
NOISE = 2e-4


def load_model(experiment, weights):
    """Return the model of an experiment with weights from a file, for scoring."""
    model = experiment.build_model(experiment.load_dataset({"valid": True}, weights))
    model.load_weights(weights)
    return model.eval()


def eager(model, context, history, candidates):
    """Return the scores of candidates of one user."""
    count = len(candidates)
    values = torch.tensor(history, dtype=torch.int32).repeat(count)
    batch = Batch(
        {name: torch.full((count,), value) for name, value in context.items()},
        torch.tensor(candidates),
        Jagged(values, torch.arange(count + 1) * len(history)),
    )
    with torch.no_grad():
        return model.eval()(batch)["y_pred"].flatten().numpy()
