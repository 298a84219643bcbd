"""What an autopilot ends with: an average, its calibrated submission, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuxictr_mm.autopilot.clock import Journal
from fuxictr_mm.autopilot.folder import Request
from fuxictr_mm.autopilot.model_study import ModelStudy, best_of
from fuxictr_mm.evaluation.calibration import calibrate_run
from fuxictr_mm.evaluation.ensemble import ensemble
from fuxictr_mm.evaluation.intervals import auc_with_interval
from fuxictr_mm.report.report import report
from fuxictr_mm.runs import Run
from fuxictr_mm.submission import write_submission

#: Experiments whose runs are averaged: the best of all, and the best of each model.
BEST_MEMBERS, BEST_OF_EACH = 16, 4


@dataclass
class Outcome:
    """Result of an autopilot."""

    name: str  #: Experiment id of the ensemble, or of the single run.
    #: Its metrics.
    valid: dict[str, float]
    test: dict[str, float]
    submission: str | None  #: None without test rows.
    page: str  #: The report.
    told: list[str] = field(default_factory=list)  #: What was tried, and why.


def conclude(studies: Sequence[ModelStudy], request: Request, journal: Journal) -> Outcome:
    """Average the runs of the studies, and write submission and page."""
    name, top = f"AUTO_{request.dataset_id}", best_of(studies)
    root = top.load_best().paths.model_root
    best = _average(studies, name, root, request.gpu, journal)
    label, prediction, _ = best.predictions()
    assert label is not None
    if (auc_with_interval(label, prediction)["low"] or 0.0) <= 0.5:
        journal.tell(
            f"Warning: {best.expid} may rank the validation rows at random; the features may be uninformative."
        )
    path = request.folder / f"{name}.zip"
    submission = str(_submit(best, path, request.task, journal)) if best.config.get("test_data") else None
    if best.test:
        figures = ", ".join(f"{key} {value:.4f}" for key, value in best.test.items())
        journal.tell(f"Test, which was not used for selection: {figures}.")
    page = request.folder / "report.html"
    names = list(dict.fromkeys([best.expid, top.best.expid, *(study.best.expid for study in studies)]))
    report(names, root, page, title=f"Autopilot on {request.dataset_id}", intro=journal.lines)
    return Outcome(best.expid, best.valid, best.test, submission, str(page), journal.lines)


def _average(studies: Sequence[ModelStudy], name: str, root: Path, gpu: int, journal: Journal) -> Run:
    """Return the average of the best trial's seeds, or that of many trials if it is better on valid."""
    best = ensemble([best_of(studies).best.expid], root, average="logit", name=name, gpu=gpu)
    averaged = best.config.get("members")  # not of a single run
    what = f"average of {len(averaged)} runs of the best" if averaged else "the best run"
    journal.tell(f"{best.expid}: {what}, valid AUC {best.valid['AUC']:.4f}.")
    trials = sorted((trial for study in studies for trial in study.finished), key=lambda trial: -trial.score)
    chosen = [*trials[:BEST_MEMBERS], *(trial for study in studies for trial in study.finished[:BEST_OF_EACH])]
    members = list(dict.fromkeys(trial.expid for trial in chosen))
    if len(members) == 1:
        return best
    several = ensemble(members, root, average="logit", fit_weights=True, name=f"{name}_trials", gpu=gpu)
    journal.tell(
        f"{name}_trials: {len(members)} of the best trials and all seeds, weights fitted on valid, AUC "
        f"{several.valid['AUC']:.4f} (cross-fitted)."
    )
    return max(best, several, key=lambda run: run.valid["AUC"])


def _submit(run: Run, path: Path, task: str, journal: Journal) -> Path:
    """Write the submission, calibrated if that lowers the logloss on valid."""
    scores = run.predictions("test")[1]
    measured = calibrate_run(run)
    # Not isotonic, whose ties would cost AUC, nor what makes all predictions the same.
    useful = [m for m in ("platt", "beta") if not measured.calibrator(m).is_constant]
    method = min(useful, key=lambda m: measured.methods[m].logloss, default=None)
    if method and measured.methods[method].logloss < measured.uncalibrated.logloss:
        scores = measured.calibrator(method)(scores)
        journal.tell(f"{measured.describe(method)}.")
    else:
        journal.tell("No calibration: it would not reduce the logloss on valid.")
    written = write_submission(path, scores, task)
    journal.tell(f"Submission of {run.expid}: {written}.")
    return written
