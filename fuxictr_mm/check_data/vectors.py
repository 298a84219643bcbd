"""Checks of embeddings: broken, outlying and duplicate ones.

Shape letters: I items, R rows of a chunk, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.check_data.arrays import split_lists
from fuxictr_mm.check_data.checks import ERROR, INFO, WARNING, Action, Fault, Measure, check
from fuxictr_mm.check_data.layout import ItemFile
from fuxictr_mm.data.norms import Norms

#: Euclidean distance of two embeddings of norm 1 that makes them near-duplicates.
NEAR = 0.01
#: Orthonormal projections in which near-duplicates are looked for, and neighbours looked at.
PROJECTIONS, NEIGHBOURS = 16, 5
#: Pairs measured in one pass over the file.
PAIRS_PER_PASS = 8192
#: A norm is an outlier beyond this factor of the median and this many robust standard deviations of its logarithm.
NORM_FACTOR, NORM_DEVIATIONS = 10.0, 8.0


class EmbeddingColumn:
    """A column of embeddings, read once; ``verbose=0`` shows no progress.

    ``is_scaled`` says that the dataset's configuration has ``norm`` or ``scale`` of it.
    """

    def __init__(self, item: ItemFile, name: str, verbose: int = 0, is_scaled: bool = False) -> None:
        self.item, self.name, self.is_scaled, count = item, name, is_scaled, len(item.ids)
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
            unit = np.concatenate([vectors for (vectors,) in read_rows([self], needed)])
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


def read_rows(
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


@check(EmbeddingColumn, INFO, "a norm near 1")
def unscaled_vector(column: EmbeddingColumn) -> Iterator[Fault]:
    """Embeddings with a median norm far from 1."""
    norms = Norms.of(column.norms[column.is_used])
    if not column.is_scaled and norms is not None and norms.setting is not None:
        key, value = norms.setting
        found, expected = f"the median norm is {norms.median:.3g}", f"a norm near 1, or {key}: {value} of the feature"
        yield Fault(column.item.file, column.name, found=found, expected=expected)


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
