"""SimCEN: an MLP in three parts with a contrastive loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import ContrastiveProduct, ContrastLayer, MultiHeadTargetAttention, contrastive_loss
from fuxictr_mm.model import MultimodalModel


class SimCEN(MultimodalModel):
    r"""Simple Contrast-enhanced Network. Li et al., ACM MM 2024, https://openreview.net/forum?id=pJHu4hDlLX.

    .. math::

        X = [c_1 .. c_{F_c}, t_1 .. t_{F_i}, h_1 .. h_{F_i}], \qquad
        [e, a, b] = \mathrm{ContrastLayers}([X, v_1(X), v_2(X)])

        \hat y = \sigma(w \cdot [e, a + \mathrm{D}(e), b + \mathrm{D}(e)] + w_0), \qquad
        \mathcal{L} = \mathrm{BCE}(\hat y, y) + \alpha \, \mathrm{contrast}(e, a + \mathrm{D}(e), b + \mathrm{D}(e))

    with the fields of context c, target t and interest h, all of one dim, two views v of the products of all pairs of
    fields, and dropout D. The layers follow the published code, https://github.com/salmon1802/SimCEN.

    Departures: the paper has no history; h is the output of multi-head target attention, split into the item's
    fields. One dropout and one batch norm setting hold for the three parts; all layers have the same dim, as their
    residuals demand. The contrast is computed in training only.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_heads : int
        Heads of the attention to the history; must divide the dim of an item.
    attention_dropout : float
        Dropout on the attention weights.
    num_layers : int
        Layers of the MLP.
    hidden_dim : int
        Dim of one part of a layer; the published ``hidden_units`` count all three.
    contrast_weight : float
        Alpha, the weight of the contrastive loss.
    contrast_temperature : float
        Temperature of the contrastive loss, which divides the products.
    through_dropout : float
        Probability of the dropout D.
    net_dropout : float
        Dropout inside the MLP.
    batch_norm : bool
        Batch norm inside the MLP.
    **params
        Those of MultimodalModel.
    """

    same_dims = True

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_heads: PositiveInt = 4,
        attention_dropout: Dropout = 0.0,
        num_layers: PositiveInt = 3,
        hidden_dim: PositiveInt = 256,
        contrast_weight: NonNegativeFloat = 0.2,
        contrast_temperature: PositiveFloat = 0.2,
        through_dropout: Dropout = 0.1,
        net_dropout: Dropout = 0.0,
        batch_norm: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        dim = self.item_dim
        self.check_heads(num_heads, dim, "the item dim")
        self.contrast_weight, self.contrast_temperature = contrast_weight, contrast_temperature
        self.contrast: Tensor | None = None
        self.attention = MultiHeadTargetAttention(dim, dim, num_heads, attention_dropout)
        num_fields = len(self.context_fields) + 2 * len(self.item_fields)
        self.product = ContrastiveProduct(num_fields, self.embedding_dim)
        widths = [3 * num_fields * self.embedding_dim, *[3 * hidden_dim] * (num_layers - 1)]
        self.layers = nn.Sequential(
            *(ContrastLayer(w, hidden_dim, first=i == 0, batch_norm=batch_norm, dropout_rate=net_dropout)
              for i, w in enumerate(widths))
        )  # fmt: skip
        self.dropout = nn.Dropout(through_dropout)
        self.fc = nn.Linear(3 * hidden_dim, self.num_tasks)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        return self.head(torch.cat([e.context, e.target, self.attention(e.target, e.history)], dim=-1))

    def head(self, fields: Tensor) -> Tensor:
        """Return the logits ``(B, 1)`` of the concatenated fields ``(B, F E)``."""
        views = self.product(fields.unflatten(1, (-1, self.embedding_dim)))
        anchor, first, second = self.layers(torch.cat([fields, *views], dim=-1)).chunk(3, dim=-1)
        through = self.dropout(anchor)
        first, second = first + through, second + through
        self.contrast = contrastive_loss(anchor, first, second, self.contrast_temperature) if self.training else None
        return self.fc(torch.cat([anchor, first, second], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, keys and values."""
        return context, *self.attention.keys_and_values(history)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, keys, values = state
        interest = self.attention.attend(candidates, keys, values)
        return self.head(torch.cat([context.expand(candidates.shape[0], -1), candidates, interest], dim=-1))

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the last scored batch, in training with the contrast."""
        loss = super().add_loss(return_dict, y_true)
        contrast, self.contrast = self.contrast, None  # otherwise it keeps the graph of the batch in memory
        return loss if contrast is None else loss + self.contrast_weight * contrast
