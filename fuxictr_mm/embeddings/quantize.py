"""Embeddings to codes, with a report, and exact nearest neighbors.

Shape letters: M items, D dim, L levels, C codes of a level, K neighbors, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from fuxictr_mm.checking import Settings
from fuxictr_mm.embeddings.codebooks import (
    Codebook,
    Floats,
    Method,
    Modality,
    Scaling,
    Space,
    fit_codebook,
    import_faiss,
    load_codebooks,
    save_codebooks,
)
from fuxictr_mm.embeddings.item_files import (
    CHUNK_ROWS,
    ItemFileWriter,
    JoinedEmbeddings,
    Source,
    code_type,
    embedding_type,
)
from fuxictr_mm.embeddings.quantize_report import Statistics, related
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import StrPath, check_outputs, write_json
from fuxictr_mm.reduction.saved import check_modalities
from fuxictr_mm.terminal import progress_bar

Ids = NDArray[np.int64]

#: Distances between items.
METRICS = ("l2", "inner_product")

#: Options of ``vqvae``, see ``fuxictr_mm.embeddings.rqvae.fit_rqvae``.
NETWORK_OPTIONS = ("steps", "batch_size", "latent_dim", "hidden_units", "learning_rate")


class QuantizeOptions(Settings):
    """How codebooks are fitted."""

    method: Method = Field("rq", description="k-means, residual, product or optimized product quantization, or RQ-VAE")
    levels: PositiveInt | None = Field(None, description="codes per item (default 4; vq has 1)")
    codes: int = Field(256, ge=2, le=65_536, description="number of codes of each level, a power of two")
    joint: bool = Field(False, description="one codebook for all modalities together")
    scaling: Scaling = Field("modality", description="how modalities are scaled; modality: a total variance of 1 each")
    fit_items: PositiveInt = Field(65_536, description="fit on a sample of at most this many items; bounds the memory")
    seed: int = Field(2025, ge=0, lt=2**31, description="seed of sample and method")
    steps: PositiveInt | None = Field(None, description="vqvae: batches (default 5000)")
    batch_size: PositiveInt | None = Field(None, description="vqvae: items per batch (default 256)")
    latent_dim: PositiveInt | None = Field(None, description="vqvae: dim of the latent space (default 32)")
    hidden_units: Sequence[PositiveInt] | None = Field(
        None, description="vqvae: hidden dims of the encoder (default 256 128)"
    )
    learning_rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="vqvae: learning rate of Adam (default 0.001)"
    )

    @field_validator("codes")
    @classmethod
    def _check_codes(cls, codes: int) -> int:
        if codes & (codes - 1):
            raise ValueError(f"codes is {codes}, expected a power of two, such as 256")
        return codes

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("method") == "vq" and levels not in (None, 1):
            raise ValueError(f"levels is {levels}, but method vq has one level; use method rq for several levels")
        return levels

    @field_validator("fit_items")
    @classmethod
    def _check_fit_items(cls, fit_items: int, info: ValidationInfo) -> int:
        if fit_items < info.data.get("codes", 0):
            raise ValueError(f"fit_items is {fit_items}, below codes {info.data['codes']}; every code needs an item")
        return fit_items

    @field_validator(*NETWORK_OPTIONS)
    @classmethod
    def _check_network(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("method") != "vqvae":
            raise ValueError(f"{info.field_name} is only for method vqvae; remove it")
        return value

    @property
    def num_levels(self) -> int:
        """L."""
        return self.levels or (1 if self.method == "vq" else 4)


def quantize(
    sources: Sequence[Source],
    out: StrPath,
    options: QuantizeOptions | None = None,
    *,
    apply: StrPath | None = None,
    among: Sequence[Source] = (),
    save: StrPath | None = None,
    report: StrPath | None = None,
    neighbors: int = 0,
    metric: str = "l2",
    decoded: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Fit codebooks on the embeddings of items, or load them, and write the codes of every item.

    Parameters
    ----------
    sources : sequence of Source
        One per modality.
    out : path
        Item file to write: ``codes_METHOD_NAME`` per modality, or ``codes_METHOD`` of all together.
    options : QuantizeOptions, optional
        How to fit.
    apply : path, optional
        Saved codebooks to apply instead of fitting new ones; without neighbors, this needs neither faiss nor torch.
    among : sequence of Source
        With ``apply`` and ``neighbors``: the items to search, with the modalities of ``sources``: those of the fit, on
        which a model has been trained.
    save : path, optional
        Where to save the codebooks.
    report : path, optional
        A JSON file for what is returned.
    neighbors : int
        K, the number of nearest items to write as well, with ``vq`` only; 0 for none.
    metric : {"l2", "inner_product"}
        Distance between items.
    decoded : bool
        Write the reconstructed embeddings as well.
    overwrite : bool
        Replace existing files.
    quiet : bool
        No progress bars.

    Returns
    -------
    dict
        By column: errors, use of codes and collisions, see ``docs/embeddings/quantize.md``.

    Raises
    ------
    UserError
        Options, embeddings or files are invalid, or faiss is not installed.
    """
    options = options or QuantizeOptions()
    books = load_codebooks(apply) if apply is not None else {}
    if metric not in METRICS:
        raise ConfigError(f"--metric {metric}, expected one of {', '.join(METRICS)}")
    if neighbors < 0:
        raise ConfigError(f"--neighbors {neighbors}, expected 0 or more")
    if bool(among) != bool(apply is not None and neighbors):
        raise ConfigError(
            "--among NAME=FILE:COLUMN, the items of the fit, needs --apply and --neighbors; without "
            "--apply, the items of the fit itself are searched"
        )
    for method in sorted({book.method for book in books.values()}) or [options.method]:
        if neighbors and method != "vq":
            raise ConfigError(f"--neighbors needs --method vq, found {method}; use two commands")
    check_outputs([out, save, report], [*(source.path for source in (*sources, *among)), apply], overwrite)
    with JoinedEmbeddings(sources) as joined, ExitStack() as stack:
        catalogue = stack.enter_context(JoinedEmbeddings(among)) if among else joined
        if apply is None:
            books = _fit(joined, options, quiet)
        for given in (joined, catalogue):
            _check_sources(given, books, str(apply))
        found = _write(joined, books, out, catalogue, neighbors, metric, decoded, overwrite, quiet)
    if save is not None:
        save_codebooks(books, save)
    if report is not None:
        write_json(Path(report), found)
    return found


