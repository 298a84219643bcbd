"""DIEN, interests that evolve along the history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import AUGRU, Jagged
from fuxictr_mm.layers.recurrent import Steps
from fuxictr_mm.model import MultimodalModel


class DIEN(MultimodalModel):
    r"""Deep Interest Evolution Network. Zhou et al., AAAI 2019, https://arxiv.org/abs/1809.03672.

    .. math::

        i_1 .. i_L = \mathrm{GRU}(s_1 .. s_L), \quad a_n = \mathrm{softmax}_n(i_n \cdot W t), \quad
        h = \mathrm{AUGRU}(i_1 .. i_L; a), \quad \hat y = \sigma(\mathrm{DNN}([c, t, h]))

        \mathcal{L} = \mathrm{BCE}(\hat y, y) - \alpha \, \mathrm{mean}_n
        \big[\log \sigma(i_n \cdot s_{n+1}) + \log(1 - \sigma(i_n \cdot \tilde s_{n+1}))\big]

    with context c, target t, history items s and, for the auxiliary loss, items drawn at random in place of the next.
    Rows that have ended drop out of the recurrence, so no step works on padding.

    Departures: the random items come from those of the batch; the auxiliary loss is the mean over pairs of neighbours
    (the paper: a sum over each history); none unless ``auxiliary_weight`` is set.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    auxiliary_weight : float
        Alpha, the weight of the auxiliary loss; 0 leaves it out.
    dnn_hidden_units : sequence of int
        Widths of the DNN.
    dnn_activations : str
        Its activation.
    net_dropout : float
        Its dropout.
    batch_norm : bool
        Its batch norm.
    **params
        Those of MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        auxiliary_weight: NonNegativeFloat = 0.0,
        dnn_hidden_units: HiddenUnits = (200, 80),
        dnn_activations: str = "ReLU",
        net_dropout: Dropout = 0.0,
        batch_norm: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.auxiliary_weight = auxiliary_weight
        self.auxiliary_loss: Tensor | None = None
        self.extractor = nn.GRU(self.item_dim, self.item_dim)
        self.attention = nn.Linear(self.item_dim, self.item_dim, bias=False)
        self.evolution = AUGRU(self.item_dim, self.item_dim)
        self.dnn = MLP_Block(
            input_dim=self.context_dim + 2 * self.item_dim,
            output_dim=1,
            hidden_units=list(dnn_hidden_units),
            hidden_activations=dnn_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        return self.dnn(torch.cat([e.context, e.target, self.interest(e.target, e.history)], dim=-1))

    def interest(self, target: Tensor, history: Jagged) -> Tensor:
        """Return the interest ``(B, D)`` that evolved towards the target; zero for an empty history."""
        interest = torch.zeros_like(target)
        self.auxiliary_loss = None
        if history.num_values == 0:
            return interest
        steps = Steps.of(history)
        packed_states, _ = self.extractor(steps.pack(history.values))
        states = history.with_values(steps.unpack(packed_states.data))
        scores = (self.attention(target).index_select(0, history.rows) * states.values).sum(dim=-1)
        weights = history.with_values(scores).softmax().values
        if self.training and self.auxiliary_weight:
            drawn = torch.randint(history.distinct.shape[0], (history.num_values,), device=target.device)
            self.auxiliary_loss = next_item_loss(states, history.values, history.distinct.index_select(0, drawn))
        last = self.evolution(packed_states, steps.pack(weights))
        return interest.index_copy(0, steps.rows, last.to(interest.dtype))

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the batch scored last, with the auxiliary loss while training."""
        loss = super().add_loss(return_dict, y_true)
        auxiliary, self.auxiliary_loss = self.auxiliary_loss, None  # kept, it would hold the graph of the batch
        return loss if auxiliary is None else loss + self.auxiliary_weight * auxiliary


def next_item_loss(states: Jagged, items: Tensor, others: Tensor) -> Tensor:
    """Return how badly each state tells the next item of its row from another one.

    Parameters
    ----------
    states : Jagged
        ``(N, D)`` state after each item.
    items, others : Tensor
        ``(N, D)`` the items themselves, and items drawn in their place.

    Returns
    -------
    Tensor
        Mean over all items but the first ones of their rows; zero without any.
    """
    is_next = states.positions[1:] > 0
    before = states.values[:-1][is_next]
    pairs = before.shape[0]
    follows, does_not = ((before * x[1:][is_next]).sum(dim=-1) for x in (items, others))
    return (F.softplus(-follows) + F.softplus(does_not)).sum() / max(pairs, 1)
