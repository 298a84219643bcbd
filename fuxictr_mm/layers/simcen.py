"""An MLP in three parts over different views of the input.

Shape letters: B rows, F fields, D dim of a field, P pairs of fields, E dim of a part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ContrastiveProduct(nn.Module):
    r"""Two views of all products of two fields.

    Li et al., "SimCEN: Simple Contrast-enhanced Network for CTR Prediction", ACM MM 2024,
    https://openreview.net/forum?id=pJHu4hDlLX

    .. math::
        M = X W X^\top, \qquad v_1 = A \, [M_{ij}]_{i \le j}, \qquad v_2 = B \, [M_{ij}]_{i \ge j}

    W is not symmetric, so the upper and the lower triangle of M describe the same pairs differently.

    Parameters
    ----------
    num_fields : int
        F.
    field_dim : int
        D.
    """

    upper: Tensor
    lower: Tensor

    def __init__(self, num_fields: int, field_dim: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(nn.init.xavier_normal_(torch.empty(field_dim, field_dim)))
        row, column = torch.triu_indices(num_fields, num_fields)
        self.register_buffer("upper", row * num_fields + column, persistent=False)
        row, column = torch.tril_indices(num_fields, num_fields)
        self.register_buffer("lower", row * num_fields + column, persistent=False)
        self.map_upper = nn.Linear(self.upper.numel(), num_fields * field_dim, bias=False)
        self.map_lower = nn.Linear(self.lower.numel(), num_fields * field_dim, bias=False)

    def forward(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Return both views, each ``(B, F D)``, of the fields ``(B, F, D)``."""
        products = (fields @ self.kernel @ fields.transpose(1, 2)).flatten(1)
        upper, lower = products.index_select(1, self.upper), products.index_select(1, self.lower)
        return self.map_upper(upper), self.map_lower(lower)


class ContrastLayer(nn.Module):
    r"""One linear layer for all three parts; the first part gates the others.

    Li et al., ACM MM 2024, https://openreview.net/forum?id=pJHu4hDlLX

    .. math::
        [e', a', b'] = W [e, a, b] + c, \qquad g = \sigma(G e' + d) \oslash \tau

        e \leftarrow \phi(e'), \quad a \leftarrow \phi(a' + g \odot a' + n_a + a), \quad
        b \leftarrow \phi(b' + g \odot b' + n_b + b)

    with :math:`\phi` batch norm (where asked for), ReLU and dropout. The first layer has neither offset n nor residual.

    Parameters
    ----------
    input_dim : int
        Dim of the input, of the three parts together.
    hidden_dim : int
        E.
    first : bool
        Whether this is the first layer; the input dim of the others is ``3 E``.
    batch_norm : bool
        Batch norm of each part.
    dropout_rate : float
        On each part.
    """

    def __init__(self, input_dim: int, hidden_dim: int, *, first: bool, batch_norm: bool, dropout_rate: float) -> None:
        super().__init__()
        self.linear = nn.Linear(input_dim, 3 * hidden_dim)
        self.gate = nn.Linear(hidden_dim, hidden_dim)
        self.gate_tau = nn.Parameter(torch.ones(hidden_dim))
        self.offset = None if first else nn.Parameter(torch.rand(2 * hidden_dim))
        # Batch norm, ReLU and dropout are per column: one module for all three parts.
        norm = [nn.BatchNorm1d(3 * hidden_dim)] if batch_norm else []
        self.activation = nn.Sequential(*norm, nn.ReLU(), nn.Dropout(dropout_rate))

    def forward(self, parts: Tensor) -> Tensor:
        """Return the next parts ``(B, 3 E)``."""
        projected = self.linear(parts)
        first, others = projected.split([self.gate.out_features, 2 * self.gate.out_features], dim=1)
        gate = torch.sigmoid(self.gate(first)) / self.gate_tau
        others = others * (1 + torch.cat([gate, gate], dim=1))
        if self.offset is not None:
            others = others + self.offset + parts[:, self.gate.out_features :]
        return self.activation(torch.cat([first, others], dim=1))


def contrastive_loss(anchor: Tensor, first: Tensor, second: Tensor, temperature: float) -> Tensor:
    r"""Contrast of two views around an anchor.

    Li et al., ACM MM 2024, https://openreview.net/forum?id=pJHu4hDlLX

    .. math::
        -\frac{1}{B} \sum_b \log \left( \frac{\exp((e_b \cdot a_b + e_b \cdot b_b) / 2 \theta)}
        {\sum_j \exp(a_b \cdot b_j / \theta)} + 10^{-5} \right)

    of normalised vectors.

    Parameters
    ----------
    anchor, first, second : Tensor
        ``(B, E)`` e, a and b.
    temperature : float
        The divisor of every product.

    Returns
    -------
    Tensor
        A scalar, lower where both views are similar to their anchor and dissimilar to other rows.

    Examples
    --------
    >>> one = torch.tensor([[3.0, 0.0]])
    >>> abs(float(contrastive_loss(one, one, one, 0.2))) < 1e-4
    True
    """
    anchor, first, second = (F.normalize(vectors, dim=-1) for vectors in (anchor, first, second))
    near = (anchor * (first + second)).sum(dim=-1) / 2 / temperature
    # The quotient of exponentials as one exponential, which cannot overflow.
    return -(torch.exp(near - torch.logsumexp(first @ second.t() / temperature, dim=-1)) + 1e-5).log().mean()
