r"""Items whose image is far from what their text tells: outliers of a cross-modal fit.

Text and image vectors are reduced by PCA to x and y of at most 64 components (of the sound vectors only), and a ridge
regression W of y on x is fitted on four fifths of the items and applied to the fifth, five times. With r = y - W x, s
the robust deviation of each component of r (1.4826 times the median absolute deviation), and the part of the image that
PCA leaves out as one more component, an item's distance is

.. math::
    d_i = \sqrt{\operatorname{mean}_j (r_{ij} / s_j)^2}, \qquad z_i = (\log d_i - m) / (1.4826 \operatorname{mad})

with m and mad the median and the median absolute deviation of log d. A z above 6 is far.

Shape letters: I items, D width, K components.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from fuxictr_mm.data.parquet import open_parquet
from fuxictr_mm.embeddings.quality.findings import Report
from fuxictr_mm.embeddings.quality.layout import ItemFile, Layout
from fuxictr_mm.embeddings.quality.reading import read_chunks, values_per_row
from fuxictr_mm.embeddings.quality.vectors import rectangle
from fuxictr_mm.errors import ConfigError

COMPONENTS, FOLDS, LEAST_ITEMS = 64, 5, 100
FAR_DEVIATIONS = 6.0

_TEXT = re.compile(r"te?xt|title|bert|sentence", re.IGNORECASE)
_IMAGE = re.compile(r"ima?ge?|clip|poster|cover|photo|picture", re.IGNORECASE)


@dataclass(frozen=True)
class Projection:
    """Mean ``(D,)`` and components ``(D, K)`` of a PCA."""

    mean: np.ndarray
    components: np.ndarray

    def apply(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores ``(I, K)`` and the length of what they leave out ``(I,)``."""
        centred = vectors - self.mean
        scores = centred @ self.components
        rest = np.maximum((centred**2).sum(axis=1) - (scores**2).sum(axis=1), 0)
        return scores, np.sqrt(rest)


def find_modalities(
    layout: Layout, text: str | None = None, image: str | None = None
) -> tuple[ItemFile, str, str] | None:
    """Return the file and the columns of text and image, by their names, or None; both must be in one file.

    Raises
    ------
    ConfigError
        A column that was named is not there.
    """
    best: tuple[ItemFile, str, str] | None = None
    widest = 0.0
    for item in layout.items:
        texts = [c for c in item.vectors if c == text or (text is None and _TEXT.search(c))]
        images = [c for c in item.vectors if c == image or (image is None and _IMAGE.search(c) and c not in texts)]
        if texts and images:
            # Reduced vectors are told from raw ones by their width.
            width = values_per_row(open_parquet(item.path).metadata, [texts[0], images[0]])
            if width > widest:
                best, widest = (item, texts[0], images[0]), width
    if best is None and (text or image):
        there = sorted({c for item in layout.items for c in item.vectors})
        raise ConfigError(
            f"--text-column, --image-column: no item file has vectors of both (vectors: {', '.join(there)})"
        )
    return best


def check_modalities(
    item: ItemFile, text: str, image: str, good: np.ndarray, widths: tuple[int, int], report: Report, verbose: int = 0
) -> None:
    """Check the items whose vectors are ``good`` ``(I,)`` in both columns."""
    rows = np.flatnonzero(good)
    if len(rows) < LEAST_ITEMS:
        return
    what = "text and image"
    left, right = _fit_projections(item, (text, image), rows, widths, what, verbose)
    x, y = _scores(item, (text, image), rows, widths, left, right, what, verbose)
    residual, explained = _cross_fit(x, y[:, :-1])
    residual = np.column_stack([residual, y[:, -1] - np.median(y[:, -1])])
    middle = np.median(residual, axis=0)
    scale = 1.4826 * np.median(np.abs(residual - middle), axis=0)
    used = scale > 1e-6 * max(float(scale.max()), 1e-30)
    distance = np.sqrt((((residual - middle)[:, used] / scale[used]) ** 2).mean(axis=1))
    logs = np.log(np.maximum(distance, 1e-12))
    centre = float(np.median(logs))
    z = (logs - centre) / max(1.4826 * float(np.median(np.abs(logs - centre))), 1e-12)
    far = z > FAR_DEVIATIONS
    measures: dict[str, Any] = {"text": text, "image": image, "items": len(rows), "explained": round(explained, 4)}
    report.measures["modalities"] = {**measures, "largest_z": round(float(z.max()), 2)}
    bad = rows[far]
    values = [f"{value:.1f} deviations from the fit on {text}" for value in z[far]]
    report.add("modalities-disagree", item.path.name, image, bad, item.ids[bad], values)


def _fit_projections(
    item: ItemFile, names: tuple[str, str], rows: np.ndarray, widths: tuple[int, int], what: str, verbose: int
) -> tuple[Projection, Projection]:
    # The sums are of differences from the first vectors, so that a large mean costs no digits.
    shifts: list[np.ndarray] = []
    sums = [np.zeros(w) for w in widths]
    products = [np.zeros((w, w)) for w in widths]
    for vectors in _pairs(item, names, rows, widths, what, verbose):
        shifts = shifts or [v.mean(axis=0, dtype=np.float64).astype(np.float32) for v in vectors]
        for side, (values, shift) in enumerate(zip(vectors, shifts, strict=True)):
            centred = values - shift
            sums[side] += centred.sum(axis=0, dtype=np.float64)
            products[side] += centred.T @ centred
    projections = []
    count = len(rows)
    for total, product, shift in zip(sums, products, shifts, strict=True):
        mean = total / count
        _, vectors = np.linalg.eigh(product / count - np.outer(mean, mean))
        kept = min(COMPONENTS, len(mean), count // 20)
        projections.append(Projection((shift + mean).astype(np.float32), vectors[:, ::-1][:, :kept].astype(np.float32)))
    return projections[0], projections[1]


def _scores(
    item: ItemFile,
    names: tuple[str, str],
    rows: np.ndarray,
    widths: tuple[int, int],
    left: Projection,
    right: Projection,
    what: str,
    verbose: int,
) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = [], []
    for text, image in _pairs(item, names, rows, widths, what, verbose):
        xs.append(left.apply(text)[0])
        scores, rest = right.apply(image)
        ys.append(np.column_stack([scores, rest]))
    return np.concatenate(xs).astype(np.float64), np.concatenate(ys).astype(np.float64)


def _pairs(
    item: ItemFile, names: tuple[str, str], rows: np.ndarray, widths: tuple[int, int], what: str, verbose: int
) -> Any:
    """Yield the vectors of both columns, of the wanted rows only, a chunk at a time."""
    for start, columns in read_chunks(item.path, list(names), what, verbose):
        size = len(columns[names[0]])
        here = rows[(rows >= start) & (rows < start + size)] - start
        if here.size:
            yield [rectangle(columns[n], w)[0][here] for n, w in zip(names, widths, strict=True)]


def _cross_fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the residuals of y on x, each item by a fit without it, and the share of the variance explained."""
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    residual = np.empty_like(y)
    for number in range(FOLDS):
        seen, unseen = fold != number, fold == number
        x_mean, y_mean = x[seen].mean(axis=0), y[seen].mean(axis=0)
        centred = x[seen] - x_mean
        gram = centred.T @ centred
        ridge = 1e-3 * np.trace(gram) / len(gram) + 1e-12
        weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), centred.T @ (y[seen] - y_mean))
        residual[unseen] = y[unseen] - y_mean - (x[unseen] - x_mean) @ weights
    total = ((y - y.mean(axis=0)) ** 2).sum()
    return residual, float(1 - (residual**2).sum() / total) if total else 0.0
