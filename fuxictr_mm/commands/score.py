"""``fuxictr-mm score``: score a file of any size from an export, without torch."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm score``."""
    add_examples(
        parser,
        "fuxictr-mm score DIN_MM_tiny_export data/tiny_mm/test.parquet --out scores.parquet",
        "fuxictr-mm score DIN_MM_tiny_export data/tiny_mm/test.parquet --out scores.parquet     again: resumes",
    )
    parser.add_argument("export", type=Path, metavar="DIR", help="folder written by fuxictr-mm export")
    parser.add_argument("rows", type=Path, help="a Parquet file, or a folder of part files")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="Parquet file to write: user, item, row and score"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="number of scoring processes (default: 1)"
    )
    parser.add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help="local processes or Ray Data (default: processes)",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads per process (default: 1)")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Score the file."""
    from fuxictr_mm.encoding.text_files import PACKED, is_text
    from fuxictr_mm_serving.errors import ServingError
    from fuxictr_mm_serving.scoring import score_file

    if is_text(args.out) or args.out.suffix.lower() in PACKED:
        raise ConfigError(f"--out {args.out}: is written as Parquet; give a name that ends in .parquet")
    started = time.perf_counter()

    def progress(done: int, total: int, earlier: int) -> None:
        if done > earlier and not (args.quiet or args.json):
            rate = (done - earlier) / (time.perf_counter() - started)
            line = f"{done:,} of {total:,} rows scored, {rate:,.0f} rows/s, {(total - done) / rate:,.0f} s left"
            print(line, file=sys.stderr)

    try:
        rows = score_file(
            args.export,
            args.rows,
            args.out,
            processes=args.processes,
            threads=args.threads,
            engine=args.engine,
            progress=progress,
        )
    except ServingError as error:
        raise UserError(str(error)) from error
    seconds = time.perf_counter() - started
    document = {"file": str(args.out), "rows": rows, "seconds": round(seconds, 3)}
    show(args, document, f"{args.out}: {rows} rows in {seconds:.1f} s")
