"""``fuxictr-mm embed align``: embeddings aligned with clicks, by Swing and contrastive heads.

The heads are functions of content alone, so items without clicks get aligned embeddings as well.

Shapes: I items, P principal components of all modalities.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.checking import Settings
from fuxictr_mm.embeddings.command import add_output, add_settings, flag, given_settings
from fuxictr_mm.embeddings.item_files import ItemFileWriter, JoinedEmbeddings, Source, add_sources, embedding_type
from fuxictr_mm.embeddings.reducer import split_dim
from fuxictr_mm.embeddings.swing import Clicks, Neighbors, SwingOptions, swing
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs

if TYPE_CHECKING:
    from torch import Tensor

    from fuxictr_mm.embeddings.contrastive import Alignment, TrainingResult


class AlignOptions(Settings):
    """The heads and their training."""

    dim: PositiveInt = Field(128, description="dim of the aligned embeddings, divided evenly among the modalities")
    components: PositiveInt = Field(256, description="largest number of principal components of a modality")
    hidden: NonNegativeInt = Field(256, description="hidden dim of the residual MLP; 0 for a linear projection")
    per_modality: bool = Field(False, description="train a head for each modality as well")
    temperature: float = Field(0.3, gt=0, allow_inf_nan=False, description="temperature of the contrastive loss")
    batch_size: PositiveInt = Field(512, description="pairs of a step")
    steps: PositiveInt = Field(2000, description="largest number of steps")
    evaluate_every: PositiveInt = Field(50, description="steps between evaluations")
    patience: PositiveInt = Field(5, description="evaluations without a better recall after which training stops")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="learning rate of AdamW")
    weight_decay: float = Field(3.0, ge=0, allow_inf_nan=False, description="weight decay, towards the PCA")
    held_out: float = Field(0.1, gt=0, lt=1, description="fraction of items whose pairs are held out for evaluation")
    recall_at: PositiveInt = Field(20, description="number of nearest items in an evaluation")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, held-out items and pairs, and of Swing")


def align(
    sources: Sequence[Source],
    neighbors: Neighbors,
    options: AlignOptions | None = None,
    verbose: int = 1,
) -> tuple[Alignment, dict[str, TrainingResult]]:
    """Train the joint head, and one per modality on request.

    Memory is that of the components, ``(I, P)`` float32, and the square of the dims; not of the embeddings.

    Parameters
    ----------
    sources : sequence of Source
        The modalities, raw or reduced embeddings. A missing embedding is replaced by the mean.
    neighbors : Neighbors
        Which items are similar.
    options : AlignOptions, optional
        The heads and their training.
    verbose : int
        0 shows no progress bar.

    Returns
    -------
    alignment : Alignment
        To apply to these and to new items.
    trained : dict of str to TrainingResult
        By head.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        Embeddings or neighbors are wrong, or have too few items in common.
    """
    import torch

    from fuxictr_mm.embeddings.contrastive import (
        JOINT,
        Alignment,
        AlignmentHead,
        NeighborPairs,
        fit_inputs,
        start_matrix,
        train_head,
    )

    options = options or AlignOptions()
    if any(source.name == JOINT for source in sources):
        raise ConfigError(f"a modality has the name '{JOINT}', which means all of them; choose another name")
    with JoinedEmbeddings(sources) as joined:
        parts = fit_inputs(joined, options.components)
        _check_dims({part.name: len(part.components) for part in parts}, options)
        item_ids = np.sort(joined.ids)
        inputs = torch.empty(len(item_ids), sum(len(part.components) for part in parts))
        for ids, x in joined.chunks():
            rows = torch.from_numpy(np.searchsorted(item_ids, ids))
            inputs[rows] = torch.from_numpy(np.concatenate([part(x[part.name]) for part in parts], axis=1))
    pairs = NeighborPairs(neighbors, item_ids, options.held_out, options.seed)
    columns = dict(zip((p.name for p in parts), inputs.split([len(p.components) for p in parts], dim=1), strict=True))
    heads, trained = {}, {}
    for name in [JOINT, *columns] if options.per_modality else [JOINT]:
        used = list(columns) if name == JOINT else [name]
        dims = zip(used, split_dim(options.dim, len(used)), strict=True)
        start = start_matrix([(_mean_squares(columns[part]), dim) for part, dim in dims])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            heads[name] = AlignmentHead(start, options.hidden)
        content = inputs if name == JOINT else columns[name]
        trained[name] = train_head(heads[name], content, pairs, options, f"align {name}", verbose)
        heads[name].requires_grad_(False)
    return Alignment(tuple(parts), heads), trained


def _mean_squares(x: Tensor) -> Tensor:
    """Return the mean square of each input of a modality, of ``(I, P_m)`` without the items that do not have it."""
    return x.square().sum(dim=0) / x.any(dim=1).sum()


def _check_dims(available: Mapping[str, int], options: AlignOptions) -> None:
    """Raise a ConfigError if a head needs more components of a modality than there are, or none."""
    if options.dim < len(available):
        raise ConfigError(f"align: dim is {options.dim}, expected at least {len(available)}: one for each modality")
    heads = [list(available), *([name] for name in available if options.per_modality)]
    for names in heads:
        for name, needed in zip(names, split_dim(options.dim, len(names)), strict=True):
            if needed > available[name]:
                most = len(names) * min(available[n] for n in names)
                raise ConfigError(
                    f"align: dim is {options.dim}, of which '{name}' gives {needed}, but it has no more than "
                    f"{available[name]} components (the least of its dim, its items less one, and --components "
                    f"{options.components}); expected a dim of at most {most}"
                )


def write_aligned(
    sources: Sequence[Source], alignment: Alignment, out: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """Write ``item_emb_aligned``, and ``item_emb_aligned_NAME`` of each head, of all items of the sources.

    Raises
    ------
    ConfigError, DataError, MissingFileError, UserError
        Names or dims are not those of the training; embeddings are wrong; the file exists or cannot be written.
    """
    check_outputs([out], [source.path for source in sources], overwrite)
    schema = {name: embedding_type(dim) for name, dim in alignment.columns.items()}
    with JoinedEmbeddings(sources) as joined:
        alignment.check(joined.dims)
        with ItemFileWriter(out, schema, overwrite=overwrite) as writer:
            for ids, x in joined.chunks():
                writer.write(ids, alignment.transform(x))


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
    parser.add_argument("--label", default="label", metavar="NAME", help="column of the label (default: label)")
    parser.add_argument(
        "--neighbors", metavar="FILE", help="with --train: write the Swing neighbors; without: read them"
    )
    parser.add_argument("--save", metavar="FILE", help="write the trained head, a safetensors file")
    parser.add_argument("--apply", metavar="FILE", help="use this head instead of training one: for new items")
    add_output(parser)
    add_settings(parser.add_argument_group("Swing, with --train"), SwingOptions, without=["seed"])
    add_settings(parser.add_argument_group("heads and training"), AlignOptions)


def main_from_args(arguments: argparse.Namespace) -> None:
    """Run ``fuxictr-mm embed align``."""
    sources = [Source.parse(text) for text in arguments.sources]
    _check_useless(arguments)
    computed, read = (arguments.neighbors, None) if arguments.train is not None else (None, arguments.neighbors)
    inputs = [*(source.path for source in sources), arguments.train, arguments.apply, read]
    check_outputs([arguments.out, arguments.save, computed], inputs, arguments.overwrite)
    if arguments.apply is not None:
        _apply(sources, arguments)
        return
    options = AlignOptions.read(given_settings(arguments, AlignOptions), "align")
    # Before minutes of Swing; the number of items counts as well, after it.
    _check_dims({source.name: min(source.dim, options.components) for source in sources}, options)
    verbose = 0 if arguments.quiet else 1
    neighbors = _find_neighbors(arguments, verbose)
    alignment, trained = align(sources, neighbors, options, verbose)
    write_aligned(sources, alignment, arguments.out, arguments.overwrite)
    if arguments.save is not None:
        alignment.save(arguments.save)
    columns = {
        column: {"width": dim, "recall_at": options.recall_at, **asdict(result)}
        for (column, dim), result in zip(alignment.columns.items(), trained.values(), strict=True)
    }
    report = {"neighbors": len(neighbors.neighbors), "items": neighbors.num_items, "columns": columns}
    source = "Swing" if arguments.train else arguments.neighbors
    lines = [f"{source}: {report['neighbors']} neighbors of {report['items']} items"]
    for column, result in columns.items():
        lines.append(
            f"{column} ({result['width']}-dimensional): recall@{options.recall_at} of held-out items' neighbors "
            f"{result['before']:.4f} before, {result['after']:.4f} after {result['steps']} steps"
        )
    lines.append(f"wrote {arguments.out}; for dataset_config.yaml (add the file to item_info:):")
    lines += [
        f"  - {{name: {column}, active: False, dtype: float, type: embedding, source: item}}" for column in columns
    ]
    show(arguments, report, "\n".join(lines))


def _apply(sources: Sequence[Source], arguments: argparse.Namespace) -> None:
    from fuxictr_mm.embeddings.contrastive import Alignment

    alignment = Alignment.load(arguments.apply)
    write_aligned(sources, alignment, arguments.out, arguments.overwrite)
    report = {"applied": arguments.apply, "columns": alignment.columns}
    show(arguments, report, f"wrote {arguments.out}: {', '.join(alignment.columns)} by {arguments.apply}")


def _find_neighbors(arguments: argparse.Namespace, verbose: int) -> Neighbors:
    if arguments.train is None:
        return Neighbors.read(arguments.neighbors)
    options = SwingOptions.read(given_settings(arguments, SwingOptions), "swing")
    neighbors = swing(Clicks.read(arguments.train, arguments.label), options, verbose)
    if arguments.neighbors is not None:
        neighbors.write(arguments.neighbors)
    return neighbors


def _check_useless(arguments: argparse.Namespace) -> None:
    """Raise a ConfigError for an option without effect, or if nothing says which items are similar."""
    useless, reason = given_settings(arguments, SwingOptions), "without --train"
    useless.pop("seed", None)
    if arguments.apply is not None:
        files = {name: getattr(arguments, name) for name in ("train", "neighbors", "save")}
        useless |= {name: path for name, path in files.items() if path is not None}
        useless |= given_settings(arguments, AlignOptions)
        reason = "with --apply, which trains nothing"
    elif arguments.train is None and arguments.neighbors is None:
        raise ConfigError("no neighbors: give --train FILE, --neighbors FILE or --apply FILE")
    if useless and (arguments.train is None or arguments.apply is not None):
        raise ConfigError(f"{flag(next(iter(useless)))} has no effect {reason}; leave it out")
