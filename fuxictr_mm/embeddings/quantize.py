"""Vector quantisation by faiss: codebooks for VQ, RQ, PQ and OPQ, and exact nearest neighbours.

Shape letters: M items, D width, L levels, C codes of a level, K neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.embeddings.codebooks import (
    METHODS,
    SCALINGS,
    Codebook,
    Codes,
    Fitted,
    Modality,
    Space,
    Vectors,
    check_matches,
    load_codebooks,
    save_codebooks,
)
from fuxictr_mm.embeddings.command import add_output, flag
from fuxictr_mm.embeddings.item_files import (
    CHUNK_ROWS,
    ItemFileWriter,
    JoinedVectors,
    Source,
    add_sources,
    code_type,
    read_ids,
    vector_type,
)
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.terminal import progress_bar

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


class Tally:
    """What the report of a codebook says, summed over chunks."""

    def __init__(self, book: Codebook) -> None:
        self.book = book
        shape = (book.levels, len(book.space.modalities))
        self.error = np.zeros(shape)
        self.energy = np.zeros(shape[1])
        self.use = np.zeros((book.levels, book.codes), dtype=np.int64)
        self.codes: list[NDArray[np.int32]] = []
        self.items = 0
        self.incomplete = 0

    def add(self, z: Vectors, codes: Codes, present: NDArray[np.bool_]) -> None:
        """Count items with z ``(M, D)``, codes ``(M, L)`` and which modalities they have ``(M, modalities)``."""
        some = present.max(axis=1)
        self.items += len(z)
        self.incomplete += int((some & ~present.all(axis=1)).sum())
        z, codes, present = z[some], codes[some], present[some]
        parts = self.book.space.parts
        for place, part in enumerate(parts):
            self.energy[place] += np.square(z[present[:, place], part], dtype=np.float64).sum()
        for level, known in enumerate(self.book.approximations(codes)):
            self.use[level] += np.bincount(codes[:, level], minlength=self.book.codes)
            for place, part in enumerate(parts):
                has = present[:, place]
                self.error[level, place] += np.square(z[has, part] - known[has, part], dtype=np.float64).sum()
        self.codes.append(codes.astype(np.int32))

    def report(self) -> dict[str, Any]:
        """Return the report of one column."""
        book = self.book
        tiny = np.finfo(np.float64).tiny
        share = self.use / max(self.use[0].sum(), 1)
        entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
        codes = np.concatenate(self.codes)
        groups = np.unique(codes, axis=0, return_counts=True)[1] if len(codes) else np.zeros(1, dtype=np.int64)
        by_modality = self.error / np.maximum(self.energy, tiny)
        return {
            "method": book.method,
            "levels": book.levels,
            "codes": book.codes,
            "scaling": book.space.scaling,
            "modalities": [m.name for m in book.space.modalities],
            "vocab_size": book.vocab_size,
            "items": self.items,
            "items_without_vector": self.items - len(codes),
            "items_without_a_modality": self.incomplete,
            "relative_error": (self.error.sum(axis=1) / max(self.energy.sum(), tiny)).tolist(),
            "relative_error_by_modality": {
                m.name: by_modality[:, place].tolist() for place, m in enumerate(book.space.modalities)
            },
            "codes_used": (self.use > 0).mean(axis=1).tolist(),
            "perplexity": np.exp(entropy).tolist(),
            "colliding_items": int(groups[groups > 1].sum()),
            "largest_collision": int(groups.max()),
        }


def yaml_lines(report: Mapping[str, Mapping[str, Any]], neighbors: int = 0, largest_id: int = 0) -> list[str]:
    """Return the lines for ``feature_cols`` of dataset_config.yaml.

    Parameters
    ----------
    report : mapping
        Of ``quantize``.
    neighbors : int
        K, as given to ``quantize``.
    largest_id : int
        The largest item id.

    Examples
    --------
    >>> yaml_lines({"codes_rq_text": {"levels": 2, "vocab_size": 17}})[0]
    '- {name: codes_rq_text, active: False, dtype: int, type: sequence, source: item, max_len: 2, vocab_size: 17, \
feature_encoder: layers.MaskedSumPooling()}'
    """
    lines = []
    for column, values in report.items():
        shape = f"max_len: {values['levels']}, vocab_size: {values['vocab_size']}"
        lines.append(_yaml_line(column, f"{shape}, feature_encoder: layers.MaskedSumPooling()"))
        if neighbors:
            shape = f"max_len: {neighbors}, vocab_size: {largest_id + 1}"
            lines.append(_yaml_line(beside(column, "neighbors"), f"{shape}, share_embedding: item_id"))
    return lines


def _yaml_line(name: str, rest: str) -> str:
    return f"- {{name: {name}, active: False, dtype: int, type: sequence, source: item, {rest}}}"


def describe(report: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the report as a table."""
    lines = []
    for column, values in report.items():
        lines.append(
            f"{column}: {values['method']} of {', '.join(values['modalities'])} (scaling {values['scaling']}), "
            f"{values['items']} items, {values['items_without_vector']} without a vector"
        )
        if values["items_without_a_modality"]:
            lines.append(f"  {values['items_without_a_modality']} items lack a modality: the mean stands for it")
        several = len(values["modalities"]) > 1
        names = values["modalities"] if several else []
        lines.append("  level  relative error  codes used  perplexity" + "".join(f"  error of {n}" for n in names))
        for level in range(values["levels"]):
            cells = f"  {level + 1:5d}  {values['relative_error'][level]:14.4f}"
            cells += f"  {values['codes_used'][level]:10.1%}  {values['perplexity'][level]:10.1f}"
            for name in names:
                cells += f"  {values['relative_error_by_modality'][name][level]:{len(name) + 9}.4f}"
            lines.append(cells)
        lines.append(
            f"  {values['colliding_items']} items share all their codes with another, "
            f"at most {values['largest_collision']} the same"
        )
    return "\n".join(lines)


