r"""Cross networks: explicit feature crosses of bounded degree.

Shape letters: B rows, D dim, E experts, R rank.

``CrossNet`` (Wang et al., ADKDD 2017, https://arxiv.org/abs/1708.05123),
:math:`x_{l+1} = x_0 (w_l \cdot x_l) + b_l + x_l`, and ``CrossNetV2`` (Wang et al., WWW 2021,
https://arxiv.org/abs/2008.13535), :math:`x_{l+1} = x_0 \odot (W_l x_l + b_l) + x_l`, are FuxiCTR's own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fuxictr_mm.fuxictr_imports import CrossNet, CrossNetV2, fuxictr_layers

__all__ = ["CrossNet", "CrossNetMix", "CrossNetV2", "cross_network"]


class CrossNetMix(fuxictr_layers.CrossNetMix):
    r"""Cross network with a mixture of low-rank experts.

    Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems",
    WWW 2021, https://arxiv.org/abs/2008.13535

    .. math::
        x_{l+1} = x_0 \odot \Big( \sum_e g_e(x_l) \, U_{l,e} \tanh(C_{l,e} \tanh(V_{l,e}^\top x_l)) + b_l \Big) + x_l,
        \qquad g = \mathrm{softmax}(G x_l)

    FuxiCTR's parameters and their initial values, all experts at once instead of a loop. FuxiCTR's returns ``(D,)``
    for a batch of one and ``(B,)`` for a dim of one; this returns ``(B, D)`` always.

    Parameters
    ----------
    in_features : int
        D.
    layer_num : int
        Number of layers.
    low_rank : int
        R.
    num_experts : int
        E.

    Examples
    --------
    >>> CrossNetMix(in_features=8, layer_num=2, low_rank=3, num_experts=2)(torch.randn(1, 8)).shape
    torch.Size([1, 8])
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Cross the inputs with themselves.

        Parameters
        ----------
        inputs : Tensor
            ``(B, D)``.

        Returns
        -------
        Tensor
            ``(B, D)``.
        """
        gate_ED = torch.cat([gate.weight for gate in self.gating])
        crossed = inputs
        for U_EDR, V_EDR, C_ERR, bias_D1 in zip(self.U_list, self.V_list, self.C_list, self.bias, strict=True):
            gates_BE = torch.softmax(crossed @ gate_ED.t(), dim=-1)
            low_BER = torch.tanh(torch.einsum("bd,edr->ber", crossed, V_EDR))
            low_BER = torch.tanh(torch.einsum("ber,esr->bes", low_BER, C_ERR))
            # The gates sum to one, so the experts can be weighted before the bias is added, while their dim is still R.
            mixture_BD = torch.einsum("ber,edr->bd", low_BER * gates_BE.unsqueeze(-1), U_EDR)
            crossed = inputs * (mixture_BD + bias_D1.squeeze(-1)) + crossed
        return crossed


def cross_network(kind: Literal["v1", "v2", "mix"] | None, dim: int, num_layers: int) -> nn.Module:
    """Return the cross network of DCN, of DCN V2, or its mixture of experts; the identity for None."""
    if kind is None:
        return nn.Identity()
    return {"v1": CrossNet, "v2": CrossNetV2, "mix": CrossNetMix}[kind](dim, num_layers)
