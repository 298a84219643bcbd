"""``fuxictr-mm runs``: a list of runs and their metrics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuxictr_mm.arguments import add_examples, add_format, add_output_options, show
from fuxictr_mm.errors import ConfigError, MissingFileError, nearest
from fuxictr_mm.runs.evaluations import is_falling
from fuxictr_mm.runs.reading import find_runs
from fuxictr_mm.runs.run import Run
from fuxictr_mm.table_formats import in_format
from fuxictr_mm.terminal import format_table, number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm runs``."""
    add_examples(
        parser,
        "fuxictr-mm runs",
        "fuxictr-mm runs --dataset tiny_mm --best AUC --last 5",
        "fuxictr-mm runs --expid DIN_MM_tiny --finished --json",
        "fuxictr-mm runs --finished --format csv > runs.csv",
    )
    parser.add_argument(
        "--root", default="checkpoints", metavar="DIR", help="model_root of the runs (default: checkpoints)"
    )
    parser.add_argument("--dataset", metavar="ID", help="runs on this dataset only")
    parser.add_argument("--model", metavar="NAME", help="runs of this model only")
    parser.add_argument("--expid", metavar="ID", help="runs of this experiment only")
    parser.add_argument("--finished", action="store_true", help="leave out unfinished and broken runs")
    parser.add_argument(
        "--best", metavar="METRIC", help="sort by this metric of the validation rows, best first, such as AUC"
    )
    parser.add_argument("--last", type=int, metavar="N", help="print only the first N")
    add_format(parser)
    add_output_options(parser, quiet=False)


def main_from_args(args: argparse.Namespace) -> None:
    """Print the list."""
    if not Path(args.root).is_dir():
        raise MissingFileError(
            f"{args.root}: no such folder, so no run was trained here; fuxictr-mm train writes runs to model_root, by "
            "default checkpoints in the working directory, and --root takes another one"
        )
    if args.last is not None and args.last < 1:
        raise ConfigError(f"--last is {args.last}, expected 1 or more")
    runs = find_runs(args.root, dataset=args.dataset, model=args.model, expid=args.expid)
    if args.finished:
        runs = [run for run in runs if run.finished and not run.problem]
    if args.best is not None:
        runs = best_first(runs, args.best)
    runs = runs[: args.last]
    text = in_format(args.format, *_cells(runs)) if args.format else table(runs) if runs else _none_found(args)
    show(args, [as_dict(run) for run in runs], text)


def best_first(runs: Sequence[Run], metric: str) -> list[Run]:
    """Return finished runs sorted by a metric of the validation rows, best first, without runs that do not have it.

    Raises
    ------
    ConfigError
        No run has this metric.
    """
    having = [run for run in runs if number(run.valid.get(metric)) is not None]
    if runs and not having:
        known = sorted({name for run in runs for name in run.valid})
        there = ", ".join(known) or "none, no run is finished"
        raise ConfigError(f"--best: no run has the metric '{metric}'{nearest(metric, known)} (there are: {there})")
    return sorted(having, key=lambda run: run.valid[metric], reverse=not is_falling(metric))


def table(runs: Sequence[Run]) -> str:
    """Return a line for each run."""
    header, cells = _cells(runs)
    columns = [name for name in header if name.startswith(("valid ", "test "))]
    rows = []
    for row in cells:
        texts = dict(zip(header, row, strict=True))
        texts |= {name: "" if texts[name] is None else f"{texts[name]:.4f}" for name in columns}
        texts["seconds"] = "" if texts["seconds"] is None else f"{texts['seconds']:.0f}"
        rows.append(["" if text is None else text for text in texts.values()])
    return format_table(header, rows, right=["seed", *columns, "seconds"])


def _cells(runs: Sequence[Run]) -> tuple[list[str], list[list[Any]]]:
    """Return the header and the values of a table of runs; None is missing."""
    valid = list(dict.fromkeys(name for run in runs for name in run.valid))
    test = list(dict.fromkeys(name for run in runs for name in run.test))
    columns = [f"valid {name}" for name in valid] + [f"test {name}" for name in test]
    rows = []
    for run in runs:
        metrics = [*(run.valid.get(name) for name in valid), *(run.test.get(name) for name in test)]
        of_run = [run.run, run.expid, run.dataset_id, run.seed]
        rows.append([*of_run, *map(number, metrics), number(run.seconds), run.state])
    return ["run", "experiment", "dataset", "seed", *columns, "seconds", "state"], rows


def as_dict(run: Run) -> dict[str, Any]:
    """Return the entry of a run, for JSON."""
    names = ("run", "expid", "dataset_id", "model", "seed", "description", "started_at", "valid", "test", "parameters")
    values = {name: getattr(run, name) for name in (*names, "seconds", "finished", "problem")}
    return {**values, "path": str(run.path)}


def _none_found(args: argparse.Namespace) -> str:
    everything = find_runs(args.root)
    if not everything:
        return f"no runs below {args.root}; fuxictr-mm train writes them"
    hints = []
    for option, name in (("dataset", "dataset_id"), ("model", "model"), ("expid", "expid")):
        given, known = getattr(args, option), sorted({getattr(run, name) for run in everything})
        if given is not None and given not in known:
            hints.append(f"no run with --{option} {given}{nearest(given, known)} (there are: {', '.join(known)})")
    return "; ".join(hints) or f"none of the {len(everything)} runs below {args.root} matches"
