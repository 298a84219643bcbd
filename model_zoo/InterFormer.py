"""InterFormer: features and history learn from summaries of each other, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.jagged import Jagged, is_exporting, weighted_sum
from fuxictr_mm.layers import Buckets, CrossNetV2, append, rotate
from fuxictr_mm.model import DNNModel


class InterFormer(DNNModel):
    r"""InterFormer. Zeng et al., CIKM 2025, https://arxiv.org/abs/2411.09852.

    .. math::

        X_\Sigma = g(W X), \qquad S_\Sigma = g([S_{\mathrm{CLS}}, \mathrm{PMA}(S), S_{L-k+1} .. S_L]), \qquad
        g(Z) = Z \odot \sigma(Z W_g + b_g)

        X' = \mathrm{Linear}(\mathrm{CrossNetV2}([X, S_\Sigma])), \qquad
        S' = \mathrm{MHA}(S \, f(X_\Sigma)), \qquad \hat y = \sigma(\mathrm{DNN}([X_\Sigma, S_\Sigma]))

    X holds the fields of context and target, S the history after a mask and a projection, before which the first
    summary of X is put as its tokens CLS. W and the linear map tokens to tokens. A row's attention has rotary
    positions; its input is multiplied by a matrix that f makes of the row's summary.

    Departures: one history, so the mask compresses none; the interaction is one layer of DCN V2, where the published
    figures have DHEN's; what are MLPs in the paper (the mask, W, W_g, f, the map after the interaction) are linears;
    PMA has one head, without projections of its queries and of its output. The paper writes the gate as
    :math:`\sigma(Z \odot \mathrm{MLP}(Z))`, and the mask as a factor without a sigmoid. Both are products of
    embeddings, which begin near zero, and pass on hardly any gradient: 0.02 of AUC on MovieLens after two epochs.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items; every field has the dim ``embedding_dim``.
    num_layers : int
        Number of layers.
    num_heads : int
        Heads of the attention; the dim of each, ``embedding_dim / num_heads``, must be even.
    num_cls : int
        Tokens of the summary of X.
    num_queries : int
        Learned queries of the pooling by attention, PMA.
    num_recent : int
        k, number of newest items in the summary of the history.
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
        num_layers: PositiveInt = 2,
        num_heads: PositiveInt = 1,
        num_cls: PositiveInt = 4,
        num_queries: PositiveInt = 2,
        num_recent: NonNegativeInt = 4,
        dnn_hidden_units: HiddenUnits = (256, 128),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        dim, num_fields = self.embedding_dim, len(self.context_fields) + len(self.item_fields)
        if dim % (2 * num_heads):
            raise ConfigError(
                f"{self.model_id}: num_heads is {num_heads}, expected a divisor of half of embedding_dim {dim}"
            )
        self.mask, self.project = Gate(self.item_dim), nn.Linear(self.item_dim, dim)
        sizes = (num_fields, num_cls, num_queries, num_recent)
        self.layers = nn.ModuleList(InterFormerLayer(dim, num_heads, *sizes) for _ in range(num_layers))
        self.summary, self.summarize = Summary(dim, *sizes[1:]), FieldSummary(dim, num_fields, num_cls)
        self.dnn = self.make_dnn((2 * num_cls + num_queries + num_recent) * dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        fields = torch.cat([e.context, e.target], dim=1).unflatten(1, (-1, self.embedding_dim))
        history = e.history.map(lambda items: self.project(self.mask(items)))
        cls = self.layers[0].summarize(fields)  # type: ignore[operator]
        tokens = append(history, cls)  # stored last, but of the first positions
        lengths = history.lengths.index_select(0, tokens.rows)
        positions = (tokens.positions + cls.shape[1]) % (lengths + cls.shape[1])
        longest = e.history.longest + cls.shape[1] if is_exporting() else None
        buckets = Buckets.of(tokens.offsets, longest=longest)
        for layer in self.layers:
            fields, tokens = layer(fields, tokens, positions, buckets)
        return self.dnn(torch.cat([self.summarize(fields), self.summary(tokens)], dim=1).flatten(1))


class Gate(nn.Module):
    """Scale each number of tokens ``(.., W)`` by a factor from 0 to 1, which the token determines."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        return tokens * torch.sigmoid(self.linear(tokens))


class FieldSummary(nn.Module):
    """Summary of the fields ``(B, num_fields, W)``, ``(B, num_cls, W)``."""

    def __init__(self, dim: int, num_fields: int, num_cls: int) -> None:
        super().__init__()
        self.linear, self.gate = nn.Linear(num_fields, num_cls), Gate(dim)

    def forward(self, fields: Tensor) -> Tensor:
        """Return the summary."""
        return self.gate(self.linear(fields.transpose(1, 2)).transpose(1, 2))


class Summary(nn.Module):
    """Summary of rows of history tokens that end in the CLS tokens, ``(B, num_cls + num_queries + num_recent, W)``."""

    def __init__(self, dim: int, num_cls: int, num_queries: int, num_recent: int) -> None:
        super().__init__()
        self.num_cls, self.num_recent = num_cls, num_recent
        self.queries = nn.Parameter(torch.randn(num_queries, dim) / dim**0.5)
        self.key, self.value, self.gate = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False), Gate(dim)

    def forward(self, tokens: Jagged) -> Tensor:
        """Return the summary."""
        values, dim = tokens.values, self.queries.shape[1]
        scores = self.key(values) @ self.queries.t() / dim**0.5
        pooled = self.value(weighted_sum(tokens, tokens.with_values(scores).softmax().values))
        cls = values[tokens.offsets[1:, None] - torch.arange(self.num_cls, 0, -1, device=values.device)]
        place = tokens.offsets[1:, None] - self.num_cls - torch.arange(self.num_recent, 0, -1, device=values.device)
        missing = place < tokens.offsets[:-1, None]
        recent = values[place.masked_fill(missing, 0)].masked_fill(missing.unsqueeze(2), 0.0)
        return self.gate(torch.cat([cls, pooled, recent], dim=1))


class InterFormerLayer(nn.Module):
    """A layer of fields ``(B, num_fields, W)`` and history tokens; ``num_summary`` are the arguments of ``Summary``."""

    def __init__(self, dim: int, num_heads: int, num_fields: int, *num_summary: int) -> None:
        super().__init__()
        self.num_heads, num_cls = num_heads, num_summary[0]
        self.summarize, self.summary = FieldSummary(dim, num_fields, num_cls), Summary(dim, *num_summary)
        self.personal = nn.Linear(num_cls * dim, dim * dim)
        total = num_fields + sum(num_summary)
        self.interaction, self.to_fields = CrossNetV2(total * dim, 1), nn.Linear(total, num_fields)
        self.qkv, self.output = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, fields: Tensor, tokens: Jagged, positions: Tensor, buckets: Buckets) -> tuple[Tensor, Jagged]:
        """Return both after the layer."""
        matrices = self.personal(self.summarize(fields).flatten(1)).unflatten(1, (fields.shape[2], -1))
        inputs = torch.cat([fields, self.summary(tokens)], dim=1)
        crossed = self.interaction(inputs.flatten(1)).view_as(inputs)
        values, parts = tokens.values, []
        for token, mask in zip(buckets.tokens, buckets.masks, strict=True):
            personal = values[token] @ matrices[tokens.rows[token[:, 0]]]
            query, key, value = self.qkv(personal).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            query, key = (rotate(x, positions[token].unsqueeze(1)) for x in (query, key))
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
            parts.append(self.output(attended.transpose(1, 2).flatten(2)))
        return self.to_fields(crossed.transpose(1, 2)).transpose(1, 2), tokens.with_values(buckets.join(parts))
