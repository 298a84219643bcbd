"""``fuxictr-mm report``: an HTML page about runs."""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fuxictr_mm import __version__
from fuxictr_mm import terminal as text
from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError, MissingFileError, UserError, nearest
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.report import experiments as settings
from fuxictr_mm.report import figures
from fuxictr_mm.report.experiments import (
    Ablation,
    Against,
    Change,
    Comparisons,
    Experiment,
    Gathered,
    average,
    changes,
    compare_experiments,
    gather,
    settings_of,
)
from fuxictr_mm.report.figures import Plot, speed_of
from fuxictr_mm.runs import RUN_NAME, Run, best_epoch_was_last, find_runs, is_falling, resolve
from fuxictr_mm.terminal import decimal, listed, number, plural, printable

#: Metric that experiments are ordered by, if they have it.
FIRST = "AUC"


@dataclass(frozen=True)
class Row:
    """An experiment in the leaderboard.

    Parameters
    ----------
    experiment : Experiment
        The experiment.
    interval : (float, float) or None
        95 % interval of its AUC.
    against : Against or None
        Its difference to the best; None for the best and if it is unknown.
    speed : float or None
        Mean training rows per second.
    best : bool
        Whether it is the best.
    """

    experiment: Experiment
    interval: tuple[float, float] | None
    against: Against | None
    speed: float | None
    best: bool

    @property
    def conclusion(self) -> str:
        """The conclusion in a few words."""
        return "best" if self.best else conclusion_of(self.against)


@dataclass(frozen=True)
class Reason:
    """A reason for the result of the best experiment, in one sentence.

    Parameters
    ----------
    text : str
        The sentence, without its full stop.
    section : {"ablation", "diagnosis"}
        Section of the page with the details.
    """

    text: str
    section: str


def conclusion_of(against: Against | None) -> str:
    """Return the conclusion about a difference in a few words."""
    if against is None:
        return "not compared"
    if against.shown:
        return "worse" if against.value < 0 else "better"
    return "no significant difference" if against.seeds_known or against.low <= 0 <= against.high else "seeds unknown"


def metrics_of(experiments: Sequence[Experiment], split: str = "valid") -> list[str]:
    """Return the metrics of any experiment, AUC first."""
    names = dict.fromkeys(name for e in experiments for run in e.runs for name in getattr(run, split))
    known = [name for name in names if any(e.values(name, split) for e in experiments)]
    return sorted(known, key=lambda name: name != FIRST)


def leaderboard(experiments: Sequence[Experiment], comparisons: Comparisons) -> list[Row]:
    """Return a row for each experiment, best first; those without the first metric last."""
    metrics = metrics_of(experiments)
    sign = -1 if metrics and is_falling(metrics[0]) else 1

    def sort_key(experiment: Experiment) -> tuple[bool, float, str]:
        mean = experiment.mean(metrics[0]) if metrics else None
        return mean is None, 0.0 if mean is None else -sign * mean, experiment.name

    order = sorted(experiments, key=sort_key)
    rows = []
    for rank, experiment in enumerate(order):
        against = comparisons.against(experiment.name, order[0].name) if rank else None
        speed = average(speed_of(experiment))
        rows.append(Row(experiment, comparisons.interval(experiment.name), against, speed, rank == 0))
    return rows


def lead(rows: Sequence[Row]) -> list[str]:
    """Return sentences on which experiment is best, and by how much it is ahead of the next."""
    metrics = metrics_of([row.experiment for row in rows])
    if not rows or not metrics:
        return ["No finished run yet."]
    first = rows[0]
    seeds = len(first.experiment.values(metrics[0]))
    of = f" (mean of {plural(seeds, 'seed')})" if seeds > 1 else ""
    ends = " to ".join(decimal(end) for end in first.interval or ())
    within = f", 95 % interval {ends}" if ends else ""
    sentences = [
        f"{first.experiment.name} has the {'lowest' if is_falling(metrics[0]) else 'highest'} validation {metrics[0]}: "
        f"{decimal(first.experiment.mean(metrics[0]))}{of}{within}."
    ]
    if len(rows) == 1:
        return [*sentences, "There is no other experiment to compare it with."]
    second = rows[1]
    if second.against is None:
        return [*sentences, f"{second.experiment.name} follows; the two could not be compared."]
    return [*sentences, f"Compared with the next, {second.experiment.name}: {second.against.sentence}."]


