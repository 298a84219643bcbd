"""EST: feature tokens read the behaviours, which read those of similar content, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import mean_pooling
from fuxictr_mm.layers import ESTLayer, PerTokenLinear, mlp_of_shared, neighbours, search_user
from fuxictr_mm.layers.tokens import ALL, NORM_EPSILON
from fuxictr_mm.model import DNNModel


class EST(DNNModel):
    r"""Efficiently Scalable Transformer. Liu et al., 2026, https://arxiv.org/abs/2602.10811.

    .. math::

        n_1 .. n_T, b_1 .. b_L = \mathrm{ESTLayers}(W_1 f_1 .. W_T f_T, W s_1 .. W s_L), \qquad
        g_{ij} = \begin{cases} x_i \cdot x_j & j \in \mathrm{top}_K(x_i \cdot x_1 .. x_i \cdot x_L) \\ 0 & \text{else}
        \end{cases}

        \hat y = \sigma(\mathrm{DNN}(\mathrm{RMSNorm}(n_1 .. n_T, \bar b)))

    with the fields f of context and target, history items s and their frozen content x. In each layer, every feature
    token attends to the behaviours b, and these are mixed by g, which has no gradient and is computed once. Neither
    sees what it does not need: feature tokens do not see each other, and behaviours see no feature. The order of the
    history does not matter.

    Departures: the full text of the paper was not available, only its abstract and notes on its formulas. Not in
    these are the norms (RMSNorm, before each part and at the end), the activation (GELU), the
    head (a DNN), and the scale of the similarities (contents have length 1, a row of g is not normalised). There is
    one content and one history.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items; every field has the dim ``embedding_dim``.
    content : str
        Column of the items with the content x, of floats or 8-bit integers; it is also a field, unless it has
        ``embedded: False``.
    top_k : int
        K, number of behaviours of similar content that a behaviour reads, itself among them.
    num_layers : int
        Number of layers.
    token_dim : int
        Dim of a token.
    num_heads : int
        Attention heads; must divide ``token_dim``.
    hidden_factor : int
        Hidden dim of the feed-forward networks, as a multiple of the dim of a token.
    norm_epsilon : float
        Epsilon of the norms. Tokens that are much shorter than it stay so, as those of rare ids, whose embeddings stay
        near zero; with a small one, their noise is scaled to the length of all other tokens.
    dnn_hidden_units : sequence of int
        Dims of the hidden layers of the head.
    **params
        Those of DNNModel and MultimodalModel.
    """

    same_dims = True

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        content: str | None = None,
        top_k: PositiveInt = 5,
        num_layers: PositiveInt = 2,
        token_dim: PositiveInt = 64,
        num_heads: PositiveInt = 1,
        hidden_factor: PositiveInt = 2,
        norm_epsilon: PositiveFloat = NORM_EPSILON,
        dnn_hidden_units: HiddenUnits = (64,),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        self.check_heads(num_heads, token_dim, "token_dim")
        self.content = self.item_column("content", content, "fuxictr-mm embed reduce", "embedding")
        self.per_item_contents = (self.content,)
        self.top_k = top_k
        num_tokens = len(self.context_fields) + len(self.item_fields)
        self.of_context, self.of_target = slice(len(self.context_fields)), slice(len(self.context_fields), None)
        self.feature_tokens = PerTokenLinear(num_tokens, self.embedding_dim, token_dim)
        self.behaviour = nn.Linear(self.item_dim, token_dim)
        sizes = (num_tokens, token_dim, num_heads, hidden_factor * token_dim, norm_epsilon)
        self.layers = nn.ModuleList(ESTLayer(*sizes) for _ in range(num_layers))
        self.norm = nn.RMSNorm(token_dim, norm_epsilon)
        self.dnn = self.make_dnn((num_tokens + 1) * token_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        _, contents = self.contents(batch, self.content)
        near = neighbours(contents, self.top_k)
        tokens, behaviours = self.tokens(torch.cat([e.context, e.target], dim=1), ALL), e.history.map(self.behaviour)
        for layer in self.layers:
            tokens, behaviours = layer(tokens, behaviours, *near)
        context, target = (self.norm(tokens[:, part]).flatten(1) for part in (self.of_context, self.of_target))
        return self.dnn(torch.cat([context, self.norm(mean_pooling(behaviours)), target], dim=1))

    def tokens(self, fields: Tensor, part: slice) -> Tensor:
        """Return the tokens ``(B, T, W)`` of concatenated fields ``(B, T E)``, or of a part of the fields."""
        return self.feature_tokens(fields.unflatten(1, (-1, self.embedding_dim)), part)

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, the mean of the behaviours, and their keys and values in each layer."""
        contents = self.content_of(self.content, ids).flip(0)  # of equal similarities, the newest are found
        behaviours, products = self.behaviour(history.flip(0)), contents @ contents.t()
        similarities, parts = products * search_user(products, self.top_k)[1], []
        for layer in self.layers:
            behaviours, *keys_and_values = layer.encode(behaviours, similarities)  # type: ignore[operator]
            parts += keys_and_values
        mean = behaviours.sum(dim=0, keepdim=True) / behaviours.new_full((), behaviours.shape[0]).clamp(min=1)
        return context, self.norm(mean), *parts

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, mean, *parts = state
        of_context = self._attend(context, parts, self.of_context)
        shared = torch.cat([of_context, mean.expand(context.shape[0], -1)], dim=1)
        return mlp_of_shared(self.dnn, shared, self._attend(candidates, parts, self.of_target))

    def _attend(self, fields: Tensor, parts: list[Tensor], part: slice) -> Tensor:
        """Return the tokens ``(M, T W)`` of a part of the fields after all layers, which see no other tokens."""
        tokens = self.tokens(fields, part)
        for layer, keys, values in zip(self.layers, parts[::2], parts[1::2], strict=True):
            tokens = layer.attend(tokens, keys, values, part)  # type: ignore[operator]
        return self.norm(tokens).flatten(1)
