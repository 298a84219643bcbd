"""Training that keeps the weights of every evaluation, and datasets without some examples."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.evaluation.influence import Checkpoint, find_last_layer, frozen, influence_on_validation

if TYPE_CHECKING:
    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.experiment import Experiment


def rank_by_influence(
    experiment: Experiment,
    dataset: Dataset,
    checkpoints: Sequence[Checkpoint],
    layer: str | None = None,
    recalibrate: bool = True,
) -> np.ndarray:
    """Return the influence ``(R,)`` of every training example, in the order of the file; in float32, without dropout.

    See ``influence_on_validation``.
    """
    # Indices pass through the model's logits, and bf16 holds none above 256 exactly.
    experiment = experiment.in_float32()
    model = _build(experiment, dataset)
    train, valid = (experiment.make_loader(dataset.splits[split], model) for split in ("train", "valid"))
    return influence_on_validation(model, checkpoints, train, valid, layer, recalibrate, experiment.config.verbose)


def train_keeping_checkpoints(
    experiment: Experiment, dataset: Dataset, folder: Path, layer: str | None = None
) -> tuple[list[Checkpoint], dict[str, dict[str, float]]]:
    """Train an experiment as ``Experiment.fit`` does, but keep the weights of every evaluation in a folder.

    Nothing is written elsewhere. Return the checkpoints up to the best, with the learning rate until then, and the
    metrics of the best weights; those of ``test`` where it has labels. Initial weights are no checkpoint: no example
    was trained on before. A model without a last layer, or without that named, is refused before.
    """
    from fuxictr_mm.training import loop, scoring
    from fuxictr_mm.training.initial_weights import find_initial_weights, load_initial_weights

    initial = find_initial_weights(experiment.config)
    experiment = experiment.with_settings(model_root=str(folder))
    config, splits = experiment.config, dataset.splits
    probe = _build(experiment.in_float32(), dataset).eval()
    with frozen(probe):
        find_last_layer(probe, next(iter(experiment.make_loader(splits["valid"], probe))), layer)
    model = _build(experiment, dataset)
    if initial is not None:
        load_initial_weights(model, initial, dataset, config.dataset.item_files)
    train = experiment.make_loader(splits["train"], model, shuffle=config.shuffle, training=True)
    valid = experiment.make_loader(splits["valid"], model)
    keeper = _CheckpointKeeper(model, valid, folder)
    is_warm = initial is not None
    history = loop.fit(model, train, config.epochs, keeper, config.max_gradient_norm, evaluate_first=is_warm)
    if config.save_best_only:
        # Steps after the best weights do not affect the model.
        values = [model._monitor.get_value(entry) for entry in history]
        del keeper.kept[values.index(model._best_metric) + 1 :]
    del keeper.kept[:is_warm]
    metrics = {"valid": scoring.evaluate(model, valid, config.metrics)}
    # A label of one value is a placeholder.
    if "test" in splits and any(len(values) > 1 for values in dataset.summaries["test"].labels):
        metrics["test"] = scoring.evaluate(model, experiment.make_loader(splits["test"], model), config.metrics)
    return keeper.kept, metrics


class _CheckpointKeeper:
    """The validation loader; every pass over it first saves the weights that it evaluates."""

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


def _build(experiment: Experiment, dataset: Dataset) -> Any:
    """Build the model with its own copy of the feature map, so that one dataset serves several models."""
    from fuxictr_mm.fuxictr_imports import seed_everything

    seed_everything(experiment.config.seed)
    return experiment.build_model(replace(dataset, feature_map=copy.deepcopy(dataset.feature_map)))


def number_of_worst(dataset: Dataset, percent: float) -> int:
    """Return how many training examples a percentage is.

    Raises
    ------
    ConfigError
        No example, or the split is streamed from disk.
    """
    from fuxictr_mm.data.interactions import InteractionTable

    table = dataset.splits["train"]
    if not isinstance(table, InteractionTable):
        raise ConfigError(
            "--drop-worst: train is streamed from disk, expected it in memory; set resident: True in "
            "dataset_config.yaml"
        )
    number = int(len(table) * percent / 100)
    if number < 1:
        raise ConfigError(f"--drop-worst {percent:g}: fewer than one of {len(table)} examples; increase it")
    return number


def without(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Return a dataset without the training examples of these indices; ``train`` is in memory.

    Raises
    ------
    DataError
        Only one class is left.
    """
    import torch

    from fuxictr_mm.data.interactions import InteractionTable
    from fuxictr_mm.data.loaders import take_rows

    table = dataset.splits["train"]
    assert isinstance(table, InteractionTable)
    kept = torch.ones(len(table), dtype=torch.bool)
    kept[torch.from_numpy(rows)] = False
    smaller = take_rows(table, kept.nonzero().squeeze(1).to(table.target.device))
    assert smaller.label is not None
    if len(smaller.label.unique()) < 2:
        raise DataError(f"--drop-worst: label is {smaller.label[0]:g} in all {len(smaller)} examples left; drop fewer")
    return replace(dataset, splits={**dataset.splits, "train": smaller})
