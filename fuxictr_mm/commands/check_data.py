"""``fuxictr-mm check-data``: run all checks of a folder, report, write a cleaned copy."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fuxictr_mm.arguments import add_examples, add_output_options, add_roles, show
from fuxictr_mm.check_data.check import check_folder, choose_checks
from fuxictr_mm.check_data.checks import SEVERITIES, Report, format_findings
from fuxictr_mm.check_data.clean import clean_folder, format_actions
from fuxictr_mm.config import Roles
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs, check_replaceable, write_beside


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
    parser.add_argument("--clean", metavar="OUT_DIR", help="write a cleaned copy and print what was changed")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="run only these checks")
    parser.add_argument("--skip", nargs="+", metavar="CHECK", help="skip these checks")
    parser.add_argument("--max-examples", type=int, default=3, metavar="N", help="rows shown per finding (default: 3)")
    parser.add_argument("--title-column", metavar="NAME", help="column of the titles (default: item_title)")
    parser.add_argument(
        "--text-column", metavar="NAME", help="text embeddings of the cross-modal check (default: by name)"
    )
    parser.add_argument(
        "--image-column", metavar="NAME", help="image embeddings of the cross-modal check (default: by name)"
    )
    parser.add_argument("--language", metavar="CODE", help="language of the titles (default: the most frequent one)")
    add_roles(parser)
    parser.add_argument(
        "--label", metavar="NAME", help="column of the label (default: as in DIR/dataset_config.yaml, else label)"
    )
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Check the folder, print the table, write the requested files; exit with 1 for errors or warnings."""
    checks = choose_checks(args.only, args.skip)
    _check_options(args)
    report, layout = check_folder(
        args.folder,
        checks,
        title_column=args.title_column,
        text_column=args.text_column,
        image_column=args.image_column,
        language=args.language,
        roles=Roles.parse(args.roles) if args.roles else None,
        ids=None if args.ids == "auto" else args.ids,
        label=args.label,
        needs_all=args.only is not None,  # what is asked for by name is not left out
        verbose=0 if args.quiet else 1,
    )
    findings = report.findings()
    lines = [format_findings(findings, args.max_examples), *_format_measures(report)]
    if layout.not_checked:
        lines.append(f"not checked: {', '.join(layout.not_checked)}")
    answer = {
        "folder": str(args.folder),
        "counts": {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES},
        "findings": [finding.to_dict() for finding in findings],
        "measures": report.measures,
        "not_checked": layout.not_checked,
    }
    if args.clean:
        actions = clean_folder(layout, report, args.clean)
        lines += ["", f"cleaned copy in {args.clean}:"]
        lines.append(format_actions(actions) or "nothing to clean: the files are the same")
        answer["cleaned"] = {"folder": str(args.clean), "actions": actions}
    answer = json.loads(json.dumps(answer, default=str))  # Parquet holds dates and bytes, JSON does not
    if args.report:
        text = json.dumps(answer, indent=1, ensure_ascii=False)
        write_beside(args.report, lambda stream: stream.write(text.encode("utf-8", errors="replace")))
    show(args, answer, "\n".join(lines))
    if not report.is_clean:
        sys.exit(1)


def _check_options(args: argparse.Namespace) -> None:
    """Check the options, before any work."""
    if args.max_examples < 0:
        raise ConfigError(f"--max-examples is {args.max_examples}, expected 0 or more")
    check_outputs([args.report], Path(args.folder).glob("*.parquet"), overwrite=True)
    if args.report:
        check_replaceable(args.report, ["folder", "counts", "findings"], "report of check-data")
    if args.clean and Path(args.clean).exists():
        raise ConfigError(f"--clean {args.clean}: already exists; give a folder that does not exist")
    if args.clean and Path(args.folder).resolve() in Path(args.clean).resolve().parents:
        raise ConfigError(f"--clean {args.clean}: is inside {args.folder}; give a folder outside of it")


def _format_measures(report: Report) -> list[str]:
    """Return a line per split: how many targets are cold, and how many examples have no history."""
    cold, empty = (report.measures.get(name, {}) for name in ("cold_fraction", "without_history"))
    lines = []
    for name in empty | cold:
        parts = [f"{cold[name]:.1%} of the targets without a training row"] if name in cold else []
        parts += [f"{empty[name]:.1%} of the examples without history"] if name in empty else []
        lines.append(f"{name}: {', '.join(parts)}")
    return lines
