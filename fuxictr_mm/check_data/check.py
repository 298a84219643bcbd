"""``fuxictr-mm check-data``: run all checks of a folder, report, write a cleaned copy."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fuxictr_mm.check_data.checks import CHECKS, SEVERITIES, UNREADABLE, Measure, Report, format_findings
from fuxictr_mm.check_data.clean import clean_folder, format_done
from fuxictr_mm.check_data.items import ItemColumn
from fuxictr_mm.check_data.layout import ItemFile, Layout, find_layout
from fuxictr_mm.check_data.splits import Chunk, Comparison, ContextColumn, Interactions, Split, SplitPair, check_interactions
from fuxictr_mm.check_data.titles import Titles, check_titles
from fuxictr_mm.check_data.vectors import EmbeddingColumn, Modalities, find_modalities, read_embeddings
from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.config import nearest
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs, write_beside


def check_folder(
    folder: str | os.PathLike[str],
    checks: Iterable[str] | None = None,
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
    checks : iterable of str, optional
        Names out of ``CHECKS``, all by default.
    title_column : str, optional
        Column of the titles; ``item_title`` by default, which need not be there.
    text_column, image_column : str, optional
        Columns of the cross-modal check; found by their names by default.
    language : str, optional
        Expected language of the titles; that of the majority by default.
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
        A column that was named is not there.
    """
    report = Report(checks)
    layout = find_layout(Path(folder), report, title_column)
    for item in layout.items:
        _check_item_file(item, report)
    similar: set[int] = set()
    if report.wants(EmbeddingColumn, Modalities, "duplicate-title"):
        similar = _check_embeddings(layout, report, text_column, image_column, verbose)
    if report.wants(str, Titles):
        check_titles(layout, report, title_column, language, similar)
    if report.wants(Chunk, Split, ContextColumn, SplitPair, Comparison, Interactions, *SPLIT_FILES):
        check_interactions(layout, report, verbose)
    return report, layout


def _check_item_file(item: ItemFile, report: Report) -> None:
    with report.reading(item.path):
        report.examine(item)
        if report.wants(ItemColumn):
            for name in item.numbers:
                report.examine(ItemColumn.of(item, name))


def _check_embeddings(
    layout: Layout, report: Report, text: str | None, image: str | None, verbose: int
) -> set[int]:
    """Check all embeddings; return the items whose embedding is equal or nearly equal to another's."""
    modalities = find_modalities(layout, text, image) if report.wants(Modalities) else None
    columns: dict[tuple[Path, str], EmbeddingColumn] = {}
    similar: set[int] = set()
    for item in layout.items:
        for name in item.embeddings:
            with report.reading(item.path):
                column = columns[item.path, name] = read_embeddings(item, name, verbose)
                report.examine(column)
                if report.wants("duplicate-title"):
                    similar |= column.similar_items()
    if modalities:
        item, *names = modalities
        pair = [columns[item.path, name] for name in names if (item.path, name) in columns]
        if len(pair) == 2:
            with report.reading(item.path):
                report.examine(Modalities(*pair, verbose))
    return similar
