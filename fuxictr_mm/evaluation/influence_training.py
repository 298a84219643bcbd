"""Training that keeps the checkpoints which influence is computed with, and training without the worst rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_mm import experiment
from fuxictr_mm.data.dataset import Dataset
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.loaders import gather
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.evaluation.influence import Checkpoint, influence_on_validation
from fuxictr_mm.training import loop


def train_keeping_checkpoints(
    params: Mapping[str, Any], model_class: type, dataset: Dataset, folder: Path
) -> tuple[list[Checkpoint], dict[str, dict[str, float]]]:
    """Train an experiment as ``run_expid.py`` does, but keep the weights of every evaluation in a folder.

    Parameters
    ----------
    params, model_class
        From ``read_params``.
    dataset : Dataset
        With ``train`` and ``valid``; ``test`` is evaluated where it has labels.
    folder : Path
        Nothing is written elsewhere.

    Returns
    -------
    checkpoints : list of Checkpoint
        One per evaluation (per epoch, if ``eval_steps`` is not set) up to the best, with the learning rate until then.
    metrics : dict
        Of the best weights, ``valid`` and ``test``.
    """
    params = {**params, "model_root": str(folder)}
    seed_everything(params["seed"])
    model = _build(params, model_class, dataset)
    train = experiment.make_loader(dataset.splits["train"], model, params, shuffle=params["shuffle"], training=True)
    valid = experiment.make_loader(dataset.splits["valid"], model, params)
    keeper = _CheckpointKeeper(model, valid, folder)
    history = loop.fit(model, train, params["epochs"], keeper, params.get("max_gradient_norm", 10.0))
    if model._save_best_only:
        # Steps after the best weights have no part in the model.
        values = [model._monitor.get_value(entry) for entry in history]
        del keeper.kept[values.index(model._best_metric) + 1 :]
    metrics = {"valid": loop.evaluate(model, valid, params["metrics"])}
    if "test" in dataset.splits and dataset.splits["test"].has_labels:
        test = experiment.make_loader(dataset.splits["test"], model, params)
        metrics["test"] = loop.evaluate(model, test, params["metrics"])
    return keeper.kept, metrics


def rank_by_influence(
    params: Mapping[str, Any],
    model_class: type,
    dataset: Dataset,
    checkpoints: list[Checkpoint],
    layer: str | None = None,
    recalibrate: bool = True,
) -> np.ndarray:
    """Return the influence ``(R,)`` of every training row, in the order of the file; in float32, without dropout.

    See ``fuxictr_mm.evaluation.influence.influence_on_validation``.
    """
    # Numbers of rows pass through the model's logits, and bf16 holds none above 256 exactly.
    plain = {key: value for key, value in {"precision": "fp32", "compile": False}.items() if key in params}
    params = {**params, **plain}
    seed_everything(params["seed"])
    model = _build(params, model_class, dataset)
    train, valid = (experiment.make_loader(dataset.splits[split], model, params) for split in ("train", "valid"))
    return influence_on_validation(model, checkpoints, train, valid, layer, recalibrate, params["verbose"])


def train_without(
    params: Mapping[str, Any], model_class: type, dataset: Dataset, rows: np.ndarray, folder: Path
) -> dict[str, dict[str, float]]:
    """Return the metrics of the experiment trained without some training rows.

    Parameters
    ----------
    params, model_class, dataset, folder
        As in ``train_keeping_checkpoints``; ``train`` is in memory.
    rows : ndarray
        Numbers of the rows to leave out.

    Raises
    ------
    DataError
        One class is all that is left.
    """
    table = dataset.splits["train"]
    assert isinstance(table, InteractionTable)
    assert table.label is not None
    kept = torch.ones(len(table), dtype=torch.bool)
    kept[torch.from_numpy(rows)] = False
    batch = gather(table, kept.nonzero().squeeze(1).to(table.target.device))
    assert batch.label is not None
    if len(batch.label.unique()) < 2:
        raise DataError(f"--drop-worst: label is {batch.label[0]:g} in all {len(batch)} rows that are left; drop fewer")
    history = batch.history
    smaller = InteractionTable(
        batch.context, batch.target, history.values, history.offsets, batch.label, batch.group, table.source
    )
    splits = {**dataset.splits, "train": smaller}
    return train_keeping_checkpoints(params, model_class, replace(dataset, splits=splits), folder)[1]


def number_of_worst(dataset: Dataset, percent: float) -> int:
    """Return how many training rows are so many percent.

    Raises
    ------
    ConfigError
        They are none, or cannot be left out of a split on disk.
    """
    table = dataset.splits["train"]
    if not isinstance(table, InteractionTable):
        raise ConfigError("--drop-worst: train is streamed from disk; set resident: True in dataset_config.yaml")
    number = int(len(table) * percent / 100)
    if number < 1:
        raise ConfigError(f"--drop-worst {percent:g}: is less than one of {len(table)} rows; raise it")
    return number


class _CheckpointKeeper:
    """The validation loader; every pass over it keeps the weights that it is going to be scored with."""

    def __init__(self, model: Any, valid: Any, folder: Path) -> None:
        self.model = model
        self.valid = valid
        self.folder = folder
        self.kept: list[Checkpoint] = []

    def __len__(self) -> int:
        return len(self.valid)

    def __iter__(self) -> Iterator[Any]:
        path = self.folder / f"{len(self.kept)}.checkpoint"
        self.model.save_weights(path)
        self.kept.append(Checkpoint(path, float(self.model.optimizer.param_groups[0]["lr"])))
        return iter(self.valid)


def _build(params: Mapping[str, Any], model_class: type, dataset: Dataset) -> Any:
    """Make the model with a feature map of its own, so that one dataset serves several models."""
    return experiment.build_model(model_class, replace(dataset, feature_map=copy.deepcopy(dataset.feature_map)), params)