def beside(column: str, what: str) -> str:
    """Return the name of a column that goes with a column of codes, ``neighbors_vq_text`` with ``codes_vq_text``."""
    return what + column.removeprefix("codes")


Ids = NDArray[np.int64]


#: What ``metric`` may be.
METRICS = ("l2", "inner_product")


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """How codebooks are fitted.

    Parameters
    ----------
    method : {"vq", "rq", "pq", "opq", "vqvae"}
        k-means; residual; product; rotated product quantisation; a learned residual VQ-VAE.
    levels : int, optional
        Codes per item; 1 for ``vq``, 4 for the others.
    codes : int
        Codes to choose from at each level, a power of two.
    joint : bool
        One codebook for all modalities side by side rather than one for each.
    scaling : {"modality", "none", "l2", "standard"}
        How modalities are brought to one scale, see ``fuxictr_mm.embeddings.codebooks.Space``.
    fit_items : int
        Fit on a sample of at most so many items; memory is bounded by it.
    seed : int
        Of the sample and of the method.
    steps, batch_size, latent_dim, hidden_units, learning_rate : optional
        Of ``vqvae`` only, see ``fuxictr_mm.embeddings.rqvae.fit_vqvae``.

    Raises
    ------
    ConfigError
        At construction, for the first value that cannot be.
    """

    method: str = "rq"
    levels: int | None = None
    codes: int = 256
    joint: bool = False
    scaling: str = "modality"
    fit_items: int = 65_536
    seed: int = 2025
    steps: int | None = None
    batch_size: int | None = None
    latent_dim: int | None = None
    hidden_units: Sequence[int] | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"--method {self.method}, expected one of {', '.join(METHODS)}")
        if self.scaling not in SCALINGS:
            raise ConfigError(f"--scaling {self.scaling}, expected one of {', '.join(SCALINGS)}")
        if not 2 <= self.codes <= 65_536 or self.codes & (self.codes - 1):
            raise ConfigError(f"--codes {self.codes}, expected a power of two from 2 to 65536, such as 256")
        if self.num_levels < 1:
            raise ConfigError(f"--levels {self.levels}, expected 1 or more")
        if self.method == "vq" and self.num_levels != 1:
            raise ConfigError(f"--levels {self.levels}, but --method vq has one level; use --method rq for several")
        if self.fit_items < self.codes:
            raise ConfigError(f"--fit-items {self.fit_items} is below --codes {self.codes}; every code needs an item")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"--seed {self.seed}, expected 0 to {2**31 - 1}")
        if self.method != "vqvae" and self.network_options:
            raise ConfigError(f"{flag(next(iter(self.network_options)))} is of --method vqvae only; leave it out")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"--learning-rate {self.learning_rate}, expected a number above 0")

    @property
    def num_levels(self) -> int:
        """L."""
        return (1 if self.method == "vq" else 4) if self.levels is None else self.levels

    @property
    def network_options(self) -> dict[str, Any]:
        """Options of the VQ-VAE that were given."""
        names = ("steps", "batch_size", "latent_dim", "hidden_units", "learning_rate")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


