"""Bilinear interactions between fields.

Shape letters: B rows, F fields, P = F (F - 1) / 2 pairs of fields, D dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fuxictr_mm.fuxictr_imports import fuxictr_layers

BILINEAR_TYPES = ("field_all", "field_each", "field_interaction")


class BilinearInteraction(fuxictr_layers.BilinearInteraction):
    r"""Product of every two fields, the first one multiplied by a matrix.

    Huang et al., "FiBiNET: Combining Feature Importance and Bilinear feature Interaction for Click-Through Rate
    Prediction", RecSys 2019, https://arxiv.org/abs/1905.09433

    .. math:: p_{ij} = (x_i W) \odot x_j, \qquad i < j, \qquad W \in \{ W, W_i, W_{ij} \}

    FuxiCTR's parameter, its initial values and its order of pairs, (0, 1), (0, 2) .. (F - 2, F - 1), but each field is
    multiplied once instead of once per pair.

    Parameters
    ----------
    num_fields : int
        F, at least 2.
    embedding_dim : int
        D.
    bilinear_type : {"field_all", "field_each", "field_interaction"}
        One matrix for all fields, one for each first field, or one for each pair.

    Raises
    ------
    ValueError
        ``bilinear_type`` is unknown, or there are fewer than two fields.

    Examples
    --------
    >>> BilinearInteraction(num_fields=4, embedding_dim=8, bilinear_type="field_all")(torch.randn(2, 4, 8)).shape
    torch.Size([2, 6, 8])
    """

    def __init__(self, num_fields: int, embedding_dim: int, bilinear_type: str = "field_interaction") -> None:
        if bilinear_type not in BILINEAR_TYPES:
            raise ValueError(f"bilinear_type={bilinear_type!r} must be one of {', '.join(BILINEAR_TYPES)}")
        if num_fields < 2:
            raise ValueError(f"num_fields={num_fields} must be at least 2")
        super().__init__(num_fields, embedding_dim, bilinear_type)
        self.num_fields = num_fields

    def forward(self, feature_emb: Tensor) -> Tensor:
        """Multiply every two fields.

        Parameters
        ----------
        feature_emb : Tensor
            ``(B, F, D)``.

        Returns
        -------
        Tensor
            ``(B, P, D)``.
        """
        return torch.cat([left * feature_emb[:, i + 1 :] for i, left in enumerate(self._left(feature_emb))], dim=1)

    def _left(self, feature_emb: Tensor) -> Sequence[Tensor]:
        """Project each field but the last: ``(B, 1, D)``, or ``(B, F - 1 - i, D)`` for field i."""
        if self.bilinear_type == "field_all":
            return (feature_emb[:, :-1] @ self.bilinear_W).split(1, dim=1)
        if self.bilinear_type == "field_each":
            return torch.einsum("bfd,fde->bfe", feature_emb[:, :-1], self.bilinear_W[:-1]).split(1, dim=1)
        matrices = self.bilinear_W.split(list(range(self.num_fields - 1, 0, -1)))
        return [torch.einsum("bd,pde->bpe", feature_emb[:, i], matrix) for i, matrix in enumerate(matrices)]
