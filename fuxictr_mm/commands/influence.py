"""``fuxictr-mm influence``: examples ranked by their effect on the validation loss, and training without the worst."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.arguments import add_examples, add_experiment_options, add_output_options, load_experiment, show
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.evaluation.influence import Checkpoint
from fuxictr_mm.evaluation.influence_ranking import extremes, make_ranking, summarize
from fuxictr_mm.evaluation.influence_training import (
    number_of_worst,
    rank_by_influence,
    train_keeping_checkpoints,
    without,
)
from fuxictr_mm.files import check_outputs, check_replaceable, write_beside
from fuxictr_mm.runtime import is_one_of_several
from fuxictr_mm.terminal import format_table

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm influence``."""
    add_examples(
        parser,
        "fuxictr-mm influence --expid DIN_MM_tiny",
        "fuxictr-mm influence --expid DIN_MM_tiny --drop-worst 5 --test_data data/tiny_mm/test_labelled.parquet",
        "fuxictr-mm influence --expid DIN_MM_tiny --out rows.parquet --json > influence.json",
    )
    add_experiment_options(parser, gpu=True)
    parser.add_argument("--seed", type=int, help="replaces the experiment's seed")
    parser.add_argument("--test_data", metavar="FILE", help="replaces the dataset's test_data")
    parser.add_argument(
        "--checkpoints",
        "--weights",
        nargs="+",
        metavar="FILE",
        help="weights to compute influence with, as saved by fuxictr-mm train (default: train, and use "
        "those of every epoch)",
    )
    parser.add_argument(
        "--initial_weights",
        metavar="RUN",
        help="training starts with these weights: a run, an experiment id (its newest run) or a file",
    )
    parser.add_argument("--plain-loss", action="store_true", help="validation loss without recalibrating its intercept")
    parser.add_argument("--layer", metavar="NAME", help="the model's last nn.Linear (default: detected)")
    parser.add_argument("--out", metavar="FILE", help="Parquet file of the ranking (default: next to the log)")
    parser.add_argument(
        "--drop-worst", type=float, metavar="P", help="train again without the worst P percent, and compare"
    )
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Rank the training examples, write and print the ranking; train without the worst on request."""
    import pyarrow.parquet as pq

    from fuxictr_mm.logs import set_up_logging

    if not args.quiet:
        set_up_logging()
    experiment, out = _prepare(args)
    splits = {"train": True, "valid": True, **({"test": False} if experiment.config.dataset.test_data else {})}
    dataset = experiment.load_dataset(splits, args.checkpoints[0] if args.checkpoints else None)
    num_worst = None if args.drop_worst is None else number_of_worst(dataset, args.drop_worst)
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fuxictr-mm-influence-") as folder:
        if args.checkpoints:
            checkpoints = [Checkpoint(Path(path), experiment.config.learning_rate) for path in args.checkpoints]
        else:
            checkpoints, metrics["before"] = train_keeping_checkpoints(experiment, dataset, Path(folder), args.layer)
            if not checkpoints:
                raise ConfigError(
                    "training found no weights better than those of initial_weights, so no row has an influence; "
                    "train for more epochs, or with another learning_rate"
                )
        influence = rank_by_influence(experiment, dataset, checkpoints, args.layer, not args.plain_loss)
        config = experiment.config.dataset
        separator = config.sep if config.data_format == "csv" else None
        ranking = make_ranking(str(config.train_data), config.label_names[0], influence, config.roles, separator)
        write_beside(out, lambda stream: pq.write_table(ranking, stream))
        if num_worst is not None:
            if "before" not in metrics:
                _, metrics["before"] = train_keeping_checkpoints(experiment, dataset, Path(folder))
            worst = np.argsort(ranking["rank"].to_numpy())[:num_worst]
            _, metrics["after"] = train_keeping_checkpoints(experiment, without(dataset, worst), Path(folder))
    document = {
        "expid": args.expid,
        "rows": ranking.num_rows,
        "checkpoints": len(checkpoints),
        "out": str(out),
        "groups": summarize(ranking, experiment.config.dataset.roles.target),
        "worst": extremes(ranking, best=False),
        "best": extremes(ranking, best=True),
    }
    if num_worst is not None:
        document |= {"dropped": num_worst, "metrics": metrics}
    show(args, document, as_text(document))


def _prepare(args: argparse.Namespace) -> tuple[Experiment, Path]:
    """Check the arguments; return the experiment and the file for the ranking."""
    from fuxictr_mm.runtime import device_of, set_precision

    if is_one_of_several():
        raise ConfigError("influence runs in one process; start it without torchrun")
    for path in args.checkpoints or []:
        if not Path(path).is_file():
            raise MissingFileError(f"--checkpoints {path}: no such file; give files that fuxictr-mm train wrote")
    if args.drop_worst is not None and not 0 < args.drop_worst < 100:
        raise ConfigError(f"--drop-worst is {args.drop_worst:g}, expected a percentage above 0 and below 100")
    settings = {"seed": args.seed, "test_data": args.test_data, "initial_weights": args.initial_weights}
    experiment = load_experiment(args, **settings, verbose=0 if args.quiet else None)
    out = Path(args.out) if args.out else experiment.paths.influence
    data = experiment.config.dataset
    if experiment.batch_format(experiment.model_class) == "flat":
        data.require_items("influence")
    data.require_one_label("influence")
    inputs = [*data.item_files, data.train_data, data.valid_data, data.test_data, *(args.checkpoints or [])]
    check_outputs([out], inputs, overwrite=True)
    check_replaceable(out, ["row", "influence", "rank"], "ranking by influence")
    set_precision(experiment.config.precision, device_of(experiment.config.gpu))
    return experiment, out


def as_text(document: Mapping[str, Any]) -> str:
    """Return the JSON document for a terminal."""
    header = ["", "rows", "mean influence", "negative", "in worst 1 %"]
    groups = [
        [g["name"], g["rows"], f"{g['mean']:.3e}", f"{g['negative']:.1%}", f"{g['among_worst']:.2%}"]
        for g in document["groups"]
    ]
    parts = [
        f"\n{format_table(header, groups, right=header[1:])}",
        f"worst rows, which raise the validation loss most:\n{_examples_table(document['worst'])}",
        f"best rows, which lower it most:\n{_examples_table(document['best'])}",
        f"all {document['rows']} rows: {document['out']}",
    ]
    if "metrics" in document:
        parts.append(_metrics_text(document["metrics"], document["dropped"], document["rows"]))
    return "\n\n".join(parts)


def _examples_table(examples: Sequence[Mapping[str, Any]]) -> str:
    header = list(examples[0])
    formats = {"influence": ".3e", "label": "g"}
    rows = [[format(example[name], formats.get(name, "")) for name in header] for example in examples]
    return format_table(header, rows, right=header)


def _metrics_text(metrics: Mapping[str, Any], dropped: int, rows: int) -> str:
    """Return the metrics before and after as a table, and how to read them."""
    header = ["", "before", "after", "change"]
    cells = []
    for split, before in metrics["before"].items():
        for name, value in before.items():
            after = metrics["after"][split][name]
            cells.append([f"{split} {name}", f"{value:.6f}", f"{after:.6f}", f"{after - value:+.6f}"])
    lines = [
        format_table(header, cells, right=header[1:]),
        f"trained without the worst {dropped} of {rows} rows; no file of the dataset was changed",
        "valid is optimistic afterwards, because its rows selected what was dropped; use test and several seeds",
    ]
    if "test" not in metrics["before"]:
        lines.append("test has no labels: give a file with labels by --test_data FILE")
    return "\n".join(lines)
