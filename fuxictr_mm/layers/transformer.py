r"""Transformer encoder over jagged rows.

Shape letters: B rows, N tokens of all rows, U distinct items, L longest row of a bucket, R rows of a bucket,
D item dim, W = 2 D token dim, H heads, E dim of a head, K slots, M candidates of one user, C tokens that are kept,
F of these that a row has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged, is_exporting


@dataclass(frozen=True)
class Buckets:
    """Rows of similar length, each bucket padded to the length of its longest row."""

    tokens: list[Tensor]  #: ``(R, L)`` each: index of the token at each position; any token at padding.
    masks: list[Tensor]  #: ``(R, L)`` bool each, True for a token.
    inverse: Tensor  #: ``(N,)`` position of each token in the concatenation of all buckets.

    @classmethod
    def of(cls, offsets: Tensor, limits: Sequence[int] = (4, 8, 16, 32, 64), longest: int | None = None) -> Buckets:
        """Sort rows into buckets of up to ``limits`` tokens, and one of all longer rows; empty rows are in none.

        An export takes the length of the longest row from the data unless it is given.

        Examples
        --------
        >>> buckets = Buckets.of(torch.tensor([0, 2, 9, 10]), limits=[4])
        >>> [mask.shape for mask in buckets.masks], buckets.inverse.tolist()
        ([torch.Size([2, 2]), torch.Size([1, 7])], [0, 1, 3, 4, 5, 6, 7, 8, 9, 2])
        """
        lengths = offsets.diff()
        if is_exporting():  # one bucket: their number depends on the data
            positions = torch.arange(lengths.max().item() if longest is None else longest, device=offsets.device)
            mask = positions < lengths.unsqueeze(1)
            padded = torch.where(mask, offsets[:-1].unsqueeze(1) + positions, 0)
            return cls([padded], [mask], mask.flatten().nonzero().squeeze(1))
        bucket = torch.bucketize(lengths, torch.tensor(limits, device=offsets.device))
        tokens, masks = [], []
        for number in range(len(limits) + 1):
            rows = ((bucket == number) & (lengths > 0)).nonzero().squeeze(1)
            if rows.numel() == 0:
                continue
            positions = torch.arange(int(lengths[rows].max()), device=offsets.device)
            mask = positions < lengths[rows].unsqueeze(1)
            tokens.append(torch.where(mask, offsets[rows].unsqueeze(1) + positions, offsets[rows].unsqueeze(1)))
            masks.append(mask)
        order = torch.cat([offsets[:0], *(token[mask] for token, mask in zip(tokens, masks, strict=True))])
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        return cls(tokens, masks, inverse)

    def apply(self, values: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Apply a function of padded rows ``(R, L, W)`` and their masks ``(R, L)`` to values ``(N, W)``.

        It is called for each bucket and returns ``(R, L, V)``; the results ``(N, V)`` are in the order of the values.
        """
        parts = [
            function(values.index_select(0, token.flatten()).view(*token.shape, values.shape[1]), mask)
            for token, mask in zip(self.tokens, self.masks, strict=True)
        ]
        return self.join(parts) if parts else values[:0]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the values ``(N, V)`` of padded rows ``(R, L, V)`` of each bucket, of which there is one or more."""
        # In an export `inverse` leaves the padding out.
        real = [
            part.flatten(0, 1) if is_exporting() else part[mask] for part, mask in zip(parts, self.masks, strict=True)
        ]
        return torch.cat(real).index_select(0, self.inverse)


def append(history: Jagged, target: Tensor) -> Jagged:
    """Put tokens at the end of each row of a history.

    Parameters
    ----------
    history : Jagged
        ``(N, W)``.
    target : Tensor
        ``(B, W)``, or M tokens per row, ``(B, M, W)``.

    Returns
    -------
    Jagged
        ``(N + B M, W)``.

    Examples
    --------
    >>> append(Jagged(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 0, 2])), torch.tensor([[3.0], [4.0]])).values.T
    tensor([[3., 1., 2., 4.]])
    """
    count = 1 if target.dim() == 2 else target.shape[1]
    rows = count * torch.arange(history.num_rows + 1, device=target.device)
    of_history = torch.arange(history.num_values, device=target.device) + rows[history.rows]
    of_target = (history.offsets[1:] + rows[:-1]).unsqueeze(1) + torch.arange(count, device=target.device)
    order = torch.cat([of_history, of_target.flatten()]).argsort()
    tokens = torch.cat([history.values, target.reshape(-1, target.shape[-1])])
    return Jagged(tokens.index_select(0, order), history.offsets + rows)


def rotate(values: Tensor, positions: Tensor) -> Tensor:
    r"""Rotate pairs of dims by angles that grow with the position, so that products depend on distances.

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, https://arxiv.org/abs/2104.09864

    Parameters
    ----------
    values : Tensor
        ``(.., E)``, E even; dim i is paired with dim i + E / 2.
    positions : Tensor
        ``(..)``, of a shape that broadcasts with that of the values without E.

    Examples
    --------
    >>> rotate(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])).round(decimals=2).tolist()
    [[1.0, 0.0], [0.5400000214576721, 0.8399999737739563]]
    """
    half = values.shape[-1] // 2
    # In bfloat16 an angle of 500 is known to 2, and points anywhere.
    dtype = torch.promote_types(values.dtype, torch.float32)
    rates = 10_000.0 ** (-torch.arange(half, device=values.device, dtype=dtype) / half)
    angles = positions.unsqueeze(-1) * rates
    cosines, sines = angles.cos().to(values.dtype), angles.sin().to(values.dtype)
    first, second = values.split(half, dim=-1)
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1)


class JaggedTransformerLayer(nn.TransformerEncoderLayer):
    r"""One layer of a transformer encoder, on tokens without padding.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, https://arxiv.org/abs/1706.03762

    .. math::
        y = \mathrm{LN}(x + \mathrm{MHA}(x, x, x)), \qquad z = \mathrm{LN}(y + W_2 \, \mathrm{ReLU}(W_1 y + b_1) + b_2)

    Parameters have the names, shapes and initial values of ``torch.nn.TransformerEncoderLayer``, whose function it is
    (post-norm, ReLU) with the padding masked out.

    Parameters
    ----------
    dim : int
        W, a multiple of ``num_heads``.
    num_heads : int
        H.
    dim_feedforward : int
        Dim of the hidden layer.
    dropout : float
        On attention weights, both outputs and the hidden layer.
    norm_epsilon : float
        Epsilon of both norms.
    """

    def __init__(
        self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, norm_epsilon: float = 1e-5
    ) -> None:
        super().__init__(dim, num_heads, dim_feedforward, dropout, layer_norm_eps=norm_epsilon, batch_first=True)
        self.attention_dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, buckets: Buckets, projected: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Apply the layer: the tokens of a row attend to each other.

        Parameters
        ----------
        tokens : Tensor
            ``(N, W)``.
        buckets : Buckets
            Their rows.
        projected : Tensor, optional
            ``(N, 3 W)`` concatenated queries, keys and values, if computed already.

        Returns
        -------
        Tensor
            ``(N, W)``.
        """
        if projected is None:
            projected = F.linear(tokens, self.self_attn.in_proj_weight, self.self_attn.in_proj_bias)
        return self._transform(tokens, buckets.apply(projected, self._attend))

    def encode_first(self, tokens: Tensor, count: int) -> tuple[Tensor, ...]:
        """Return what ``attend_first`` reads of the tokens ``(L, W)`` of one row.

        The first ``count`` tokens, filled up with zeros, have queries; all have keys and values.
        """
        projected = F.linear(tokens, self.self_attn.in_proj_weight, self.self_attn.in_proj_bias)
        query_HLE, key_HLE, value_HLE = self._heads(projected)
        tokens_CW, query_HCE = (F.pad(x, (0, 0, 0, count))[..., :count, :] for x in (tokens, query_HLE))
        # A row without tokens has one, which no token sees.
        scores_HCL = F.pad(query_HCE @ key_HLE.transpose(1, 2), (1, 0), value=torch.finfo(tokens.dtype).min)
        seen_HCE = scores_HCL.softmax(dim=2)[..., 1:] @ value_HLE
        real_C1 = F.pad(tokens.new_ones(tokens.shape[0], 1), (0, 0, 0, count))[:count]
        of_heads = [x.transpose(0, 1).flatten(1) for x in (query_HCE, seen_HCE, scores_HCL.logsumexp(dim=2))]
        return torch.cat([tokens_CW, *of_heads, real_C1], dim=1), key_HLE, value_HLE

    def attend_first(self, tokens: Tensor, first: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        r"""Return ``forward`` of tokens ``(M, W)``, each before one row by ``encode_first``, and of the row's first.

        A token of the row that sees one more token v mixes it with what it has seen of the row alone, :math:`o_i`:

        .. math:: o'_i = (1 - a_i) o_i + a_i v, \qquad a_i = \sigma(q_i \cdot k - \log \sum_j e^{q_i \cdot k_j})

        Returns
        -------
        Tensor
            ``(M, 1 + C, W)``, zeros beyond the tokens of the row.
        """
        real_C, heads = first[:, -1] > 0, self.self_attn.num_heads
        # Those that a short row has not are left out here, and are zeros at the end.
        own_FW, *of_heads = first[real_C, :-1].split([*3 * [tokens.shape[1]], heads], dim=1)
        query_HFE, seen_HFE, total_HF1 = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in of_heads)
        projected = F.linear(tokens, self.self_attn.in_proj_weight, self.self_attn.in_proj_bias)
        query_HME, key_HME, value_HME = self._heads(projected)
        own_HM1 = (query_HME * key_HME).sum(dim=2, keepdim=True)
        weights_HML = torch.cat([own_HM1, query_HME @ keys.transpose(1, 2)], dim=2).softmax(dim=2)
        attended_HME = weights_HML[..., :1] * value_HME + weights_HML[..., 1:] @ values
        share_HMF1 = torch.sigmoid(key_HME @ query_HFE.transpose(1, 2) - total_HF1.transpose(1, 2)).unsqueeze(3)
        of_row_HMFE = seen_HFE.unsqueeze(1).lerp(value_HME.unsqueeze(2), share_HMF1)
        attended_HMFE = torch.cat([attended_HME.unsqueeze(2), of_row_HMFE], dim=2)
        tokens = torch.cat([tokens.unsqueeze(1), own_FW.expand(tokens.shape[0], -1, -1)], dim=1)
        outputs = self._transform(tokens, attended_HMFE.permute(1, 2, 0, 3).flatten(2))
        place_C = torch.arange(first.shape[0], device=first.device) + 2
        places = F.pad(torch.where(real_C, place_C, 0), (1, 0), value=1)
        return F.pad(outputs, (0, 0, 1, 0)).index_select(1, places)

    def _heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values ``(H, L, E)`` of ``(L, 3 W)``."""
        query, key, value = projected.unflatten(1, (3, self.self_attn.num_heads, -1)).permute(1, 2, 0, 3)
        return query * self.self_attn.head_dim**-0.5, key, value

    def _transform(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = self.norm1(tokens + self.dropout1(self.self_attn.out_proj(attended)))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout2(self.linear2(hidden)))

    def _attend(self, projected_RL3W: Tensor, mask_RL: Tensor) -> Tensor:
        heads = projected_RL3W.unflatten(2, (3, self.self_attn.num_heads, self.self_attn.head_dim))
        query_RHLE, key_RHLE, value_RHLE = heads.permute(2, 0, 3, 1, 4).unbind(0)
        scores_RHLL = query_RHLE @ key_RHLE.transpose(2, 3) * self.self_attn.head_dim**-0.5
        scores_RHLL = scores_RHLL.masked_fill(~mask_RL[:, None, None], -torch.inf)
        weights_RHLL = self.attention_dropout(torch.softmax(scores_RHLL, dim=-1))
        return (weights_RHLL.to(value_RHLE.dtype) @ value_RHLE).transpose(1, 2).flatten(2)


class TargetTransformer(nn.Module):
    r"""Transformer encoder over a history, each item of it joined with the target.

    Xu et al., "1st Place Solution of WWW 2025 EReL@MIR Workshop Multimodal CTR Prediction Challenge", 2025,
    https://arxiv.org/abs/2505.03543

    .. math::
        h_1 .. h_n = \mathrm{Encoder}([s_1; t], .., [s_n; t]), \qquad
        [h_{\mathrm{slot}_1}, .., h_{\mathrm{slot}_K}, W \max_n h_n + b]

    Parameters have the names and shapes of the padded form built from ``torch.nn.TransformerEncoder``.

    Parameters
    ----------
    item_dim : int
        D.
    num_layers : int
        Number of encoder layers.
    num_heads : int
        H, a divisor of W.
    dim_feedforward : int
        Dim of their hidden layers.
    dropout : float
        Inside them.
    max_pool : bool
        Whether the maximum is part of the output.

    Examples
    --------
    >>> history = Jagged(torch.randn(3, 4), torch.tensor([0, 2, 3]))
    >>> slots = torch.tensor([[0, 1], [-1, 2]])  # the last two outputs of each row; -1: none
    >>> TargetTransformer(4, dim_feedforward=8)(torch.randn(2, 4), history, slots).shape
    torch.Size([2, 24])
    """

    def __init__(
        self,
        item_dim: int,
        *,
        num_layers: int = 1,
        num_heads: int = 1,
        dim_feedforward: int = 64,
        dropout: float = 0.0,
        max_pool: bool = True,
    ) -> None:
        super().__init__()
        dim = 2 * item_dim
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide the dim of a token, {dim} (twice the item's)")
        layers = [JaggedTransformerLayer(dim, num_heads, dim_feedforward, dropout) for _ in range(num_layers)]
        # As torch.nn.TransformerEncoder names them.
        self.transformer_encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.out_linear = nn.Linear(dim, dim) if max_pool else None

    def forward(self, target: Tensor, history: Jagged, slots: Tensor) -> Tensor:
        """Encode the history.

        Parameters
        ----------
        target : Tensor
            ``(B, D)``.
        history : Jagged
            Entries of shape ``(.., D)``, one or more in every row.
        slots : Tensor
            ``(B, K)`` index of the token whose output fills each slot, -1 for zeros.

        Returns
        -------
        Tensor
            ``(B, (K + 1) W)`` the slots, then the projected maximum; ``(B, K W)`` without the maximum.
        """
        buckets = Buckets.of(history.offsets)
        layers: nn.ModuleList = self.transformer_encoder["layers"]  # type: ignore[assignment]
        first: JaggedTransformerLayer = layers[0]  # type: ignore[assignment]
        tokens = torch.cat([history.values, target.index_select(0, history.rows)], dim=1)
        tokens = first(tokens, buckets, self._project(first.self_attn, target, history))
        for layer in layers[1:]:
            tokens = layer(tokens, buckets)
        nothing = tokens.new_zeros(1, tokens.shape[1])
        output = torch.cat([nothing, tokens]).index_select(0, slots.flatten() + 1).view(slots.shape[0], -1)
        if self.out_linear is None:
            return output
        # Ties in a row divide the gradient; torch.segment_reduce would give all of it to each.
        rows = history.rows.unsqueeze(1).expand_as(tokens)
        peak = tokens.new_full((history.num_rows, tokens.shape[1]), -torch.inf).scatter_reduce(0, rows, tokens, "amax")
        return torch.cat([output, self.out_linear(peak)], dim=1)

    @staticmethod
    def _project(attention: nn.MultiheadAttention, target: Tensor, history: Jagged) -> Tensor:
        """Project ``[item, target]`` as the sum of a part per distinct item and a part per row."""
        of_item, of_target = attention.in_proj_weight.chunk(2, dim=1)
        items = history.map(lambda distinct: F.linear(distinct, of_item)).values
        return items + F.linear(target, of_target, attention.in_proj_bias).index_select(0, history.rows)
