"""``fuxictr-mm compare``: which of two or more configurations is better, and whether significantly."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fuxictr_mm.arguments import add_examples, add_format, add_output_options, show
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.evaluation.compare import MIN_SAMPLES, Comparison, Pair, compare
from fuxictr_mm.evaluation.intervals import sampling_error
from fuxictr_mm.evaluation.significance import fixed
from fuxictr_mm.table_formats import in_format
from fuxictr_mm.terminal import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm compare``."""
    add_examples(
        parser,
        "fuxictr-mm compare DIN_MM_tiny DIN_tiny                   all finished runs of two experiments, seeds grouped",
        "fuxictr-mm compare checkpoints/tiny_mm/DIN_tiny other/tiny_mm/DIN_tiny/20250102-030405-seed7 --json",
        "fuxictr-mm compare DIN_MM_tiny other_program.csv --split test",
        "fuxictr-mm compare DIN_MM_tiny DIN_tiny --format latex > table.tex",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="experiment id, name of a run, folder of either, or a .csv or .parquet file of predictions",
    )
    parser.add_argument(
        "--root", default="checkpoints", metavar="DIR", help="model_root of the runs (default: checkpoints)"
    )
    parser.add_argument(
        "--split", choices=("valid", "test"), default="valid", help="examples to compare on (default: valid)"
    )
    parser.add_argument("--label", metavar="NAME", help="label to compare on, for runs with several labels")
    parser.add_argument(
        "--samples", type=int, default=2000, metavar="N", help="bootstrap samples of users (default: 2000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (default: 0)")
    add_format(parser)
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Compare and print."""
    if args.samples < MIN_SAMPLES:
        raise ConfigError(f"--samples is {args.samples}, expected {MIN_SAMPLES} or more")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}, expected 0 or more")
    options = {"split": args.split, "task": args.label, "samples": args.samples, "seed": args.seed}
    found = compare(args.names, args.root, quiet=args.quiet, **options)
    if args.format and not args.quiet:
        print(*(f"Note: {note}." for note in found.notes), sep="\n", end="\n" * bool(found.notes), file=sys.stderr)
    show(args, as_dict(found), in_format(args.format, *as_table(found)) if args.format else as_text(found))


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison for JSON."""
    metric, is_auc = comparison.metric, comparison.metric == "AUC"
    sides = []
    for side, runs in zip(comparison.sides, comparison.runs, strict=True):
        entries = [
            {
                "run": run.run,
                "expid": run.expid,
                "seed": run.seed,
                "path": str(run.path),
                metric.lower(): measured.value,
                "delong_error" if is_auc else "standard_error": sampling_error([measured]),
                "bootstrap_error": float(sample.std(ddof=1)),
            }
            for run, measured, sample in zip(runs, side.runs, side.samples, strict=True)
        ]
        sides.append(
            {"name": side.name, "configuration": side.configuration, metric.lower(): side.mean, "runs": entries}
        )
    pairs = [
        {
            "first": pair.first.name,
            "second": pair.second.name,
            **{"delong_p" if key == "rows_p" and is_auc else key: value for key, value in asdict(pair.found).items()},
            "corrected_p": pair.corrected_p,
            "better": pair.better,
            "verdict": pair.conclusion,
        }
        for pair in comparison.pairs
    ]
    names = ("split", "metric", "rows", "positives", "users", "samples", "notes")
    return {**{name: getattr(comparison, name) for name in names}, "sides": sides, "pairs": pairs}


def as_text(comparison: Comparison) -> str:
    """Return a comparison for a terminal: runs, differences from the first side, conclusions and notes."""
    of_users = "" if comparison.users == comparison.rows else f" of {comparison.users:,} users"
    what = {"valid": "validation"}.get(comparison.split, comparison.split)
    positive = "" if comparison.positives is None else f", {comparison.positives:,} positive"
    against_first = [pair for pair in comparison.pairs if pair.first is comparison.sides[0]]
    return "\n".join(
        [
            f"{comparison.rows:,} {what} examples{of_users}{positive}",
            "",
            _runs_table(comparison),
            "",
            _differences_table(against_first, comparison.metric),
            "",
            *(f"{pair.conclusion}." for pair in against_first),
            *(f"Note: {note}." for note in comparison.notes),
        ]
    )


def as_table(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows of one table: a row per side, with its difference from the first.

    The interval is of new users and new seeds; where seeds are unknown, it is empty, and so is p. Those for these
    weights are of new users alone.
    """
    first = comparison.sides[0].name
    against = {pair.second.name: pair for pair in comparison.pairs if pair.first.name == first}
    rows: list[list[Any]] = []
    for side in comparison.sides:
        deviation = float(side.values.std(ddof=1)) if len(side.runs) > 1 else None
        row: list[Any] = [side.name, len(side.runs), float(side.mean), deviation]
        pair = against.get(side.name)
        if pair is None:
            row += [None] * 6
        else:
            found = pair.found.reversed()
            of_seeds = [float(value) if found.seeds else None for value in (found.low, found.high, pair.corrected_p)]
            row += [float(found.value), *of_seeds, float(found.rows_low), float(found.rows_high)]
        rows.append(row)
    names = ["runs", comparison.metric, "std of seeds", f"minus {first}", "95 % low", "95 % high", "p"]
    return ["experiment", *names, "low for these weights", "high for these weights"], rows


def _runs_table(comparison: Comparison) -> str:
    rows: list[list[object]] = []
    for side, runs in zip(comparison.sides, comparison.runs, strict=True):
        several = len(side.runs) > 1
        if several:
            spread = f"seeds     {side.values.std(ddof=1):.4f}"
            rows.append([f"{side.name}, mean of {len(side.runs)}", "", f"{side.mean:.4f}", spread])
        for run, measured in zip(runs, side.runs, strict=True):
            name, seed = f"  {run.run}" if several else side.name, "" if run.seed is None else run.seed
            error = sampling_error([measured])
            spread = "" if error is None else f"examples  {error:.4f}"
            rows.append([name, seed, f"{measured.value:.4f}", spread])
    head = "AUC" if comparison.metric == "AUC" else f"{comparison.metric}, lower is better"
    return format_table(["run", "seed", head, "standard deviation"], rows, right=["seed", head])


def _differences_table(pairs: Sequence[Pair], metric: str) -> str:
    def interval(low: float, high: float) -> str:
        return f"{fixed(low, '+')} to {fixed(high, '+')}"

    def p_value(value: float | None) -> str:
        return "" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"

    rows = [
        [
            f"{pair.first.name} - {pair.second.name}",
            fixed(pair.found.value, "+"),
            interval(pair.found.low, pair.found.high) if pair.found.seeds else "seeds unknown",
            interval(pair.found.rows_low, pair.found.rows_high),
            p_value(pair.found.rows_p),
            p_value(pair.corrected_p) if pair.found.seeds else "",
        ]
        for pair in pairs
    ]
    of_rows = "DeLong p" if metric == "AUC" else "paired p"
    return format_table(["difference", "", "95 % interval", "for these weights", of_rows, "p"], rows)
