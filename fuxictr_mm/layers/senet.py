"""Squeeze and excitation over fields.

Shape letters: B rows, F fields, D dim, R reduced fields.
"""

from __future__ import annotations

from fuxictr_mm.fuxictr_imports import SqueezeExcitation


class SENet(SqueezeExcitation):
    r"""Give each field a weight that depends on all fields: FuxiCTR's ``SqueezeExcitation``.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, https://arxiv.org/abs/1709.01507; over fields in Huang et
    al., "FiBiNET", RecSys 2019, https://arxiv.org/abs/1905.09433

    .. math:: y_f = a_f x_f, \qquad a = \sigma_2(W_2 \, \mathrm{ReLU}(W_1 z)), \qquad z_f = \mathrm{mean}_d \, x_{f, d}

    ``forward`` takes and returns ``(B, F, D)``; :math:`W_1` is ``(R, F)`` and :math:`W_2` is ``(F, R)``.

    Parameters
    ----------
    num_fields : int
        F.
    reduction_ratio : float
        R = F / ``reduction_ratio``, rounded down, at least 1.
    excitation_activation : {"ReLU", "Sigmoid"}
        :math:`\sigma_2`.

    Raises
    ------
    ValueError
        ``excitation_activation`` is unknown.

    Examples
    --------
    >>> import torch
    >>> SENet(num_fields=6)(torch.randn(2, 6, 4)).shape
    torch.Size([2, 6, 4])
    """

    def __init__(self, num_fields: int, reduction_ratio: float = 3, excitation_activation: str = "ReLU") -> None:
        if excitation_activation.lower() not in ("relu", "sigmoid"):
            raise ValueError(f"excitation_activation={excitation_activation!r} must be 'ReLU' or 'Sigmoid'")
        super().__init__(num_fields, reduction_ratio, excitation_activation)
