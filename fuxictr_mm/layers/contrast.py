"""The symmetric contrastive loss of embeddings of the same items, as CLIP's."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F


def symmetric_contrast(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    r"""Return the loss of embeddings ``(N, D)``, which by their cosine have to find each other among all N.

    Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020

    .. math::
        \mathcal L = -\tfrac 1 {2N} \sum_n \left( \log \mathrm{softmax}_m(x_n \cdot y_m / \tau)_n
        + \log \mathrm{softmax}_m(y_n \cdot x_m / \tau)_n \right), \quad x, y \text{ of norm } 1
    """
    cosines = F.normalize(one, dim=1) @ F.normalize(other, dim=1).t() / temperature
    match = torch.arange(len(one), device=one.device)
    return (F.cross_entropy(cosines, match) + F.cross_entropy(cosines.t(), match)) / 2


def contrast_of_fields(fields: Tensor, temperature: float) -> Tensor:
    """Return the mean ``symmetric_contrast`` of all pairs of fields of items ``(N, F, D)``.

    A field of zeros is one that the item does not have: an item is compared by the pairs of which it has both. The
    direction of zeros is undefined, and the gradient of a normalized zero is unbounded.
    """
    present = (fields != 0).any(dim=2)
    losses = []
    for one, other in combinations(range(fields.shape[1]), 2):
        both = present[:, one] & present[:, other]
        if both.any():
            losses.append(symmetric_contrast(fields[both, one], fields[both, other], temperature))
    return torch.stack(losses).mean() if losses else fields.sum() * 0
