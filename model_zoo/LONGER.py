"""LONGER: a transformer over groups of neighbouring items, in which only the newest have queries."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import LONGERLayer, TokenMerge, append, first, mlp_of_shared, newest
from fuxictr_mm.layers.tokens import NORM_EPSILON
from fuxictr_mm.model import DNNModel


class LONGER(DNNModel):
    r"""Long-sequence Optimized Transformer. Chai et al., RecSys 2025, https://arxiv.org/abs/2505.04421.

    .. math::

        g_1 .. g_J = \mathrm{TokenMerge}(W s_1 + p_L .. W s_L + p_1), \qquad
        [z_1 .. z_n, z_c, z_t] = \mathrm{LONGERLayers}(g_1 .. g_J, v_1 .. v_n, W_c c, W_t t)

        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{RMSNorm}(z_1 .. z_n, z_c, z_t)]))

    with context c, target t, history items s, their positions p from the newest on, and learned tokens v (CLS). A token
    sees itself and what is on its left. In the first layer, which is the cross attention of the paper, the newest k
    groups and the global tokens (those of v, c and t) have queries, and all groups have keys and values. The other
    layers have these k groups and the global tokens alone; after the last one, only the global tokens are read. Nothing
    but the token of the target depends on it.

    Departures: the full text of the paper was not available, only summaries of it. Histories have no times, so there
    are no time differences beside the positions; the context is one token, where the paper has a token of the user's
    id and others of features that it does not name. The paper lists the target first and has a mask under which a
    token sees those after it; here its order is turned round, which is the same, with the newest groups next to the
    global tokens. It does not say how the outputs become a prediction, nor which norms and activations there are:
    here the DNN, RMSNorm and GELU, and a layer of post-norm and ReLU within the groups; all norms have an epsilon of 1.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    group_size : int
        Number of neighbouring items that are one group; must divide ``token_dim``.
    inner_transformer : bool
        Whether the items of a group attend to each other before they are concatenated.
    num_recent : int
        k, number of newest groups with queries, in all layers but the last.
    num_cls : int
        n, number of learned tokens.
    num_layers : int
        Number of layers, the first one included.
    token_dim : int
        Dim of a token; an item has ``token_dim / group_size``.
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

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        group_size: PositiveInt = 4,
        inner_transformer: bool = True,
        num_recent: PositiveInt = 16,
        num_cls: PositiveInt = 1,
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
        if token_dim % group_size:
            raise ConfigError(
                f"{self.model_id}: group_size is {group_size}, expected a divisor of token_dim {token_dim}"
            )
        dim = token_dim // group_size
        self.item_token, self.position = nn.Linear(self.item_dim, dim), nn.Embedding(self.max_len, dim)
        self.merge = TokenMerge(dim, group_size, hidden_factor * dim, inner_transformer, norm_epsilon)
        self.cls = nn.Parameter(torch.randn(num_cls, token_dim) / token_dim**0.5)
        self.context_token, self.target_token = (nn.Linear(d, token_dim) for d in (self.context_dim, self.item_dim))
        self.num_global = num_cls + 2
        #: Groups with queries in each layer, and those with keys.
        self.recent = [num_recent] * (num_layers - 1) + [0]
        self.seen = [-(-self.max_len // group_size), *self.recent[:-1]]
        sizes = (token_dim, num_heads, hidden_factor * token_dim, norm_epsilon)
        self.layers = nn.ModuleList(LONGERLayer(*sizes) for _ in self.recent)
        self.norm = nn.RMSNorm(token_dim, norm_epsilon)
        self.dnn = self.make_dnn(self.context_dim + self.item_dim + self.num_global * token_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        own = torch.stack([self.context_token(e.context), self.target_token(e.target)], dim=1)
        tokens = append(self.groups(e.history), torch.cat([self.cls.expand(own.shape[0], -1, -1), own], dim=1))
        for recent, layer in zip(self.recent, self.layers, strict=True):
            tokens = layer(tokens, recent + self.num_global)
        encoded = self.norm(tokens.values).unflatten(0, (-1, self.num_global))
        user, target = encoded[:, :-1].flatten(1), encoded[:, -1]
        return self.dnn(torch.cat([e.context, user, e.target, target], dim=1))

    def groups(self, history: Jagged) -> Jagged:
        """Return the groups ``(.., W)`` of items ``(.., D)``."""
        items = newest(history, self.max_len).map(self.item_token)
        from_end = items.lengths.index_select(0, items.rows) - items.positions - 1
        return self.merge(items.with_values(items.values + self.position(from_end)))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, the encoded global tokens of the user, and keys and values in each layer."""
        # With similarities, the context depends on the candidate.
        own = self.cls if self.similarities else torch.cat([self.cls, self.context_token(context)])
        tokens, parts = torch.cat([self.groups(Jagged.of_row(history)).values, own]).flip(0), []
        length = tokens.shape[0]
        for recent, layer in zip(self.recent, self.layers, strict=True):
            tokens, *keys_and_values = layer.encode(tokens, recent + own.shape[0], length)  # type: ignore[operator]
            # All tensors of a state have the same length.
            parts += [F.pad(x, (0, 0, 0, length))[:length] for x in keys_and_values]
        return context, self.norm(tokens.flip(0)).flatten().unsqueeze(0), *parts

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, user, *parts = state
        own = [self.context_token(context)] if self.similarities else []
        tokens = torch.stack([*own, self.target_token(candidates)], dim=1)
        for seen, layer, keys, values in zip(self.seen, self.layers, parts[::2], parts[1::2], strict=True):
            count = seen + self.num_global - len(own) - 1
            tokens = layer.attend(tokens, first(keys, count), first(values, count))  # type: ignore[operator]
        *encoded, target = self.norm(tokens).unbind(1)
        shared = torch.cat([context, user.expand(context.shape[0], -1), *encoded], dim=1)
        return mlp_of_shared(self.dnn, shared, candidates, target)