def _check_sources(joined: JoinedEmbeddings, books: Mapping[str, Codebook], codebook: str) -> None:
    """Raise unless the sources have the names and dims of the modalities that the codebooks were fitted on."""
    fitted = {m.name: m for book in books.values() for m in book.space.modalities}
    dims, columns = {n: m.dim for n, m in fitted.items()}, {n: m.column for n, m in fitted.items()}
    check_modalities(joined.dims, dims, codebook, columns)


def _fit(joined: JoinedEmbeddings, options: QuantizeOptions, quiet: bool) -> dict[str, Codebook]:
    """Return a codebook by column of codes."""
    modalities = {s.name: Modality(s.name, s.column, joined.dims[s.name]) for s in joined.sources}
    groups = (
        {f"codes_{options.method}": tuple(modalities.values())}
        if options.joint
        else {f"codes_{options.method}_{name}": (m,) for name, m in modalities.items()}
    )
    present = [
        np.stack([parts[name].any(axis=1) for name in modalities]) for _, parts in _bar(joined, "reading", quiet)
    ]
    has = dict(zip(modalities, np.concatenate(present, axis=1), strict=True))
    sampled = {
        column: _sample(np.logical_and.reduce([has[m.name] for m in group]), group, options)
        for column, group in groups.items()
    }
    samples: dict[str, list[Floats]] = {column: [] for column in groups}
    start = 0
    for ids, parts in _bar(joined, "sampling", quiet):
        for column, group in groups.items():
            samples[column].append(_concatenate(parts, group)[sampled[column][start : start + len(ids)]])
        start += len(ids)
    return {
        column: _fit_codebook(np.concatenate(samples.pop(column)), groups[column], options, quiet) for column in groups
    }


def _sample(has: NDArray[np.bool_], group: Sequence[Modality], options: QuantizeOptions) -> NDArray[np.bool_]:
    """Return which items ``(M,)`` to fit on: of those that have all modalities, at most ``fit_items``."""
    rows = np.flatnonzero(has)
    if len(rows) < options.codes:
        columns = ", ".join(m.column for m in group)
        raise ConfigError(
            f"--codes {options.codes} needs as many items with an embedding, but {columns} has {len(rows)} "
            "that are not zero; use fewer codes or more items"
        )
    if len(rows) > options.fit_items:
        rows = np.random.default_rng(options.seed).choice(rows, options.fit_items, replace=False)
    sampled = np.zeros(len(has), dtype=bool)
    sampled[rows] = True
    return sampled


