"""The sides of a comparison: the same work by this package and by the padded reference.

A side takes one batch at a time by ``step``; ``finish`` ends a block of steps and waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.dataset import experiment_of
from benchmarks.reference import REFERENCES, padded_loader
from fuxictr_mm.data.dataset import Dataset
from fuxictr_mm.embedding_model import distinct_items
from fuxictr_mm.model import MultimodalModel


@dataclass
class Side:
    """One way of doing the work, and what was measured of it.

    Parameters
    ----------
    name : str
        ``ours``, ``reference`` or a variant.
    batches : iterator
        Never ends.
    step : callable
        Does the work on a batch.
    finish : callable
        Ends a block.
    precision : {"fp32", "medium", "bf16"}
        Of its products of matrices.
    rates, cpu, waits, peaks : list of float
        Of every block: samples per second, CPU seconds of all threads per sample, fraction of the time spent waiting
        for a batch, bytes that its steps took on top of what both sides hold.
    highest : int
        Most bytes in use by all sides up to the last block.
    """

    name: str
    batches: Iterator[Any]
    step: Callable[[Any], None]
    finish: Callable[[], None]
    precision: str = "fp32"
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    highest: int = 0


def make_sides(
    what: str, dataset: Dataset, params: dict[str, Any], precisions: dict[str, str], num_workers: int
) -> Iterator[Side]:
    """Yield the sides of ``train``, ``scoring`` or ``loader`` as each is made, the reference last.

    A side that ``precisions`` does not name is not made.
    """
    device = "cpu" if params["gpu"] < 0 else "cuda"
    experiment = experiment_of(params)
    shuffle = what != "scoring"
    if "ours" in precisions:
        torch.manual_seed(params["seed"])
        model: MultimodalModel = experiment.build_model(dataset)
        loader = experiment.make_loader(dataset.splits["train"], model, shuffle=shuffle)
        _set_precision(model, precisions["ours"], device)
        step, finish = {"train": _train_ours, "scoring": _score_ours, "loader": _take}[what](model)
        yield Side("ours", endless(loader), step, finish, precisions["ours"])
        if what == "loader":
            yield Side("ours_with_items", endless(loader), _look_up(model), _nothing, precisions["ours"])
    if "reference" in precisions:
        torch.manual_seed(params["seed"])
        reference = REFERENCES[params["model"]](dataset.feature_map, params)
        padded = padded_loader(params, shuffle=shuffle, num_workers=num_workers)
        _set_precision(reference, precisions["reference"], device)
        step, finish = {"train": _train_reference, "scoring": _score_reference, "loader": _take}[what](reference)
        yield Side("reference", endless(padded), step, finish, precisions["reference"])


def make_scaled_sides(dataset: Dataset, params: dict[str, Any], precision: str) -> Iterator[Side]:
    """Yield training on all rows, and on the first tenth of them: a step should cost the same."""
    torch.manual_seed(params["seed"])
    experiment = experiment_of(params)
    model: MultimodalModel = experiment.build_model(dataset)
    _set_precision(model, precision, "cpu" if params["gpu"] < 0 else "cuda")
    table = dataset.splits["train"]
    for name, rows in (("a tenth", len(table) // 10), ("all rows", len(table))):
        loader = experiment.make_loader(table.slice(0, rows), model, shuffle=True, training=True)
        yield Side(name, endless(loader), *_train_ours(model), precision)


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of one epoch after another."""
    while True:
        yield from loader


def _nothing() -> None:
    """Do nothing at the end of a block."""


def _ignore(batch: Any) -> None:
    """Do nothing with a batch."""


def _take(model: Any) -> tuple[Callable[[Any], None], Callable[[], None]]:
    """Take batches and do nothing with them."""
    return _ignore, _nothing


def _set_precision(model: Any, precision: str, device: str) -> None:
    """Let ``forward`` run under autocast; loss and regularizers stay float32 on both sides."""
    if precision == "bf16":
        forward = torch.autocast(device, torch.bfloat16)(model.forward)
        model.forward = lambda batch: {name: value.float() for name, value in forward(batch).items()}


def _train_ours(model: MultimodalModel) -> tuple[Callable[[Any], None], Callable[[], None]]:
    """Sum the loss on the device and read it once per block, as the loop does once per log line."""
    model.train()
    total = torch.zeros((), device=model.device)

    def step(batch: Any) -> None:
        total.add_(model.train_step(batch))

    def finish() -> None:
        total.sub_(float(total))

    return step, finish


def _train_reference(model: Any) -> tuple[Callable[[Any], None], Callable[[], None]]:
    """Read the loss of every step, as FuxiCTR's ``train_epoch`` does."""
    model.train()
    return lambda batch: _ignore(model.train_step(batch).item()), _nothing


def _score_ours(model: MultimodalModel) -> tuple[Callable[[Any], None], Callable[[], None]]:
    """Keep predictions as tensors until the end."""
    model.eval()
    predictions: list[torch.Tensor] = []

    @torch.no_grad()
    def step(batch: Any) -> None:
        predictions.append(model.forward(batch)["y_pred"].reshape(-1))

    def finish() -> None:
        torch.cat(predictions).cpu()
        predictions.clear()

    return step, finish


def _score_reference(model: Any) -> tuple[Callable[[Any], None], Callable[[], None]]:
    """Append predictions to a Python list, as FuxiCTR's ``predict`` does."""
    model.eval()
    predictions: list[float] = []

    @torch.no_grad()
    def step(batch: Any) -> None:
        predictions.extend(model.forward(batch)["y_pred"].cpu().numpy().reshape(-1))

    return step, predictions.clear


def _look_up(model: MultimodalModel) -> Callable[[Any], None]:
    """Fetch the stored features of a batch's distinct items, which ours does in the model and the reference before."""
    names = [name for name in model.item_fields if name not in model.item_vectors]

    def step(batch: Any) -> None:
        distinct, _, _ = distinct_items(batch, model.items.num_items)
        model.items.rows(distinct, names)

    return step
