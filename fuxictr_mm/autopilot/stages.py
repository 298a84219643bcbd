"""The stages of an autopilot: compare models, tune the best, train seeds, average, calibrate, report."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from fuxictr_mm.autopilot.clock import Clock, Journal
from fuxictr_mm.autopilot.facts import look, usable
from fuxictr_mm.autopilot.features import Features
from fuxictr_mm.autopilot.folder import Request, link_config, locked
from fuxictr_mm.autopilot.model_study import ModelStudy
from fuxictr_mm.autopilot.outcome import Outcome, conclude
from fuxictr_mm.autopilot.plans import plans_for
from fuxictr_mm.autopilot.search import compare, train_seeds, tune
from fuxictr_mm.config import DatasetConfig, ExperimentConfig, load_dataset_config
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.tuning.tuner_file import with_found_paths
from fuxictr_mm.yaml_files import write_entries

#: What the search and the page need beyond the dependencies of the package.
PACKAGES = ("optuna", "jinja2", "matplotlib")

#: Part of the budget that a trial on a CPU may take, if that leaves it enough epochs.
TRIAL = 0.25


def run(request: Request) -> Outcome:
    """Run all stages; what an earlier start has finished is not run again.

    Raises
    ------
    UserError
        A package is not installed, the dataset is not one that the autopilot takes, or no trial has finished.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f'autopilot needs {", ".join(missing)}: pip install "fuxictr-mm[report,tuning]"')
    load_dataset_config(request.config, request.dataset_id)
    with locked(request):
        folder = link_config(request)
        clock = Clock(request.folder / "state.json", request.budget)
        journal = Journal(clock, request.quiet)
        if clock.before:
            journal.tell(f"Continued after {clock.before:.0f} s of {clock.budget:.0f} s.")
        with clock.noted():
            found = compare(_studies(request, _dataset(request, folder), journal), request, clock, journal)
            tune(found, clock, journal)
            train_seeds(found, clock, journal)
            return conclude(found, request, journal)


def _dataset(request: Request, folder: Path) -> DatasetConfig:
    """Return the dataset, checked."""
    entry = {"look": {"model": "DIN", "dataset_id": request.dataset_id}}
    write_entries(folder / "model_config.yaml", entry, Path("autopilot"))
    return usable(ExperimentConfig.load(folder, "look", request.data_root))


def _studies(request: Request, dataset: DatasetConfig, journal: Journal) -> list[ModelStudy]:
    """Return the studies of the models that suit the dataset, their tuner files written."""
    facts = look(dataset)
    journal.tell(facts.sentence())
    if facts.continues:
        journal.tell(
            "Warning: the training rows continue an earlier log (prepare log --extend), but are trained on alone, from "
            "random weights; prepare all days at once for the autopilot."
        )
    features = Features.of(dataset, list(facts.embeddings.values()))
    seconds = math.inf if request.gpu >= 0 else TRIAL * request.budget
    # With paths that are found from the folders of the studies.
    folder = Path(request.config)
    entry = with_found_paths(load_dataset_config(folder, request.dataset_id), folder)
    entry["feature_cols"] = [*entry["feature_cols"], *features.computed]
    studies = []
    for plan in plans_for(request.dataset_id, facts, features, seconds):
        journal.tell(f"{plan.model} is tried: {plan.why}.")
        studies.append(ModelStudy(request, plan))
        studies[-1].write_tuner(entry)
    return studies
