"""Several labels per row: what is checked of their settings, and their loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fuxictr_mm.config import ModelSettings
from fuxictr_mm.errors import ConfigError, nearest


def check_tasks(settings: ModelSettings, labels: Sequence[str], model_id: str) -> None:
    """Refuse settings of other labels than those of the dataset.

    Raises
    ------
    ConfigError
        A list ``task`` or ``loss`` of another length, a weight of no label or of one alone.
    """
    names = ", ".join(labels)
    for key in ("task", "loss"):
        given = getattr(settings, key)
        if isinstance(given, list) and len(given) != len(labels):
            raise ConfigError(
                f"{model_id}: {key} has {len(given)} entries, but the dataset has {len(labels)} labels ({names}); "
                "expected one entry for each, or no list"
            )
    for name in settings.task_weights or {}:
        if name not in labels:
            raise ConfigError(
                f"{model_id}: task_weights: there is no label '{name}'{nearest(name, labels)} (there are: {names})"
            )
    if settings.task_weights and len(labels) == 1:
        raise ConfigError(f"{model_id}: task_weights with one label ({names}) scales the learning rate; leave it out")
    if settings.task_weights and not any(settings.task_weights.get(name, 1) for name in labels):
        raise ConfigError(f"{model_id}: task_weights are 0 for all labels ({names}); nothing would be trained")


def loss_of_tasks(
    losses: Sequence[Callable[..., Tensor]],
    predictions: Sequence[Tensor],
    labels: Sequence[Tensor],
    weights: Sequence[float],
) -> Tensor:
    r"""Return the weighted sum of the losses of several labels, each the mean over the rows that have the label.

    .. math:: L = \sum_t \frac{w_t}{n_t} \sum_{b: y_{bt}\ \text{is known}} \ell_t(p_{bt}, y_{bt})

    A label that no row of the batch has adds zero.

    Parameters
    ----------
    losses : sequence of callable
        A function of torch for each label, that takes ``reduction``.
    predictions : sequence of Tensor
        What it takes for each label, of one shape.
    labels : sequence of Tensor
        The labels of the same shape, NaN for one that is missing.
    weights : sequence of float
        w, the weight of each label.
    """
    total = predictions[0].new_zeros(())
    for loss, prediction, label, weight in zip(losses, predictions, labels, weights, strict=True):
        missing = label.isnan()
        values = loss(prediction, label.masked_fill(missing, 0), reduction="none").masked_fill(missing, 0)
        # No count is read from the device: it would wait for it.
        total = total + weight * values.sum() / (~missing).sum().clamp(min=1)
    return total
