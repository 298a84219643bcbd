"""All checks of a folder, in order."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fuxictr_mm.check_data.checks import CHECKS, SEVERITIES, Report, choose_checks, format_table
from fuxictr_mm.check_data.clean import clean_folder, format_actions
from fuxictr_mm.check_data.items import (
    SPLITS,
    ItemFile,
    Layout,
    as_text,
    check_items,
    check_values,
    find_layout,
    is_text,
    read_chunks,
)
from fuxictr_mm.check_data.splits import Later, Seen, Split, check_drift, check_repeats, read_split
from fuxictr_mm.check_data.titles import JUDGED, check_titles
from fuxictr_mm.check_data.vectors import ColumnStatistics, check_modalities, check_vectors, find_modalities
from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs, write_beside

TITLE_CHECKS = (*JUDGED, "foreign-title", "duplicate-title")


VALUE_CHECKS = ("far-item-id", "bad-item-value", "item-value-outlier")


VECTOR_CHECKS = (
    "vector-width",
    "nonfinite-vector",
    "zero-vector",
    "norm-outlier",
    "constant-column",
    "duplicate-vector",
    "near-duplicate-vector",
    "modalities-disagree",
)


SPLIT_CHECKS = (
    "unused-item",
    "bad-user-id",
    "bad-context",
    "context-outlier",
    "bad-label",
    "one-class",
    "unknown-target",
    "unknown-history",
    "null-history",
    "repeated-history",
    "inner-padding",
    "target-in-history",
    "future-click",
    "contradictory-row",
    "duplicate-row",
    "shared-row",
    "label-drift",
    "context-drift",
    "history-drift",
    "popularity-drift",
    "cold-targets",
    "column-type",
    "missing-column",
    "empty-file",
)


def check_folder(
    folder: str | os.PathLike[str],
    checks: Iterable[str] = tuple(CHECKS),
    *,
    title_column: str | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    language: str | None = None,
    verbose: int = 0,
) -> tuple[Report, Layout]:
    """Check a dataset in the challenge's layout.

    Parameters
    ----------
    folder : str or Path
        Holds train, valid and test files and item files, whichever there are.
    checks : iterable of str
        Names out of ``CHECKS``.
    title_column : str, optional
        Column of the titles; ``item_title`` by default, which may lack.
    text_column, image_column : str, optional
        Columns of the cross-modal check; found by their names by default.
    language : str, optional
        Expected language of the titles; that of the majority by default.
    verbose : int
        0 shows no progress.

    Returns
    -------
    report : Report
        The findings.
    layout : Layout
        The files.

    Raises
    ------
    MissingFileError
        There is no such folder, or nothing of the layout in it.
    ConfigError
        A column that was named is not there.
    """
    report = Report(checks)
    layout = find_layout(Path(folder), report)
    check_items(layout, report)
    if report.wants(*VALUE_CHECKS):
        for item in layout.items:
            with report.reading(item.path):
                check_values(item, report)
    twins: set[int] = set()
    if report.wants("duplicate-title", *VECTOR_CHECKS):
        twins = _check_all_vectors(layout, report, text_column, image_column, verbose)
    if report.wants(*TITLE_CHECKS):
        _check_all_titles(layout, report, title_column, language, twins)
    if report.wants(*SPLIT_CHECKS):
        _check_interactions(layout, report, verbose)
    return report, layout


def _check_all_vectors(layout: Layout, report: Report, text: str | None, image: str | None, verbose: int) -> set[int]:
    twins: set[int] = set()
    modalities = find_modalities(layout, text, image) if report.wants("modalities-disagree") else None
    statistics: dict[tuple[Path, str], ColumnStatistics] = {}
    for item in layout.items:
        for column in item.vectors:
            with report.reading(item.path):
                statistics[item.path, column], more = check_vectors(item, column, report, verbose)
                twins |= more
    if modalities:
        item, *names = modalities
        both = [statistics[item.path, name] for name in names if (item.path, name) in statistics]
        if len(both) == 2:
            with report.reading(item.path):
                good = both[0].good & both[1].good
                widths = (both[0].width, both[1].width)
                check_modalities(item, names[0], names[1], good, widths, report, verbose)
    return twins


def title_columns(layout: Layout, title_column: str | None) -> list[tuple[ItemFile, str]]:
    """Return the item files with titles, and their column.

    Raises
    ------
    ConfigError
        A column that was named is not there, or holds no text.
    """
    name = title_column or "item_title"
    found = [item for item in layout.items if name in item.schema.names]
    if title_column and not found:
        raise ConfigError(f"--title-column: no item file has a column '{title_column}'")
    return [(item, name) for item in found]


def _check_all_titles(
    layout: Layout, report: Report, title_column: str | None, language: str | None, twins: set[int]
) -> None:
    for item, name in title_columns(layout, title_column):
        kind = item.schema.field(name).type
        if not is_text(kind):
            report.add("column-type", item.path.name, name, found=f"holds {kind}", expected="text")
            continue
        with report.reading(item.path):
            titles = [t for _, columns in read_chunks(item.path, [name]) for t in as_text(columns[name])]
            check_titles(item.path.name, name, titles, item.ids, report, language, twins)


def _check_interactions(layout: Layout, report: Report, verbose: int) -> None:
    seen = Seen(layout.known_ids())
    splits: dict[str, Split] = {}
    # Later splits first: a click of theirs must not stand in an earlier history.
    for name in reversed(SPLITS):
        if name not in layout.splits:
            continue
        path = layout.splits[name]
        with report.reading(path):
            split = read_split(name, path, seen, Later.of(list(splits.values())), report, verbose)
            if split is not None:
                splits[name] = split
    ordered = {name: splits[name] for name in SPLITS if name in splits}
    check_repeats(ordered, report)
    check_drift(ordered, report)
    if splits and len(splits) == len(layout.splits):  # a split that could not be read may show them
        unused = seen.known[~seen.shown]
        for item in layout.items[:1]:
            rows = np.flatnonzero(np.isin(item.ids, unused))
            report.add("unused-item", item.path.name, ITEM_ID, rows, item.ids[rows])


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
