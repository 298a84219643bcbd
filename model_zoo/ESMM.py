"""ESMM, the rate of conversions learned from all impressions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.layers import DINAttention
from fuxictr_mm.model import DNNModel


class ESMM(DNNModel):
    r"""Entire Space Multi-Task Model. Ma et al., SIGIR 2018, https://arxiv.org/abs/1804.07931.

    .. math:: \hat y_t = \prod_{r \le t} \sigma(\mathrm{DNN}_r([c, t, h])), \quad h = \sum_l a(t, s_l) s_l

    The labels are steps of one path, such as click and purchase, in the order of ``label_col``: a row that has one has
    all before it. Each DNN gives the probability of a step after those before. The loss is taken on the products, over
    all rows, so that a conversion rate is learned without the selection of clicked rows. Of more than two labels it is
    the path of Wen et al., SIGIR 2020, https://arxiv.org/abs/1910.07099, without its branches.

    Departures: the history is pooled by DIN's activation unit, the paper sums embeddings; the loss is taken on the
    logits of the products, which are computed without forming a probability.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    attention_hidden_units : sequence of int
        Dims of the hidden layers of the attention MLP.
    attention_dropout : float
        Dropout inside the attention MLP.
    din_use_softmax : bool
        Whether the weights of a history sum to one.
    **params
        Those of DNNModel and MultimodalModel.

    Raises
    ------
    ConfigError
        A regression.
    DataError
        In training: a row of the first batch has a label without the one before it.
    """

    #: Whether labels were seen to be a path.
    is_checked = False

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        attention_hidden_units: HiddenUnits = (64,),
        attention_dropout: Dropout = 0.0,
        din_use_softmax: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        if set(self.label_tasks) != {"binary_classification"}:
            raise ConfigError(
                f"{self.model_id}: task is {self.model_settings.task}, but ESMM multiplies probabilities; "
                "use another model"
            )
        self.attention = DINAttention(
            self.item_dim, attention_hidden_units, dropout_rate=attention_dropout, use_softmax=din_use_softmax
        )
        dim = self.context_dim + 2 * self.item_dim
        self.steps = nn.ModuleList(self.make_dnn(dim, 1) for _ in range(self.num_tasks))
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row and label, ``(B, T)``."""
        e = self.embed(batch)
        return self.path(torch.cat([e.context, e.target, self.attention(e.target, e.history)], dim=-1))

    def path(self, fields: Tensor) -> Tensor:
        """Return the logits ``(B, T)`` of having come to each step, of the concatenated fields."""
        logits: list[Tensor] = []
        reached, failed = fields.new_zeros(()), None
        for dnn in self.steps:
            step = dnn(fields)
            here = reached + F.logsigmoid(-step)  # the path ends at this step
            failed = here if failed is None else torch.logaddexp(failed, here)
            reached = reached + F.logsigmoid(step)
            logits.append(reached - failed if logits else step)
        return torch.cat(logits, dim=-1)

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the sum of the losses of the labels."""
        if self.training and not self.is_checked:
            self.is_checked = True
            names = self.feature_map.labels
            for before, name, first, second in zip(
                names, names[1:], y_true.unbind(1), y_true[:, 1:].unbind(1), strict=False
            ):
                if ((second > 0) & (first == 0)).any():
                    raise DataError(
                        f"{self.model_id}: a row has {name} without {before}, but ESMM needs labels that "
                        "form a path, in the order of label_col; use another model, or reorder label_col"
                    )
        return super().add_loss(return_dict, y_true)

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, history and its part of the attention."""
        return context, history, self.attention.keys(history)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, T)``."""
        context, history, keys = state
        interest = self.attention.attend(candidates, history, keys)
        return self.path(torch.cat([context.expand(candidates.shape[0], -1), candidates, interest], dim=-1))
