"""DIEN: interest evolution along the history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import is_exporting
from fuxictr_mm.layers import AUGRU, Jagged, mlp_of_shared
from fuxictr_mm.layers.recurrent import Steps, padded_steps, scan_gru
from fuxictr_mm.model import DNNModel


class DIEN(DNNModel):
    r"""Deep Interest Evolution Network. Zhou et al., AAAI 2019, https://arxiv.org/abs/1809.03672.

    .. math::

        i_1 .. i_L = \mathrm{GRU}(s_1 .. s_L), \quad a_n = \mathrm{softmax}_n(i_n \cdot W t), \quad
        h = \mathrm{AUGRU}(i_1 .. i_L; a), \quad \hat y = \sigma(\mathrm{DNN}([c, t, h]))

        \mathcal{L} = \mathrm{BCE}(\hat y, y) - \alpha \, \mathrm{mean}_n
        \big[\log \sigma(i_n \cdot s_{n+1}) + \log(1 - \sigma(i_n \cdot \tilde s_{n+1}))\big]

    with context c, target t, history items s and, for the auxiliary loss, items sampled at random instead of the next.
    Rows that have ended leave the recurrence, so no step works on padding.

    Departures: the random items come from those of the batch; the auxiliary loss is the mean over pairs of neighbours
    (the paper: a sum over each history); none unless ``auxiliary_weight`` is set.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    auxiliary_weight : float
        Alpha, the weight of the auxiliary loss; 0 disables it.
    dnn_hidden_units : sequence of int
        Dims of the DNN's hidden layers.
    **params
        Those of DNNModel and MultimodalModel.
    """

    fills_items = False  # the auxiliary loss samples from the distinct items

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        auxiliary_weight: NonNegativeFloat = 0.0,
        dnn_hidden_units: HiddenUnits = (200, 80),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        self.auxiliary_weight = auxiliary_weight
        self.auxiliary_loss: Tensor | None = None
        self.extractor = nn.GRU(self.item_dim, self.item_dim)
        self.attention = nn.Linear(self.item_dim, self.item_dim, bias=False)
        self.evolution = AUGRU(self.item_dim, self.item_dim)
        self.dnn = self.make_dnn(self.context_dim + 2 * self.item_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        return self.dnn(torch.cat([e.context, e.target, self.interest(e.target, e.history)], dim=-1))

    def interest(self, target: Tensor, history: Jagged) -> Tensor:
        """Return the evolved interest ``(B, D)``; zero for an empty history."""
        if is_exporting():
            return self._scanned_interest(target, history)
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

    def _scanned_interest(self, target: Tensor, history: Jagged) -> Tensor:
        """Return ``interest`` by loops over padded rows, which have an ONNX counterpart."""
        index_TB, place = padded_steps(history)

        def pad(values: Tensor) -> Tensor:
            padding = values.new_zeros(1, *values.shape[1:])
            return torch.cat([values, padding]).index_select(0, index_TB.flatten()).unflatten(0, index_TB.shape)

        states_TBD = scan_gru(self.extractor, pad(history.values))
        states = states_TBD.flatten(0, 1).index_select(0, place)
        scores = (self.attention(target).index_select(0, history.rows) * states).sum(dim=-1)
        return self.evolution.scan(states_TBD, pad(history.with_values(scores).softmax().values))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context and the states after each item."""
        # A loop has one step or more; the last one, of padding, is left out.
        padded = torch.cat([history, history.new_zeros(1, history.shape[1])]).unsqueeze(1)
        return context, scan_gru(self.extractor, padded).squeeze(1)[:-1]

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, states = state
        weights_ML = (self.attention(candidates) @ states.t()).softmax(dim=1)
        steps = torch.cat([states, states.new_zeros(1, states.shape[1])]).unsqueeze(1)
        weights_TM = torch.cat([weights_ML.t(), weights_ML.new_zeros(1, candidates.shape[0])])
        interest = self.evolution.scan(steps, weights_TM)
        return mlp_of_shared(self.dnn, context, candidates, interest)

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the last scored batch, in training with the auxiliary loss."""
        loss = super().add_loss(return_dict, y_true)
        auxiliary, self.auxiliary_loss = (
            self.auxiliary_loss,
            None,
        )  # otherwise it keeps the graph of the batch in memory
        return loss if auxiliary is None else loss + self.auxiliary_weight * auxiliary


def next_item_loss(states: Jagged, items: Tensor, others: Tensor) -> Tensor:
    """Return the auxiliary loss: each state should predict the next item of its row, and not a sampled one.

    Parameters
    ----------
    states : Jagged
        ``(N, D)`` state after each item.
    items, others : Tensor
        ``(N, D)`` the items, and items sampled instead of them.

    Returns
    -------
    Tensor
        Mean over all items but the first of each row; zero if there are none.
    """
    is_next = states.positions[1:] > 0
    before = states.values[:-1][is_next]
    pairs = before.shape[0]
    follows, does_not = ((before * x[1:][is_next]).sum(dim=-1) for x in (items, others))
    return (F.softplus(-follows) + F.softplus(does_not)).sum() / max(pairs, 1)
