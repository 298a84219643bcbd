"""Attention and statistics that use the similarity of an item's content to the target's.

Shape letters: B rows, N history items of a batch, D input dim, A attention dim, H heads, K tiers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged, is_exporting, weighted_sum
from fuxictr_mm.layers.history_search import softmax_of_found


def tiers(cosines: Tensor, num_tiers: int) -> Tensor:
    """Return the tier of each cosine: intervals of equal length from -1 to 1, closed above.

    Parameters
    ----------
    cosines : Tensor
        Any shape.
    num_tiers : int
        Intervals between -1 and 1; tier 0 is the cosine -1 itself.

    Returns
    -------
    Tensor
        int64, from 0 to ``num_tiers``.

    Examples
    --------
    >>> tiers(torch.tensor([-1.0, -0.95, 0.0, 0.05, 1.0]), 20).tolist()
    [0, 1, 10, 11, 20]
    """
    half, odd = divmod(num_tiers, 2)
    return (torch.ceil(cosines * (num_tiers / 2) + odd / 2).long() + half).clamp(0, num_tiers)


class SimTier(nn.Module):
    r"""Weighted histogram of the cosines between the content of the target and that of its history.

    Sheng et al., "Enhancing Taobao Display Advertising with Multimodal Representations", CIKM 2024,
    https://arxiv.org/abs/2407.19467, whose histogram has the counts; logarithm and learned weights are those of MUSE
    (Wu et al., 2025, https://arxiv.org/abs/2512.07216):

    .. math:: f_{b, j} = w_j \, \log(1 + |\{n \in b : \mathrm{tier}(r_n) = j\}|)

    A model that uses the histogram directly needs no layer: ``type: similarity`` has ``histogram_K``.

    Parameters
    ----------
    num_tiers : int
        K; there are K + 1 values, since a cosine of -1 has its own.

    Examples
    --------
    >>> layer = SimTier(2)
    >>> cosines = Jagged(torch.tensor([-1.0, 0.2, 0.3]), torch.tensor([0, 3, 3]))
    >>> (layer(cosines) / layer.weight).expm1().round().tolist()
    [[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, num_tiers: int = 20) -> None:
        super().__init__()
        self.num_tiers = num_tiers
        self.weight = nn.Parameter(torch.rand(num_tiers + 1))

    def forward(self, cosines: Jagged) -> Tensor:
        """Return the tiers of each row, ``(B, K + 1)``, of cosines ``(N,)``."""
        values, size = cosines.values, self.num_tiers + 1
        counts = self.weight.new_zeros(cosines.num_rows * size)
        counts.index_add_(0, cosines.rows * size + tiers(values, self.num_tiers), torch.ones_like(values).to(counts))
        return counts.view(-1, size).log1p() * self.weight

    def of_user(self, cosines: Tensor) -> Tensor:
        """Return the tiers of each candidate of one user, ``(M, K + 1)``, of cosines ``(M, L)``; -inf is none."""
        real, tier = (cosines > -torch.inf).to(self.weight.dtype), tiers(cosines.clamp(min=-1), self.num_tiers)
        counts = self.weight.new_zeros(cosines.shape[0], self.num_tiers + 1).scatter_add(1, tier, real)
        return counts.log1p() * self.weight


class SemanticAttention(nn.Module):
    r"""Target attention whose scores are fused with the similarity of the contents.

    Wu et al., "MUSE: A Simple Yet Effective Multimodal Search-Based Framework for Lifelong User Interest Modeling",
    2025, https://arxiv.org/abs/2512.07216

    .. math::
        a_n = \mathrm{softmax}_{n \in b}(\gamma_1 x_n + \gamma_2 r_n + \gamma_3 x_n r_n), \qquad
        x_n = \frac{(W_q t_b) \cdot (W_k s_n)}{\sqrt{A / H}}, \qquad o_b = \sum_{n \in b} a_n W_v s_n

    with the cosine r of the contents; :math:`\gamma` starts at 1, for each head. ``form="code"`` is that of the
    published code: biases, SiLU after all three projections, no root, and r is divided by a learned temperature that
    starts at 0.1.

    Parameters
    ----------
    input_dim : int
        D.
    attention_dim : int
        A, also of the output.
    num_heads : int
        H.
    form : {"paper", "code"}
        See above.

    Examples
    --------
    >>> attention = SemanticAttention(4, 6, num_heads=2)
    >>> history = Jagged(torch.randn(3, 4), torch.tensor([0, 3, 3]))
    >>> attention(torch.randn(2, 4), history, torch.tensor([0.9, 0.1, -0.5])).shape
    torch.Size([2, 6])
    """

    def __init__(
        self, input_dim: int, attention_dim: int, num_heads: int = 1, form: Literal["paper", "code"] = "paper"
    ) -> None:
        super().__init__()
        self.num_heads, self.code = num_heads, form == "code"
        self.W_q = nn.Linear(input_dim, attention_dim, bias=self.code)
        self.W_k = nn.Linear(input_dim, attention_dim, bias=self.code)
        self.W_v = nn.Linear(input_dim, attention_dim, bias=self.code)
        self.gamma = nn.Parameter(torch.ones(3, num_heads))
        self.temperature = nn.Parameter(torch.full((num_heads,), 0.1)) if self.code else None

    def forward(self, target: Tensor, history: Jagged, cosines: Tensor) -> Tensor:
        """Attend to the history.

        Parameters
        ----------
        target : Tensor
            ``(B, D)``.
        history : Jagged
            Entries of shape ``(.., D)``.
        cosines : Tensor
            ``(N,)`` of the contents of target and entry.

        Returns
        -------
        Tensor
            ``(B, A)``, zero for an empty history.
        """
        key = history.map(self.W_k)
        scores = _products(self._query(target), key.map(F.silu) if self.code else key, self.num_heads)
        scores = self._fuse(scores, cosines.unsqueeze(1))
        weights = history.with_values(scores).softmax().values
        if self.code:
            return _segment_sum(history.map(self.W_v).map(F.silu), weights)
        return _project_sum(history, self.W_v, weights)

    def _query(self, target: Tensor) -> Tensor:
        query = self.W_q(target)
        return F.silu(query) if self.code else query / (query.shape[1] / self.num_heads) ** 0.5

    def _fuse(self, scores: Tensor, cosines: Tensor, *axes: int) -> Tensor:
        """Fuse scores with cosines, which broadcast; as many ``axes`` follow that of the heads."""
        one, two, three = self.gamma.view(3, -1, *axes)
        of_content = cosines if self.temperature is None else cosines / self.temperature.view(-1, *axes)
        return one * scores + two * of_content + three * scores * of_content

    def keys_and_values(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys ``(H, A / H, L)`` and values ``(H, L, A / H)`` of the history ``(L, D)`` of one user."""
        keys, values = self.W_k(history), self.W_v(history)
        if self.code:
            keys, values = F.silu(keys), F.silu(values)
        return _split(keys, self.num_heads).permute(1, 2, 0), _split(values, self.num_heads).transpose(0, 1)

    def attend(self, target: Tensor, keys: Tensor, values: Tensor, cosines: Tensor, found: Tensor) -> Tensor:
        """Return ``forward`` of many targets ``(M, D)`` and the found entries of one history, ``(M, A)``.

        Cosines and whether an entry is found are ``(M, L)``.
        """
        scores_HML = _split(self._query(target), self.num_heads).transpose(0, 1) @ keys
        weights_HML = softmax_of_found(self._fuse(scores_HML, cosines, 1, 1), found)
        return (weights_HML @ values).transpose(0, 1).flatten(1)


class BucketAttention(nn.Module):
    r"""Target attention whose keys and values depend on the tier of the similarity of the contents.

    Fan et al., "Decoupled Multimodal Fusion for User Interest Modeling in Click-Through Rate Prediction", 2025,
    https://arxiv.org/abs/2510.11066

    .. math::
        k_n = W_k s_n + E_k[\mathrm{tier}(r_n)], \quad v_n = W_v s_n + E_v[\mathrm{tier}(r_n)], \quad
        o_b = \sum_{n \in b} \mathrm{softmax}_{n \in b} \Big(\frac{(W_q t_b) \cdot k_n}{\sqrt{A / H}}\Big) v_n

    with the cosine r of the contents. The sums are not computed per entry: a row has a product with each tier, and a
    weight of each tier.

    Parameters
    ----------
    input_dim : int
        D.
    attention_dim : int
        A, also of the output.
    num_heads : int
        H.
    num_tiers : int
        K, see ``tiers``.

    Examples
    --------
    >>> attention = BucketAttention(4, 6, num_heads=2)
    >>> history = Jagged(torch.randn(3, 4), torch.tensor([0, 3, 3]))
    >>> attention(torch.randn(2, 4), history, torch.tensor([0.9, 0.1, -0.5])).shape
    torch.Size([2, 6])
    """

    def __init__(self, input_dim: int, attention_dim: int, num_heads: int = 1, num_tiers: int = 20) -> None:
        super().__init__()
        self.num_heads, self.num_tiers = num_heads, num_tiers
        self.W_q = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_k = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_v = nn.Linear(input_dim, attention_dim, bias=False)
        self.tier_keys = nn.Parameter(0.01 * torch.randn(num_tiers + 1, attention_dim))
        self.tier_values = nn.Parameter(0.01 * torch.randn(num_tiers + 1, attention_dim))

    def forward(self, target: Tensor, history: Jagged, cosines: Tensor) -> Tensor:
        """Attend to the history; arguments and result are those of ``SemanticAttention``."""
        heads, size = self.num_heads, self.num_tiers + 1
        query_BA = self.W_q(target)
        query_BA = query_BA / (query_BA.shape[1] / heads) ** 0.5
        tier_N = tiers(cosines, self.num_tiers)
        of_tiers_BKH = torch.einsum("bhd,khd->bkh", _split(query_BA, heads), _split(self.tier_keys, heads))
        cell_N = history.rows * size + tier_N
        scores_NH = _products(query_BA, history.map(self.W_k), heads) + of_tiers_BKH.flatten(0, 1)[cell_N]
        weights_NH = history.with_values(scores_NH).softmax().values
        mass_BKH = weights_NH.new_zeros(history.num_rows * size, heads).index_add(0, cell_N, weights_NH)
        mass_BKH = mass_BKH.view(-1, size, heads)
        of_tiers_BA = torch.einsum("bkh,khd->bhd", mass_BKH, _split(self.tier_values, heads)).flatten(1)
        return _project_sum(history, self.W_v, weights_NH) + of_tiers_BA

    def keys_and_values(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys ``(H, A / H, L)`` and values ``(H, L, A / H)`` of the history ``(L, D)`` of one user."""
        keys, values = (_split(linear(history), self.num_heads) for linear in (self.W_k, self.W_v))
        return keys.permute(1, 2, 0), values.transpose(0, 1)

    def attend(self, target: Tensor, keys: Tensor, values: Tensor, cosines: Tensor) -> Tensor:
        """Return ``forward`` of many targets ``(M, D)`` and one history, ``(M, A)``; cosines are ``(M, L)``."""
        query_HME = _split(self.W_q(target), self.num_heads).transpose(0, 1) / keys.shape[1] ** 0.5
        tier_keys_HEK = _split(self.tier_keys, self.num_heads).permute(1, 2, 0)
        tier_HML = tiers(cosines, self.num_tiers).expand(self.num_heads, -1, -1)
        of_tiers_HMK = query_HME @ tier_keys_HEK
        weights_HML = (query_HME @ keys + of_tiers_HMK.gather(2, tier_HML)).softmax(dim=2)
        mass_HMK = torch.zeros_like(of_tiers_HMK).scatter_add(2, tier_HML, weights_HML)
        pooled_HME = weights_HML @ values + mass_HMK @ _split(self.tier_values, self.num_heads).transpose(0, 1)
        return pooled_HME.transpose(0, 1).flatten(1)


def _split(values: Tensor, num_heads: int) -> Tensor:
    return values.unflatten(-1, (num_heads, -1))


def _products(query: Tensor, key: Jagged, num_heads: int) -> Tensor:
    """Return the products of queries ``(B, A)`` with entries of dim A, head by head, ``(N, H)``."""
    return _split(query.index_select(0, key.rows) * key.values, num_heads).sum(dim=-1)


def _project_sum(history: Jagged, project: nn.Linear, weights: Tensor) -> Tensor:
    """Return the weighted sums of projected entries, ``(B, A)``: with one head, the projections of fewer sums."""
    few_rows = is_exporting() or history.num_rows <= history.distinct.shape[0]  # sizes of an export vary
    if weights.shape[1] == 1 and few_rows:
        return project(weighted_sum(history, weights.squeeze(1)))
    return _segment_sum(history.map(project), weights)


def _segment_sum(value: Jagged, weights: Tensor) -> Tensor:
    """Return the weighted sums of entries of dim A, each head its part, ``(B, A)``."""
    num_heads = weights.shape[1]
    if num_heads == 1:
        return weighted_sum(value, weights.squeeze(1))
    return value.with_values(_split(value.values, num_heads).mul(weights.unsqueeze(2)).flatten(1)).sum()
