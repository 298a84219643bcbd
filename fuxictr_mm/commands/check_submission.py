"""``fuxictr-mm check-submission``: check a submission file."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.submission import TASKS, check_submission


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``fuxictr-mm check-submission``."""
    add_examples(
        parser,
        "fuxictr-mm check-submission submission/DIN_MM_tiny.zip",
        "fuxictr-mm check-submission submission/DIN_MM_MicroLens.zip --rows 379142 --task Task2 --json",
    )
    parser.add_argument("file", type=Path, metavar="FILE.zip", help="the submission to check")
    parser.add_argument("--rows", type=_row_count, help="rows of the test file (default: not checked)")
    parser.add_argument("--task", choices=TASKS, help="the task of the submission (default: any)")
    add_output_options(parser)


def _row_count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def main_from_args(args: argparse.Namespace) -> None:
    """Check a file and print one line."""
    report = check_submission(args.file, args.rows, args.task)
    summary = (
        f"OK: {args.file}: {report.rows} rows, {report.task}, "
        f"min {report.min:.6g}, max {report.max:.6g}, mean {report.mean:.6g}"
    )
    show(args, {"file": str(args.file), **asdict(report)}, summary)
