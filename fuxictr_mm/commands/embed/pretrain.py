"""``fuxictr-mm embed pretrain``: embeddings of ids and contents that predict the next item."""

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
from fuxictr_mm.embeddings.item_files import Source, write_embeddings
from fuxictr_mm.embeddings.pretrain import PretrainOptions, check_options, pretrain
from fuxictr_mm.embeddings.sequences import Sequences
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm embed pretrain``."""
    add_examples(
        parser,
        "fuxictr-mm embed pretrain \\",
        "    text=item_feature.parquet:txt_emb_BERT image=item_feature.parquet:img_emb_CLIPRN50 \\",
        "    --train train.parquet --out item_emb_pretrained.parquet --save pretrained.safetensors",
        "fuxictr-mm embed pretrain text=new_items.parquet:txt_emb_BERT image=new_items.parquet:img_emb_CLIPRN50 \\",
        "    --apply pretrained.safetensors --out new_item_emb_pretrained.parquet",
    )
    add_training(parser, "search unit", train="training split, whose users' clicks are the sequences")
    add_settings(parser, PretrainOptions)


def main_from_args(arguments: argparse.Namespace, numbering: Numbering) -> None:
    """Run ``fuxictr-mm embed pretrain``."""
    sources = [Source.parse(text, numbering) for text in arguments.sources]
    given = given_settings(arguments, PretrainOptions)
    if (arguments.train is None) == (arguments.apply is None):
        raise ConfigError("give either --train FILE, to train, or --apply FILE, to apply a saved search unit")
    useless = [*given, *(name for name in ("label", "save") if getattr(arguments, name) is not None)]
    if arguments.apply is not None and useless:
        raise ConfigError(f"{flag(useless[0])} has no effect with --apply, which trains nothing; leave it out")
    inputs = [*(source.path for source in sources), arguments.train, arguments.apply]
    check_outputs([arguments.out, arguments.save], inputs, arguments.overwrite)
    if arguments.apply is not None:
        from fuxictr_mm.embeddings.search_unit import Pretrained

        apply_saved(Pretrained.load(arguments.apply), sources, arguments)
        return
    options = PretrainOptions.read(given, "pretrain")
    check_options(sources, options)
    sequences = Sequences.read(arguments.train, arguments.label or "label", numbering)
    pretrained, result = pretrain(sources, sequences, options, 0 if arguments.quiet else 1)
    write_embeddings(sources, pretrained, arguments.out, arguments.overwrite)
    if arguments.save is not None:
        pretrained.save(arguments.save)
    columns = pretrained.columns
    report = {"clicks": len(sequences.items), "ids": len(pretrained.ids), "columns": columns, **asdict(result)}
    gates = pretrained.fields.gate.softmax(dim=0).tolist()
    report["gates"] = dict(zip(pretrained.fields.names, gates, strict=True))
    lines = [
        f"{report['clicks']} clicks; {report['ids']} ids with an embedding",
        f"AUC of held-out users' next items {result.before:.4f} before, {result.after:.4f} after {result.steps} steps",
        f"gates: {', '.join(f'{name} {gate:.3f}' for name, gate in report['gates'].items())}",
        *wrote(arguments.out, embedding_entries(columns)),
    ]
    show(arguments, report, "\n".join(lines))
