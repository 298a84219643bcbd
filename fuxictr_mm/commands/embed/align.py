"""``fuxictr-mm embed align``: embeddings in which items that the same users click are close."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.commands.embed.options import (
    add_settings,
    add_training,
    apply_saved,
    embedding_entries,
    flag,
    given_settings,
    wrote,
)
from fuxictr_mm.data.ids import Numbering
from fuxictr_mm.embeddings.align import AlignOptions, align, check_dims
from fuxictr_mm.embeddings.item_files import Source, write_embeddings
from fuxictr_mm.embeddings.swing import Clicks, Neighbors, SwingOptions, swing
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm embed align``."""
    add_examples(
        parser,
        "fuxictr-mm embed align text=item_feature.parquet:txt_emb_BERT image=item_feature.parquet:img_emb_CLIPRN50 \\",
        "    --train train.parquet --out item_emb_aligned.parquet --save aligned.safetensors",
        "fuxictr-mm embed align text=new_items.parquet:txt_emb_BERT image=new_items.parquet:img_emb_CLIPRN50 \\",
        "    --apply aligned.safetensors --out new_item_emb_aligned.parquet",
    )
    add_training(parser, "head", train="training split, from which Swing takes the clicks")
    parser.add_argument(
        "--neighbors", metavar="FILE", help="file of Swing neighbors: written with --train, otherwise read"
    )
    add_settings(parser.add_argument_group("Swing, with --train"), SwingOptions, without=["seed"])
    add_settings(parser.add_argument_group("heads and training"), AlignOptions)


def main_from_args(arguments: argparse.Namespace, numbering: Numbering) -> None:
    """Run ``fuxictr-mm embed align``."""
    sources = [Source.parse(text, numbering) for text in arguments.sources]
    _check_useless(arguments)
    computed, read = (arguments.neighbors, None) if arguments.train is not None else (None, arguments.neighbors)
    inputs = [*(source.path for source in sources), arguments.train, arguments.apply, read]
    check_outputs([arguments.out, arguments.save, computed], inputs, arguments.overwrite)
    if arguments.apply is not None:
        from fuxictr_mm.embeddings.contrastive import Alignment

        apply_saved(Alignment.load(arguments.apply), sources, arguments)
        return
    options = AlignOptions.read(given_settings(arguments, AlignOptions), "align")
    # Before minutes of Swing; the number of items counts as well, after it.
    check_dims({source.name: min(source.dim, options.components) for source in sources}, options)
    verbose = 0 if arguments.quiet else 1
    neighbors = _find_neighbors(arguments, numbering, verbose)
    alignment, trained = align(sources, neighbors, options, verbose)
    write_embeddings(sources, alignment, arguments.out, arguments.overwrite)
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
    lines += wrote(arguments.out, embedding_entries(columns))
    show(arguments, report, "\n".join(lines))


def _find_neighbors(arguments: argparse.Namespace, numbering: Numbering, verbose: int) -> Neighbors:
    if arguments.train is None:
        return Neighbors.read(arguments.neighbors, numbering)
    options = SwingOptions.read(given_settings(arguments, SwingOptions), "swing")
    neighbors = swing(Clicks.read(arguments.train, arguments.label or "label", numbering), options, verbose)
    if arguments.neighbors is not None:
        neighbors.write(arguments.neighbors, numbering)
    return neighbors


def _check_useless(arguments: argparse.Namespace) -> None:
    """Raise a ConfigError for an option without effect, or if nothing says which items are similar."""
    useless, reason = given_settings(arguments, SwingOptions), "without --train"
    useless.pop("seed", None)
    if arguments.apply is not None:
        files = {name: getattr(arguments, name) for name in ("train", "label", "neighbors", "save")}
        useless |= {name: path for name, path in files.items() if path is not None}
        useless |= given_settings(arguments, AlignOptions)
        reason = "with --apply, which trains nothing"
    elif arguments.train is None and arguments.neighbors is None:
        raise ConfigError("no neighbors: give --train FILE, --neighbors FILE or --apply FILE")
    if useless and (arguments.train is None or arguments.apply is not None):
        raise ConfigError(f"{flag(next(iter(useless)))} has no effect {reason}; leave it out")
