"""Norms of stored embeddings, and the setting of a feature that brings them near 1.

Shape letter: I embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: A median norm is far from 1 beyond this factor, up or down. Valid AUC of DIN and QIN on tiny_mm, one seed: 0.665 and
#: 0.651 with a norm of 0.3, 0.698 and 0.661 with 1, 0.697 and 0.683 with 3, 0.681 and 0.677 with 5, 0.600 and 0.651
#: with 10.
FAR = 3.0

#: Norms differ strongly where one in ten is beyond this factor of the median: they may tell something.
SPREAD = 2.0


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of the embeddings of a column; zeros, which are missing embeddings, do not count."""

    median: float
    low: float  #: 5% are below.
    high: float  #: 5% are above.

    @classmethod
    def of(cls, norms: np.ndarray) -> Norms | None:
        """Return those of norms ``(I,)``; None where all are zero or not finite."""
        used = norms[(norms > 0) & np.isfinite(norms)]
        if not used.size:
            return None
        low, median, high = np.quantile(used, (0.05, 0.5, 0.95)).tolist()
        return cls(median, low, high)

    @property
    def setting(self) -> tuple[str, Any] | None:
        """Key and value that bring the median to 1; None where it is near 1.

        ``norm: l2`` loses the norms. Where they differ strongly, a ``scale`` keeps what they tell.

        Examples
        --------
        >>> Norms(22, 20, 25).setting, Norms(22, 2, 25).setting, Norms(1.2, 0.5, 3).setting
        (('norm', 'l2'), ('scale', 0.0455), None)
        """
        if 1 / FAR <= self.median <= FAR:
            return None
        if self.low * SPREAD >= self.median and self.high <= SPREAD * self.median:
            return "norm", "l2"
        return "scale", float(f"{1 / self.median:.3g}")
