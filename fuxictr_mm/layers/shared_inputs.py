"""Networks whose rows have a part of their input in common, as the candidates of one user have.

Shape letters: M rows, S dim of the part in common, D dim of the rest, F fields in common, G other fields, E their dim,
H units of the first layer, T outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fuxictr_mm.fuxictr_imports import MLP_Block
from fuxictr_mm.layers.senet import SENet


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


def products_of_fields(mlp: MLP_Block, fields: Tensor) -> Tensor:
    """Return the product of each of the first fields ``(F, E)`` of an MLP with its first weights, ``(F, H)``."""
    weights_HFE = mlp.mlp[0].weight[:, : fields.numel()].unflatten(1, fields.shape)
    # An export computes the transposed weights once; of an einsum, ONNX Runtime would transpose them in every call.
    return (weights_HFE.transpose(0, 1) @ fields.unsqueeze(2)).squeeze(2)


def mlp_of_shared_fields(mlp: MLP_Block, senet: nn.Module, shared: Tensor, products: Tensor, own: Tensor) -> Tensor:
    r"""Return the MLP of weighted fields of which the first are common to all rows, ``(M, T)``.

    .. math:: W [a_1 x_1 .. a_{F + G} x_{F + G}] = \sum_{f \le F} a_{m, f} (W_f x_f) + W_{> F} [a_{F+1} x_{m, F+1} ..]

    A weight of SENet is one number for a field, so the product of a common field is computed before it is weighted.

    Parameters
    ----------
    mlp : MLP_Block
        From (F + G) E inputs; a linear layer comes first.
    senet : SENet or Identity
        The weights of all fields.
    shared : Tensor
        ``(F, E)``, the common fields.
    products : Tensor
        ``(F, H)``, by ``products_of_fields``.
    own : Tensor
        ``(M, G, E)``, the other fields.
    """
    linear, count = mlp.mlp[0], shared.shape[0]
    if isinstance(senet, SENet):
        means = shared.mean(dim=1).expand(own.shape[0], -1)
        weights = senet.excitation(torch.cat([means, own.mean(dim=2)], dim=1))
        own = own * weights[:, count:].unsqueeze(2)
        common = torch.addmm(linear.bias, weights[:, :count], products)
    else:
        common = linear.bias + products.sum(dim=0, keepdim=True)
    return mlp.mlp[1:](torch.addmm(common, own.flatten(1), linear.weight[:, shared.numel() :].t()))