def quantize(
    sources: Sequence[Source],
    out: str | os.PathLike[str],
    options: QuantizeOptions | None = None,
    *,
    codebook: str | os.PathLike[str] | None = None,
    neighbors: int = 0,
    metric: str = "l2",
    decoded: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Fit codebooks on item vectors and write every item's codes.

    Parameters
    ----------
    sources : sequence of Source
        One per modality.
    out : path
        Item file to write: ``codes_METHOD_NAME`` per modality, or ``codes_METHOD`` for all of them together.
    options : QuantizeOptions, optional
        How to fit.
    codebook : path, optional
        Where the codebooks go, for ``apply_codebooks``.
    neighbors : int
        K, the nearest items to write beside, of ``vq`` only; 0 for none.
    metric : {"l2", "inner_product"}
        What near means.
    decoded : bool
        Also write the vectors that the codes stand for.
    overwrite : bool
        Replace files that are there.
    quiet : bool
        No progress bars.

    Returns
    -------
    dict
        By column: errors, use of codes and collisions, see ``docs/embeddings/quantize.md``.

    Raises
    ------
    UserError
        Options, vectors or files are wrong, or faiss is missing.
    """
    options = options or QuantizeOptions()
    if codebook is not None and Path(codebook).exists() and not overwrite:
        raise ConfigError(f"{codebook}: exists already; add --overwrite or choose another name")
    _check_neighbors(neighbors, metric, [options.method])
    with JoinedVectors(sources) as joined:
        ItemFileWriter(out, {}, overwrite)  # refuses a file that is there, before the long work
        books = _fit(joined, options, quiet)
        report = _write(joined, books, out, neighbors, metric, decoded, overwrite, quiet, joined)
    if codebook is not None:
        save_codebooks(books, codebook)
    return report


def apply_codebooks(
    sources: Sequence[Source],
    out: str | os.PathLike[str],
    codebook: str | os.PathLike[str],
    *,
    among: Sequence[Source] = (),
    neighbors: int = 0,
    metric: str = "l2",
    decoded: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write the codes of items by codebooks that were fitted before; needs neither faiss nor torch.

    Other parameters, and the result, are those of ``quantize``.

    Parameters
    ----------
    among : sequence of Source
        The items that neighbours are looked for among, with the modalities of ``sources``: those of the fit, which a
        model has trained on. Needed with ``neighbors``.

    Raises
    ------
    UserError
        The codebook is missing, damaged or of other modalities or widths, as of ``among``.
    """
    if neighbors and not among:
        raise ConfigError(
            "--neighbors with --apply needs --among NAME=FILE:COLUMN, the items to look for neighbours among: those of "
            "the fit, as new items are strangers to a model"
        )
    if among and not neighbors:
        raise ConfigError("--among has no effect without --neighbors; leave it out")
    books = load_codebooks(codebook)
    _check_neighbors(neighbors, metric, [book.method for book in books.values()])
    with JoinedVectors(sources) as joined, ExitStack() as stack:
        catalogue = stack.enter_context(JoinedVectors(among)) if among else joined
        _check_modalities(joined, books, codebook)
        _check_modalities(catalogue, books, codebook)
        return _write(joined, books, out, neighbors, metric, decoded, overwrite, quiet, catalogue)


def _check_modalities(joined: JoinedVectors, books: Mapping[str, Codebook], codebook: str | os.PathLike[str]) -> None:
    """Raise unless vectors are of the modalities that codebooks were fitted on."""
    known = {m.name for book in books.values() for m in book.space.modalities}
    unknown = [s.name for s in joined.sources if s.name not in known]
    if unknown:
        raise DataError(
            f"{codebook}: no codebook of a modality '{unknown[0]}' (it has: {', '.join(sorted(known))}); "
            "name the sources as they were named when it was fitted"
        )
    given = _modalities(joined)
    for book in books.values():
        names = [m.name for m in book.space.modalities]
        check_matches(book, [given[n] for n in names if n in given], str(codebook))


def _check_neighbors(count: int, metric: str, methods: Sequence[str]) -> None:
    if metric not in METRICS:
        raise ConfigError(f"--metric {metric}, expected one of {', '.join(METRICS)}")
    if count < 0:
        raise ConfigError(f"--neighbors {count}, expected 0 or more")
    if count and any(method != "vq" for method in methods):
        raise ConfigError(f"--neighbors goes with --method vq, not with {methods[0]}; use two commands")


def _modalities(joined: JoinedVectors) -> dict[str, Modality]:
    return {s.name: Modality(s.name, s.column, joined.widths[s.name]) for s in joined.sources}


def _side_by_side(parts: Mapping[str, Vectors], modalities: Sequence[Modality]) -> Vectors:
    if len(modalities) == 1:
        return parts[modalities[0].name]
    return np.concatenate([parts[m.name] for m in modalities], axis=1)


def _bar(joined: JoinedVectors, what: str, quiet: bool) -> Any:
    chunks = -(-len(joined.ids) // CHUNK_ROWS)
    return progress_bar(joined.chunks(), what, verbose=0 if quiet else 1, total=chunks)


def _fit(joined: JoinedVectors, options: QuantizeOptions, quiet: bool) -> dict[str, Codebook]:
    modalities = _modalities(joined)
    groups = (
        {f"codes_{options.method}": list(modalities.values())}
        if options.joint
        else {f"codes_{options.method}_{name}": [m] for name, m in modalities.items()}
    )
    present = {name: np.zeros(len(joined.ids), dtype=bool) for name in modalities}
    row = 0
    for ids, parts in _bar(joined, "reading", quiet):
        for name, vectors in parts.items():
            present[name][row : row + len(ids)] = vectors.any(axis=1)
        row += len(ids)
    chosen = {
        column: _sample(np.logical_and.reduce([present[m.name] for m in group]), group, options)
        for column, group in groups.items()
    }
    samples = {
        column: np.empty((int(chosen[column].sum()), sum(m.width for m in group)), dtype=np.float32)
        for column, group in groups.items()
    }
    filled = dict.fromkeys(groups, 0)
    row = 0
    for ids, parts in _bar(joined, "sampling", quiet):
        for column, group in groups.items():
            here = chosen[column][row : row + len(ids)]
            some = _side_by_side({m.name: parts[m.name][here] for m in group}, group)
            samples[column][filled[column] : filled[column] + len(some)] = some
            filled[column] += len(some)
        row += len(ids)
    books = {}
    for column, group in groups.items():
        space = Space.fit(samples[column], group, options.scaling)
        z = space.enter(samples.pop(column))
        books[column] = Codebook(options.method, space, _fit_method(z, options, quiet))
    return books


def _sample(eligible: NDArray[np.bool_], group: Sequence[Modality], options: QuantizeOptions) -> NDArray[np.bool_]:
    """Return which items ``(I,)`` take part in the fit."""
    rows = np.flatnonzero(eligible)
    if len(rows) < options.codes:
        columns = ", ".join(m.column for m in group)
        raise ConfigError(
            f"--codes {options.codes} needs as many items that have a vector, but {columns} has {len(rows)} "
            "that are not zero; use fewer codes or more items"
        )
    if len(rows) > options.fit_items:
        rows = np.random.default_rng(options.seed).choice(rows, options.fit_items, replace=False)
    chosen = np.zeros(len(eligible), dtype=bool)
    chosen[rows] = True
    return chosen


def _fit_method(z: Vectors, options: QuantizeOptions, quiet: bool) -> Fitted:
    levels, codes, seed = options.num_levels, options.codes, options.seed
    if options.method == "vqvae":
        from fuxictr_mm.embeddings.rqvae import fit_vqvae

        return fit_vqvae(z, levels, codes, seed, quiet=quiet, **options.network_options)

    fit = {"vq": fit_vq, "rq": fit_rq, "pq": fit_pq, "opq": fit_opq}
    return fit[options.method](z, levels, codes, seed)


def _write(
    joined: JoinedVectors,
    books: Mapping[str, Codebook],
    out: str | os.PathLike[str],
    neighbors: int,
    metric: str,
    decoded: bool,
    overwrite: bool,
    quiet: bool,
    catalogue: JoinedVectors,
) -> dict[str, dict[str, Any]]:
    schema: dict[str, pa.DataType] = {}
    for column, book in books.items():
        schema[column] = code_type(book.levels)
        if neighbors:
            schema[beside(column, "neighbors")] = code_type(neighbors)
        if decoded:
            schema[beside(column, "decoded")] = vector_type(book.space.width)
    tallies = {column: Tally(book) for column, book in books.items()}
    with ItemFileWriter(out, schema, overwrite) as writer:
        for ids, parts in _bar(joined, "encoding", quiet):
            columns: dict[str, Any] = {}
            for column, book in books.items():
                vectors = _side_by_side(parts, book.space.modalities)
                present = book.space.present(vectors)
                some = present.max(axis=1)
                codes = book.encode(vectors)
                columns[column] = np.where(some[:, None], book.semantic_ids(codes), 0)
                tallies[column].add(book.space.enter(vectors), codes, present)
                if neighbors:
                    found = np.zeros((len(ids), neighbors), dtype=np.int64)
                    found[some] = _neighbors(catalogue, book.space, vectors[some], ids[some], neighbors, metric)
                    columns[beside(column, "neighbors")] = found
                if decoded:
                    columns[beside(column, "decoded")] = np.where(some[:, None], book.decode(codes), 0.0)
            writer.write(ids, columns)
    return {column: tally.report() for column, tally in tallies.items()}


def _neighbors(
    catalogue: JoinedVectors, space: Space, vectors: Vectors, ids: Ids, count: int, metric: str
) -> NDArray[np.int64]:
    center = metric == "l2"  # distances do not depend on it, and small numbers round less

    def read() -> Iterator[tuple[Ids, Vectors]]:
        for some_ids, parts in catalogue.chunks():
            others = _side_by_side(parts, space.modalities)
            known = others.any(axis=1)
            yield some_ids[known], np.ascontiguousarray(space.enter(others[known], center))

    return nearest_items(read, np.ascontiguousarray(space.enter(vectors, center)), ids, count, metric)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm embed quantize``."""
    add_examples(
        parser,
        "fuxictr-mm embed quantize \\",
        "    text=item_feature.parquet:txt_emb_BERT image=item_feature.parquet:img_emb_CLIPRN50 \\",
        "    --method rq --levels 4 --codes 256 --out item_codes.parquet --save item_codes.safetensors",
        "fuxictr-mm embed quantize \\",
        "    text=new_items.parquet:txt_emb_BERT image=new_items.parquet:img_emb_CLIPRN50 \\",
        "    --apply item_codes.safetensors --out new_item_codes.parquet",
        "fuxictr-mm embed quantize text=new_items.parquet:txt_emb_BERT --apply item_codes_vq.safetensors \\",
        "    --neighbors 10 --among text=item_feature.parquet:txt_emb_BERT --out new_item_codes.parquet",
    )
    add_sources(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="item file to write")
    parser.add_argument("--method", choices=METHODS, help="rq (default), vq, pq, opq or vqvae")
    parser.add_argument("--levels", type=int, help="codes per item (default 4; vq has 1)")
    parser.add_argument("--codes", type=int, help="codes to choose from at each level, a power of two (default 256)")
    parser.add_argument("--joint", action="store_true", default=None, help="one codebook for all modalities together")
    parser.add_argument(
        "--scaling", choices=SCALINGS, help="how modalities come to one scale (default modality: a variance of 1 each)"
    )
    parser.add_argument("--fit-items", type=int, help="fit on a sample of at most so many items (default 65536)")
    parser.add_argument("--seed", type=int, help="seed of sample and method (default 2025)")
    network = parser.add_argument_group("of --method vqvae")
    network.add_argument("--steps", type=int, help="batches (default 5000)")
    network.add_argument("--batch-size", type=int, help="items of a batch (default 256)")
    network.add_argument("--latent-dim", type=int, help="width of the learned space (default 32)")
    network.add_argument("--hidden-units", type=int, nargs="+", help="widths of the encoder (default 256 128)")
    network.add_argument("--learning-rate", type=float, help="of Adam (default 0.001)")
    parser.add_argument("--neighbors", type=int, default=0, metavar="K", help="with vq: write the K nearest items too")
    parser.add_argument(
        "--among",
        nargs="+",
        metavar="NAME=FILE:COLUMN",
        help="with --apply and --neighbors: the items to look among, those of the fit",
    )
    parser.add_argument("--metric", choices=METRICS, default="l2", help="what near means (default l2)")
    parser.add_argument("--decoded", action="store_true", help="write the vectors that the codes stand for too")
    parser.add_argument("--save", metavar="FILE", help="write the codebooks, a safetensors file")
    parser.add_argument("--apply", metavar="FILE", help="use these codebooks instead of fitting any")
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON")
    add_output(parser)


#: Options that decide the fit: with ``--apply`` none of them has an effect.
_FIT_OPTIONS = tuple(QuantizeOptions.__dataclass_fields__)


def main_from_args(arguments: argparse.Namespace) -> None:
    """Run ``fuxictr-mm embed quantize``."""
    sources = [Source.parse(text) for text in arguments.sources]
    given = {n: getattr(arguments, n) for n in _FIT_OPTIONS if getattr(arguments, n) is not None}
    shared = {n: getattr(arguments, n) for n in ("neighbors", "metric", "decoded", "overwrite", "quiet")}
    if arguments.apply is not None:
        useless = [*given, *(["save"] if arguments.save is not None else [])]
        if useless:
            raise ConfigError(
                f"{flag(useless[0])} has no effect with --apply, which takes all from the codebook; leave it out"
            )
    among = [Source.parse(text) for text in arguments.among or ()]
    if among and arguments.apply is None:
        raise ConfigError("--among is for --apply; a fit takes neighbours from its own items")
    inputs = [*(source.path for source in (*sources, *among)), arguments.apply]
    check_outputs([arguments.out, arguments.save, arguments.report], inputs, arguments.overwrite)
    if arguments.apply is not None:
        report = apply_codebooks(sources, arguments.out, arguments.apply, among=among, **shared)
    else:
        report = quantize(sources, arguments.out, QuantizeOptions(**given), codebook=arguments.save, **shared)
    if arguments.report is not None:
        write_beside(arguments.report, lambda stream: stream.write(json.dumps(report, indent=1).encode() + b"\n"))
    largest_id = max(int(read_ids(s).max()) for s in (*sources, *among)) if arguments.neighbors else 0
    paste = [f"  {line}" for line in yaml_lines(report, arguments.neighbors, largest_id)]
    wrote = f"wrote {arguments.out}; for dataset_config.yaml (add the file to item_info:):"
    show(arguments, report, "\n".join([describe(report), wrote, *paste]))
