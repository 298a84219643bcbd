"""DIN_MM, a deep interest network over multimodal items."""

from __future__ import annotations

from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.factorized import FactorizedModel, Factors
from fuxictr_mm.jagged import Jagged, mean_pooling
from fuxictr_mm.layers import (
    BilinearInteraction,
    DINAttention,
    MultiHeadTargetAttention,
    SENet,
    cross_network,
    mlp_of_shared_fields,
    products_of_fields,
)
from fuxictr_mm.model import Embedded


class DIN_MM(FactorizedModel):
    r"""Feature Fusion Revisited. Zhou, WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2504.18961.

    .. math::

        h = \mathrm{MHTA}(t, s_1 .. s_L), \quad f = \mathrm{SENet}([c_1 .. c_{F_c}, t_1 .. t_{F_i}, h_1 .. h_{F_i}])

        \hat y = \sigma(\mathrm{DNN}([\mathrm{Cross}(f), \mathrm{Bilinear}(f)]))

    Every field (ids, tags, frozen embeddings through a linear projection) has the dim ``embedding_dim``, so that
    context c, target t and interest h (split into the item's fields again) can be weighted and crossed field by field.

    Departures: the paper leaves open how the interest enters SENet, and where the cross network and the bilinear
    interactions are; here both take the output of SENet, and both feed the DNN. ``factor_dim``, which is not in the
    paper, adds a factorization of user and item (``FactorizedModel``).

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    interest : {"multi_head", "din", "mean"}
        Pooling of the history: multi-head target attention, DIN's activation unit, or the mean.
    num_heads : int
        Heads; must divide ``attention_dim``.
    attention_dim : int, optional
        Total dim of queries, keys and values over all heads; by default the dim of an item.
    attention_dropout : float
        Dropout on attention weights (inside the MLP for ``interest: din``).
    attention_hidden_units : sequence of int
        Dims of the hidden layers of DIN's activation unit.
    din_use_softmax : bool
        Whether the weights of DIN's activation unit sum to one.
    sparse_attention : bool
        ReLU scores instead of softmax.
    senet : bool
        Whether fields are weighted by SENet.
    senet_reduction : int
        Fields per unit of SENet's bottleneck.
    senet_activation : {"ReLU", "Sigmoid"}
        Activation of the SENet weights.
    cross : {None, "v1", "v2", "mix"}
        Cross network: DCN, DCN V2, DCN V2 with a mixture of low-rank experts.
    num_cross_layers : int
        Layers of the cross network.
    bilinear : {None, "field_all", "field_each", "field_interaction"}
        Bilinear interactions of all pairs of fields: one matrix for all, one per field, one per pair.
    batch_norm : bool
        Batch norm in the DNN.
    **params
        Those of FactorizedModel, DNNModel and MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        interest: Literal["multi_head", "din", "mean"] = "multi_head",
        num_heads: PositiveInt = 4,
        attention_dim: PositiveInt | None = None,
        attention_dropout: Dropout = 0.0,
        attention_hidden_units: HiddenUnits = (64,),
        din_use_softmax: bool = False,
        sparse_attention: bool = False,
        senet: bool = True,
        senet_reduction: PositiveInt = 3,
        senet_activation: Literal["ReLU", "Sigmoid"] = "Sigmoid",
        cross: Literal["v1", "v2", "mix"] | None = None,
        num_cross_layers: PositiveInt = 2,
        bilinear: Literal["field_all", "field_each", "field_interaction"] | None = None,
        batch_norm: bool = True,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, batch_norm=batch_norm, **params)
        dim = attention_dim or self.target_dim
        self.attention: MultiHeadTargetAttention | DINAttention | None = None
        if interest == "multi_head":
            self.check_heads(num_heads, dim, "attention_dim")
            self.attention = MultiHeadTargetAttention(
                self.target_dim, dim, num_heads, attention_dropout, sparse=sparse_attention
            )
        elif interest == "din":
            self.attention = DINAttention(
                self.target_dim, attention_hidden_units, dropout_rate=attention_dropout, use_softmax=din_use_softmax
            )
        num_fields = len(self.context_fields) + 2 * len(self.item_fields)
        flat_dim = num_fields * self.embedding_dim
        self.senet = SENet(num_fields, senet_reduction, senet_activation) if senet else nn.Identity()
        self.cross = cross_network(cross, flat_dim, num_cross_layers)
        self.bilinear = BilinearInteraction(num_fields, self.embedding_dim, bilinear) if bilinear else None
        pairs_dim = num_fields * (num_fields - 1) // 2 * self.embedding_dim if bilinear else 0
        self.dnn = self.make_dnn(flat_dim + pairs_dim)
        self.build()

    def pool(self, e: Embedded) -> Tensor:
        """Return the pooled history ``(B, D)``."""
        return mean_pooling(e.history) if self.attention is None else self.attention(e.target, e.history)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, T)``."""
        e, factors = self.embed_with_factors(batch)
        return self.with_factors(self.head(torch.cat([e.context, e.target, self.pool(e)], dim=-1)), factors)

    def head(self, fields: Tensor) -> Tensor:
        """Return the logits ``(B, T)`` of the concatenated fields ``(B, F E)``."""
        fields = self.senet(fields.unflatten(1, (-1, self.embedding_dim)))
        parts = [self.cross(fields.flatten(1))]
        if self.bilinear is not None:
            parts.append(self.bilinear(fields).flatten(1))
        return self.dnn(torch.cat(parts, dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, factors of the history, products of context and the DNN's first weights, and of interest."""
        liked = self.history_factors(Jagged.of_row(history))
        history, _ = self.split_fields(history, "item")
        state = [context] if liked is None else [context, liked]
        if self._dnn_reads_fields:
            fields, _ = self.split_fields(context, "context")
            state.append(products_of_fields(self.dnn, fields.view(-1, self.embedding_dim)))
        if isinstance(self.attention, MultiHeadTargetAttention):
            return *state, *self.attention.keys_and_values(history)
        if isinstance(self.attention, DINAttention):
            return *state, history, self.attention.keys(history)
        return *state, mean_pooling(Jagged.of_row(history))

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, T)``."""
        (context, user), parts = self.split_fields(state[0], "context"), list(state[1:])
        liked = parts.pop(0) if self._factors_history else None
        products = parts.pop(0) if self._dnn_reads_fields else None
        candidates, item = self.split_fields(candidates, "item")
        interest = (
            parts[0].expand_as(candidates) if self.attention is None else self.attention.attend(candidates, *parts)
        )
        own = torch.cat([candidates, interest], dim=-1)
        if products is None:
            logits = self.head(torch.cat([context.expand(candidates.shape[0], -1), own], dim=-1))
        else:
            shared, own = context.view(-1, self.embedding_dim), own.unflatten(1, (-1, self.embedding_dim))
            logits = mlp_of_shared_fields(self.dnn, self.senet, shared, products, own)
        return self.with_factors(logits, Factors(user, item, liked))

    @property
    def _dnn_reads_fields(self) -> bool:
        """Whether the DNN's inputs are the weighted fields, and those of the context are those of all candidates."""
        return self.bilinear is None and isinstance(self.cross, nn.Identity) and not self.similarities