def _fit_codebook(x: Floats, group: Sequence[Modality], options: QuantizeOptions, quiet: bool) -> Codebook:
    space = Space.fit(x, group, options.scaling)
    z = space.transform(x)
    if options.method == "vqvae":
        from fuxictr_mm.embeddings.rqvae import fit_rqvae

        network = options.model_dump(include=set(NETWORK_OPTIONS), exclude_none=True)
        return fit_rqvae(space, z, options.num_levels, options.codes, options.seed, quiet=quiet, **network)
    return fit_codebook(options.method, space, z, options.num_levels, options.codes, options.seed)


def _write(
    joined: JoinedEmbeddings,
    books: Mapping[str, Codebook],
    out: StrPath,
    catalogue: JoinedEmbeddings,
    neighbors: int,
    metric: str,
    decoded: bool,
    overwrite: bool,
    quiet: bool,
) -> dict[str, dict[str, Any]]:
    """Write codes, and neighbors and reconstructions on request; return the report."""
    schema: dict[str, pa.DataType] = {}
    for column, book in books.items():
        schema[column] = code_type(book.levels)
        if neighbors:
            schema[related(column, "neighbors")] = pa.list_(joined.numbering.type, neighbors)
        if decoded:
            schema[related(column, "decoded")] = embedding_type(book.space.dim)
    statistics = {column: Statistics(book) for column, book in books.items()}
    of_items = [related(column, "neighbors") for column in books]
    with ItemFileWriter(out, schema, overwrite, of_items, joined.numbering) as writer:
        for ids, parts in _bar(joined, "encoding", quiet):
            columns: dict[str, Any] = {}
            for column, book in books.items():
                x = _concatenate(parts, book.space.modalities)
                present = book.space.present(x)
                some = present.max(axis=1)
                codes = book.encode(x)
                columns[column] = np.where(some[:, None], book.semantic_ids(codes), 0)
                statistics[column].add(book.space.transform(x), codes, present)
                if neighbors:
                    found = columns[related(column, "neighbors")] = np.zeros((len(ids), neighbors), dtype=np.int64)
                    # Distances need no centering, but smaller numbers have smaller rounding errors.
                    queries = book.space.transform(x[some], center=metric == "l2")
                    others = _transformed(catalogue, book.space, center=metric == "l2")
                    found[some] = nearest_items(others, queries, ids[some], neighbors, metric)
                if decoded:
                    columns[related(column, "decoded")] = np.where(some[:, None], book.decode(codes), 0.0)
            writer.write(ids, columns)
    return {column: found.report() for column, found in statistics.items()}


def _transformed(joined: JoinedEmbeddings, space: Space, center: bool) -> Iterator[tuple[Ids, Floats]]:
    """Yield ids and z of the items that have an embedding."""
    for ids, parts in joined.chunks():
        x = _concatenate(parts, space.modalities)
        some = space.present(x).max(axis=1)
        yield ids[some], space.transform(x[some], center)


def _concatenate(parts: Mapping[str, Floats], modalities: Sequence[Modality]) -> Floats:
    return np.concatenate([parts[m.name] for m in modalities], axis=1)


def _bar(joined: JoinedEmbeddings, what: str, quiet: bool) -> Any:
    chunks = -(-len(joined.ids) // CHUNK_ROWS)
    return progress_bar(joined.chunks(), what, verbose=0 if quiet else 1, total=chunks)


def nearest_items(
    catalogue: Iterable[tuple[Ids, Floats]], queries: Floats, query_ids: Ids, count: int, metric: str
) -> Ids:
    """Return ids ``(Q, K)`` of the nearest other items of queries ``(Q, D)`` by exact search, nearest first, then 0.

    Chunks of the catalogue are ids ``(M,)`` and embeddings ``(M, D)``; the metric is ``l2`` or ``inner_product``.
    """
    faiss = import_faiss()
    is_product = metric == "inner_product"
    kind = faiss.METRIC_INNER_PRODUCT if is_product else faiss.METRIC_L2
    # One more than asked for: mostly, an item is nearest to itself.
    distances: Floats = np.full((len(queries), count + 1), np.inf, dtype=np.float32)
    found: Ids = np.zeros((len(queries), count + 1), dtype=np.int64)
    for ids, others in catalogue:
        if not len(ids):
            continue
        values, rows = faiss.knn(queries, others, min(count + 1, len(ids)), metric=kind)
        distances = np.concatenate([distances, -values if is_product else values], axis=1)
        found = np.concatenate([found, ids[rows]], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, : count + 1]
        distances, found = np.take_along_axis(distances, order, axis=1), np.take_along_axis(found, order, axis=1)
    own = found == query_ids[:, None]
    own[~own.any(axis=1), -1] = True  # the item itself is not among them if others are equally near
    return found[~own].reshape(len(queries), count)
