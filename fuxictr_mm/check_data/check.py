"""All checks of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fuxictr_mm.check_data.checks import CHECKS, UNREADABLE, Report
from fuxictr_mm.check_data.described import Description
from fuxictr_mm.check_data.files import data_files
from fuxictr_mm.check_data.interactions import check_interactions
from fuxictr_mm.check_data.items import check_items
from fuxictr_mm.check_data.layout import TITLE, Layout, find_layout
from fuxictr_mm.check_data.modalities import check_embeddings
from fuxictr_mm.check_data.numbering import find_translation
from fuxictr_mm.check_data.titles import check_titles
from fuxictr_mm.config import Roles
from fuxictr_mm.errors import ConfigError, nearest
from fuxictr_mm.files import StrPath


def check_folder(
    folder: StrPath,
    checks: Iterable[str] | None = None,
    *,
    title_column: str | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    language: str | None = None,
    roles: Roles | None = None,
    ids: str | None = None,
    label: str | None = None,
    needs_all: bool = False,
    verbose: int = 0,
) -> tuple[Report, Layout]:
    """Check a dataset in the challenge's layout.

    Parameters
    ----------
    folder : str or Path
        Holds train, valid and test files and item files; each may be missing.
    checks : iterable of str, optional
        Names out of ``CHECKS``, all by default.
    title_column : str, optional
        Column of the titles; ``item_title`` by default, which may be missing.
    text_column, image_column : str, optional
        Columns of the cross-modal check; found by their names by default.
    language : str, optional
        Expected language of the titles; by default the most frequent one.
    roles : Roles, optional
        Names of the columns with a role; by default those of ``dataset_config.yaml`` in the folder, if it has a single
        entry, else those of the challenge.
    ids : {"auto", "as_is", "vocabulary"}, optional
        As in ``dataset_config.yaml``, of which it is by default.
    label : str, optional
        Column of the label; by default the first of ``dataset_config.yaml``, else ``label``.
    needs_all : bool
        A check of titles whose library is not installed is an error; by default it is left out, with a warning.
    verbose : int
        0 shows no progress.

    Returns
    -------
    report : Report
        The findings and the measured values.
    layout : Layout
        The files.

    Raises
    ------
    MissingFileError
        The folder does not exist, or holds no file of the layout.
    ConfigError
        A given column is missing, or ``dataset_config.yaml`` is invalid.
    UserError
        ``needs_all``, and a library is not installed.
    """
    report = Report(checks)
    described = Description.find(Path(folder))
    translation = find_translation(
        data_files(Path(folder)), roles or described.roles, ids or described.ids, label or described.label
    )
    layout = find_layout(Path(folder), report, translation, title_column or TITLE)
    layout.categories, layout.scaled, layout.weight = described.categories, described.scaled, described.weight
    if title_column and not any(title_column in item.schema.names for item in layout.items):
        raise ConfigError(f"--title-column: no item file has a column '{title_column}'")
    check_items(layout, report)
    similar = check_embeddings(layout, report, text_column, image_column, verbose)
    check_titles(layout, report, title_column or TITLE, language, similar, needs_all)
    check_interactions(layout, report, verbose)
    report.translate(translation.back)
    return report, layout


def choose_checks(only: Sequence[str] | None, skip: Sequence[str] | None) -> set[str]:
    """Return the names of the checks to run.

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
        raise ConfigError("--only and --skip leave no check to run; remove one of them")
    return chosen
