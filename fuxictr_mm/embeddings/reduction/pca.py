"""Principal components: of vectors in memory by scikit-learn, of any number of them by their covariance.

Pearson, Philosophical Magazine 1901, https://doi.org/10.1080/14786440109462720

Both ways give the same components: in float64, ordered by variance, the entry of largest magnitude positive.

Shape letters: n vectors of a chunk, I vectors, D width, K components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: A direction whose variance is below this part of the largest is rounding, and is set to zero.
NO_VARIANCE = 1e-12


@dataclass(frozen=True)
class PrincipalComponents:
    """z = (x - mean) W^T, rows of W orthonormal, by falling variance of z.

    Parameters
    ----------
    mean : ndarray
        ``(D,)``.
    components : ndarray
        W ``(K, D)``; zero rows past the rank of the data.
    variances : ndarray
        ``(K,)``, with the divisor I - 1.
    total : float
        Variance of all D columns together.
    count : int
        I, the vectors that took part.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    total: float
    count: int

    def keep(self, width: int) -> PrincipalComponents:
        """Return the first ``width`` components."""
        return PrincipalComponents(
            self.mean, self.components[:width].copy(), self.variances[:width].copy(), self.total, self.count
        )

    @property
    def rank(self) -> int:
        """Components that have variance."""
        return int((self.variances > 0).sum())

    def width_for(self, share: float) -> int:
        """Return the smallest width that keeps ``share`` of the variance; at least 1."""
        kept = np.cumsum(self.variances)
        # Rounding of the sum must not cost one more component, and a share of 1 must be reachable.
        enough = kept >= share * self.total * (1 - 1e-9)
        return int(enough.argmax()) + 1 if enough.any() else max(self.rank, 1)


class Moments:
    """Mean and covariance of vectors that come in chunks; memory is D^2, whatever their number.

    The update of Chan, Golub, LeVeque, The American Statistician 1983, https://doi.org/10.1080/00031305.1983.10483115:
    S += S_chunk + (m_chunk - m)(m_chunk - m)^T n I / (n + I), which loses nothing where means are large.

    Parameters
    ----------
    width : int
        D.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean: np.ndarray = np.zeros(width)
        self.scatter: np.ndarray = np.zeros((width, width))

    def update(self, vectors: np.ndarray) -> None:
        """Add vectors ``(n, D)``."""
        if not len(vectors):
            return
        mean = vectors.mean(axis=0, dtype=np.float64)
        centred = vectors - mean
        self._add(len(centred), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add the vectors that ``other`` has seen."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        both = self.count + count
        delta = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(delta, delta * (self.count * count / both))
        self.mean += delta * (count / both)
        self.count = both

    def block(self, columns: slice) -> Moments:
        """Return the moments of some of the columns."""
        part = Moments(0)
        part.count = self.count
        part.mean = self.mean[columns].copy()
        part.scatter = self.scatter[columns, columns].copy()
        return part

    @property
    def covariance(self) -> np.ndarray:
        """``(D, D)``, with the divisor I - 1."""
        return self.scatter / (self.count - 1)

    def components(self, deviations: np.ndarray | None = None) -> PrincipalComponents:
        """Return all components there can be, of the columns divided by ``deviations`` ``(D,)`` where given."""
        covariance = self.covariance
        if deviations is not None:
            covariance /= deviations
            covariance /= deviations[:, None]
        variances, vectors = np.linalg.eigh(covariance)
        most = min(len(variances), self.count - 1)
        return _in_order(
            self.mean, vectors.T[::-1][:most], variances[::-1][:most], float(np.trace(covariance)), self.count
        )


def fit_in_memory(vectors: np.ndarray, deviations: np.ndarray | None = None) -> PrincipalComponents:
    """Return all components of vectors ``(I, D)`` by scikit-learn; ``deviations`` is as in ``Moments.components``.

    Float64 vectors are centred (and divided) in place; others are copied.
    """
    from sklearn.decomposition import PCA

    exact = vectors.astype(np.float64, copy=False)
    # scikit-learn takes the mean off the products, which loses digits where means are large.
    mean = exact.mean(axis=0)
    exact -= mean
    if deviations is not None:
        exact /= deviations
    with np.errstate(invalid="ignore"):  # its shares of a variance of zero
        fitted = PCA(svd_solver="covariance_eigh", copy=False).fit(exact)
    total = float(np.einsum("nd,nd->", exact, exact)) / (len(exact) - 1)
    most = min(exact.shape[1], len(exact) - 1)
    return _in_order(mean, fitted.components_[:most], fitted.explained_variance_[:most], total, len(exact))


def _in_order(
    mean: np.ndarray, components: np.ndarray, variances: np.ndarray, total: float, count: int
) -> PrincipalComponents:
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    real = (variances > NO_VARIANCE * variances.max(initial=0)) & (variances > 0)
    # Past the rank any direction will do, and each way finds another: none is the same for all.
    components = np.where(real[:, None], components * signs[:, None], 0.0)
    return PrincipalComponents(mean, components, np.where(real, variances, 0.0), total, count)
