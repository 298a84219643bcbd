"""The trials of a study in its database: all that a study asks of Optuna's storage."""

from __future__ import annotations

import math
import uuid
from typing import TYPE_CHECKING, Any

from fuxictr_mm.runs import Result
from fuxictr_mm.tuning.space import Dimensions, Point
from fuxictr_mm.tuning.trial import TrialResult

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

IMPORTANCE_TRIALS = 10  # finished trials before the importance of the settings is estimated


class StoredTrial:
    """A trial as the database has it; the names of its notes are those of every version."""

    def __init__(self, frozen: FrozenTrial) -> None:
        notes = frozen.user_attrs
        self.frozen = frozen
        self.number: int = frozen.number
        self.is_finished: bool = frozen.state.is_finished()
        self.is_running = frozen.state.name == "RUNNING"
        self.is_pruned = frozen.state.name == "PRUNED"
        self.point: Point | None = notes.get("point")
        self.expid: str | None = notes.get("expid")
        self.owner: dict[str, str] | None = notes.get("owner")
        self.beat: int | None = notes.get("beat")
        #: Its failure, until it is repeated: ``message``, and ``failure``, which differs between failures.
        self.error: dict[str, str] | None = None if self.is_finished else notes.get("error")
        result = {} if self.error else notes.get("result", {})
        self.reached = Result(**{"valid": {}, "seconds": math.nan, **result})


class StoredTrials:
    """The first ``total`` trials of a study of Optuna."""

    def __init__(self, study: Study, storage: RDBStorage, total: int) -> None:
        self.study = study
        self._storage = storage
        self._total = total
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._ids: dict[int, int] = {}

    def all(self) -> list[StoredTrial]:
        """Return all trials, by number."""
        return [StoredTrial(trial) for trial in self.study.get_trials(deepcopy=False)[: self._total]]

    def failures(self) -> dict[int, dict[str, str] | None]:
        """Return the failure of each trial by number, also of those after the first ``total``; None without one."""
        return {trial.number: StoredTrial(trial).error for trial in self.study.get_trials(deepcopy=False)}

    def get(self, number: int) -> StoredTrial:
        """Return a trial."""
        return StoredTrial(self._storage.get_trial(self._id(number)))

    def add(self) -> None:
        """Add a trial that waits."""
        self.study.enqueue_trial({})

    def note(self, number: int, key: str, value: Any) -> None:
        """Write a note on a trial."""
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def start(self, trial: StoredTrial) -> bool:
        """Make a trial, which nobody runs, a running one; False if another process was faster."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            if trial.is_running:
                self.let_wait(trial.number)
            return self._storage.set_trial_state_values(self._id(trial.number), TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def let_wait(self, number: int) -> None:
        """Make a trial one that waits to run."""
        from optuna.trial import TrialState

        self._storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def reloaded(self) -> Study:
        """Return the study with its present trials: one that is loaded caches them for the samplers."""
        import optuna

        return optuna.load_study(study_name=self.study.study_name, storage=self._storage)

    def set_parameters(self, number: int, point: Point, dimensions: Dimensions) -> None:
        """Write the parameters by which samplers know the point of a trial."""
        known = self.get(number).frozen.params
        for key, choice in dimensions.sampled(point).items():
            if key not in known:
                distribution = dimensions.distributions[key]
                internal = distribution.to_internal_repr(choice)
                self._storage.set_trial_param(self._id(number), key, internal, distribution)

    def report(self, number: int, step: int, value: float) -> None:
        """Write the monitored metric of an evaluation, over that of an earlier try."""
        self._storage.set_trial_intermediate_value(self._id(number), step, value)

    def finish(self, result: TrialResult, number: int, evaluations: int) -> None:
        """Finish a trial, after so many evaluations."""
        for step in self.get(number).frozen.intermediate_values:
            if step > evaluations:  # of an earlier try that took longer
                self.report(number, step, math.nan)
        self._note_result(number, result)
        self.study.tell(number, result.reached, skip_if_finished=True)

    def prune(self, number: int, reached: Result | None) -> None:
        """Finish a trial that was ended early."""
        from optuna.trial import TrialState

        if reached is not None:
            self._note_result(number, reached)
        self.study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)

    def _note_result(self, number: int, result: TrialResult | Result) -> None:
        self.note(number, "result", {"valid": result.valid, "test": result.test, "seconds": result.seconds})

    def fail(self, number: int, message: str) -> None:
        """Have a trial that failed wait to be repeated."""
        self.note(number, "error", {"message": message, "failure": uuid.uuid4().hex})
        self.let_wait(number)

    def importance(self) -> dict[str, float]:
        """Return the importance of the settings, largest first; empty if it cannot be estimated."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        values = [trial.frozen.value for trial in self.all() if trial.frozen.state.name == "COMPLETE"]
        if len(values) < IMPORTANCE_TRIALS or len(set(values)) == 1:
            return {}
        return get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=0))

    def _id(self, number: int) -> int:
        if number not in self._ids:
            self._ids[number] = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        return self._ids[number]
