"""The attention of the Deep Interest Network.

Shape letters: B rows, N history items of a batch, U distinct items, D dim, A dim of the first hidden layer,
M targets and L items of one user.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from fuxictr_mm.fuxictr_imports import MLP_Block
from fuxictr_mm.jagged import Jagged, weighted_sum
from fuxictr_mm.layers import triton_kernels
from fuxictr_mm.layers.chunked_scores import chunked_scores, relu_layers


class DINAttention(nn.Module):
    r"""Sum of the history, weighted by an MLP of the target and each history item.

    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018,
    https://arxiv.org/abs/1706.06978

    .. math:: o_b = \sum_{n \in b} w_n s_n, \qquad w_n = \mathrm{MLP}([t_b, s_n, t_b - s_n, t_b \odot s_n])

    The MLP runs on real items only, and its first layer is split into terms,

    .. math:: W [t, s, t - s, t \odot s] = (W_t + W_d) t + (W_s - W_d) s + W_p (t \odot s),

    so that only the last term needs a product per entry; the first is per row, the second per distinct item.
    Parameters have the names and shapes of FuxiCTR's ``DIN_Attention``, so state dicts load in both directions.

    Departures from ``DIN_Attention``: with ``use_softmax`` an empty history gives zero (there: the mean of the
    padding); batch statistics (``batch_norm``, ``Dice``) are those of real items (there: padding counts too).

    Parameters
    ----------
    embedding_dim : int
        D.
    attention_units : sequence of int
        Dims of the hidden layers.
    hidden_activations : str or list of str
        One for all hidden layers or one each: a name of ``torch.nn`` or ``"Dice"``.
    output_activation : str, optional
        Of the score, such as ``"Sigmoid"``.
    dropout_rate : float
        Between hidden layers.
    batch_norm : bool
        Batch normalisation in the hidden layers.
    use_softmax : bool
        Normalise the weights of a row by a softmax. The paper does not, to keep the strength of an interest.

    Examples
    --------
    >>> import torch
    >>> attention = DINAttention(4, [8])
    >>> history = Jagged(torch.randn(3, 4), torch.tensor([0, 3, 3]))
    >>> interest = attention(torch.randn(2, 4), history)
    >>> interest.shape, interest[1].tolist()
    (torch.Size([2, 4]), [0.0, 0.0, 0.0, 0.0])
    """

    #: Whether a GPU computes the first layer in one kernel, with ReLU and dropout behind it.
    uses_kernels = False

    def __init__(
        self,
        embedding_dim: int,
        attention_units: Sequence[int] = (32,),
        *,
        hidden_activations: str | list[str] = "ReLU",
        output_activation: str | None = None,
        dropout_rate: float = 0.0,
        batch_norm: bool = False,
        use_softmax: bool = False,
    ) -> None:
        super().__init__()
        self.use_softmax = use_softmax
        self.attention_layer = MLP_Block(
            input_dim=4 * embedding_dim,
            output_dim=1,
            hidden_units=list(attention_units),
            hidden_activations=hidden_activations,
            output_activation=output_activation,
            dropout_rates=dropout_rate,
            batch_norm=batch_norm,
        )
        # The weights of the items pass through it, so that a hook can read or replace them.
        self.weights = nn.Identity()

    def forward(self, target: Tensor, history: Jagged) -> Tensor:
        """Sum the entries ``(.., D)`` weighted for targets ``(B, D)``: ``(B, D)``, zero for an empty history."""
        first_layer = self.attention_layer.mlp[0]
        weight_t, weight_s, weight_d, weight_p = first_layer.weight.chunk(4, dim=1)
        target_BA = F.linear(target, weight_t + weight_d, first_layer.bias)
        items = history.map(lambda items_UD: F.linear(items_UD, weight_s - weight_d))
        behind = self.attention_layer.mlp[1:]
        relu = relu_layers(behind) if target.device.type == "cpu" and not is_compiling() else None
        if relu is not None:
            scores_N1 = chunked_scores(target, history, target_BA, items.distinct, weight_p, relu).unsqueeze(-1)
            scores_N = relu.output(scores_N1).squeeze(-1)
        elif self._is_fused(target_BA):
            from fuxictr_mm.layers.triton_kernels.activation_unit import first_layer

            dropout = behind[1] if isinstance(behind[1], nn.Dropout) else None
            p = dropout.p if dropout is not None and dropout.training else 0.0
            hidden_NA = first_layer(target, history, target_BA, items.distinct, weight_p, p)
            scores_N = behind[1 if dropout is None else 2 :](hidden_NA).squeeze(-1)
        else:
            product_ND = target.index_select(0, history.rows) * history.values
            hidden_NA = torch.addmm(items.values + target_BA.index_select(0, history.rows), product_ND, weight_p.t())
            scores_N = behind(hidden_NA).squeeze(-1)
        weights_N = history.with_values(scores_N).softmax().values if self.use_softmax else scores_N
        return weighted_sum(history, self.weights(weights_N))

    def _is_fused(self, hidden: Tensor) -> bool:
        """Whether a kernel computes the first layer, in the dtype of ``hidden``."""
        before_relu = type(next(iter(self.attention_layer.mlp[1:]), None)) is nn.ReLU
        return self.uses_kernels and before_relu and triton_kernels.takes(hidden)

    def keys(self, history: Tensor) -> Tensor:
        """Return the part of the first layer that depends only on the history ``(L, D)`` of one user, ``(L, A)``."""
        _, weight_s, weight_d, _ = self.attention_layer.mlp[0].weight.chunk(4, dim=1)
        return F.linear(history, weight_s - weight_d)

    def attend(self, target: Tensor, history: Tensor, keys: Tensor) -> Tensor:
        """Return ``forward`` of many targets ``(M, D)`` and one history ``(L, D)`` with its ``keys``, ``(M, D)``."""
        return self.weights_of(target, history, keys) @ history

    def weights_of(self, target: Tensor, history: Tensor, keys: Tensor) -> Tensor:
        """Return the weights ``(M, L)`` of ``attend``."""
        first_layer = self.attention_layer.mlp[0]
        weight_t, _, weight_d, weight_p = first_layer.weight.chunk(4, dim=1)
        target_MA = F.linear(target, weight_t + weight_d, first_layer.bias)
        # Not history @ (target.unsqueeze(2) * weight_p.t()): the matrices (M, D, A) cost more unless L is above A.
        hidden_MLA = (target.unsqueeze(1) * history) @ weight_p.t() + keys + target_MA.unsqueeze(1)
        weights_ML = self.attention_layer.mlp[1:](hidden_MLA.flatten(0, 1)).view(target.shape[0], history.shape[0])
        return weights_ML.softmax(dim=1) if self.use_softmax else weights_ML
