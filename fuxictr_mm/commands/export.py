"""``fuxictr-mm export``: a trained model as graphs and memory-mapped tables; those of ONNX score without torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr_mm.arguments import add_examples, add_experiment_options, add_output_options, load_experiment, show
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.serving.export import PACKAGES, TOLERANCES, export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm export``."""
    add_examples(
        parser,
        "fuxictr-mm export --expid DIN_MM_tiny --out DIN_MM_tiny_export",
        "fuxictr-mm export --expid DIN_MM_tiny --out DIN_MM_tiny_export --precision int8-tables --overwrite",
        "fuxictr-mm export --expid DIN_MM_tiny --out triton_models --format triton",
        "fuxictr-mm export --config data/shop --expid DIN_MM_shop --items data/shop_new --out shop_export",
    )
    add_experiment_options(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--format",
        choices=tuple(PACKAGES),
        default="onnx",
        help="format of the graphs: ONNX, torch.export, or for Triton (default: onnx)",
    )
    parser.add_argument(
        "--precision", choices=tuple(TOLERANCES), default="fp32", help="precision of tables or weights (default: fp32)"
    )
    parser.add_argument("--weights", metavar="RUN", help="weights other than the experiment's own: a run or a file")
    parser.add_argument(
        "--tolerance", type=float, help="maximum difference of a score (default: 1e-5; larger for other precisions)"
    )
    parser.add_argument(
        "--auc-loss",
        type=float,
        metavar="X",
        help="maximum loss of AUC, in place of --tolerance, for a precision other than fp32",
    )
    parser.add_argument(
        "--ids",
        choices=("source", "numbers"),
        default="source",
        help="in requests, of what fuxictr-mm prepare numbered: those of its source, or its numbers (source)",
    )
    parser.add_argument(
        "--items",
        type=Path,
        metavar="DIR",
        help="folder by fuxictr-mm prepare log --like, whose items are exported, new ones included",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that an earlier export wrote")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Write the folder."""
    from fuxictr_mm.evaluation.ensemble import refuse_ensemble
    from fuxictr_mm.logs import set_up_logging

    if not args.quiet:
        set_up_logging()
    try:
        experiment = load_experiment(args, verbose=0 if args.quiet else None)
    except ConfigError:
        refuse_ensemble(args.expid)
        raise
    names = ("format", "weights", "precision", "tolerance", "auc_loss", "overwrite", "ids", "items")
    options = {name: getattr(args, name) for name in names}
    parity = export(experiment, args.out, **options)
    summary = f"{args.out}: " + _summary(parity["largest_difference"], parity["rows"], parity["auc"])
    if "auc_folded" in parity:
        found = parity["auc_folded"]
        summary += "; served by users: " + _summary(parity["largest_difference_folded"], found["rows"], found)
    if parity.get("weight_bits", {}).get("rows") == 32:
        summary += "; weights: 32 bits for rows (score), 8 bits by user (serve)"
    show(args, {"folder": str(args.out), "expid": args.expid, **parity}, summary)


def _summary(largest: float, rows: int, auc: Mapping[str, Any]) -> str:
    return (
        f"largest difference {largest:.2g} over {rows} validation rows, "
        f"AUC {_text(auc['export'])} (model: {_text(auc['model'])})"
    )


def _text(auc: float | Mapping[str, float | None] | None) -> str:
    if isinstance(auc, Mapping):
        return ", ".join(f"{label} {_text(found)}" for label, found in auc.items())
    return "none" if auc is None else f"{auc:.6f}"
