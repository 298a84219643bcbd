"""The stage ``quantize``: item vectors to codes that models embed, the codebooks, and how good they are.

Shape letters: I items, M items of a chunk, D width of all modalities side by side, L levels, C codes, K neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fuxictr_mm.cli import add_examples, show
from fuxictr_mm.embeddings.item_file import ItemFileWriter, code_type, vector_type
from fuxictr_mm.embeddings.output import add_output, flag
from fuxictr_mm.embeddings.quantization.codebooks import (
    METHODS,
    SCALINGS,
    Codebook,
    Fitted,
    Modality,
    Space,
    Vectors,
    check_matches,
    load_codebooks,
    save_codebooks,
)
from fuxictr_mm.embeddings.quantization.report import Tally, beside, describe, yaml_lines
from fuxictr_mm.embeddings.store import CHUNK_ROWS, JoinedVectors, Source, add_sources, read_ids
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.training.progress import progress_bar

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
        How modalities are brought to one scale, see ``fuxictr_mm.embeddings.quantization.codebooks.Space``.
    fit_items : int
        Fit on a sample of at most so many items; memory is bounded by it.
    seed : int
        Of the sample and of the method.
    steps, batch_size, latent_dim, hidden_units, learning_rate : optional
        Of ``vqvae`` only, see ``fuxictr_mm.embeddings.quantization.vqvae.fit_vqvae``.

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
        from fuxictr_mm.embeddings.quantization.vqvae import fit_vqvae

        return fit_vqvae(z, levels, codes, seed, quiet=quiet, **options.network_options)
    from fuxictr_mm.embeddings.quantization import quantizers

    fit = {"vq": quantizers.fit_vq, "rq": quantizers.fit_rq, "pq": quantizers.fit_pq, "opq": quantizers.fit_opq}
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
    from fuxictr_mm.embeddings.quantization.quantizers import nearest_items

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
