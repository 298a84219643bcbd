"""Whether two models compute the same function: loss and every gradient, in float64, along a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dataset import experiment_of, parameters
from benchmarks.reference import REFERENCES, PaddedModel, padded_loader
from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data.dataset import read_dataset
from fuxictr_mm.data.loaders import gather
from fuxictr_mm.model import MultimodalModel

#: Gradients below this fraction of the norm of all gradients are rounding noise, as of a bias before batch norm.
NOISE = 1e-6

#: What a model needs besides ``net_dropout: 0`` to be compared. QIN's logits soon pass 36, where the reference's loss,
#: taken on the sigmoid's output, saturates even in float64: ours is then taken in the same form.
CHANGES: dict[str, dict[str, Any]] = {
    "DIN": {"attention_dropout": 0.0},
    "QIN": {"loss_from": "probability"},
    "Transformer_DCN": {"transformer_dropout": 0.0},
}


def equality(
    name: str, folder: Path, *, batch_size: int, max_len: int, points: int, every: int = 5, **others: Any
) -> dict[str, Any]:
    """Compare a model with its padded reference, without dropout, at several points of a training run of ours.

    Parameters
    ----------
    name : str
        Model.
    folder : path
        Data.
    batch_size, max_len : int
        As in training.
    points : int
        How often to compare.
    every : int
        Training steps between two points.
    **others
        Hyper-parameters other than the benchmark's.

    Returns
    -------
    dict
        ``loss`` and ``gradient``: the largest relative differences over all points; ``worst`` names its parameter.
    """
    changes: dict[str, Any] = {"net_dropout": 0.0, **CHANGES.get(name, {}), **others}
    params = parameters(name, folder, batch_size=batch_size, max_len=max_len, **changes)
    torch.manual_seed(params["seed"])
    dataset = read_dataset(ExperimentConfig.from_dict(params), {"train": True})
    ours: MultimodalModel = experiment_of(params).build_model(dataset)
    reference = REFERENCES[name](dataset.feature_map, params)
    for model in (ours, reference):
        _to_double(model)
        model.train()
    table = dataset.splits["train"]
    rows = padded_loader(params)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {"loss": 0.0, "gradient": 0.0, "worst": ""}
    for _ in range(points):
        chosen = torch.randint(len(table), (batch_size,), generator=generator)
        reference.load_state_dict(ours.state_dict())
        padded = rows.collate_fn([rows.dataset[row] for row in chosen.tolist()])
        loss, gradients = _of_ours(ours, gather(table, chosen))
        expected_loss, expected = _of_reference(reference, padded)
        found["loss"] = max(found["loss"], abs(float(loss / expected_loss) - 1.0))
        for parameter, difference in relative_differences(gradients, expected).items():
            if difference > found["gradient"]:
                found.update(gradient=difference, worst=parameter)
        for _ in range(every):
            chosen = torch.randint(len(table), (batch_size,), generator=generator)
            batch = gather(table, chosen)
            ours.train_step(dataclasses.replace(batch, label=batch.label.double()))
    return found


def relative_differences(gradients: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of each gradient relative to its norm (or to NOISE of the norm of all)."""
    if gradients.keys() != expected.keys():
        raise ValueError(f"the models differ in their parameters: {sorted(gradients.keys() ^ expected.keys())}")
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    return {
        name: float((gradients[name] - g).norm() / torch.maximum(g.norm(), NOISE * whole))
        for name, g in expected.items()
    }


def _to_double(model: Any) -> None:
    model.double()
    for encoder in model.embedding_layer.embedding_layer.feature_encoders.values():
        if isinstance(encoder, nn.Linear):
            # FuxiCTR converts frozen embeddings to float32, whatever the type of the layer that takes them.
            encoder.register_forward_pre_hook(lambda layer, inputs: inputs[0].to(layer.weight.dtype))


def _of_ours(model: MultimodalModel, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.optimizer.zero_grad()
    loss = model.add_loss(model.forward(batch), model.get_labels(batch).double())
    loss.backward()
    model.penalty.add_gradients()
    return (loss + model.regularization_loss()).detach(), _gradients(model)


def _of_reference(model: PaddedModel, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.optimizer.zero_grad()
    loss = model.compute_loss(model.forward(batch), model.get_labels(batch).double())
    loss.backward()
    return loss.detach(), _gradients(model)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
