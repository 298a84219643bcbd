"""The HTML page about runs: which runs it shows, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fuxictr_mm.errors import ConfigError, MissingFileError, nearest
from fuxictr_mm.files import StrPath, write_beside
from fuxictr_mm.report.experiments import gather, of_label
from fuxictr_mm.report.page import DatasetSection, describe_dataset, render
from fuxictr_mm.runs import RUN_NAME, Run, find_runs, resolve
from fuxictr_mm.terminal import listed, progress_bar


def report(
    names: Sequence[StrPath] = (),
    root: StrPath = "checkpoints",
    out: StrPath = "report.html",
    *,
    dataset: str | None = None,
    label: str | None = None,
    title: str | None = None,
    intro: Sequence[str] = (),
    quiet: bool = True,
) -> list[DatasetSection]:
    """Write the page about some runs (experiment ids, names of runs, or folders), or about all below ``root``.

    ``dataset`` keeps the runs on one; of runs with several labels, ``label`` is the one whose metrics and predictions
    are compared; ``intro`` are sentences at the beginning of the page.

    Raises
    ------
    MissingFileError
        No such run, or no finished one.
    ConfigError
        Jinja2 or Matplotlib is not installed, or no run has the label.
    """
    check_packages()
    known = find_runs(root)
    runs = _selected(resolve(names, root) if names else known, root, dataset)
    if label is not None:
        runs = _with_label(runs, label)
    named = [name for name in names if RUN_NAME.fullmatch(Path(name).name)]
    track = partial(progress_bar, what="bootstrap samples", verbose=0 if quiet else 1)
    datasets = enumerate(gather(runs, named), start=1)
    sections = [describe_dataset(gathered, index, known, track, label) for index, gathered in datasets]
    if not any(section.rows for section in sections):
        reasons = "; ".join(note for section in sections for note in section.notes[:1])
        raise MissingFileError(f"{root}: no finished run ({reasons}); train first: fuxictr-mm train --expid NAME")
    sections.sort(key=lambda section: not section.rows)
    heading = title or f"Experiments on {listed([section.dataset_id for section in sections])}"
    page = render(sections, heading, intro)
    write_beside(out, lambda stream: stream.write(page.encode("utf-8", errors="replace")))
    return sections


def check_packages() -> None:
    """Check that the packages that draw the page are installed.

    Raises
    ------
    ConfigError
        Jinja2 or Matplotlib is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'report needs {error.name}, which is not installed: pip install "fuxictr-mm[report]"'
        ) from error


def _with_label(runs: Sequence[Run], label: str) -> list[Run]:
    """Return the runs that have a label, with its metrics alone, AUC first; of those on one label as on several."""
    from fuxictr_mm.metrics import split_task  # which imports torch

    found = [run for run in runs if label in run.label_names]
    if not found:
        known = sorted({name for run in runs for name in run.label_names})
        raise ConfigError(f"--label: no run has the label '{label}'{nearest(label, known)}; they have {listed(known)}")
    if all(len(run.label_names) == 1 for run in found):
        return found

    def metrics_of(run: Run, metrics: dict[str, float]) -> dict[str, float]:
        names = run.label_names
        if len(names) == 1:
            return of_label(metrics, label)
        kept = [name for name in metrics if split_task(name, names)[0] == label]
        return {name: metrics[name] for name in sorted(kept, key=lambda name: name != f"{label}_AUC")}

    return [replace(run, valid=metrics_of(run, run.valid), test=metrics_of(run, run.test)) for run in found]


def _selected(everything: Sequence[Run], root: StrPath, dataset: str | None) -> list[Run]:
    if not everything:
        raise MissingFileError(
            f"{root}: no runs; give their model_root with --root, or train first: fuxictr-mm train --expid NAME"
        )
    runs = [run for run in everything if dataset in (None, run.dataset_id)]
    if not runs:
        known = sorted({run.dataset_id for run in everything})
        raise MissingFileError(
            f"--dataset: no run on '{dataset}'{nearest(dataset, known)} (there are runs on: {', '.join(known)})"
        )
    return sorted(runs, key=lambda run: (run.started_at, run.run), reverse=True)
