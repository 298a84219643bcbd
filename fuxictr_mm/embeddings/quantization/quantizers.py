"""Vector quantisation by faiss: codebooks for VQ, RQ, PQ and OPQ, and exact nearest neighbours.

Shape letters: M items, D width, L levels, C codes of a level, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.embeddings.quantization.codebooks import Fitted, Vectors
from fuxictr_mm.errors import ConfigError, UserError

#: Rounds of k-means, after which centroids hardly move.
_ROUNDS = 25


def import_faiss() -> Any:
    """Return faiss.

    Raises
    ------
    UserError
        It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError('faiss is not installed; pip install "fuxictr-mm[quantize]"') from error
    return faiss


def fit_vq(vectors: Vectors, levels: int, codes: int, seed: int) -> Fitted:
    """Fit one set of centroids by k-means: RQ of one level.

    Lloyd, IEEE Transactions on Information Theory 1982, https://doi.org/10.1109/TIT.1982.1056489

    Parameters
    ----------
    vectors : ndarray
        ``(M, D)`` float32.
    levels : int
        1.
    codes : int
        C.
    seed : int
        Of the first centroids.
    """
    return fit_rq(vectors, levels, codes, seed)


def fit_rq(vectors: Vectors, levels: int, codes: int, seed: int) -> Fitted:
    """Fit centroids level by level, each on what the levels before have left of the vectors.

    Residual quantisation: Juang and Gray, ICASSP 1982, https://doi.org/10.1109/ICASSP.1982.1171604; for the codes of
    descriptors: Chen, Guan and Wang, Sensors 2010, https://doi.org/10.3390/s101211259. Plain k-means gathers most of a
    wide residual, which is much like noise, in one cluster; each level is therefore fitted on its first principal
    components and then on more and more of them: Liu, Lu and Shao, 2015, https://arxiv.org/abs/1509.05195.

    Parameters
    ----------
    vectors : ndarray
        ``(M, D)`` float32.
    levels, codes : int
        L and C, a power of two.
    seed : int
        Of the first centroids.
    """
    faiss = import_faiss()
    width = vectors.shape[1]
    quantizer = faiss.ResidualQuantizer(width, levels, _bits(codes))
    quantizer.train_type = faiss.ResidualQuantizer.Train_progressive_dim
    # One beam, as codes are found later: each level is fitted on just what is left there.
    quantizer.max_beam_size = 1
    _set_kmeans(quantizer.cp, seed)
    quantizer.train(vectors)
    return Fitted(faiss.vector_to_array(quantizer.codebooks).reshape(levels, codes, width).astype(np.float32))


def fit_pq(vectors: Vectors, levels: int, codes: int, seed: int) -> Fitted:
    """Fit centroids for each of L pieces of the vectors.

    Product quantisation: Jégou, Douze and Schmid, IEEE TPAMI 2011, https://doi.org/10.1109/TPAMI.2010.57

    Parameters
    ----------
    vectors : ndarray
        ``(M, D)`` float32, D a multiple of L.
    levels, codes : int
        L and C, a power of two.
    seed : int
        Of the first centroids.
    """
    quantizer = _product_quantizer(vectors.shape[1], levels, codes, seed)
    quantizer.train(vectors)
    return Fitted(_pq_centroids(quantizer))


def fit_opq(vectors: Vectors, levels: int, codes: int, seed: int) -> Fitted:
    """Fit a rotation together with the centroids of PQ, so that the pieces share the variance and depend less.

    Optimised product quantisation: Ge, He, Ke and Sun, CVPR 2013, https://doi.org/10.1109/CVPR.2013.379

    Parameters
    ----------
    vectors : ndarray
        ``(M, D)`` float32, D a multiple of L.
    levels, codes : int
        L and C, a power of two.
    seed : int
        Of the first centroids.
    """
    faiss = import_faiss()
    width = vectors.shape[1]
    quantizer = _product_quantizer(width, levels, codes, seed)
    matrix = faiss.OPQMatrix(width, levels)
    # Each round costs a product of (M, D) and (D, D): beyond 20 the error falls by less than a percent.
    matrix.niter = 20
    matrix.pq = quantizer
    matrix.train(vectors)
    rotation = faiss.vector_to_array(matrix.A).reshape(width, width).astype(np.float32)
    # The centroids of OPQ's last round are of few k-means steps: fit them anew on the rotated vectors.
    final = _product_quantizer(width, levels, codes, seed)
    final.train(np.ascontiguousarray(vectors @ rotation.T))
    return Fitted(_pq_centroids(final), rotation)


def _product_quantizer(width: int, levels: int, codes: int, seed: int) -> Any:
    if width % levels:
        fitting = [n for n in range(2, min(width, 64) + 1) if width % n == 0]
        shown = ", ".join(map(str, fitting[:8])) or "1"
        raise ConfigError(
            f"--levels {levels} does not divide the width {width} of the vectors, as PQ and OPQ need; "
            f"use one of {shown}"
        )
    quantizer = import_faiss().ProductQuantizer(width, levels, _bits(codes))
    _set_kmeans(quantizer.cp, seed)
    return quantizer


def _pq_centroids(quantizer: Any) -> Vectors:
    values = import_faiss().vector_to_array(quantizer.centroids)
    return values.reshape(quantizer.M, quantizer.ksub, quantizer.dsub).astype(np.float32)


def _set_kmeans(parameters: Any, seed: int) -> None:
    parameters.niter = _ROUNDS
    parameters.seed = seed
    # It only warns below this; the report says how many codes are used.
    parameters.min_points_per_centroid = 1


def _bits(codes: int) -> int:
    return codes.bit_length() - 1


def nearest_items(
    read: Callable[[], Iterable[tuple[NDArray[np.int64], Vectors]]],
    queries: Vectors,
    query_ids: NDArray[np.int64],
    count: int,
    metric: str,
) -> NDArray[np.int64]:
    """Return the nearest other items of each query by exact search.

    Parameters
    ----------
    read : callable
        Gives an iterator over all items, ``(ids (M,), vectors (M, D))`` a chunk at a time, zero vectors left out.
    queries : ndarray
        ``(Q, D)`` float32.
    query_ids : ndarray
        ``(Q,)``, which are not their own neighbours.
    count : int
        K.
    metric : {"l2", "inner_product"}
        What near means.

    Returns
    -------
    ndarray
        ``(Q, K)`` ids, nearest first; 0 where there are fewer other items.
    """
    faiss = import_faiss()
    is_product = metric == "inner_product"
    kind = faiss.METRIC_INNER_PRODUCT if is_product else faiss.METRIC_L2
    # One more than asked for: an item is its own nearest, mostly, and goes out at the end.
    best: NDArray[np.float32] = np.full((len(queries), count + 1), np.inf, dtype=np.float32)
    found: NDArray[np.int64] = np.zeros((len(queries), count + 1), dtype=np.int64)
    for ids, vectors in read():
        if not len(ids):
            continue
        values, places = faiss.knn(queries, vectors, min(count + 1, len(ids)), metric=kind)
        distances = np.concatenate([best, -values if is_product else values], axis=1)
        candidates = np.concatenate([found, ids[places]], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, : count + 1]
        best = np.take_along_axis(distances, order, axis=1)
        found = np.take_along_axis(candidates, order, axis=1)
    own = found == query_ids[:, None]
    # Where several are as near, the item itself may lie beyond: then the last one is left out.
    own[~own.any(axis=1), -1] = True
    return found[~own].reshape(len(queries), count)
