"""Principal components of embeddings that come in chunks.

Shape letters: I items, n items of a chunk, D dim of an embedding, K dim after the reduction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: A component with less than this fraction of the largest variance is rounding, and is set to zero.
NO_VARIANCE = 1e-12


@dataclass(frozen=True)
class PrincipalComponents:
    """z = (x - mean) W^T, with orthonormal rows of W in descending order of the variance of z."""

    mean: np.ndarray  #: ``(D,)``.
    components: np.ndarray  #: W ``(K, D)``; zero rows past the rank of the data.
    variances: np.ndarray  #: ``(K,)``, with the divisor I - 1.
    total: float  #: Variance of all D columns together.
    count: int  #: I, the embeddings of the fit.

    def keep(self, count: int) -> PrincipalComponents:
        """Return the first ``count`` components."""
        return PrincipalComponents(
            self.mean, self.components[:count].copy(), self.variances[:count].copy(), self.total, self.count
        )

    @property
    def rank(self) -> int:
        """Components with variance."""
        return int((self.variances > 0).sum())

    def dim_for(self, fraction: float) -> int:
        """Return the smallest K that keeps ``fraction`` of the variance; at least 1."""
        kept = np.cumsum(self.variances)
        # Rounding of the sum must not cost one more component, and a fraction of 1 must be reachable.
        enough = kept >= fraction * self.total * (1 - 1e-9)
        return int(enough.argmax()) + 1 if enough.any() else max(self.rank, 1)


class Moments:
    """Mean and covariance of embeddings that come in chunks; memory is D^2, whatever their number.

    The update of Chan, Golub, LeVeque, The American Statistician 1983, https://doi.org/10.1080/00031305.1983.10483115:
    S += S_chunk + (m_chunk - m)(m_chunk - m)^T n I / (n + I), which loses no digits where means are large.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: np.ndarray = np.zeros(dim)
        self.scatter: np.ndarray = np.zeros((dim, dim))

    def update(self, vectors: np.ndarray) -> None:
        """Add embeddings ``(n, D)``."""
        if len(vectors):
            mean = vectors.mean(axis=0, dtype=np.float64)
            centred = vectors - mean
            self._add(len(centred), mean, centred.T @ centred)

    def merge_columns(self, other: Moments, columns: slice) -> None:
        """Add some of the columns of the embeddings that ``other`` has seen."""
        if other.count:
            self._add(other.count, other.mean[columns], other.scatter[columns, columns])

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        both = self.count + count
        delta = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(delta, delta * (self.count * count / both))
        self.mean += delta * (count / both)
        self.count = both

    @property
    def covariance(self) -> np.ndarray:
        """``(D, D)``, with the divisor I - 1."""
        return self.scatter / (self.count - 1)

    def components(self, divisors: np.ndarray | None = None) -> PrincipalComponents:
        """Return all components, of the columns divided by ``divisors`` ``(D,)`` where given.

        The entry of largest magnitude of each component is positive.
        """
        covariance = self.covariance
        if divisors is not None:
            covariance /= divisors
            covariance /= divisors[:, None]
        variances, vectors = np.linalg.eigh(covariance)
        most = min(len(variances), self.count - 1)
        variances, components = variances[::-1][:most], vectors.T[::-1][:most]
        signs = np.sign(components[np.arange(most), np.abs(components).argmax(axis=1)])
        # Past the rank, any direction would do; zeros are the same for every chunk size and machine.
        real = (variances > NO_VARIANCE * variances.max(initial=0)) & (variances > 0)
        components = np.where(real[:, None], components * signs[:, None], 0.0)
        total = float(np.trace(covariance))
        return PrincipalComponents(self.mean, components, np.where(real, variances, 0.0), total, self.count)
