"""What the stages' commands say, and when: ``--json``, ``--quiet``, ``--overwrite``."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options that mean the same in every stage."""
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document, and nothing else")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary; errors are told")


def show(args: argparse.Namespace, report: Any, summary: str) -> None:
    """Print the report as JSON, or the summary for people, or nothing."""
    if args.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    elif not args.quiet:
        print(summary)


def flag(name: str) -> str:
    """Return the option that sets a Python parameter.

    Examples
    --------
    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")
