"""Semantic ids: a frozen embedding of an item as ids that an embedding table can learn from.

Shape letters: I items, D dim, C clusters, L levels, K neighbours, Q items per chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def residual_codes(embeddings: Tensor, *, num_levels: int, num_clusters: int, seed: int = 0) -> Tensor:
    r"""Return the cluster of each item at every level of a residual quantizer.

    Juang and Gray, "Multiple stage vector quantization for speech coding", ICASSP 1982,
    https://doi.org/10.1109/ICASSP.1982.1171604

    .. math:: z^l_i = \arg\min_c |r^l_i - m^l_c|, \qquad r^{l+1}_i = r^l_i - m^l_{z^l_i}, \qquad r^0_i = v_i / |v_i|

    with :math:`m^l` the k-means centres of all :math:`r^l`.

    Parameters
    ----------
    embeddings : Tensor
        ``(I, D)``.
    num_levels, num_clusters : int
        L and C.
    seed : int
        Of the first centres.

    Returns
    -------
    Tensor
        ``(I, L)`` int64, from 0 to C - 1.

    Examples
    --------
    >>> codes = residual_codes(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), num_levels=1, num_clusters=2)
    >>> bool(codes[0] == codes[1]), bool(codes[0] == codes[2])
    (True, False)
    """
    generator = torch.Generator().manual_seed(seed)
    residuals, codes = (
        F.normalize(embeddings, dim=1),
        [torch.zeros(len(embeddings), 0, dtype=torch.int64).to(embeddings.device)],
    )
    for _ in range(num_levels):
        centers = k_means(residuals, num_clusters, generator)
        code = _nearest(residuals, centers)
        codes.append(code.unsqueeze(1))
        residuals = residuals - centers[code]
    return torch.cat(codes, dim=1)


def cosine_neighbors(embeddings: Tensor, num_neighbors: int, chunk: int = 1024) -> Tensor:
    """Return the K items of the largest cosine with each item, itself the first, as row indices ``(I, K)`` int64.

    Parameters
    ----------
    embeddings : Tensor
        ``(I, D)``.
    num_neighbors : int
        K.
    chunk : int
        Q.

    Examples
    --------
    >>> cosine_neighbors(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), 2).tolist()
    [[0, 2], [1, 2], [2, 0]]
    """
    unit = F.normalize(embeddings, dim=1)
    return torch.cat([(part @ unit.t()).topk(num_neighbors, dim=1).indices for part in unit.split(chunk)])


def k_means(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Return the centres ``(C, D)`` of points ``(I, D)``.

    Lloyd, IEEE Transactions on Information Theory 1982, https://doi.org/10.1109/TIT.1982.1056489, from first centres by
    Arthur and Vassilvitskii, "k-means++", SODA 2007, https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf

    Examples
    --------
    >>> points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    >>> k_means(points, 2, torch.Generator().manual_seed(0)).flatten().sort().values.tolist()
    [0.5, 11.0]
    """
    centers = points[torch.randint(len(points), (1,), generator=generator).to(points.device)]
    while len(centers) < num_clusters:
        distance = torch.cdist(points, centers).amin(dim=1).square().cpu()
        # All points are centres already: take any.
        weights = distance if distance.sum() > 0 else torch.ones_like(distance)
        chosen = torch.multinomial(weights.double(), 1, generator=generator)
        centers = torch.cat([centers, points[chosen.to(points.device)]])
    for _ in range(100):
        cluster = _nearest(points, centers)
        counts = torch.bincount(cluster, minlength=num_clusters).to(points.dtype).unsqueeze(1)
        sums = torch.zeros_like(centers).index_add_(0, cluster, points)
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
        if torch.allclose(moved, centers, rtol=1e-5, atol=0):
            break
        centers = moved
    return centers


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    return (centers.square().sum(dim=1) / 2 - points @ centers.t()).argmin(dim=1)
