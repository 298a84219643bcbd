"""Difference of the loss curve from the reference's, compared with that of the reference after a perturbation.

Adam turns the rounding noise of a zero gradient into full steps, so two curves of one function diverge in the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.dataset import experiment_of, parameters
from benchmarks.equality import CHANGES
from benchmarks.reference import REFERENCES, PaddedModel, padded_loader
from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data.dataset import read_dataset
from fuxictr_mm.data.loaders import gather

#: Half the distance between two float32 numbers, relative.
ROUNDING = 2.0**-24

#: How many perturbed references are trained.
PERTURBED = 3


def curve(name: str, folder: Path, *, batch_size: int, max_len: int, steps: int) -> dict[str, Any]:
    """Train ours, the reference, and references with perturbed weights, without dropout, on the same rows.

    Parameters
    ----------
    name : str
        Model.
    folder : path
        Data.
    batch_size, max_len : int
        As in training.
    steps : int
        Number of steps.

    Returns
    -------
    dict
        ``ours`` and ``touched``: the largest difference of the loss from the reference's at any step, the latter for
        each perturbed reference, whose weights are multiplied by 1 plus a normal number times ``ROUNDING``; ``loss``:
        the reference's curve.
    """
    changes: dict[str, Any] = {"net_dropout": 0.0, **CHANGES.get(name, {})}
    params = parameters(name, folder, batch_size=batch_size, max_len=max_len, **changes)
    torch.manual_seed(params["seed"])
    dataset = read_dataset(ExperimentConfig.from_dict(params), {"train": True})
    ours = experiment_of(params).build_model(dataset)
    references: list[PaddedModel] = []
    for number in range(1 + PERTURBED):
        reference = REFERENCES[name](dataset.feature_map, params)
        reference.load_state_dict(ours.state_dict())
        references.append(reference)
        if number > 0:
            _touch(reference, number)
    for model in (ours, *references):
        model.train()
    table = dataset.splits["train"]
    rows = padded_loader(params)
    generator = torch.Generator().manual_seed(0)
    losses: list[list[float]] = []
    for _ in range(steps):
        chosen = torch.randint(len(table), (batch_size,), generator=generator)
        padded = rows.collate_fn([rows.dataset[row] for row in chosen.tolist()])
        # Ours returns the loss without the regularizers, the reference with them.
        penalty = float(ours.regularization_loss().detach())
        loss = float(ours.train_step(gather(table, chosen))) + penalty
        losses.append([loss, *(float(model.train_step(padded).detach()) for model in references)])
    found = torch.tensor(losses, dtype=torch.float64)
    distances = (found - found[:, 1:2]).abs().amax(dim=0).tolist()
    return {"ours": distances[0], "touched": distances[2:], "loss": found[:, 1].tolist()}


def _touch(model: PaddedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + ROUNDING * torch.randn(parameter.shape, generator=generator))
