"""``fuxictr-mm embed quantize``: embeddings to codes."""

from __future__ import annotations

import argparse

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.commands.embed.options import add_output, add_settings, add_sources, flag, given_settings, wrote
from fuxictr_mm.data.ids import Numbering
from fuxictr_mm.embeddings.item_files import Source, read_ids
from fuxictr_mm.embeddings.quantize import METRICS, QuantizeOptions, quantize
from fuxictr_mm.embeddings.quantize_report import format_report, yaml_lines
from fuxictr_mm.errors import ConfigError


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
    add_settings(parser, QuantizeOptions)
    parser.add_argument("--neighbors", type=int, default=0, metavar="K", help="with vq: also write the K nearest items")
    parser.add_argument(
        "--among",
        nargs="+",
        metavar="NAME=FILE:COLUMN",
        help="with --apply and --neighbors: the items to search (those of the fit)",
    )
    parser.add_argument("--metric", choices=METRICS, default="l2", help="distance between items (default l2)")
    parser.add_argument("--decoded", action="store_true", help="also write the reconstructed embeddings")
    parser.add_argument("--save", metavar="FILE", help="write the codebooks, a safetensors file")
    parser.add_argument("--apply", metavar="FILE", help="apply these saved codebooks instead of fitting new ones")
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON")
    add_output(parser)


def main_from_args(arguments: argparse.Namespace, numbering: Numbering) -> None:
    """Run ``fuxictr-mm embed quantize``."""
    given = given_settings(arguments, QuantizeOptions)
    if arguments.apply is not None and (given or arguments.save is not None):
        useless = flag(next(iter([*given, "save"])))
        raise ConfigError(f"{useless} has no effect with --apply, because the codebook determines it; leave it out")
    sources = [Source.parse(text, numbering) for text in arguments.sources]
    among = [Source.parse(text, numbering) for text in arguments.among or ()]
    options = QuantizeOptions.read(given, "quantize")
    names = ("apply", "save", "report", "neighbors", "metric", "decoded", "overwrite", "quiet")
    report = quantize(sources, arguments.out, options, among=among, **{n: getattr(arguments, n) for n in names})
    searched = (*sources, *among) if arguments.neighbors and numbering.items is None else ()
    largest_id = max((int(read_ids(source.path, numbering).max()) for source in searched), default=0)
    entries = yaml_lines(report, arguments.neighbors, largest_id, numbering.roles.target)
    show(arguments, report, "\n".join([format_report(report), *wrote(arguments.out, entries)]))
