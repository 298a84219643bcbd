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
import pyarrow as pa

from fuxictr_mm.check_data.checks import Report
from fuxictr_mm.check_data.items import ItemFile, Layout, read_chunks, split_lists, values_per_row
from fuxictr_mm.data.parquet import open_parquet
from fuxictr_mm.errors import ConfigError

#: Euclidean distance of two vectors of length 1 that counts as none.
NEAR = 0.01


PROJECTIONS = 16


NEIGHBOURS = 5


#: Pairs measured in one pass over the file.
PAIRS_PER_PASS = 8192


#: A length is out of range beyond this factor of the median and this many robust deviations.
NORM_FACTOR, NORM_DEVIATIONS = 10.0, 8.0


@dataclass
class ColumnStatistics:
    """What a pass over a vector column gathers.

    Parameters
    ----------
    width : int
        Width of most rows.
    norms : ndarray, (I,)
        Euclidean length; 0 where the vector is broken.
    good : ndarray of bool, (I,)
        Whole, finite, not zero, of a sound length and not padding.
    """

    width: int
    norms: np.ndarray
    good: np.ndarray


def rectangle(array: pa.Array, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors ``(R, D)`` float32, zero where the width is another, and which rows have it, ``(R,)``."""
    flat, offsets = split_lists(array)
    with np.errstate(over="ignore"):  # too large for float32: infinite, and told
        values = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    fits = np.diff(offsets) == width
    if fits.all():
        return values.reshape(len(fits), width), fits
    rows = np.zeros((len(fits), width), dtype=np.float32)
    rows[fits] = values[(offsets[:-1][fits, None] + np.arange(width)).ravel()].reshape(-1, width)
    return rows, fits


def check_vectors(item: ItemFile, column: str, report: Report, verbose: int = 0) -> tuple[ColumnStatistics, set[int]]:
    """Check a column of vectors.

    Returns
    -------
    statistics : ColumnStatistics
        For the cross-modal check.
    twins : set of int
        Items whose vector is equal or nearly equal to another's.
    """
    name, ids = item.path.name, item.ids
    width = _common_width(item, column)
    if width == 0 and len(ids):
        report.add("vector-width", name, column, found="no vector has a number", expected="vectors of numbers")
    if width == 0 or not len(ids):
        empty = np.zeros(len(ids))
        return ColumnStatistics(0, empty, empty.astype(bool)), set()
    statistics, hashes, projected = _first_pass(item, column, width, report, verbose)
    _check_lengths(item, column, statistics, report)
    twins: set[int] = set()
    if report.wants("duplicate-vector"):
        twins |= _check_equal(item, column, statistics, hashes, report)
    if report.wants("near-duplicate-vector") and width >= PROJECTIONS:
        twins |= _check_near(item, column, statistics, hashes, projected, report)
    return statistics, twins


def _common_width(item: ItemFile, column: str) -> int:
    kind = item.schema.field(column).type
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size
    counts: np.ndarray = np.zeros(1, dtype=np.int64)
    for _, columns in read_chunks(item.path, [column]):
        _, offsets = split_lists(columns[column])
        more = np.bincount(np.diff(offsets))
        counts = np.pad(counts, (0, max(len(more) - len(counts), 0)))
        counts[: len(more)] += more
    counts[0] = 0  # empty rows are no width
    return int(counts.argmax())


def _first_pass(
    item: ItemFile, column: str, width: int, report: Report, verbose: int
) -> tuple[ColumnStatistics, np.ndarray, np.ndarray]:
    name, ids = item.path.name, item.ids
    count = len(ids)
    norms, hashes = np.zeros(count), np.zeros(count, dtype=np.uint64)
    projected = np.zeros((count, min(PROJECTIONS, width)), dtype=np.float32)
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((width, projected.shape[1])))[0].astype(np.float32)
    odd = rng.integers(0, 2**63, width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    lowest, highest = np.full(width, np.inf), np.full(width, -np.inf)
    for row, columns in read_chunks(item.path, [column], f"{name}: {column}", verbose):
        vectors, fits = rectangle(columns[column], width)
        here = slice(row, row + len(vectors))
        real = ids[here] != 0
        bad = np.flatnonzero(~fits & real)
        if bad.size:
            _, offsets = split_lists(columns[column])
            lengths = np.diff(offsets)[bad]
            report.add("vector-width", name, column, row + bad, ids[here][bad], lengths, expected=f"a width of {width}")
        finite = np.isfinite(vectors).all(axis=1)
        bad = np.flatnonzero(~finite & real)
        if bad.size:
            place = (~np.isfinite(vectors[bad])).argmax(axis=1)
            texts = [f"{vectors[r, p]} at place {p}" for r, p in zip(bad, place, strict=True)]
            report.add("nonfinite-vector", name, column, row + bad, ids[here][bad], texts)
        if not finite.all():
            vectors = np.where(finite[:, None], vectors, np.float32(0))
        lengths = np.linalg.norm(vectors.astype(np.float64) if _is_large(vectors) else vectors, axis=1)
        norms[here] = lengths
        zero = np.flatnonzero((lengths == 0) & finite & fits & real)
        report.add("zero-vector", name, column, row + zero, ids[here][zero])
        used = (lengths > 0) & real
        if used.any():
            lowest = np.minimum(lowest, vectors[used].min(axis=0))
            highest = np.maximum(highest, vectors[used].max(axis=0))
        # Adding zero turns -0.0 into 0.0, which is equal but has other bits.
        hashes[here] = (vectors + np.float32(0)).view(np.uint32).astype(np.uint64) @ odd
        unit = vectors / np.where(lengths > 0, lengths, 1)[:, None].astype(np.float64)
        projected[here] = unit.astype(np.float32) @ directions
    good = (norms > 0) & (ids != 0)
    constant = np.flatnonzero((lowest == highest) & (good.sum() > 1))
    for place in constant:
        report.add(
            "constant-column",
            name,
            f"{column}[{place}]",
            found=f"the number at place {place} is {lowest[place]:g} in all {int(good.sum())} vectors",
        )
    return ColumnStatistics(width, norms, good), hashes, projected


def _is_large(vectors: np.ndarray) -> bool:
    return bool(np.abs(vectors).max(initial=0) > 1e15)


def _check_lengths(item: ItemFile, column: str, statistics: ColumnStatistics, report: Report) -> None:
    rows = np.flatnonzero(statistics.good)
    if rows.size < 3:
        return
    logs = np.log(statistics.norms[rows])
    middle = float(np.median(logs))
    deviation = 1.4826 * float(np.median(np.abs(logs - middle)))
    far = np.abs(logs - middle) > max(np.log(NORM_FACTOR), NORM_DEVIATIONS * deviation)
    bad = rows[far]
    statistics.good[bad] = False
    if bad.size:
        report.measures.setdefault("median_length", {})[f"{item.path.name}: {column}"] = float(np.exp(middle))
    report.add(
        "norm-outlier",
        item.path.name,
        column,
        bad,
        item.ids[bad],
        statistics.norms[bad],
        expected=f"a length near the median {np.exp(middle):.4g}",
    )


def _check_equal(
    item: ItemFile, column: str, statistics: ColumnStatistics, hashes: np.ndarray, report: Report
) -> set[int]:
    rows = np.flatnonzero(statistics.norms > 0)
    rows = rows[item.ids[rows] > 0]
    _, first, place = np.unique(hashes[rows], return_index=True, return_inverse=True)
    earlier = rows[first][place]
    # A second row of the same item is a fault of its own.
    again = rows[(earlier != rows) & (item.ids[earlier] != item.ids[rows])]
    same = earlier[np.isin(rows, again)]
    texts = [f"equals row {e}, item_id {item.ids[e]}" for e in same]
    report.add("duplicate-vector", item.path.name, column, again, item.ids[again], texts)
    return set(item.ids[again].tolist()) | set(item.ids[same].tolist())


def _check_near(
    item: ItemFile,
    column: str,
    statistics: ColumnStatistics,
    hashes: np.ndarray,
    projected: np.ndarray,
    report: Report,
) -> set[int]:
    from scipy.spatial import cKDTree

    rows = np.flatnonzero(statistics.good)
    rows = rows[np.unique(hashes[rows], return_index=True)[1]]  # equal vectors are told already
    if rows.size < 2:
        return set()
    rows.sort()
    tree = cKDTree(projected[rows])
    _, neighbour = tree.query(projected[rows], k=NEIGHBOURS + 1, distance_upper_bound=NEAR * 1.01)
    left = np.repeat(np.arange(len(rows)), NEIGHBOURS + 1)
    right = neighbour.ravel()
    kept = (right < len(rows)) & (right != left)
    pairs = np.unique(np.sort(rows[np.stack([left[kept], right[kept]], axis=1)], axis=1), axis=0)
    pairs = pairs[item.ids[pairs[:, 0]] != item.ids[pairs[:, 1]]]
    twins: set[int] = set()
    for start in range(0, len(pairs), PAIRS_PER_PASS):
        some = pairs[start : start + PAIRS_PER_PASS]
        needed = np.unique(some)
        unit = _unit_rows(item, column, statistics.width, needed)
        distance = np.linalg.norm(
            unit[np.searchsorted(needed, some[:, 1])] - unit[np.searchsorted(needed, some[:, 0])], axis=1
        )
        near = some[distance <= NEAR]
        texts = [
            f"within {d:.2g} of row {e}, item_id {item.ids[e]}"
            for d, e in zip(distance[distance <= NEAR], near[:, 0], strict=True)
        ]
        report.add("near-duplicate-vector", item.path.name, column, near[:, 1], item.ids[near[:, 1]], texts)
        twins |= set(item.ids[near.ravel()].tolist())
    return twins


def _unit_rows(item: ItemFile, column: str, width: int, rows: np.ndarray) -> np.ndarray:
    """Return the vectors of sorted ``rows``, scaled to length 1, ``(rows, D)``."""
    parts = []
    for start, columns in read_chunks(item.path, [column]):
        size = len(columns[column])
        here = rows[(rows >= start) & (rows < start + size)] - start
        if here.size:
            vectors, _ = rectangle(columns[column].take(pa.array(here)), width)
            parts.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return np.concatenate(parts)


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
