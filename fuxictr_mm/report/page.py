"""The HTML page: its content by dataset, rendered by a template."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fuxictr_mm import __version__, terminal
from fuxictr_mm.errors import UserError
from fuxictr_mm.report import figures, settings
from fuxictr_mm.report.comparisons import Comparisons, compare_experiments
from fuxictr_mm.report.diagnosis_figures import findings_of, neighbours_of, plot_diagnosis, severities
from fuxictr_mm.report.drawing import Plot
from fuxictr_mm.report.experiments import ExperimentRuns, Gathered, history
from fuxictr_mm.report.leaderboard import Reason, Row, conclusion_of, costliest, lead, leaderboard, metrics_of, needed
from fuxictr_mm.runs import Run, best_epoch_was_last

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


def describe_dataset(
    gathered: Gathered,
    number: int,
    known: Sequence[Run],
    track: Callable[[Iterable[int]], Any] = iter,
    task: str | None = None,
) -> DatasetSection:
    """Compute the content of the page for its ``number``-th dataset; others as of ``compare_experiments``."""
    comparisons = compare_experiments(gathered.experiments, known, track=track, task=task)
    rows = leaderboard(gathered.experiments, comparisons)
    order = [row.experiment for row in rows]
    notes = [*gathered.notes, *comparisons.notes]
    metrics = metrics_of(order)
    overview = [figures.plot_intervals(comparisons, order), figures.plot_differences(comparisons, order)]
    if len(order) > MOST_CURVES:
        notes.append(f"learning curves of the first {MOST_CURVES} experiments only")
    for experiment in order:
        late = [run for run in experiment.runs if best_epoch_was_last(history(run), run.config)]
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
        differences=settings.table_of_differences([settings.settings_of(experiment) for experiment in order]),
        shared=shared,
        environments=environments,
    )


def render(sections: Sequence[DatasetSection], title: str, intro: Sequence[str] = ()) -> str:
    """Return the HTML page; ``intro`` is a list of sentences at its beginning."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("decimal", "signed", "grouped", "printable", "plural", "listed")
    environment.filters |= {name: getattr(terminal, name) for name in names} | {"conclusion": conclusion_of}
    environment.filters["breakable"] = lambda name: escape(terminal.printable(name)).replace("_", Markup("_<wbr>"))
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


def _diagnosed(order: Sequence[ExperimentRuns], notes: list[str]) -> list[Diagnosed]:
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
                plots, problems = plot_diagnosis(diagnosis)
                notes += [f"{experiment.name}, diagnosis of run {run.run}: {problem}" for problem in problems]
            findings = findings_of(diagnosis)
            absent = diagnosis.get("absent")
            found.append(
                Diagnosed(
                    name=experiment.name,
                    run=run.run,
                    reason=costliest(experiment.name, diagnosis),
                    findings=findings,
                    counted=severities(findings),
                    plots=plots,
                    neighbours=neighbours_of(diagnosis),
                    absent={str(k): str(v) for k, v in absent.items()} if isinstance(absent, dict) else {},
                )
            )
            break
    return found


def _speed(experiment: ExperimentRuns, run: Any) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "run": run.run,
        "device": str(run.environment.get("device", terminal.decimal(None))),
        "rows_per_second": figures.rows_per_second(run),
        "seconds_per_epoch": figures.seconds_per_epoch(run),
        "seconds": terminal.number(run.seconds),
    }
