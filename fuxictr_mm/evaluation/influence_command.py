"""``fuxictr-mm influence``: rank the training rows by what they do to the validation loss, train without the worst."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.torchrun import is_one_of_several

logger = logging.getLogger(__name__)

SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm influence``."""
    add_examples(
        parser,
        "fuxictr-mm influence --expid DIN_MM_tiny",
        "fuxictr-mm influence --expid DIN_MM_tiny --drop-worst 5 --test_data data/tiny_mm/test_labelled.parquet",
        "fuxictr-mm influence --expid DIN_MM_tiny --out rows.parquet --json > influence.json",
    )
    parser.add_argument("--expid", required=True, help="experiment id in model_config.yaml")
    parser.add_argument("--config", default=".", metavar="DIR", help="folder of the configuration (default: this one)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--data_root", metavar="DIR", help="take the place of the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--seed", type=int, help="take the place of the experiment's seed")
    parser.add_argument("--test_data", metavar="FILE", help="take the place of the dataset's test_data")
    parser.add_argument(
        "--checkpoints",
        "--weights",
        nargs="+",
        metavar="FILE",
        help="weights to compute influence with, as run_expid.py leaves them (default: train, keep every epoch's)",
    )
    parser.add_argument(
        "--plain-loss", action="store_true", help="take the validation loss as it is, its intercept not fitted anew"
    )
    parser.add_argument("--layer", metavar="NAME", help="the model's last nn.Linear (default: found by itself)")
    parser.add_argument("--out", metavar="FILE", help="Parquet file of all rows (default: beside the experiment's log)")
    parser.add_argument(
        "--drop-worst", type=float, metavar="P", help="train again without the worst P percent, and compare"
    )
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Rank the rows, write and print them, train without the worst if asked to."""
    import numpy as np
    import pyarrow as pa

    from fuxictr_mm import experiment
    from fuxictr_mm.data.dataset import load_dataset
    from fuxictr_mm.device import device_of
    from fuxictr_mm.evaluation import influence_report as report
    from fuxictr_mm.evaluation.influence import Checkpoint
    from fuxictr_mm.evaluation.influence_training import (
        number_of_worst,
        rank_by_influence,
        train_keeping_checkpoints,
        train_without,
    )
    from fuxictr_mm.files import check_outputs
    from fuxictr_mm.training.hardware import set_precision

    if is_one_of_several():
        raise ConfigError("influence runs in one process; start it without torchrun")
    for path in args.checkpoints or []:
        if not Path(path).is_file():
            raise MissingFileError(f"--checkpoints {path}: no such file; give files that run_expid.py wrote")
    if args.drop_worst is not None and not 0 < args.drop_worst < 100:
        raise ConfigError(f"--drop-worst is {args.drop_worst:g}, expected percents above 0 and below 100")
    if not args.quiet:
        experiment.set_up_logging()
    overrides = {"seed": args.seed, "test_data": args.test_data, "verbose": 0 if args.quiet else None}
    params, model_class = experiment.read_params(
        args.config,
        args.expid,
        gpu=args.gpu,
        data_root=args.data_root,
        model_zoo=args.model_zoo,
        overrides={key: value for key, value in overrides.items() if value is not None},
    )
    out = Path(args.out) if args.out else experiment.log_path(params).with_suffix(".influence.parquet")
    data = [params.get(f"{split}_data") for split in ("train", "valid", "test")]
    items = [params["item_info"]] if isinstance(params["item_info"], str) else params["item_info"]
    check_outputs([out], [*data, *items, *(args.checkpoints or [])], overwrite=True)
    set_precision(params.get("precision", "fp32"), device_of(params["gpu"]))
    splits = {"train": True, "valid": True, **({"test": False} if params.get("test_data") else {})}
    dataset = load_dataset(params, splits)
    if args.drop_worst is not None:
        number_of_worst(dataset, args.drop_worst)
    with tempfile.TemporaryDirectory(prefix="fuxictr-mm-influence-") as folder:
        metrics: dict[str, Any] = {}
        if args.checkpoints:
            checkpoints = [Checkpoint(Path(path), params["learning_rate"]) for path in args.checkpoints]
        else:
            checkpoints, metrics["before"] = train_keeping_checkpoints(params, model_class, dataset, Path(folder))
        influence = rank_by_influence(params, model_class, dataset, checkpoints, args.layer, not args.plain_loss)
        ranking = report.read_rows(params["train_data"], params["label_col"]["name"])
        ranking = ranking.append_column("influence", pa.array(influence))
        ranking = ranking.append_column("rank", pa.array(report.rank_rows(influence)))
        report.write_ranking(out, ranking)
        groups = report.summarize(ranking)
        worst, best = (report.extremes(ranking, SHOWN, best) for best in (False, True))
        summary = [
            f"\n{report.format_groups(groups)}",
            f"worst rows, which raise the validation loss most:\n{report.format_rows(worst)}",
            f"best rows, which lower it most:\n{report.format_rows(best)}",
            f"all {ranking.num_rows} rows: {out}",
        ]
        answer = {"expid": args.expid, "rows": ranking.num_rows, "checkpoints": len(checkpoints), "out": str(out)}
        answer |= {"groups": report.to_dict(groups), "worst": worst, "best": best}
        if args.drop_worst is not None:
            if "before" not in metrics:
                _, metrics["before"] = train_keeping_checkpoints(params, model_class, dataset, Path(folder))
            dropped = np.argsort(ranking["rank"].to_numpy())[: number_of_worst(dataset, args.drop_worst)]
            metrics["after"] = train_without(params, model_class, dataset, dropped, Path(folder))
            answer |= {"dropped": len(dropped), "metrics": metrics}
            summary.append(_format_comparison(metrics, len(dropped), ranking.num_rows))
    show(args, answer, "\n\n".join(summary))


def _format_comparison(metrics: Mapping[str, Any], dropped: int, rows: int) -> str:
    """Return the metrics before and after as a table, with what they are worth."""
    lines = [f"{'':24}{'before':>10}{'after':>10}{'change':>10}"]
    for split, before in metrics["before"].items():
        for name, value in before.items():
            after = metrics["after"][split][name]
            lines.append(f"{f'{split} {name}':24}{value:10.6f}{after:10.6f}{after - value:+10.6f}")
    lines.append(f"trained without the worst {dropped} of {rows} rows; no file of the dataset was changed")
    lines.append("valid is optimistic after: its rows chose what was dropped; judge by test, and by several seeds")
    if "test" not in metrics["before"]:
        lines.append("test has no labels: name a file that has by --test_data FILE")
    return "\n".join(lines)
