"""The study of one model: its tuner file, its trials, and more seeds of the best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fuxictr_mm.autopilot.folder import Request
from fuxictr_mm.autopilot.plans import Plan
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.tuning import Processes, TrialResult, Tuner, read_tuner, run_study, train_seeds
from fuxictr_mm.tuning.space import point_of
from fuxictr_mm.tuning.study import open_trials
from fuxictr_mm.tuning.study_trials import Failures, StudyTrials
from fuxictr_mm.tuning.trial import best_first
from fuxictr_mm.yaml_files import load_yaml, write_entries


@dataclass(eq=False)
class ModelStudy:
    """The study of the model of a plan."""

    request: Request
    plan: Plan
    #: The trials that have finished, best first.
    finished: list[TrialResult] = field(default_factory=list)
    #: The last error of a trial.
    error: str = ""
    #: Failures of earlier starts: a trial that fails in this one is not repeated at each stage.
    failures: Failures | None = None

    @property
    def folder(self) -> Path:
        """The configuration folder of its trials."""
        return self.request.folder / f"AUTO_{self.plan.model}"

    @property
    def tuner_file(self) -> Path:
        """The file that says what is tried."""
        return self.folder.with_suffix(".yaml")

    @property
    def best(self) -> TrialResult:
        """The best trial."""
        return self.finished[0]

    @property
    def seconds(self) -> float:
        """Seconds of the median trial."""
        return statistics.median(trial.seconds for trial in self.finished)

    @property
    def has_begun(self) -> bool:
        """Whether an earlier start has tried the model, whose trials then count."""
        return self.folder.is_dir()

    def write_tuner(self, dataset: Mapping[str, Any]) -> None:
        """Write the tuner file, with the dataset's entry.

        Trials that an earlier start has made keep its settings and space, which another version may choose otherwise.
        """
        path, name, dataset_id = self.tuner_file, self.folder.name, self.request.dataset_id
        kept = load_yaml(path) if self.has_begun and path.exists() else {}
        content = {
            "base_expid": name,
            "model_config": kept.get("model_config", {name: self.plan.settings}),
            "dataset_config": {dataset_id: dataset},
            "search": kept.get("search", "local"),
            "trials": 1,
            "pruning": True,
            "tuner_space": kept.get("tuner_space", self.plan.space),
        }
        write_entries(path, content, Path("autopilot"))

    def run(self, trials: int, until: float) -> None:
        """Run trials until there are ``trials``; none begins after ``until``, by ``time.monotonic()``."""
        request = self.request
        found = run_study(
            self._tuner(trials),
            request.workers,
            None,
            request.source,
            request.quiet,
            until=until,
            failures=self.failures,
        )
        self.keep(found.trials)

    def trials(self, count: int, until: float = math.inf) -> StudyTrials:
        """Return up to ``count`` trials for ``run_trials``; none begins after ``until``, by ``time.monotonic()``."""
        opened = open_trials(self._tuner(count), self.request.source, until, self.failures)
        self.failures = opened.failures
        return opened

    def keep(self, results: Sequence[TrialResult]) -> None:
        """Take over the results of all trials so far."""
        self.finished = best_first(results)
        self.error = next((trial.error for trial in reversed(results) if trial.error is not None), self.error)

    def _tuner(self, trials: int) -> Tuner:
        tuner = read_tuner(self.tuner_file, self.request.model_zoo)
        return replace(tuner, trials=trials, first=point_of(tuner.space, self.plan.first))

    def load_best(self) -> Experiment:
        """Return the experiment of the best trial."""
        request = self.request
        return Experiment.load(
            self.best.expid, self.folder, gpu=request.gpu, data_root=request.data_root, model_zoo=request.model_zoo
        )

    def train_seeds(self, count: int) -> None:
        """Train the best trial with more seeds.

        Raises
        ------
        UserError
            One failed, such as by a loss of nan.
        """
        request = self.request
        processes = Processes(
            self.folder,
            jobs=len(request.workers),
            resume=True,
            extra_args=request.source.arguments,
            quiet=request.quiet,
        )
        train_seeds(self.load_best(), range(1, count + 1), processes)


def best_of(studies: Iterable[ModelStudy]) -> ModelStudy:
    """Return the study of the best trial."""
    return max(studies, key=lambda study: study.best.score)
