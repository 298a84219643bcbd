r"""Check of images that their text does not explain, and all checks of embeddings.

Text and image embeddings are reduced by PCA to x and y of at most 64 components (of the intact embeddings only), and a
ridge regression W of y on x is fitted on four fifths of the items and applied to the fifth, five times. With r = y - W
x, s the robust standard deviation of each component of r (from the median absolute deviation, MAD), and the part of the
image that PCA leaves out as one more component, an item's distance is

.. math::
    d_i = \sqrt{\operatorname{mean}_j (r_{ij} / s_j)^2}, \qquad z_i = (\log d_i - m) / (1.4826 \operatorname{mad})

with m and mad the median and the MAD of log d. A z above 6 is an outlier.

Shape letters: R rows, D dimension, K components.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuxictr_mm.check_data.checks import WARNING, Fault, Measure, Report, check
from fuxictr_mm.check_data.layout import ItemFile, Layout
from fuxictr_mm.check_data.vectors import EmbeddingColumn, read_rows
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.reduction.pca import Moments

#: Components, folds, items and limit of z of the cross-modal fit.
COMPONENTS, FOLDS, LEAST_ITEMS, MOST_DEVIATIONS = 64, 5, 100, 6.0

_TEXT = re.compile(r"te?xt|title|bert|sentence", re.IGNORECASE)
_IMAGE = re.compile(r"ima?ge?|clip|poster|cover|photo|picture", re.IGNORECASE)


@dataclass(frozen=True)
class Modalities:
    """Text and image embeddings of one file; ``verbose=0`` shows no progress."""

    text: EmbeddingColumn
    image: EmbeddingColumn
    verbose: int = 0

    def read(self, rows: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Yield the embeddings of sorted rows, chunk by chunk."""
        return read_rows([self.text, self.image], rows, "text and image", self.verbose)


def find_modalities(
    layout: Layout, text: str | None = None, image: str | None = None
) -> tuple[ItemFile, str, str] | None:
    """Return the file and the columns of text and image, by their names, or None; both must be in one file."""
    best: tuple[ItemFile, str, str] | None = None
    most = 0.0
    for item in layout.items:
        texts = [c for c in item.embeddings if c == text or (text is None and _TEXT.search(c))]
        images = [c for c in item.embeddings if c == image or (image is None and _IMAGE.search(c) and c not in texts)]
        if texts and images:
            # The raw ones have more dimensions than the reduced ones.
            dims = item.values_per_row([texts[0], images[0]])
            if dims > most:
                best, most = (item, texts[0], images[0]), dims
    if best is None and (text or image):
        there = sorted({c for item in layout.items for c in item.embeddings})
        raise ConfigError(
            f"--text-column, --image-column: no item file has embeddings of both (embeddings: {', '.join(there)})"
        )
    return best


@check(Modalities, WARNING, "distances near the median of the cross-modal fit")
def modalities_disagree(pair: Modalities) -> Iterator[Fault | Measure]:
    """Image embeddings that the text does not predict."""
    rows = np.flatnonzero(pair.text.is_intact & pair.image.is_intact)
    if len(rows) < LEAST_ITEMS:
        return
    z, explained = _outlyingness(*_reduce(pair, rows))
    measures = {"text": pair.text.name, "image": pair.image.name, "items": len(rows), "explained": round(explained, 4)}
    yield Measure(("modalities",), {**measures, "largest_z": round(float(z.max()), 2)})
    far = z > MOST_DEVIATIONS
    texts = [f"{value:.1f} standard deviations from the fit on {pair.text.name}" for value in z[far]]
    yield pair.image.fault(rows[far], texts)


def _reduce(pair: Modalities, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return PCA scores of the text ``(R, K)``, and of the image with the norm of what they omit ``(R, K + 1)``."""
    bases = _fit_pca(pair, rows)
    text_scores, image_scores = [], []
    for vectors in pair.read(rows):
        text, image = (v - mean for v, (mean, _) in zip(vectors, bases, strict=True))
        text_scores.append(text @ bases[0][1])
        scores = image @ bases[1][1]
        rest = np.maximum((image**2).sum(axis=1) - (scores**2).sum(axis=1), 0)
        image_scores.append(np.column_stack([scores, np.sqrt(rest)]))
    return np.concatenate(text_scores).astype(np.float64), np.concatenate(image_scores).astype(np.float64)


def _fit_pca(pair: Modalities, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return mean ``(D,)`` and components ``(D, K)`` of text and image, float32."""
    sides = [Moments(pair.text.dim), Moments(pair.image.dim)]
    for vectors in pair.read(rows):
        for moments, chunk in zip(sides, vectors, strict=True):
            moments.update(chunk)
    found = [moments.components().keep(min(COMPONENTS, len(rows) // 20)) for moments in sides]
    return [(pca.mean.astype(np.float32), pca.components.T.astype(np.float32)) for pca in found]


def _outlyingness(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Return z of every item ``(R,)``, and the fraction of the variance of the image that the text explains."""
    from scipy.stats import median_abs_deviation

    scores, rest = y[:, :-1], y[:, -1]
    residual = scores - _predict(x, scores)
    total = ((scores - scores.mean(axis=0)) ** 2).sum()
    explained = float(1 - (residual**2).sum() / total) if total else 0.0
    residual = np.column_stack([residual, rest])
    residual -= np.median(residual, axis=0)
    scale = median_abs_deviation(residual, scale="normal")
    used = scale > 1e-6 * max(float(scale.max()), 1e-30)
    logs = np.log(np.maximum(np.sqrt(((residual[:, used] / scale[used]) ** 2).mean(axis=1)), 1e-12))
    z = (logs - np.median(logs)) / max(float(median_abs_deviation(logs, scale="normal")), 1e-12)
    return z, explained


def _predict(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return y as predicted from x by ridge regressions, each item by one without it."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    folds = PredefinedSplit(np.random.default_rng(0).permutation(len(x)) % FOLDS)
    penalty = 1e-3 * (1 - 1 / FOLDS) * len(x) * float(x.var(axis=0).mean()) + 1e-12
    return cross_val_predict(Ridge(alpha=penalty), x, y, cv=folds)


def check_embeddings(
    layout: Layout, report: Report, text: str | None = None, image: str | None = None, verbose: int = 0
) -> set[int]:
    """Check all embeddings; the parameters are those of ``check_folder``.

    Returns the items whose embedding is equal or nearly equal to another's, where the check of titles needs them.
    """
    similar: set[int] = set()
    if not report.wants(EmbeddingColumn, Modalities, "duplicate-title"):
        return similar
    modalities = find_modalities(layout, text, image) if report.wants(Modalities) else None
    columns: dict[tuple[Path, str], EmbeddingColumn] = {}
    for item in layout.items:
        for name in item.embeddings:
            with report.reading(item.path):
                column = columns[item.path, name] = EmbeddingColumn(item, name, verbose, name in layout.scaled)
                report.examine(column)
                if report.wants("duplicate-title"):
                    similar |= column.similar_items()
    if modalities:
        item, *names = modalities
        pair = [columns[item.path, name] for name in names if (item.path, name) in columns]
        if len(pair) == 2:
            with report.reading(item.path):
                report.examine(Modalities(pair[0], pair[1], verbose))
    return similar
