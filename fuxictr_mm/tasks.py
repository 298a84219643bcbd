"""Several labels per row: their loss, and what a prediction is of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def loss_of_tasks(
    losses: Sequence[Callable[..., Tensor]],
    predictions: Sequence[Tensor],
    labels: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    of_rows: Tensor | None = None,
) -> Tensor:
    r"""Return the weighted sum of the losses of several labels, each the mean over the rows that have the label.

    .. math:: L = \sum_t w_t \frac{\sum_b v_b \ell_t(p_{bt}, y_{bt})}{\sum_b v_b}
        \quad \text{over the rows b that have the label t}

    A label that no row of the batch has, or none with a weight above 0, adds zero.

    Parameters
    ----------
    losses : sequence of callable
        A function of torch for each label, that takes ``reduction``.
    predictions : sequence of Tensor
        What the function takes for each label, of one shape.
    labels : sequence of Tensor
        The labels of the same shape, NaN for one that is missing.
    weights : sequence of float or Tensor
        w, the weight of each label.
    of_rows : Tensor, optional
        ``(B,)`` v, the weight of each row; 1 by default.
    """
    total = predictions[0].new_zeros(())
    for loss, prediction, label, weight in zip(losses, predictions, labels, weights, strict=True):
        missing = label.isnan()
        values = loss(prediction, label.masked_fill(missing, 0), reduction="none").masked_fill(missing, 0)
        # No count is read from the device: it would wait for it.
        count = (~missing).sum().clamp(min=1)
        if of_rows is not None:
            each = of_rows.to(values.dtype).view_as(values)
            values, count = values * each, each.masked_fill(missing, 0).sum().clamp(min=torch.finfo(each.dtype).tiny)
        total = total + weight * values.sum() / count
    return total


class UncertaintyWeights(nn.Module):
    r"""Weights of the losses of several labels that are learned, from the noise of each.

    Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", CVPR 2018,
    https://arxiv.org/abs/1705.07115

    .. math:: L = \sum_t c \, e^{-s_t} L_t + \tfrac{1}{2} s_t, \qquad s_t = \log \sigma_t^2

    with c = 1 for cross-entropy and 1/2 for a squared error; s starts at 0.

    Parameters
    ----------
    losses : sequence of callable
        The function of torch of each label.
    """

    factors: Tensor

    def __init__(self, losses: Sequence[Callable[..., Tensor]]) -> None:
        super().__init__()
        factors = torch.tensor([0.5 if loss is F.mse_loss else 1.0 for loss in losses])
        self.register_buffer("factors", factors, persistent=False)
        self.log_variances = nn.Parameter(torch.zeros(len(losses)))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the weights ``(T,)`` and the term of the loss that keeps them from vanishing."""
        return self.factors * (-self.log_variances).exp(), self.log_variances.sum() / 2


class MixedActivation(nn.Module):
    """The prediction of each label: the sigmoid of its logit for a classification, the logit for a regression."""

    is_probability: Tensor

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        is_probability = torch.tensor([kind == "binary_classification" for kind in kinds])
        self.register_buffer("is_probability", is_probability, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the predictions of logits ``(..., T)``."""
        return torch.where(self.is_probability, logits.sigmoid(), logits)
