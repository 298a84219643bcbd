"""Attention of the target item to the history, with heads.

Shape letters: B rows, N history items of a batch, U distinct items, D input dim, A attention dim, H heads,
K = A / H dim of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fuxictr_mm.jagged import (
    Jagged,
    has_sparse_kernels,
    is_exporting,
    multi_query_products,
    segment_products,
    weighted_sum,
)
from fuxictr_mm.layers import triton_kernels
from fuxictr_mm.layers.history_search import first, softmax_of_found

#: A product of a query and an entry, and its gradients, take the time of this many products inside a large matrix.
COST_OF_PRODUCT = 14


class MultiHeadTargetAttention(nn.Module):
    r"""Scaled dot-product attention with one query per row: the target item.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, https://arxiv.org/abs/1706.03762; the sparse scores are
    those of Li et al., "Quadratic Interest Network for Multimodal Click-Through Rate Prediction", WWW 2025 workshop
    EReL@MIR, https://arxiv.org/abs/2504.17699

    .. math::
        a_{n, h} = \mathrm{softmax}_{n \in b} \frac{(W_q t_b)_h \cdot (W_k s_n)_h}{\sqrt K}, \qquad
        o_b = W_o \left[ W_{v, h} \sum_{n \in b} a_{n, h} s_n \right]_{h = 1 .. H}

    With ``sparse=True`` the softmax is a ReLU: items with a negative score have weight zero, and the weights of a row
    need not sum to one.

    :math:`W_v` is applied after the sum, once per row, and :math:`W_k` to distinct items only, which is the same since
    both are linear. Where that costs less, :math:`W_k` is applied to the queries instead,
    :math:`(W_k^\top W_q t_b) \cdot s_n`, so that no item is projected: with one head unless a batch has fewer distinct
    items than rows, with several heads on a CPU if most items of a batch are distinct. Parameters have names and shapes
    of FuxiCTR's ``MultiHeadTargetAttention``, so state dicts load in both directions.

    Departures: an empty history gives zero (in FuxiCTR: the mean of the padding). The residual ``+ t`` that the
    Quadratic Interest Network adds to the output is left to the model.

    Parameters
    ----------
    input_dim : int
        D, of the target, the history and the output.
    attention_dim : int
        A, a multiple of ``num_heads``. ``use_qkvo=False`` sets it to D.
    num_heads : int
        H.
    dropout_rate : float
        On the attention weights.
    use_scale : bool
        Divide the scores by the root of K.
    use_qkvo : bool
        Learn the four projections; without, each head attends within its own slice of the D inputs.
    sparse : bool
        ReLU instead of the softmax.

    Raises
    ------
    ValueError
        If the attention dim is not a multiple of ``num_heads``.

    Examples
    --------
    >>> attention = MultiHeadTargetAttention(input_dim=4, attention_dim=6, num_heads=2)
    >>> history = Jagged(torch.randn(3, 4), torch.tensor([0, 3, 3]))
    >>> interest, weights = attention(torch.randn(2, 4), history, return_weights=True)
    >>> interest.shape, interest[1].tolist(), weights.values.shape
    (torch.Size([2, 4]), [0.0, 0.0, 0.0, 0.0], torch.Size([3, 2]))
    """

    #: Whether a GPU computes scores, weights and sums in one kernel, see ``_is_fused``.
    uses_kernels = False

    def __init__(
        self,
        input_dim: int = 64,
        attention_dim: int = 64,
        num_heads: int = 1,
        dropout_rate: float = 0.0,
        use_scale: bool = True,
        use_qkvo: bool = True,
        *,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if not use_qkvo:
            attention_dim = input_dim
        if attention_dim % num_heads:
            name = "attention_dim" if use_qkvo else "input_dim (use_qkvo is False)"
            raise ValueError(f"{name}={attention_dim} must be a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.head_dim = attention_dim // num_heads
        self.scale = self.head_dim**0.5 if use_scale else 1.0
        self.use_qkvo = use_qkvo
        self.sparse = sparse
        if use_qkvo:
            self.W_q = nn.Linear(input_dim, attention_dim, bias=False)
            self.W_k = nn.Linear(input_dim, attention_dim, bias=False)
            self.W_v = nn.Linear(input_dim, attention_dim, bias=False)
            self.W_o = nn.Linear(attention_dim, input_dim, bias=False)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(
        self, target: Tensor, history: Jagged, *, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Jagged]:
        """Attend to the history.

        Parameters
        ----------
        target : Tensor
            ``(B, D)``.
        history : Jagged
            Entries of shape ``(.., D)``.
        return_weights : bool
            Return the attention weights too, for diagnosis.

        Returns
        -------
        interest : Tensor
            ``(B, D)``, zero for an empty history.
        weights : Jagged
            Entries of shape ``(N, H)``, before dropout; only with ``return_weights``.
        """
        if not return_weights and self._is_fused(target, history):
            from fuxictr_mm.layers.triton_kernels.target_attention import target_attention

            return self._project(target_attention(self._queries_for_items(target), history, self.sparse))
        weights = self._weights(target, history)
        pooled = self._pool(history, self.dropout(weights.values))
        return (pooled, weights) if return_weights else pooled

    def _is_fused(self, target: Tensor, history: Jagged) -> bool:
        """Whether nothing but a kernel needs the weights: no dropout is active, and no hook reads or replaces them."""
        drops = self.dropout.training and self.dropout.p > 0
        if not self.uses_kernels or not self.use_qkvo or drops or self.dropout._forward_hooks:
            return False
        sizes = self.num_heads, history.distinct.shape[1]
        return triton_kernels.takes(target, history.distinct) and triton_kernels.takes_queries(*sizes)

    def _queries_for_items(self, target: Tensor) -> Tensor:
        r"""Return :math:`W_k^\top W_q t` of every head, scaled, ``(B, H, D)``."""
        query_BHK = self.W_q(target).unflatten(1, (self.num_heads, -1)) / self.scale
        return torch.einsum("bhk,hkd->bhd", query_BHK, self.W_k.weight.unflatten(0, (self.num_heads, -1)))

    def _weights(self, target: Tensor, history: Jagged) -> Jagged:
        few_rows = is_exporting() or history.num_rows <= history.distinct.shape[0]  # sizes of an export vary
        if self.use_qkvo and self.num_heads == 1 and few_rows:
            # multi_dot chooses the cheaper order: two products per row, or one with the product of both weights.
            query_BD = _products([target, self.W_q.weight.t(), self.W_k.weight])
            products = segment_products(query_BD / self.scale, history, 1)
        elif self.use_qkvo and self._projects_queries(history):
            products = multi_query_products(self._queries_for_items(target), history)
        else:
            queries = (self.W_q(target) if self.use_qkvo else target) / self.scale
            keys = history.map(self.W_k) if self.use_qkvo else history
            products = segment_products(queries, keys, self.num_heads)
        scores = history.with_values(products)
        return scores.map(torch.relu) if self.sparse else scores.softmax()

    def _projects_queries(self, history: Jagged) -> bool:
        """Whether :math:`W_k` costs less on the query of every head than on every distinct item."""
        saved = (history.distinct.shape[0] - history.num_rows) * self.W_k.out_features
        more = history.num_values * (self.num_heads - 1)
        return has_sparse_kernels(history.distinct) and COST_OF_PRODUCT * more < saved

    def _pool(self, history: Jagged, weights_NH: Tensor) -> Tensor:
        if not self.use_qkvo:
            slices = history.distinct.split(self.head_dim, dim=1)
            heads = [
                weighted_sum(Jagged(slice_UK, history.offsets, history.index), weights_N)
                for slice_UK, weights_N in zip(slices, weights_NH.unbind(1), strict=True)
            ]
            return torch.cat(heads, dim=1)
        if self.num_heads == 1:
            pooled_BD = weighted_sum(history, weights_NH.squeeze(1))
            return _products([pooled_BD, self.W_v.weight.t(), self.W_o.weight.t()])
        return self._project(weighted_sum(history, weights_NH))

    def _project(self, pooled_BHD: Tensor) -> Tensor:
        """Return the output ``(B, D)`` of the heads' sums of items."""
        value_HKD = self.W_v.weight.unflatten(0, (self.num_heads, self.head_dim))
        return self.W_o(torch.einsum("bhd,hkd->bhk", pooled_BHD, value_HKD).flatten(1))

    def keys_and_values(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys, scaled, ``(H, K, L)`` and values ``(H, L, K)`` of the history ``(L, D)`` of one user."""
        keys, values = (self.W_k(history), self.W_v(history)) if self.use_qkvo else (history, history)
        heads = (self.num_heads, self.head_dim)
        return (keys / self.scale).unflatten(1, heads).permute(1, 2, 0), values.unflatten(1, heads).transpose(0, 1)

    def attend(self, target: Tensor, keys: Tensor, values: Tensor, found: Tensor | None = None) -> Tensor:
        """Return ``forward`` of many targets ``(M, D)`` and one history by ``keys_and_values``, ``(M, D)``.

        With ``found``, ``(M, L)`` bool, each target attends only to its entries.
        """
        pooled_MA = (self.weights_of(target, keys, found) @ values).transpose(0, 1).flatten(1)
        return self.W_o(pooled_MA) if self.use_qkvo else pooled_MA

    def attend_to_first(self, target: Tensor, history: Tensor, count: int) -> Tensor:
        """Return ``forward`` of many targets ``(M, D)`` and the first entries of one history ``(L, D)``, ``(M, D)``."""
        return self.attend(target, *self.keys_and_values(first(history, count)))

    def weights_of(self, target: Tensor, keys: Tensor, found: Tensor | None = None) -> Tensor:
        """Return the weights ``(H, M, L)`` of ``attend``."""
        query_MA = self.W_q(target) if self.use_qkvo else target
        scores_HML = query_MA.unflatten(1, (self.num_heads, self.head_dim)).transpose(0, 1) @ keys
        if found is not None:
            return torch.relu(scores_HML) * found if self.sparse else softmax_of_found(scores_HML, found)
        return torch.relu(scores_HML) if self.sparse else scores_HML.softmax(dim=-1)


def _products(matrices: list[Tensor]) -> Tensor:
    """Return ``multi_dot``; it chooses the order by sizes, which vary in an export."""
    matrices = [matrix.to(matrices[-1].dtype) for matrix in matrices]  # autocast on a CPU leaves multi_dot as it is
    return matrices[0] @ matrices[1] @ matrices[2] if is_exporting() else torch.linalg.multi_dot(matrices)
