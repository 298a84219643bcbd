"""QIN, second place of the WWW 2025 MM-CTR challenge."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import MultiHeadTargetAttention, QuadraticNetwork
from fuxictr_mm.model import MultimodalModel


class QIN(MultimodalModel):
    r"""Quadratic Interest Network. Li et al., WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2504.17699.

    .. math::

        h = t + W_o W_v \sum_n \mathrm{ReLU}\Big(\frac{(W_q t) \cdot (W_k s_n)}{\sqrt{2 D}}\Big) s_n, \qquad
        x_0 = [c, t, h]

        x_{l+1} = x_l + \mathrm{PReLU}\Big(\mathrm{BN}\Big(\sum_{r=1}^{R} x_l \odot (W_{l,r} x_l + b_{l,r})\Big)\Big),
        \qquad \hat y = \sigma(w \cdot x_L + b)

    with context c, target t and history items s, each item its id, tags and frozen embeddings, concatenated (D), and an
    attention of dim 2 D. Dropout acts on each linear projection of a layer and again before the residual. Without it,
    as in scoring, the R projections of a layer are summed to one, which is the same function. Parameters are named and
    shaped as in the published code (its file QIN_variety_v9), so its weights load.

    Departures: the loss is taken on logits (``loss_from: probability`` gives the published form, whose gradient is zero
    beyond a logit of 17, which QIN exceeds within a few steps).

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        Number of quadratic layers.
    num_row : int
        R, number of linear projections of a layer.
    net_dropout : float
        Dropout inside and after a quadratic layer.
    batch_norm : bool
        Batch norm inside the quadratic network.
    **params
        Those of MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_layers: PositiveInt = 3,
        num_row: PositiveInt = 2,
        net_dropout: Dropout = 0.0,
        batch_norm: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.attention_layers = MultiHeadTargetAttention(self.item_dim, 2 * self.item_dim, sparse=True)
        self.qnn = QuadraticNetwork(
            self.context_dim + 2 * self.item_dim,
            num_layers=num_layers,
            num_row=num_row,
            net_dropout=net_dropout,
            batch_norm=batch_norm,
        )
        if self.num_tasks > 1:
            self.qnn.fc = nn.Linear(self.qnn.fc.in_features, self.num_tasks)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        interest = self.attention_layers(e.target, e.history) + e.target
        return self.qnn(torch.cat([e.context, e.target, interest], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, keys and values, and the first layer's part of a context that all candidates share."""
        projection = () if self.similarities else (self.qnn.projection_of_shared(context),)
        return context, *self.attention_layers.keys_and_values(history), *projection

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, keys, values, *projections = state
        projection = projections[0] if projections else self.qnn.projection_of_shared(context)
        interest = self.attention_layers.attend(candidates, keys, values) + candidates
        return self.qnn.forward_shared(context, projection, torch.cat([candidates, interest], dim=-1))