def needed(rows: Sequence[Row], ablations: Sequence[Ablation], comparisons: Comparisons) -> Reason | None:
    """Return the change that costs the best experiment most, among significantly worse experiments of its model."""
    if not rows:
        return None
    best = rows[0].experiment
    relatives = [[a.base, *(e for e, _ in a.others)] for a in ablations if a.model == best.newest.model]
    lost = [
        (against.value, other)
        for group in relatives
        for other in group
        if other is not best and (against := comparisons.against(other.name, best.name)) and against.shown
    ]
    if not lost or min(lost, key=lambda pair: pair[0])[0] >= 0:
        return None
    value, other = min(lost, key=lambda pair: pair[0])
    changed = _changed(changes(settings_of(best), settings_of(other)))
    return Reason(f"{changed} ({other.name}) it loses {decimal(-value, 3)}", "ablation")


def _changed(found: Sequence[Change]) -> str:
    if len(found) == 1 and found[0].gone:
        return f"Without {', '.join(found[0].gone)}"
    if len(found) > 2:
        return f"With {plural(len(found), 'other setting')}"
    return f"With {' and '.join(f'{printable(c.key)}: {c.text}' for c in found) or 'the same settings'}"


def costliest(name: str, diagnosis: Mapping[str, Any]) -> Reason | None:
    """Return what costs an experiment most when permuted; None if its diagnosis has no such entry."""
    importance = diagnosis.get("importance")
    entries = importance.get("groups") if isinstance(importance, Mapping) else None
    known = [
        (lost, printable(entry["name"]))
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, Mapping) and "name" in entry
        if (lost := number(entry.get("auc_lost"))) is not None and lost > max(number(entry.get("noise")) or 0.0, 0.0)
    ]
    if not known:
        return None
    lost, what = max(known)
    return Reason(f"Of what {name} reads, {what} costs most when permuted, {decimal(lost, 3)}", "diagnosis")


TEMPLATES = Path(__file__).parent / "templates"


#: Number of experiments with learning curves, the best first.
MOST_CURVES = 24


#: Number of experiments whose diagnosis has plots, the best first; the others have findings only.
MOST_DIAGNOSED = 6


@dataclass(frozen=True)
class Diagnosed:
    """The diagnosis of an experiment's newest diagnosed run."""

    name: str
    run: str
    reason: Reason | None
    findings: list[dict[str, str]]
    counted: str
    plots: list[Plot]
    neighbours: list[dict[str, Any]]
    absent: dict[str, str]


@dataclass(frozen=True)
class DatasetSection:
    """Content of the page for one dataset."""

    dataset_id: str
    anchor: str
    rows: list[Row]
    comparisons: Comparisons
    notes: list[str]
    lead: list[str]
    reasons: list[Reason]
    metrics: list[str]
    test_metrics: list[str]
    overview: list[Plot]
    curves: list[Plot]
    diagnosed: list[Diagnosed]
    ablations: list[settings.Ablation]
    speed: Plot | None
    speed_rows: list[dict[str, Any]]
    differences: list[tuple[str, list[str]]]
    shared: list[tuple[str, str]]
    environments: list[tuple[str, list[str]]]

    @property
    def sentences(self) -> list[str]:
        """The summary: which experiment is best, and why."""
        return [*self.lead, *(f"{reason.text}." for reason in self.reasons)]


