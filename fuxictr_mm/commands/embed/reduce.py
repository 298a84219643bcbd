"""``fuxictr-mm embed reduce``: PCA of item embeddings, separate for each modality and joint."""

from __future__ import annotations

import argparse
from typing import Any

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.commands.embed.options import add_output, add_settings, add_sources, flag, given_settings
from fuxictr_mm.data.ids import Numbering
from fuxictr_mm.embeddings.fit_reducer import ReduceOptions
from fuxictr_mm.embeddings.item_files import Source
from fuxictr_mm.embeddings.reduce import reduce_vectors
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.terminal import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm embed reduce``."""
    add_examples(
        parser,
        "fuxictr-mm embed reduce text=item_feature.parquet:txt_emb_BERT image=item_feature.parquet:img_emb_CLIPRN50 \\",
        "    --dim 128 --out item_emb.parquet",
        "fuxictr-mm embed reduce text=new_items.parquet:txt_emb_BERT image=new_items.parquet:img_emb_CLIPRN50 \\",
        "    --apply item_emb.reducer.safetensors --out new_item_emb.parquet",
    )
    add_sources(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="item file to write, one column per strategy")
    add_settings(parser, ReduceOptions, without=["strategies", "memory"])
    parser.add_argument("--strategies", metavar="NAME,...", help=ReduceOptions.model_fields["strategies"].description)
    parser.add_argument("--prefix", default="item_emb", help="prefix of the columns (default: item_emb)")
    parser.add_argument("--save", metavar="FILE", help="file for the fitted reducer (default: OUT.reducer.safetensors)")
    parser.add_argument("--apply", metavar="FILE", help="apply a saved reducer instead of fitting one")
    parser.add_argument("--report", metavar="FILE", help="also write the report as JSON")
    parser.add_argument("--h5", metavar="PREFIX", help="also write PREFIX_v1.h5, ... for FuxiCTR's pretrained_emb")
    parser.add_argument("--memory", type=float, metavar="GB", help="memory for embeddings (default and maximum: 0.033)")
    add_output(parser)


def main_from_args(args: argparse.Namespace, numbering: Numbering) -> None:
    """Run ``fuxictr-mm embed reduce``."""
    given = given_settings(args, ReduceOptions)
    if "strategies" in given:
        given["strategies"] = [name.strip() for name in args.strategies.split(",")]
    if "memory" in given:
        if not args.memory > 0:
            raise ConfigError(f"--memory is {args.memory:g}, expected gigabytes above 0")
        given["memory"] *= 1e9
    if args.apply:
        for name in [*given, *(["save"] if args.save else [])]:
            option = flag("no_balance" if name == "balance" else name)
            raise ConfigError(f"{option} is a setting of the fit, but --apply does not fit; leave one of them out")
    files = {name: getattr(args, name) for name in ("apply", "save", "report", "h5", "prefix", "overwrite")}
    sources = [Source.parse(text, numbering) for text in args.sources]
    _, report = reduce_vectors(sources, args.out, **files, progress=not args.quiet, **given)
    summary = format_applied(report) if args.apply else format_report(report)
    paste = f"For feature_cols in dataset_config.yaml, with {args.out} added to item_info:"
    show(args, report, f"{summary}\n\n{paste}\n\n{yaml_lines(report.get('fit', report))}")


def format_report(report: dict[str, Any]) -> str:
    """Return the tables and the warnings of a fit."""
    names = [m["name"] for m in report["modalities"]]
    keys = ("name", "column", "width", "items", "missing")
    modalities = [[*(str(m[key]) for key in keys), f"{m['variance']:.6g}"] for m in report["modalities"]]
    rows = []
    for s in report["strategies"]:
        kept = [f"{s['kept_of'][name]:.1%}" if name in s["kept_of"] else "-" for name in names]
        rows.append([s["column"], s["strategy"], " + ".join(map(str, s["widths"].values())), f"{s['kept']:.1%}", *kept])
    head = ["column", "strategy", "dim", "variance kept", *(f"of {name}" for name in names)]
    lines = [format_table(["modality", "column", "dim", "items", "without", "variance"], modalities), ""]
    lines.append(format_table(head, rows))
    for s in report["strategies"]:
        if "made_of" in s:
            parts = ", ".join(f"{fraction:.1%} {name}" for name, fraction in s["made_of"].items())
            lines += ["", f"The components of {s['column']} are {parts}."]
    return "\n".join(lines + [f"warning: {sentence}" for sentence in report["warnings"]])


def format_applied(report: dict[str, Any]) -> str:
    """Return the summary of applying a saved reducer, with the variance that its fit kept."""
    fit = report["fit"]
    lines = [f"{report['items']} items reduced by {report['applied']}"]
    lines += [f"  {count} without an embedding of {name}" for name, count in report["missing"].items() if count]
    rows = [[s["column"], s["strategy"], str(s["width"]), f"{s['kept']:.1%}"] for s in fit["strategies"]]
    items = max(m["items"] for m in fit["modalities"])
    head = ["column", "strategy", "dim", f"variance kept of the {items} items of the fit"]
    return "\n".join([*lines, "", format_table(head, rows)])


def yaml_lines(report: dict[str, Any]) -> str:
    """Return the lines of ``feature_cols`` in dataset_config.yaml."""
    return "\n".join(
        f"- {{name: {s['column']}, active: False, dtype: float, type: embedding, source: item, "
        f"pretrain_dim: {s['width']}}}"
        for s in report["strategies"]
    )
