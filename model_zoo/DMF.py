"""DMF: attention whose keys and values depend on how similar the contents are."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from pydantic import Field, PositiveInt
from torch import Tensor

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import segment_products
from fuxictr_mm.layers import BucketAttention, SimTier, mlp_of_shared
from fuxictr_mm.model import DNNModel


class DMF(DNNModel):
    r"""Decoupled Multimodal Fusion. Fan et al., 2025, https://arxiv.org/abs/2510.11066.

    .. math::

        r_l = \cos(x_t, x_l), \qquad
        h = \alpha \, \mathrm{BucketAttention}(t, s, r) + (1 - \alpha) \, \mathrm{MLP}(\mathrm{SimTier}(r)), \qquad
        \hat y = \sigma(\mathrm{DNN}([c, t, h]))

    with context c, target t, history items s and their frozen content x. The keys and values of the attention are sums
    of a part of the item and a part of the tier of r. The order of the history does not matter.

    Departures: alpha is a setting; one content; the histogram is that of MUSE, with logarithms and learned weights.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    content : str
        Column of the items with the content x, of floats or 8-bit integers; it is also a field, unless it has
        ``embedded: False``.
    num_tiers : int
        Tiers of the cosine between -1 and 1.
    enhanced_weight : float
        Alpha, the weight of the attention against the histogram.
    attention_dim : int
        Dim of the attention's output h.
    num_heads : int
        Heads of the attention; must divide ``attention_dim``.
    tier_hidden_units : sequence of int
        Dims of the hidden layers of the MLP.
    **params
        Those of DNNModel and MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        content: str | None = None,
        num_tiers: PositiveInt = 20,
        enhanced_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        attention_dim: PositiveInt = 64,
        num_heads: PositiveInt = 1,
        tier_hidden_units: HiddenUnits = (32,),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.check_heads(num_heads, attention_dim, "attention_dim")
        self.content = self.item_column("content", content, "fuxictr-mm embed reduce", "embedding")
        self.per_item_contents = (self.content,)
        self.enhanced_weight = enhanced_weight
        self.attention = BucketAttention(self.item_dim, attention_dim, num_heads, num_tiers)
        self.tiers = SimTier(num_tiers)
        self.tier_mlp = MLP_Block(num_tiers + 1, list(tier_hidden_units), output_dim=attention_dim)
        self.dnn = self.make_dnn(self.context_dim + self.item_dim + attention_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        queries, contents = self.contents(batch, self.content)
        cosines = segment_products(queries, contents)
        tiers = self.tiers(contents.with_values(cosines))
        interest = self.fuse(self.attention(e.target, e.history, cosines), tiers)
        return self.dnn(torch.cat([e.context, e.target, interest], dim=-1))

    def fuse(self, enhanced: Tensor, tiers: Tensor) -> Tensor:
        """Return h ``(B, attention_dim)``."""
        return self.enhanced_weight * enhanced + (1 - self.enhanced_weight) * self.tier_mlp(tiers)

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, contents, and keys and values."""
        return context, self.content_of(self.content, ids), *self.attention.keys_and_values(history)

    def candidate_columns(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Return the contents."""
        return (self.content_of(self.content, ids),)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        queries, context, contents, keys, values = state
        cosines = queries @ contents.t()
        interest = self.fuse(self.attention.attend(candidates, keys, values, cosines), self.tiers.of_user(cosines))
        return mlp_of_shared(self.dnn, context, candidates, interest)