def describe(
    gathered: Gathered, number: int, known: Sequence[Run], track: Callable[[Iterable[int]], Any] = iter
) -> DatasetSection:
    """Compute the content of the page for one dataset.

    Parameters
    ----------
    gathered : Gathered
        Its experiments.
    number : int
        Index of the dataset on the page.
    known : sequence of Run
        All runs; further seeds of a configuration are used for the conclusions.
    track : callable
        Wraps the chunks of bootstrap samples, to show progress.
    """
    comparisons = compare_experiments(gathered.experiments, known, track=track)
    rows = leaderboard(gathered.experiments, comparisons)
    order = [row.experiment for row in rows]
    notes = [*gathered.notes, *comparisons.notes]
    metrics = metrics_of(order)
    overview = [figures.plot_intervals(comparisons, order), figures.plot_differences(comparisons, order)]
    if len(order) > MOST_CURVES:
        notes.append(f"learning curves of the first {MOST_CURVES} experiments only")
    for experiment in order:
        late = [run for run in experiment.runs if best_epoch_was_last(settings.history(run), run.config)]
        if late:
            of = "" if len(experiment.runs) == 1 else f" in {len(late)} of {len(experiment.runs)} runs"
            last = f"the best epoch was the last allowed one, {late[0].config['epochs']}{of}"
            notes.append(f"{experiment.name}: {last}; more epochs may be better")
    shared, environments = settings.environments(order)
    ablations = settings.ablations(order)
    diagnosed = _diagnosed(order, notes)
    reasons = [needed(rows, ablations, comparisons), *(d.reason for d in diagnosed if d.name == order[0].name)]
    return DatasetSection(
        dataset_id=gathered.dataset_id,
        anchor=f"d{number}",
        rows=rows,
        comparisons=comparisons,
        notes=notes,
        lead=lead(rows),
        reasons=[reason for reason in reasons if reason is not None],
        metrics=metrics,
        test_metrics=metrics_of(order, "test"),
        overview=[plot for plot in overview if plot is not None],
        curves=figures.plot_curves(order[:MOST_CURVES], metrics[0]) if metrics else [],
        diagnosed=diagnosed,
        ablations=ablations,
        speed=figures.plot_speed(order),
        speed_rows=[_speed(experiment, run) for experiment in order for run in experiment.runs],
        differences=settings.differing([settings.settings_of(experiment) for experiment in order]),
        shared=shared,
        environments=environments,
    )


def render(sections: Sequence[DatasetSection], title: str, intro: Sequence[str] = ()) -> str:
    """Return the HTML page; ``intro`` is a list of sentences at its beginning.

    Raises
    ------
    ConfigError
        Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup, escape
    except ImportError as error:
        raise missing(error) from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("decimal", "signed", "grouped", "printable", "plural", "listed")
    environment.filters |= {name: getattr(text, name) for name in names} | {"conclusion": conclusion_of}
    environment.filters["breakable"] = lambda name: escape(text.printable(name)).replace("_", Markup("_<wbr>"))
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        title=title,
        sections=sections,
        intro=intro,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        number=itertools.count(1).__next__,
        version=__version__,
        made_at=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )


def missing(error: ImportError) -> UserError:
    """Return an error that names the package to install."""
    return ConfigError(f'report needs {error.name}, which is not installed: pip install "fuxictr-mm[report]"')


def _diagnosed(order: Sequence[Experiment], notes: list[str]) -> list[Diagnosed]:
    found: list[Diagnosed] = []
    for experiment in order:
        for run in experiment.runs:
            try:
                diagnosis = run.diagnosis()
            except (UserError, OSError) as error:
                notes.append(f"{experiment.name}, run {run.run}: {error}")
                continue
            if diagnosis is None:
                continue
            plots: list[Plot] = []
            if len(found) < MOST_DIAGNOSED:
                plots, problems = figures.plot_diagnosis(diagnosis)
                notes += [f"{experiment.name}, diagnosis of run {run.run}: {problem}" for problem in problems]
            findings = figures.findings_of(diagnosis)
            absent = diagnosis.get("absent")
            found.append(
                Diagnosed(
                    name=experiment.name,
                    run=run.run,
                    reason=costliest(experiment.name, diagnosis),
                    findings=findings,
                    counted=figures.severities(findings),
                    plots=plots,
                    neighbours=figures.neighbours_of(diagnosis),
                    absent={str(k): str(v) for k, v in absent.items()} if isinstance(absent, dict) else {},
                )
            )
            break
    return found


def _speed(experiment: Experiment, run: Any) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "run": run.run,
        "device": str(run.environment.get("device", text.decimal(None))),
        "rows_per_second": figures.rows_per_second(run),
        "seconds_per_epoch": figures.seconds_per_epoch(run),
        "seconds": text.number(run.seconds),
    }


EXAMPLES = (
    "fuxictr-mm report",
    "fuxictr-mm report DIN_MM_tiny DIN_tiny --out din.html",
    'fuxictr-mm report --dataset tiny_mm --title "Week 7" --json',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm report``."""
    add_examples(parser, *EXAMPLES)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="experiment id, name of a run, or folder of either (default: all runs)"
    )
    parser.add_argument("--root", default="checkpoints", metavar="DIR", help="the model_root of the runs (checkpoints)")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page to write (report.html)")
    parser.add_argument("--dataset", metavar="ID", help="runs on this dataset only")
    parser.add_argument("--title", metavar="TEXT", help="heading of the page")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Write the page, print its path and the best experiment."""
    check_outputs([args.out], [], overwrite=True)
    check_replaceable(args.out)
    sections = report(args.names, args.root, args.out, dataset=args.dataset, title=args.title, quiet=args.quiet)
    lines = [f"{section.dataset_id}: {' '.join(section.sentences)}" for section in sections]
    notes = sum(len(section.notes) for section in sections)
    at_end = f" ({plural(notes, 'note')} at its end)" if notes else ""
    lines.append(f"page: {Path(args.out).resolve()}{at_end}")
    show(args, as_dict(sections, args.out), "\n".join(lines))


def report(
    names: Sequence[str | os.PathLike[str]] = (),
    root: str | os.PathLike[str] = "checkpoints",
    out: str | os.PathLike[str] = "report.html",
    *,
    dataset: str | None = None,
    title: str | None = None,
    intro: Sequence[str] = (),
    quiet: bool = True,
) -> list[DatasetSection]:
    """Write the page about some runs, or about all.

    Parameters
    ----------
    names : sequence of str or path
        Experiment ids, names of runs, or folders; all runs if empty.
    root : path
        The ``model_root`` of the runs.
    out : path
        The page.
    dataset : str, optional
        Keeps runs on this dataset only.
    title : str, optional
        Heading.
    intro : sequence of str
        Sentences at the beginning of the page.
    quiet : bool
        No progress bar.

    Raises
    ------
    MissingFileError
        No such run, or no finished one.
    ConfigError
        Jinja2 or Matplotlib is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing(error) from error
    known = find_runs(root)
    runs = _selected(resolve(names, root) if names else known, root, dataset)
    named = [name for name in names if RUN_NAME.fullmatch(Path(name).name)]
    sections = []
    for index, gathered in enumerate(gather(runs, named), start=1):
        sections.append(describe(gathered, index, known, lambda chunks: _progress(chunks, quiet)))
    if not any(section.rows for section in sections):
        reasons = "; ".join(note for section in sections for note in section.notes[:1])
        raise MissingFileError(f"{root}: no finished run ({reasons}); train with run_expid.py --expid NAME first")
    sections.sort(key=lambda section: not section.rows)
    heading = title or f"Experiments on {listed([section.dataset_id for section in sections])}"
    page = render(sections, heading, intro)
    write_beside(out, lambda stream: stream.write(page.encode("utf-8", errors="replace")))
    return sections


