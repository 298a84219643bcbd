"""``fuxictr-mm check-data``: find what harms in a dataset, write a cleaned copy.

Exit codes: 0 nothing but infos, 1 errors or warnings were found, 2 the command could not be carried out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.embeddings.quality.check import check_folder
from fuxictr_mm.embeddings.quality.checks import SEVERITIES, choose_checks
from fuxictr_mm.embeddings.quality.cleaning import clean_folder, format_actions
from fuxictr_mm.embeddings.quality.findings import format_table
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs, write_beside


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm check-data``."""
    add_examples(
        parser,
        "fuxictr-mm check-data data/tiny_mm",
        "fuxictr-mm check-data data/tiny_mm --only mojibake empty-title --json",
        "fuxictr-mm check-data data/MicroLens_1M_x1 --report report.json --clean data/MicroLens_1M_clean",
    )
    parser.add_argument("folder", metavar="DIR", help="folder with train, valid, test and item files (.parquet)")
    parser.add_argument("--report", metavar="FILE", help="write all findings, with every row, as JSON")
    parser.add_argument("--clean", metavar="OUT_DIR", help="write a cleaned copy and say what went")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="run these checks only")
    parser.add_argument("--skip", nargs="+", metavar="CHECK", help="leave these checks out")
    parser.add_argument("--max-examples", type=int, default=3, metavar="N", help="rows shown per finding (default: 3)")
    parser.add_argument("--title-column", metavar="NAME", help="column of the titles (default: item_title)")
    parser.add_argument(
        "--text-column", metavar="NAME", help="text vectors of the cross-modal check (default: by name)"
    )
    parser.add_argument("--image-column", metavar="NAME", help="image vectors of it (default: by name)")
    parser.add_argument("--language", metavar="CODE", help="language of the titles (default: that of the majority)")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Check the folder, print the table, write what was asked for; exit with 1 where there are errors or warnings."""
    checks = choose_checks(args.only, args.skip)
    if args.max_examples < 0:
        raise ConfigError(f"--max-examples is {args.max_examples}, expected 0 or more")
    check_outputs([args.report], Path(args.folder).glob("*.parquet"), overwrite=True)
    if args.clean and Path(args.clean).exists():
        raise ConfigError(f"--clean {args.clean}: is there already; name a folder that is not")
    if args.clean and Path(args.folder).resolve() in Path(args.clean).resolve().parents:
        raise ConfigError(f"--clean {args.clean}: lies inside {args.folder}; name a folder beside it")
    report, layout = check_folder(
        args.folder,
        checks,
        title_column=args.title_column,
        text_column=args.text_column,
        image_column=args.image_column,
        language=args.language,
        verbose=0 if args.quiet else 1,
    )
    findings = report.findings()
    lines = [format_table(findings, args.max_examples)]
    if layout.others:
        lines.append(f"not checked: {', '.join(layout.others)}")
    answer = {
        "folder": str(args.folder),
        "counts": {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES},
        "findings": [finding.to_dict() for finding in findings],
        "measures": report.measures,
        "not_checked": layout.others,
    }
    if args.clean:
        actions = clean_folder(layout, report, args.clean)
        lines += ["", f"cleaned copy in {args.clean}:"]
        lines.append(format_actions(actions) or "nothing was to be cleaned: the files are the same")
        answer["cleaned"] = {"folder": str(args.clean), "actions": [action.to_dict() for action in actions]}
    answer = json.loads(json.dumps(answer, default=str))  # Parquet holds dates and bytes, JSON does not
    if args.report:
        text = json.dumps(answer, indent=1, ensure_ascii=False)
        write_beside(args.report, lambda stream: stream.write(text.encode("utf-8", errors="replace")))
    show(args, answer, "\n".join(lines))
    if not report.is_clean:
        sys.exit(1)
