"""Vectors mapped so that items which the same users click lie near: ``fuxictr-mm embed align``.

Swing (`swing`) over the training split says which items are near, a contrastive loss (`contrastive`) trains the map. It
is a function of content alone, so that items nobody has clicked get vectors as well.

Shapes: I items, P components of all modalities.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.cli import add_examples, show
from fuxictr_mm.embeddings.alignment.clicks import Clicks
from fuxictr_mm.embeddings.alignment.swing import Neighbors, swing
from fuxictr_mm.embeddings.alignment.training import JOINT, Training
from fuxictr_mm.embeddings.item_file import ItemFileWriter, vector_type
from fuxictr_mm.embeddings.output import add_output, flag
from fuxictr_mm.embeddings.reduction.pca import Moments
from fuxictr_mm.embeddings.store import JoinedVectors, Source, add_sources
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import check_outputs

if TYPE_CHECKING:
    from fuxictr_mm.embeddings.alignment.contrastive import Trained
    from fuxictr_mm.embeddings.alignment.head import Alignment, ContentInput


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """What the heads look like, and how they are trained.

    Parameters
    ----------
    dim : int
        Width of the aligned vectors, divided evenly among the modalities, which start from their PCA: of each at least
        as many components are needed.
    components : int
        The most principal components of a modality that a head sees: bounds the memory.
    hidden : int
        Width of the residual MLP; 0 for a linear map.
    per_modality : bool
        Train a head for each modality as well.
    training : Training
        The rest.
    """

    dim: int = 128
    components: int = 256
    hidden: int = 256
    per_modality: bool = False
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("components", 1), ("hidden", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"align: {name} is {getattr(self, name)}, expected at least {least}")


def align(
    sources: Sequence[Source],
    neighbors: Neighbors,
    options: AlignOptions | None = None,
    verbose: int = 1,
) -> tuple[Alignment, dict[str, Trained]]:
    """Train the joint head, and one per modality if wanted.

    Memory is that of the components, ``(I, P)`` float32, and D^2 of the vectors read; not of the vectors.

    Parameters
    ----------
    sources : sequence of Source
        The modalities, raw vectors or reduced ones. An item that one lacks has its mean there.
    neighbors : Neighbors
        What is alike.
    options : AlignOptions, optional
        The defaults where missing.
    verbose : int
        0 shows no progress bar.

    Returns
    -------
    alignment : Alignment
        To apply to these and to new items.
    trained : dict of str to Trained
        What became of each head.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        Vectors or neighbours are wrong, or have too few items in common.
    """
    import torch

    from fuxictr_mm.embeddings.alignment.contrastive import AlignmentHead, NeighborPairs, start_matrix, train_head
    from fuxictr_mm.embeddings.alignment.head import Alignment

    options = options or AlignOptions()
    if any(source.name == JOINT for source in sources):
        raise ConfigError(f"a modality has the name '{JOINT}', which stands for all together; choose another name")
    with JoinedVectors(sources) as joined:
        _check_width(joined.widths, options)
        parts = fit_inputs(joined, options.components)
        order = np.argsort(joined.ids)
        inputs = torch.empty(len(order), sum(len(part.components) for part in parts))
        row_of = np.empty(len(order), dtype=np.int64)
        row_of[order] = np.arange(len(order))
        done = 0
        for ids, vectors in joined.chunks():
            seen = np.concatenate([part(vectors[part.name]) for part in parts], axis=1)
            inputs[torch.from_numpy(row_of[done : done + len(ids)])] = torch.from_numpy(seen)
            done += len(ids)
        pairs = NeighborPairs(neighbors, joined.ids[order], options.training.held_out, options.training.seed)
    columns = dict(zip((p.name for p in parts), inputs.split([len(p.components) for p in parts], dim=1), strict=True))
    wanted = [JOINT, *columns] if options.per_modality else [JOINT]
    heads, trained = {}, {}
    for name in wanted:
        seen_by_head = inputs if name == JOINT else columns[name]
        used = list(columns) if name == JOINT else [name]
        widths = zip(used, shares(options.dim, used), strict=True)
        start = start_matrix([(columns[part].square().mean(dim=0), width) for part, width in widths])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.training.seed)
            heads[name] = AlignmentHead(start, options.hidden)
        trained[name] = train_head(heads[name], seen_by_head, pairs, options.training, f"align {name}", verbose)
        heads[name].requires_grad_(False)
    return Alignment(tuple(parts), heads), trained


def fit_inputs(joined: JoinedVectors, most: int) -> list[ContentInput]:
    """Fit the PCA of each modality, chunk by chunk, on the items that have a vector of it."""
    from fuxictr_mm.embeddings.alignment.head import ContentInput

    moments = {name: Moments(width) for name, width in joined.widths.items()}
    for _, vectors in joined.chunks():
        for name, rows in vectors.items():
            moments[name].update(rows[(rows != 0).any(axis=1)])
    for source in joined.sources:
        if moments[source.name].count < 2:
            raise DataError(f"{source.where}: fewer than two vectors that are not zero, expected one per item")
    return [ContentInput.from_pca(name, found.components().keep(most)) for name, found in moments.items()]


def shares(dim: int, names: Sequence[str]) -> list[int]:
    """Divide a width among modalities, the first ones taking what is left over.

    Examples
    --------
    >>> shares(16, ["text", "image", "sound"])
    [6, 5, 5]
    """
    return [dim // len(names) + (place < dim % len(names)) for place in range(len(names))]


def _check_width(widths: Mapping[str, int], options: AlignOptions) -> None:
    """Raise where a head would need more components of a modality than there are."""
    there = {name: min(width, options.components) for name, width in widths.items()}
    heads = [list(widths), *([name] for name in widths if options.per_modality)]
    for names in heads:
        for name, share in zip(names, shares(options.dim, names), strict=True):
            if share > there[name]:
                most = len(names) * min(there[n] for n in names)
                raise ConfigError(
                    f"align: dim is {options.dim}, of which '{name}' gives {share}, but it has no more than "
                    f"{there[name]} components (vectors of width {widths[name]}, components {options.components}); "
                    f"expected a dim of at most {most}"
                )


def write_aligned(
    sources: Sequence[Source], alignment: Alignment, out: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """Write ``item_emb_aligned``, and ``item_emb_aligned_NAME`` of each head, of all items of the sources.

    Raises
    ------
    ConfigError, DataError, MissingFileError, UserError
        Names or widths are not those of the training; vectors are wrong; the file is there or cannot be written.
    """
    schema = {name: vector_type(width) for name, width in alignment.columns.items()}
    with JoinedVectors(sources) as joined:
        alignment.check(joined.widths)
        with ItemFileWriter(out, schema, overwrite=overwrite) as writer:
            for ids, vectors in joined.chunks():
                writer.write(ids, alignment.transform(vectors))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm embed align``."""
    add_examples(
        parser,
        "fuxictr-mm embed align text=item_feature.parquet:txt_emb_BERT image=item_feature.parquet:img_emb_CLIPRN50 \\",
        "    --train train.parquet --out item_emb_aligned.parquet --save aligned.safetensors",
        "fuxictr-mm embed align text=new_items.parquet:txt_emb_BERT image=new_items.parquet:img_emb_CLIPRN50 \\",
        "    --apply aligned.safetensors --out new_item_emb_aligned.parquet",
    )
    add_sources(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="item file to write")
    parser.add_argument("--train", metavar="FILE", help="training split, from which Swing takes the clicks")
    parser.add_argument(
        "--neighbors", metavar="FILE", help="with --train: write the Swing neighbours; without: read them"
    )
    parser.add_argument("--save", metavar="FILE", help="write the trained head, a safetensors file")
    parser.add_argument("--apply", metavar="FILE", help="use this head instead of training one: for new items")
    add_output(parser)
    parser.add_argument("--seed", type=int, help="of every draw (default 0)")
    behaviour = parser.add_argument_group("Swing, with --train")
    behaviour.add_argument("--alpha", type=float, help="smoothing (default 1.0)")
    behaviour.add_argument("--user-weight", type=float, help="a user of n clicks weighs n to minus this (default 0.5)")
    behaviour.add_argument("--top-k", type=int, help="neighbours kept of an item (default 50)")
    behaviour.add_argument("--users-per-item", type=int, help="users that an item is scored over (default 500)")
    behaviour.add_argument("--items-per-user", type=int, help="clicks of a user that count (default 100)")
    heads = parser.add_argument_group("heads")
    heads.add_argument("--dim", type=int, help="width of the aligned vectors (default 128)")
    heads.add_argument("--components", type=int, help="principal components seen of a modality (default 256)")
    heads.add_argument("--hidden", type=int, help="width of the residual MLP (default 256; 0: a linear map)")
    heads.add_argument("--per-modality", action="store_true", default=None, help="align each modality by itself too")
    training = parser.add_argument_group("training")
    training.add_argument("--temperature", type=float, help="of the contrastive loss (default 0.3)")
    training.add_argument("--batch-size", type=int, help="pairs of a step (default 512)")
    training.add_argument("--steps", type=int, help="the most there are (default 2000)")
    training.add_argument("--evaluate-every", type=int, help="steps between evaluations (default 50)")
    training.add_argument("--patience", type=int, help="evaluations without a better recall (default 5)")
    training.add_argument("--learning-rate", type=float, help="of AdamW (default 0.001)")
    training.add_argument("--weight-decay", type=float, help="towards the PCA (default 3.0)")
    training.add_argument("--held-out", type=float, help="share of items held out for evaluation (default 0.1)")
    training.add_argument("--recall-at", type=int, help="nearest items that an evaluation looks at (default 20)")