def as_dict(sections: Sequence[DatasetSection], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the leaderboards as a JSON document."""
    datasets = []
    for section in sections:
        experiments = [
            {
                "name": row.experiment.name,
                "model": row.experiment.newest.model,
                "runs": [run.run for run in row.experiment.runs],
                "valid": {name: row.experiment.mean(name) for name in section.metrics},
                "test": {name: row.experiment.mean(name, "test") for name in section.test_metrics},
                "interval": row.interval,
                "difference": None
                if row.against is None
                else {name: getattr(row.against, name) for name in ("value", "low", "high", "shown", "sentence")},
                "verdict": row.conclusion,
            }
            for row in section.rows
        ]
        datasets.append(
            {
                "dataset_id": section.dataset_id,
                "summary": section.sentences,
                "experiments": experiments,
                "notes": section.notes,
            }
        )
    return {"page": str(Path(out).resolve()), "datasets": datasets}


def check_replaceable(out: str | os.PathLike[str]) -> None:
    """Refuse to overwrite anything but an HTML page.

    Raises
    ------
    ConfigError
        The file exists and is not an HTML page.
    """
    path = Path(out)
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as stream:
        start = stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start.startswith((b"<!doctype html", b"<html")):
        raise ConfigError(f"{out}: exists and is not an HTML page; choose another name, such as report.html")


def _selected(everything: Sequence[Run], root: str | os.PathLike[str], dataset: str | None) -> list[Run]:
    if not everything:
        raise MissingFileError(
            f"{root}: no runs; train with run_expid.py --expid NAME first, or give the runs' model_root with --root"
        )
    runs = [run for run in everything if dataset in (None, run.dataset_id)]
    if not runs:
        known = sorted({run.dataset_id for run in everything})
        raise MissingFileError(
            f"--dataset: no run on '{dataset}'{nearest(dataset, known)} (there are runs on: {', '.join(known)})"
        )
    return sorted(runs, key=lambda run: (run.started_at, run.run), reverse=True)


def _progress(chunks: Any, quiet: bool) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(chunks, desc="bootstrap samples", leave=False, disable=quiet or not sys.stderr.isatty())
