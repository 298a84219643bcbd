"""The finished runs of one configuration: of exactly its settings, the file of its model, and its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fuxictr_mm.config import ExperimentConfig, config_hash
from fuxictr_mm.data.fingerprint import changed_data, data_hashes
from fuxictr_mm.errors import UserError
from fuxictr_mm.files import StrPath
from fuxictr_mm.runs.paths import MODEL_CODE, RunPaths
from fuxictr_mm.runs.reading import read_run, runs_of
from fuxictr_mm.runs.result import Result
from fuxictr_mm.runs.run import Run


@dataclass(frozen=True)
class FinishedRuns:
    """What has been trained already of a configuration, with a folder or without (``record: False``)."""

    config: ExperimentConfig
    paths: RunPaths
    model_code: str  #: Hash of the model's file.
    model_zoo: StrPath | None = None  #: Folder of model files that was searched first.

    def all(self) -> list[Run]:
        """Return the finished runs that have a folder, newest first."""
        return [run for run in self._of_settings() if self.changed_data(run.data) is None]

    def newest(self) -> Run | None:
        """Return the run of ``result``, read from its folder if it has one; None without one."""
        if (result := self.result()) is None:
            return None
        runs = self.all()
        return self.run_of(result, runs[0].path if runs else None)

    def result(self, paths: bool = True) -> Result | None:
        """Return the newest run's result if it is such; without ``paths`` also one on other data or of another seed."""
        found = self._result_of_settings(paths)
        return None if found is None or (paths and self.changed_data(found.data)) else found

    def newest_result(self) -> Result | None:
        """Return the result of the newest run, of any configuration; None if it has not finished."""
        try:
            return Result.read(self.paths.result)
        except UserError:
            return None

    def outdated(self) -> str | None:
        """Return the data that has changed since this configuration was trained, None if nothing has."""
        newest = self._result_of_settings()
        trained = [newest.data if newest else {}, *(run.data for run in self._of_settings())]
        return next((changed for hashes in trained if (changed := self.changed_data(hashes))), None)

    def changed_data(self, hashes: Mapping[str, str]) -> str | None:
        """Return the data that has changed since a result was written, by the hashes that were saved with it."""
        return changed_data(hashes, self.config.to_dict())

    def run_of(self, result: Result, folder: Path | None) -> Run:
        """Return a finished run by its result, read from its folder if it has one."""
        if folder is not None:
            return replace(read_run(folder), model_zoo=self.model_zoo)
        config = self.config
        names: dict[str, Any] = {name: getattr(config, name) for name in ("expid", "dataset_id", "model", "seed")}
        metrics: dict[str, Any] = {"valid": result.valid, "test": result.test, "seconds": result.seconds}
        settings = config.to_dict()
        return Run(self.paths.runs, "", config=settings, finished=True, model_zoo=self.model_zoo, **names, **metrics)

    def _of_settings(self) -> list[Run]:
        fingerprint = self.config.fingerprint()
        finished = [run for run in runs_of(self.paths) if run.finished and config_hash(run.config) == fingerprint]
        return [run for run in finished if run.environment.get(MODEL_CODE, self.model_code) == self.model_code]

    def _result_of_settings(self, paths: bool = True) -> Result | None:
        found = self.newest_result()
        if found is None or (found.model_code or self.model_code) != self.model_code:
            return None
        if (found.config_hash if paths else found.settings_hash) != self.config.fingerprint(paths):
            return None
        # Settings without paths do not tell what training started from.
        return None if not paths and self._has_other_start(found) else found

    def _has_other_start(self, result: Result) -> bool:
        """Whether a result is of other initial weights, where its data is known."""
        now = data_hashes({"initial_weights": self.config.initial_weights})
        return bool(result.data) and any(result.data.get(name) != found for name, found in now.items())
