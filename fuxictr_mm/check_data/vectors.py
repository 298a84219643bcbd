r"""Checks of embeddings: broken, outlying and duplicate ones, and images that their text does not explain.

For the last, text and image embeddings are reduced by PCA to x and y of at most 64 components (of the intact embeddings
only), and a ridge regression W of y on x is fitted on four fifths of the items and applied to the fifth, five times.
With r = y - W x, s the robust standard deviation of each component of r (from the median absolute deviation, MAD), and
the part of the image that PCA leaves out as one more component, an item's distance is

.. math::
    d_i = \sqrt{\operatorname{mean}_j (r_{ij} / s_j)^2}, \qquad z_i = (\log d_i - m) / (1.4826 \operatorname{mad})

with m and mad the median and the MAD of log d. A z above 6 is an outlier.

Shape letters: I items, R rows of a chunk, D dimension, K components.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.check_data.arrays import split_lists
from fuxictr_mm.check_data.checks import ERROR, WARNING, Action, Fault, Measure, Report, check
from fuxictr_mm.check_data.layout import ItemFile, Layout
from fuxictr_mm.errors import ConfigError

#: Euclidean distance of two embeddings of norm 1 that makes them near-duplicates.
NEAR = 0.01
#: Orthonormal projections in which near-duplicates are looked for, and neighbours looked at.
PROJECTIONS, NEIGHBOURS = 16, 5
#: Pairs measured in one pass over the file.
PAIRS_PER_PASS = 8192
#: A norm is an outlier beyond this factor of the median and this many robust standard deviations of its logarithm.
NORM_FACTOR, NORM_DEVIATIONS = 10.0, 8.0
#: Components, folds, items and limit of z of the cross-modal fit.
COMPONENTS, FOLDS, LEAST_ITEMS, MOST_DEVIATIONS = 64, 5, 100, 6.0

_TEXT = re.compile(r"te?xt|title|bert|sentence", re.IGNORECASE)
_IMAGE = re.compile(r"ima?ge?|clip|poster|cover|photo|picture", re.IGNORECASE)


class EmbeddingColumn:
    """A column of embeddings, read once; ``verbose=0`` shows no progress.

    Raises
    ------
    DataError
        The file is damaged.
    """

    def __init__(self, item: ItemFile, name: str, verbose: int = 0) -> None:
        self.item, self.name, count = item, name, len(item.ids)
        #: Which rows are not padding, ``(I,)``.
        self.is_real = item.ids != 0
        #: Dimension of most rows; 0 where no row has a number.
        self.dim = item.common_length(name)
        #: Numbers of each row, -1 where it is null; Euclidean norm, 0 where the embedding is broken, ``(I,)``.
        self.lengths, self.norms = np.zeros(count, np.int64), np.zeros(count)
        #: Equal where embeddings are, ``(I,)``; projections of the embeddings scaled to norm 1, ``(I, P)``.
        self.hashes = np.zeros(count, np.uint64)
        self.projected = np.zeros((count, min(PROJECTIONS, self.dim)), np.float32)
        #: What is wrong in rows with NaN or infinity.
        self.nonfinite: dict[int, str] = {}
        #: Bounds of each number of the embeddings that are not zero, ``(D,)``.
        self.lowest, self.highest = np.full(self.dim, np.inf), np.full(self.dim, -np.inf)
        rng = np.random.default_rng(0)
        directions = np.linalg.qr(rng.standard_normal((self.dim, self.projected.shape[1])))[0].astype(np.float32)
        odd = rng.integers(0, 2**63, self.dim, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        for row, batch in item.chunks([name], f"{item.file}: {name}", verbose):
            self._add(row, batch.column(0), directions, odd)

    def _add(self, row: int, array: pa.Array, directions: np.ndarray, odd: np.ndarray) -> None:
        rows = slice(row, row + len(array))
        vectors, lengths = to_matrix(array, self.dim)
        self.lengths[rows] = np.where(array.is_null().to_numpy(zero_copy_only=False), -1, lengths)
        finite = np.isfinite(vectors)
        for broken in np.flatnonzero(~finite.all(axis=1) & self.is_real[rows]):
            index = int(finite[broken].argmin())
            self.nonfinite[row + int(broken)] = f"{vectors[broken, index]} at index {index}"
        if not finite.all():
            vectors = np.where(finite.all(axis=1)[:, None], vectors, np.float32(0))
        is_large = np.abs(vectors).max(initial=0) > 1e15  # the square may not be finite
        norms = np.linalg.norm(vectors.astype(np.float64) if is_large else vectors, axis=1)
        self.norms[rows] = norms
        used = vectors[(norms > 0) & self.is_real[rows]]
        self.lowest = np.minimum(self.lowest, used.min(axis=0, initial=np.inf))
        self.highest = np.maximum(self.highest, used.max(axis=0, initial=-np.inf))
        # Adding zero turns -0.0 into 0.0, which is equal but has other bits.
        self.hashes[rows] = (vectors + np.float32(0)).view(np.uint32).astype(np.uint64) @ odd
        unit = vectors / np.where(norms > 0, norms, 1)[:, None].astype(np.float64)
        self.projected[rows] = unit.astype(np.float32) @ directions

    def fault(self, rows: np.ndarray, values: Sequence[object] | np.ndarray | None = None, **texts: str) -> Fault:
        """Return rows of the column as a fault."""
        return self.item.fault(self.name, rows, values, **texts)

    @property
    def is_used(self) -> np.ndarray:
        """Which embeddings are neither broken, zero nor padding, ``(I,)``."""
        return (self.norms > 0) & self.is_real

    @cached_property
    def median_norm(self) -> float:
        """Median norm; NaN for fewer than three."""
        norms = self.norms[self.is_used]
        return float(np.exp(np.median(np.log(norms)))) if len(norms) >= 3 else np.nan

    @cached_property
    def outliers(self) -> np.ndarray:
        """Rows whose norm is an outlier."""
        from scipy.stats import median_abs_deviation

        rows = np.flatnonzero(self.is_used)
        if np.isnan(self.median_norm):
            return rows[:0]
        logs = np.log(self.norms[rows] / self.median_norm)
        limit = max(np.log(NORM_FACTOR), NORM_DEVIATIONS * float(median_abs_deviation(logs, scale="normal")))
        return rows[np.abs(logs) > limit]

    @cached_property
    def is_intact(self) -> np.ndarray:
        """Which embeddings are used, and no outliers, ``(I,)``."""
        intact = self.is_used
        intact[self.outliers] = False
        return intact

    @cached_property
    def equal_pairs(self) -> pl.DataFrame:
        """``row`` and ``earlier`` row of equal embeddings of different items."""
        rows = np.flatnonzero((self.norms > 0) & (self.item.ids > 0))
        frame = pl.DataFrame({"row": rows, "id": self.item.ids[rows], "key": self.hashes[rows]})
        pairs = frame.with_columns(earlier=pl.col("row").first().over("key"), first=pl.col("id").first().over("key"))
        # A second row of the same item is a fault of its own.
        return pairs.filter((pl.col("row") != pl.col("earlier")) & (pl.col("id") != pl.col("first")))

    @cached_property
    def near_pairs(self) -> pl.DataFrame:
        """``row``, ``earlier`` row and ``distance`` of near-duplicates of different items, equal ones left out."""
        parts = [pl.DataFrame(schema={"earlier": pl.Int64, "row": pl.Int64, "distance": pl.Float64})]
        candidates = _near_candidates(self) if self.dim >= PROJECTIONS else np.empty((0, 2), np.int64)
        for start in range(0, len(candidates), PAIRS_PER_PASS):
            pairs = candidates[start : start + PAIRS_PER_PASS]
            needed, positions = np.unique(pairs, return_inverse=True)
            unit = np.concatenate([vectors for (vectors,) in _read_rows([self], needed)])
            unit /= np.linalg.norm(unit, axis=1, keepdims=True)
            left, right = positions.reshape(-1, 2).T
            distance = np.linalg.norm(unit[right] - unit[left], axis=1).astype(np.float64)
            near = pl.DataFrame({"earlier": pairs[:, 0], "row": pairs[:, 1], "distance": distance})
            parts.append(near.filter(pl.col("distance") <= NEAR))
        return pl.concat(parts)

    def similar_items(self) -> set[int]:
        """Return the items whose embedding is equal or nearly equal to another's."""
        rows = [pairs[name] for pairs in (self.equal_pairs, self.near_pairs) for name in ("row", "earlier")]
        return set(self.item.ids[np.concatenate([r.to_numpy() for r in rows])].tolist())


