"""Layers that multiply their input by a linear projection of it.

Shape letters: B rows, D dim, R linear projections of a layer ("rows" in the paper's code).
"""

from __future__ import annotations

from functools import reduce
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxictr_mm.layers.dropout import apply_mask, keep_mask


class QuadraticLayer(nn.Module):
    r"""Sum of the products of the input with R linear projections of it.

    Li et al., "Quadratic Interest Network for Multimodal Click-Through Rate Prediction", WWW 2025 workshop EReL@MIR,
    https://arxiv.org/abs/2504.17699

    .. math:: y = \sum_{r=1}^{R} x \odot \mathrm{dropout}(W_r x + b_r)

    Without dropout the projections are summed first, which is the same function with one product instead of R:

    .. math:: y = x \odot \Big(\Big(\sum_r W_r\Big) x + \sum_r b_r\Big)

    The sum is computed in every forward pass, so it always belongs to the current weights.

    Parameters
    ----------
    input_dim : int
        D.
    num_row : int
        R.
    net_dropout : float
        On the outputs of the linear projections.

    Examples
    --------
    >>> QuadraticLayer(input_dim=4, num_row=3)(torch.randn(2, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, input_dim: int, num_row: int = 2, net_dropout: float = 0.1) -> None:
        super().__init__()
        self.num_row = num_row
        self.linear = nn.Sequential(nn.Linear(input_dim, input_dim * num_row), nn.Dropout(net_dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, D)`` to ``(B, D)``."""
        projections, dropout = cast(tuple[nn.Linear, nn.Dropout], tuple(self.linear))
        if self.training and dropout.p > 0:
            products_BRD = projections(x).unflatten(1, (self.num_row, -1))
            if x.device.type == "cpu" and dropout.p < 1:
                return x * _DropThenSum.apply(products_BRD, dropout.p)
            return x * dropout(products_BRD).sum(dim=1)
        return x * F.linear(x, *self.sums())

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return the sums of all projections, the weight ``(D, D)`` and the bias ``(D,)``."""
        linear = cast(nn.Linear, self.linear[0])
        # One addition after the other: faster than a sum over a dimension.
        weight, bias = (reduce(torch.add, p.chunk(self.num_row)) for p in (linear.weight, linear.bias))
        return weight, bias


class PReLU(nn.PReLU):
    r"""``nn.PReLU`` with one slope, three times faster in the backward pass.

    He et al., "Delving Deep into Rectifiers", ICCV 2015, https://arxiv.org/abs/1502.01852

    .. math:: y = \mathrm{ReLU}(x) + a \, (x - \mathrm{ReLU}(x))

    Examples
    --------
    >>> PReLU(init=0.25)(torch.tensor([-4.0, 0.0, 3.0])).tolist()
    [-1.0, 0.0, 3.0]
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map any shape to itself."""
        return torch.lerp(torch.relu(input), input, self.weight.to(input.dtype))


class QuadraticNetwork(nn.Module):
    r"""Quadratic layers with residuals, then a linear logit.

    Li et al., WWW 2025 workshop EReL@MIR, https://arxiv.org/abs/2504.17699

    .. math:: x_{l+1} = x_l + \mathrm{dropout}(\mathrm{PReLU}(\mathrm{BN}(Q_l(x_l)))), \qquad z = w \cdot x_L + b

    with Q a ``QuadraticLayer``. Parameters have the names and shapes of the published code.

    Parameters
    ----------
    input_dim : int
        D.
    num_layers : int
        Number of layers.
    num_row : int
        R, linear projections of a layer.
    net_dropout : float
        On the linear projections of a layer, and again on its output.
    batch_norm : bool
        Batch norm in each layer.

    Examples
    --------
    >>> QuadraticNetwork(input_dim=4, num_layers=2, num_row=3, batch_norm=True)(torch.randn(2, 4)).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        input_dim: int,
        num_layers: int = 3,
        num_row: int = 2,
        net_dropout: float = 0.1,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layer = nn.ModuleList(QuadraticLayer(input_dim, num_row, net_dropout) for _ in range(num_layers))
        self.norm = nn.ModuleList(nn.BatchNorm1d(input_dim) if batch_norm else nn.Identity() for _ in range(num_layers))
        self.activation = nn.ModuleList(PReLU() for _ in range(num_layers))
        self.dropout = nn.ModuleList(nn.Dropout(net_dropout) for _ in range(num_layers))
        self.fc = nn.Linear(input_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit ``(B, 1)`` of ``(B, D)``."""
        if torch.is_autocast_enabled(x.device.type):
            # Activations between the products take half the memory; batch norm has its statistics in float32.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for number, layer in enumerate(self.layer):
            x = self._add(x, layer(x), number)
        return self.fc(x)

    def _add(self, x: Tensor, products: Tensor, number: int) -> Tensor:
        return x + self.dropout[number](self.activation[number](self.norm[number](products)))

    def projection_of_shared(self, shared: Tensor) -> Tensor:
        """Return the part of the first layer's projection ``(1, D)`` that all rows beginning with ``(1, S)`` share."""
        weight, bias = cast(QuadraticLayer, self.layer[0]).sums()
        return F.linear(shared, weight[:, : shared.shape[1]], bias)

    def forward_shared(self, shared: Tensor, projection: Tensor, own: Tensor) -> Tensor:
        """Return ``forward`` of rows that begin with ``(1, S)`` and go on with ``(B, D - S)``.

        With the ``projection`` of ``projection_of_shared``, the first layer multiplies the latter alone.
        """
        x = torch.cat([shared.expand(own.shape[0], -1), own], dim=1)
        weight, _ = cast(QuadraticLayer, self.layer[0]).sums()
        x = self._add(x, x * torch.addmm(projection, own, weight[:, shared.shape[1] :].t()), 0)
        for number, layer in enumerate(self.layer[1:], start=1):
            x = self._add(x, layer(x), number)
        return self.fc(x)


class _DropThenSum(torch.autograd.Function):
    """Dropout of ``(B, R, D)`` on the CPU and the sum over R, ``(B, D)``; it saves the mask only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask, ctx.scale = keep_mask(x, p)
        ctx.save_for_backward(mask)
        total = apply_mask(x[:, 0], mask[:, 0])
        for r in range(1, x.shape[1]):
            if mask.dtype == x.dtype:
                total.addcmul_(x[:, r], mask[:, r])
            else:
                total.add_(apply_mask(x[:, r], mask[:, r]))
        return total.mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return apply_mask((gradient * ctx.scale).unsqueeze(1), mask), None
