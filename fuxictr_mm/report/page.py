"""Puts the page together: sections from records, a template, one file."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fuxictr_mm import __version__
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.records.reading import RunRecord
from fuxictr_mm.report import diagnosis_pictures, run_pictures, settings, text
from fuxictr_mm.report.gathering import Experiment, Gathered
from fuxictr_mm.report.leaderboard import Reason, Row, costliest, lead, leaderboard, metrics_of, needed, verdict_of
from fuxictr_mm.report.picture import Picture
from fuxictr_mm.report.standing import Standings, stand

TEMPLATES = Path(__file__).parent / "templates"

#: Experiments whose learning curves are drawn, the best first.
MOST_CURVES = 24

#: Experiments whose diagnosis has pictures, the best first; of the others there are the findings.
MOST_DIAGNOSED = 6


@dataclass(frozen=True)
class Diagnosed:
    """The diagnosis of an experiment's newest diagnosed run."""

    name: str
    run: str
    reason: Reason | None
    findings: list[dict[str, str]]
    counted: str
    pictures: list[Picture]
    neighbours: list[dict[str, Any]]
    absent: dict[str, str]


@dataclass(frozen=True)
class DatasetSection:
    """Everything the page says of one dataset."""

    dataset_id: str
    anchor: str
    rows: list[Row]
    standings: Standings
    notes: list[str]
    lead: list[str]
    reasons: list[Reason]
    metrics: list[str]
    test_metrics: list[str]
    overview: list[Picture]
    curves: list[Picture]
    diagnosed: list[Diagnosed]
    ablations: list[settings.Ablation]
    speed: Picture | None
    speed_rows: list[dict[str, Any]]
    differences: list[tuple[str, list[str]]]
    shared: list[tuple[str, str]]
    environments: list[tuple[str, list[str]]]

    @property
    def sentences(self) -> list[str]:
        """What the page says first: which is best, and why."""
        return [*self.lead, *(f"{reason.text}." for reason in self.reasons)]


def describe(
    gathered: Gathered, number: int, known: Sequence[RunRecord], track: Callable[[Iterable[int]], Any] = iter
) -> DatasetSection:
    """Compute and draw what the page says of a dataset.

    Parameters
    ----------
    gathered : Gathered
        Its experiments.
    number : int
        Of the dataset on the page.
    known : sequence of RunRecord
        All runs there are: further seeds count for the verdicts.
    track : callable
        Wraps the draws of users, to show progress.
    """
    standings = stand(gathered.experiments, known, track=track)
    rows = leaderboard(gathered.experiments, standings)
    order = [row.experiment for row in rows]
    notes = [*gathered.notes, *standings.notes]
    metrics = metrics_of(order)
    overview = [run_pictures.picture_intervals(standings, order), run_pictures.picture_differences(standings, order)]
    if len(order) > MOST_CURVES:
        notes.append(f"learning curves of the first {MOST_CURVES} experiments only")
    shared, environments = settings.environments(order)
    ablations = settings.ablations(order)
    diagnosed = _diagnosed(order, notes)
    reasons = [needed(rows, ablations, standings), *(d.reason for d in diagnosed if d.name == order[0].name)]
    return DatasetSection(
        dataset_id=gathered.dataset_id,
        anchor=f"d{number}",
        rows=rows,
        standings=standings,
        notes=notes,
        lead=lead(rows),
        reasons=[reason for reason in reasons if reason is not None],
        metrics=metrics,
        test_metrics=metrics_of(order, "test"),
        overview=[picture for picture in overview if picture is not None],
        curves=run_pictures.picture_curves(order[:MOST_CURVES], metrics[0]) if metrics else [],
        diagnosed=diagnosed,
        ablations=ablations,
        speed=run_pictures.picture_speed(order),
        speed_rows=[_speed(experiment, run) for experiment in order for run in experiment.runs],
        differences=settings.differing([settings.settings_of(experiment) for experiment in order]),
        shared=shared,
        environments=environments,
    )


def render(sections: Sequence[DatasetSection], title: str) -> str:
    """Return the page.

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
    environment.filters |= {name: getattr(text, name) for name in names} | {"verdict": verdict_of}
    environment.filters["breakable"] = lambda name: escape(text.printable(name)).replace("_", Markup("_<wbr>"))
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        title=title,
        sections=sections,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        number=itertools.count(1).__next__,
        version=__version__,
        made_at=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )


def missing(error: ImportError) -> UserError:
    """Say what to install."""
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
            pictures: list[Picture] = []
            if len(found) < MOST_DIAGNOSED:
                pictures, problems = diagnosis_pictures.picture_diagnosis(diagnosis)
                notes += [f"{experiment.name}, diagnosis of run {run.run}: {problem}" for problem in problems]
            findings = diagnosis_pictures.findings_of(diagnosis)
            absent = diagnosis.get("absent")
            found.append(
                Diagnosed(
                    name=experiment.name,
                    run=run.run,
                    reason=costliest(experiment.name, diagnosis),
                    findings=findings,
                    counted=diagnosis_pictures.severities(findings),
                    pictures=pictures,
                    neighbours=diagnosis_pictures.neighbours_of(diagnosis),
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
        "rows_per_second": run_pictures.rows_per_second(run),
        "seconds_per_epoch": run_pictures.seconds_per_epoch(run),
        "seconds": text.number(run.seconds),
    }
