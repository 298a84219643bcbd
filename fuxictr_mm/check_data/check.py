"""``fuxictr-mm check-data``: run all checks of a folder, report, write a cleaned copy."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from fuxictr_mm.arguments import add_examples, add_output_options, add_roles, show
from fuxictr_mm.check_data.checks import CHECKS, SEVERITIES, UNREADABLE, Report, format_findings
from fuxictr_mm.check_data.clean import clean_folder, format_actions
from fuxictr_mm.check_data.described import Description
from fuxictr_mm.check_data.interactions import check_interactions
from fuxictr_mm.check_data.items import check_items
from fuxictr_mm.check_data.layout import TITLE, Layout, data_paths, find_layout
from fuxictr_mm.check_data.titles import check_titles
from fuxictr_mm.check_data.translation import Translation
from fuxictr_mm.check_data.vectors import check_embeddings
from fuxictr_mm.config import Roles
from fuxictr_mm.errors import ConfigError, nearest
from fuxictr_mm.files import check_outputs, check_replaceable, write_beside


def check_folder(
    folder: str | os.PathLike[str],
    checks: Iterable[str] | None = None,
    *,
    title_column: str | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    language: str | None = None,
    roles: Roles | None = None,
    ids: str | None = None,
    label: str | None = None,
    verbose: int = 0,
) -> tuple[Report, Layout]:
    """Check a dataset in the challenge's layout.

    Parameters
    ----------
    folder : str or Path
        Holds train, valid and test files and item files, whichever there are.
    checks : iterable of str, optional
        Names out of ``CHECKS``, all by default.
    title_column : str, optional
        Column of the titles; ``item_title`` by default, which may be missing.
    text_column, image_column : str, optional
        Columns of the cross-modal check; found by their names by default.
    language : str, optional
        Expected language of the titles; that of the majority by default.
    roles : Roles, optional
        Names of the columns with a role; by default those of ``dataset_config.yaml`` in the folder, if it has a single
        entry, else those of the challenge.
    ids : {"auto", "as_is", "vocabulary"}, optional
        As in ``dataset_config.yaml``, of which it is by default.
    label : str, optional
        Column of the label; by default the first of ``dataset_config.yaml``, else ``label``.
    verbose : int
        0 shows no progress.

    Returns
    -------
    report : Report
        The findings, and what was measured.
    layout : Layout
        The files.

    Raises
    ------
    MissingFileError
        There is no such folder, or nothing of the layout in it.
    ConfigError
        A column that was named is not there; ``dataset_config.yaml`` is wrong.
    """
    report = Report(checks)
    described = Description.find(Path(folder))
    translation = Translation.find(
        data_paths(Path(folder)), roles or described.roles, ids or described.ids, label or described.label
    )
    with translation.active():
        layout = find_layout(Path(folder), report, title_column or TITLE)
        layout.translation, layout.categories = translation, described.categories
        if title_column and not any(title_column in item.schema.names for item in layout.items):
            raise ConfigError(f"--title-column: no item file has a column '{title_column}'")
        check_items(layout, report)
        similar = check_embeddings(layout, report, text_column, image_column, verbose)
        check_titles(layout, report, title_column or TITLE, language, similar)
        check_interactions(layout, report, verbose)
    report.translate(translation.back)
    return report, layout


def choose_checks(only: Sequence[str] | None, skip: Sequence[str] | None) -> set[str]:
    """Return the names of the checks to run.

    Raises
    ------
    ConfigError
        An unknown name, with the nearest; or nothing is left to do.

    Examples
    --------
    >>> sorted(choose_checks(["mojibake", "zero-vector"], ["mojibake"]))
    ['unreadable', 'zero-vector']
    """
    for flag, names in (("--only", only), ("--skip", skip)):
        for name in names or ():
            if name not in CHECKS:
                known = ", ".join(sorted(CHECKS))
                raise ConfigError(f"{flag}: there is no check '{name}'{nearest(name, CHECKS)} ({known})")
    # A file that cannot be read is never a clean file.
    chosen = {*(only or CHECKS), UNREADABLE.name} - set(skip or ())
    if not chosen:
        raise ConfigError("--only and --skip leave no check to run")
    return chosen


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
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="run these checks only")
    parser.add_argument("--skip", nargs="+", metavar="CHECK", help="leave these checks out")
    parser.add_argument("--max-examples", type=int, default=3, metavar="N", help="rows shown per finding (default: 3)")
    parser.add_argument("--title-column", metavar="NAME", help="column of the titles (default: item_title)")
    parser.add_argument(
        "--text-column", metavar="NAME", help="text embeddings of the cross-modal check (default: by name)"
    )
    parser.add_argument("--image-column", metavar="NAME", help="image embeddings of it (default: by name)")
    parser.add_argument("--language", metavar="CODE", help="language of the titles (default: that of the majority)")
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
        raise ConfigError(f"--clean {args.clean}: exists already; name a folder that does not")
    if args.clean and Path(args.folder).resolve() in Path(args.clean).resolve().parents:
        raise ConfigError(f"--clean {args.clean}: lies inside {args.folder}; name a folder outside of it")


def _format_measures(report: Report) -> list[str]:
    """Return a line per split: how many targets are cold, and how many examples have no history."""
    cold, empty = (report.measures.get(name, {}) for name in ("cold_fraction", "without_history"))
    lines = []
    for name in empty | cold:
        parts = [f"{cold[name]:.1%} of the targets without a training row"] if name in cold else []
        parts += [f"{empty[name]:.1%} of the examples without history"] if name in empty else []
        lines.append(f"{name}: {', '.join(parts)}")
    return lines