def to_matrix(array: pa.Array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings ``(R, D)`` float32, zero where the dimension is another, and how many numbers a row has."""
    flat, offsets = split_lists(array)
    with np.errstate(over="ignore"):  # too large for float32: infinite, and reported
        values = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    lengths = np.diff(offsets)
    fits = lengths == dim
    if fits.all():
        return values.reshape(len(fits), dim), lengths
    rows = np.zeros((len(fits), dim), dtype=np.float32)
    rows[fits] = values[(offsets[:-1][fits, None] + np.arange(dim)).ravel()].reshape(-1, dim)
    return rows, lengths


def _near_candidates(column: EmbeddingColumn) -> np.ndarray:
    """Return pairs of rows ``(C, 2)``, the earlier first, whose projections are near."""
    from scipy.spatial import cKDTree

    rows = np.flatnonzero(column.is_intact)
    rows = np.sort(rows[np.unique(column.hashes[rows], return_index=True)[1]])  # equal ones are reported already
    if rows.size < 2:
        return np.empty((0, 2), np.int64)
    points = column.projected[rows]
    _, neighbours = cKDTree(points).query(points, k=NEIGHBOURS + 1, distance_upper_bound=NEAR * 1.01)
    left, right = np.repeat(np.arange(len(rows)), NEIGHBOURS + 1), neighbours.ravel()
    kept = (right < len(rows)) & (right != left)
    pairs = np.unique(np.sort(rows[np.stack([left[kept], right[kept]], axis=1)], axis=1), axis=0)
    return pairs[column.item.ids[pairs[:, 0]] != column.item.ids[pairs[:, 1]]]


def _read_rows(
    columns: Sequence[EmbeddingColumn], rows: np.ndarray, what: str = "", verbose: int = 0
) -> Iterator[list[np.ndarray]]:
    """Yield the embeddings of sorted ``rows`` in some columns of a file, each ``(R, D)``, a chunk at a time."""
    for start, batch in columns[0].item.chunks([c.name for c in columns], what, verbose):
        here = rows[(rows >= start) & (rows < start + len(batch))] - start
        if here.size:
            chunk = batch if here.size == len(batch) else batch.take(pa.array(here))
            yield [to_matrix(array, c.dim)[0] for array, c in zip(chunk.columns, columns, strict=True)]


@check(EmbeddingColumn, ERROR, "one dimension per column", Action.SET_ZERO)
def vector_width(column: EmbeddingColumn) -> Iterator[Fault]:
    """Embeddings of another dimension."""
    if not column.dim and len(column.item.ids):
        yield Fault(column.item.file, column.name, found="all embeddings are empty", expected="embeddings")
        return
    rows = np.flatnonzero((column.lengths != column.dim) & (column.lengths >= 0) & column.is_real)
    yield column.fault(rows, column.lengths[rows], expected=f"{column.dim} numbers")


@check(EmbeddingColumn, ERROR, "finite numbers", Action.SET_ZERO)
def nonfinite_vector(column: EmbeddingColumn) -> Iterator[Fault]:
    """Embeddings with NaN, infinite or null numbers."""
    yield column.fault(np.array(list(column.nonfinite), dtype=np.int64), list(column.nonfinite.values()))


@check(EmbeddingColumn, WARNING, "an embedding per item")
def zero_vector(column: EmbeddingColumn) -> Iterator[Fault]:
    """Embeddings of zeros."""
    yield column.fault(np.flatnonzero((column.lengths < 0) & column.is_real), found="embeddings that are null")
    zero = (column.norms == 0) & (column.lengths == column.dim) & column.is_real
    zero[list(column.nonfinite)] = False
    if column.dim:
        yield column.fault(np.flatnonzero(zero))


@check(EmbeddingColumn, WARNING, "norms near the median", Action.RESCALE)
def norm_outlier(column: EmbeddingColumn) -> Iterator[Fault | Measure]:
    """Embeddings with a norm that is an outlier."""
    if column.outliers.size:
        yield Measure(("median_norm", f"{column.item.file}: {column.name}"), column.median_norm)
        expected = f"a norm near the median {column.median_norm:.4g}"
        yield column.fault(column.outliers, column.norms[column.outliers], expected=expected)


@check(EmbeddingColumn, WARNING, "numbers that vary")
def constant_column(column: EmbeddingColumn) -> Iterator[Fault]:
    """A dimension with the same number in all embeddings."""
    count = int(column.is_used.sum())
    for index in np.flatnonzero((column.lowest == column.highest) & (count > 1)):
        found = f"the number at index {index} is {column.lowest[index]:g} in all {count} embeddings"
        yield Fault(column.item.file, f"{column.name}[{index}]", found=found)


@check(EmbeddingColumn, WARNING, "a different embedding for each item")
def duplicate_vector(column: EmbeddingColumn) -> Iterator[Fault]:
    """Embeddings equal to an earlier one."""
    rows, earlier = column.equal_pairs["row"].to_numpy(), column.equal_pairs["earlier"].to_numpy()
    items = column.item.translation.shown(column.item.ids[earlier])
    yield column.fault(rows, [f"equals row {e}, item_id {item}" for e, item in zip(earlier, items, strict=True)])


@check(EmbeddingColumn, WARNING, "a different embedding for each item")
def near_duplicate_vector(column: EmbeddingColumn) -> Iterator[Fault]:
    """Embeddings within 1 % of the direction of another."""
    pairs = column.near_pairs
    items = column.item.translation.shown(column.item.ids[pairs["earlier"].to_numpy()])
    texts = [
        f"within {d:.2g} of row {e}, item_id {item}"
        for item, (e, d) in zip(items, pairs.select("earlier", "distance").iter_rows(), strict=True)
    ]
    yield column.fault(pairs["row"].to_numpy(), texts)


@dataclass(frozen=True)
class Modalities:
    """Text and image embeddings of one file; ``verbose=0`` shows no progress."""

    text: EmbeddingColumn
    image: EmbeddingColumn
    verbose: int = 0

    def read(self, rows: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Yield the embeddings of sorted rows, chunk by chunk."""
        return _read_rows([self.text, self.image], rows, "text and image", self.verbose)


def find_modalities(
    layout: Layout, text: str | None = None, image: str | None = None
) -> tuple[ItemFile, str, str] | None:
    """Return the file and the columns of text and image, by their names, or None; both must be in one file.

    Raises
    ------
    ConfigError
        A given column is missing.
    """
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
    """Return mean ``(D,)`` and components ``(D, K)`` of text and image, from covariances summed over chunks."""
    shifts: list[np.ndarray] = []
    dims = (pair.text.dim, pair.image.dim)
    sums, products = [np.zeros(d) for d in dims], [np.zeros((d, d)) for d in dims]
    for vectors in pair.read(rows):
        # The sums are of differences from the first embeddings, so that a large mean costs no digits.
        shifts = shifts or [v.mean(axis=0, dtype=np.float64).astype(np.float32) for v in vectors]
        for side, shift in enumerate(shifts):
            centred = vectors[side] - shift
            sums[side] += centred.sum(axis=0, dtype=np.float64)
            products[side] += centred.T @ centred
    bases = []
    for total, product, shift in zip(sums, products, shifts, strict=True):
        mean = total / len(rows)
        components = np.linalg.eigh(product / len(rows) - np.outer(mean, mean))[1][:, ::-1]
        kept = min(COMPONENTS, len(mean), len(rows) // 20)
        bases.append(((shift + mean).astype(np.float32), components[:, :kept].astype(np.float32)))
    return bases


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

    Returns
    -------
    set of int
        Items whose embedding is equal or nearly equal to another's, where the check of titles needs them.

    Raises
    ------
    ConfigError
        A given column is missing.
    """
    similar: set[int] = set()
    if not report.wants(EmbeddingColumn, Modalities, "duplicate-title"):
        return similar
    modalities = find_modalities(layout, text, image) if report.wants(Modalities) else None
    columns: dict[tuple[Path, str], EmbeddingColumn] = {}
    for item in layout.items:
        for name in item.embeddings:
            with report.reading(item.path):
                column = columns[item.path, name] = EmbeddingColumn(item, name, verbose)
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
