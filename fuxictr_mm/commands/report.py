"""``fuxictr-mm report``: an HTML page about runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.evaluation.compare import Pair
from fuxictr_mm.files import StrPath, check_outputs, check_replaceable
from fuxictr_mm.report.page import DatasetSection
from fuxictr_mm.report.report import report
from fuxictr_mm.terminal import plural

EXAMPLES = (
    "fuxictr-mm report",
    "fuxictr-mm report DIN_MM_tiny DIN_tiny --out din.html",
    'fuxictr-mm report --dataset tiny_mm --title "Week 7" --json',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm report``."""
    add_examples(parser, *EXAMPLES)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="experiment id, name of a run, or folder of either (default: all runs)"
    )
    parser.add_argument(
        "--root", default="checkpoints", metavar="DIR", help="model_root of the runs (default: checkpoints)"
    )
    parser.add_argument("--out", default="report.html", metavar="FILE", help="page to write (default: report.html)")
    parser.add_argument("--dataset", metavar="ID", help="runs on this dataset only")
    parser.add_argument("--label", metavar="NAME", help="label to report on, for runs with several labels")
    parser.add_argument("--title", metavar="TEXT", help="heading of the page")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Write the page, print its path and the best experiment."""
    check_outputs([args.out], [], overwrite=True)
    check_replaceable(args.out, ["<html>"], "HTML page")
    options = {name: getattr(args, name) for name in ("dataset", "label", "title", "quiet")}
    sections = report(args.names, args.root, args.out, **options)
    lines = [f"{section.dataset_id}: {' '.join(section.sentences)}" for section in sections]
    notes = sum(len(section.notes) for section in sections)
    at_end = f" ({plural(notes, 'note')} at its end)" if notes else ""
    lines.append(f"page: {Path(args.out).resolve()}{at_end}")
    show(args, as_dict(sections, args.out), "\n".join(lines))


def as_dict(sections: Sequence[DatasetSection], out: StrPath) -> dict[str, Any]:
    """Return the leaderboards as a JSON document."""
    datasets = []
    for section in sections:
        experiments = [
            {
                "name": row.experiment.name,
                "model": row.experiment.newest.model,
                "runs": [run.run for run in row.experiment.runs],
                "valid": {name: row.experiment.mean(name) for name in section.metrics},
                "test": {name: row.experiment.mean(name, "test") for name in section.test_metrics},
                "interval": row.interval,
                "difference": None if row.against is None else _difference(row.against),
                "verdict": row.conclusion,
            }
            for row in section.rows
        ]
        datasets.append(
            {
                "dataset_id": section.dataset_id,
                "summary": section.sentences,
                "experiments": experiments,
                "notes": section.notes,
            }
        )
    return {"page": str(Path(out).resolve()), "datasets": datasets}


def _difference(pair: Pair) -> dict[str, Any]:
    found = {name: getattr(pair.found, name) for name in ("value", "low", "high")}
    return {**found, "shown": pair.better is not None, "sentence": pair.conclusion}