_SWING = ("alpha", "user_weight", "top_k", "users_per_item", "items_per_user")
_HEADS = ("dim", "components", "hidden", "per_modality")
_TRAINING = tuple(Training.__dataclass_fields__)


def main_from_args(arguments: argparse.Namespace) -> None:
    """Run ``fuxictr-mm embed align``."""
    sources = [Source.parse(text) for text in arguments.sources]
    _refuse_useless(arguments)
    computed, read = (arguments.neighbors, None) if arguments.train is not None else (None, arguments.neighbors)
    inputs = [*(source.path for source in sources), arguments.train, arguments.apply, read]
    # Before minutes of work, not after.
    check_outputs([arguments.out, arguments.save, computed], inputs, arguments.overwrite)
    if arguments.seed is not None and arguments.seed < 0:
        raise ConfigError(f"--seed is {arguments.seed}, expected 0 or more")
    verbose = 0 if arguments.quiet else 1
    if arguments.apply is not None:
        from fuxictr_mm.embeddings.alignment.head import Alignment

        applied = Alignment.load(arguments.apply)
        write_aligned(sources, applied, arguments.out, arguments.overwrite)
        report = {"applied": arguments.apply, "columns": applied.columns}
        show(arguments, report, f"wrote {arguments.out}: {', '.join(applied.columns)} by {arguments.apply}")
        return
    options = AlignOptions(**_given(arguments, _HEADS), training=Training(**_given(arguments, _TRAINING)))
    _check_width({source.name: source.width for source in sources}, options)  # before minutes of Swing
    neighbors = _neighbors(arguments, verbose)
    found = f"{len(neighbors.neighbors)} neighbours of {len(neighbors.item_ids)} items"
    alignment, trained = align(sources, neighbors, options, verbose)
    write_aligned(sources, alignment, arguments.out, arguments.overwrite)
    if arguments.save is not None:
        alignment.save(arguments.save)
    at = options.training.recall_at
    columns = {
        column: {"width": width, "recall_at": at, **asdict(result)}
        for (column, width), result in zip(alignment.columns.items(), trained.values(), strict=True)
    }
    report = {"neighbors": len(neighbors.neighbors), "items": len(neighbors.item_ids), "columns": columns}
    lines = [f"{'Swing' if arguments.train else arguments.neighbors}: {found}"]
    for column, result in columns.items():
        lines.append(
            f"{column} ({result['width']} wide): recall@{at} of held-out items' neighbours {result['before']:.4f} "
            f"before, {result['after']:.4f} after {result['steps']} steps"
        )
    lines.append(f"wrote {arguments.out}; for dataset_config.yaml (add the file to item_info:):")
    lines += [
        f"  - {{name: {column}, active: False, dtype: float, type: embedding, source: item}}" for column in columns
    ]
    show(arguments, report, "\n".join(lines))


def _neighbors(arguments: argparse.Namespace, verbose: int) -> Neighbors:
    if arguments.train is None:
        return Neighbors.read(arguments.neighbors)
    found = swing(Clicks.read(arguments.train), **_given(arguments, (*_SWING, "seed")), verbose=verbose)
    if arguments.neighbors is not None:
        found.write(arguments.neighbors)
    return found


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _refuse_useless(arguments: argparse.Namespace) -> None:
    """Raise where an option has no effect, or none says where neighbours come from."""
    if arguments.apply is not None:
        useless = _given(arguments, ("train", "neighbors", "save", *_SWING, *_HEADS, *_TRAINING))
        if useless:
            raise ConfigError(
                f"{flag(next(iter(useless)))} has no effect with --apply, which trains nothing; leave it out"
            )
    elif arguments.train is None:
        if arguments.neighbors is None:
            raise ConfigError("nothing says which items are alike: give --train FILE, --neighbors FILE or --apply FILE")
        useless = _given(arguments, _SWING)
        if useless:
            raise ConfigError(f"{flag(next(iter(useless)))} has no effect without --train; leave it out")
