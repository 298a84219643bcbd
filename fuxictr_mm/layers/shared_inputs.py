"""Networks whose rows have a part of their input in common, as the candidates of one user have.

Shape letters: M rows, S dim of the part in common, D dim of the rest, T outputs.
"""

from __future__ import annotations

import torch
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn


def mlp_of_shared(mlp: MLP_Block, shared: Tensor, *own: Tensor) -> Tensor:
    r"""Return the MLP of rows that begin alike, ``(M, T)``, without multiplying the beginning row by row.

    .. math:: W [c, x_m] + b = W_x x_m + (W_c c + b)

    Parameters
    ----------
    mlp : MLP_Block
        From S + D inputs.
    shared : Tensor
        ``(1, S)``, the beginning of all rows.
    *own : Tensor
        ``(M, ..)``, the other columns; their dims sum to D.

    Examples
    --------
    >>> mlp, shared, own = MLP_Block(5, hidden_units=[3], output_dim=1), torch.randn(1, 2), torch.randn(4, 3)
    >>> torch.allclose(mlp_of_shared(mlp, shared, own), mlp(torch.cat([shared.expand(4, -1), own], dim=1)), atol=1e-6)
    True
    """
    first = mlp.mlp[0]
    if not isinstance(first, nn.Linear):  # a norm of all inputs comes first
        return mlp(torch.cat([shared.expand(own[0].shape[0], -1), *own], dim=1))
    weight_c, weight_x = first.weight.split([shared.shape[1], first.in_features - shared.shape[1]], dim=1)
    common = nn.functional.linear(shared, weight_c, first.bias)
    return mlp.mlp[1:](torch.addmm(common, torch.cat(own, dim=1), weight_x.t()))
