"""Several labels per row: their loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def loss_of_tasks(
    losses: Sequence[Callable[..., Tensor]],
    predictions: Sequence[Tensor],
    labels: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
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
    weights : sequence of float or Tensor
        w, the weight of each label.
    """
    total = predictions[0].new_zeros(())
    for loss, prediction, label, weight in zip(losses, predictions, labels, weights, strict=True):
        missing = label.isnan()
        values = loss(prediction, label.masked_fill(missing, 0), reduction="none").masked_fill(missing, 0)
        # No count is read from the device: it would wait for it.
        total = total + weight * values.sum() / (~missing).sum().clamp(min=1)
    return total


class UncertaintyWeights(nn.Module):
    r"""Weights of the losses of several labels that are learned, from the noise of each.

    Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", CVPR 2018,
    https://arxiv.org/abs/1705.07115

    .. math:: L = \sum_t c \, e^{-s_t} L_t + \tfrac{1}{2} s_t, \qquad s_t = \log \sigma_t^2

    with c = 1 for cross-entropy and 1/2 for a squared error; s starts at 0.

    Parameters
    ----------
    num_tasks : int
        Labels.
    factor : float
        c.
    """

    def __init__(self, num_tasks: int, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.log_variances = nn.Parameter(torch.zeros(num_tasks))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the weights ``(T,)`` and the term of the loss that keeps them from vanishing."""
        return self.factor * (-self.log_variances).exp(), self.log_variances.sum() / 2
