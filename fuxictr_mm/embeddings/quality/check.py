"""All checks of a folder, in order."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.embeddings.quality.checks import CHECKS
from fuxictr_mm.embeddings.quality.drift import check_drift
from fuxictr_mm.embeddings.quality.findings import Report
from fuxictr_mm.embeddings.quality.interactions import Later, Seen, Split, read_split
from fuxictr_mm.embeddings.quality.items import check_items
from fuxictr_mm.embeddings.quality.layout import SPLITS, ItemFile, Layout, find_layout
from fuxictr_mm.embeddings.quality.modalities import check_modalities, find_modalities
from fuxictr_mm.embeddings.quality.reading import as_text, is_text, read_chunks
from fuxictr_mm.embeddings.quality.repeats import check_repeats
from fuxictr_mm.embeddings.quality.titles import JUDGED, check_titles
from fuxictr_mm.embeddings.quality.values import check_values
from fuxictr_mm.embeddings.quality.vectors import ColumnStatistics, check_vectors
from fuxictr_mm.errors import ConfigError

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
