"""A run: its configuration, metrics and predictions."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from fuxictr_mm.config import json_hash, label_names, per_label, seeds_hash
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.files import StrPath, read_json
from fuxictr_mm.runs.evaluations import read_lines
from fuxictr_mm.runs.paths import DATA, DIAGNOSIS, METRICS, MODEL_CODE, PREDICTIONS, WEIGHTS, RunPaths
from fuxictr_mm.runs.predictions import Predictions

if TYPE_CHECKING:
    import numpy as np

#: The setting of the one file that decides neither weights nor validation metrics.
TEST_DATA = "test_data"


@dataclass(frozen=True)
class Run:
    """A run of an experiment: its configuration, its metrics, and predictions with its weights.

    It is also a path: a ``Run`` is accepted wherever the folder of a run is.

    Parameters
    ----------
    path : Path
        The folder.
    run, expid, dataset_id : str
        Its name and those of the folders above it.
    model : str
        Name of the model.
    seed : int or None
        Seed.
    config : dict
        All settings; empty where they cannot be read.
    environment : dict
        Versions, device, commit, command.
    finished : bool
        Whether there is a result.
    started_at : str
        ISO 8601, to the second.
    seconds : float
        Wall time; NaN of a run without a result.
    valid, test : dict of str to float
        Metrics; empty where there are none.
    parameters : int or None
        Trainable parameters.
    valid_rows : int or None
        Rows of the validation file.
    problem : str
        Files of the folder that cannot be read; empty if none.
    model_zoo : path, optional
        A folder of model files to search first when the model is needed again.
    """

    path: Path
    run: str
    expid: str
    dataset_id: str
    model: str = ""
    seed: int | None = None
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    environment: dict[str, Any] = field(default_factory=dict, repr=False)
    finished: bool = False
    started_at: str = ""
    seconds: float = math.nan
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    valid_rows: int | None = None
    problem: str = ""
    model_zoo: StrPath | None = field(default=None, repr=False, compare=False)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics by split, ``valid`` and, where its file has labels, ``test``."""
        splits = {"valid": self.valid, "test": self.test}
        return {split: metrics for split, metrics in splits.items() if metrics}

    @property
    def weights(self) -> Path:
        """The best weights; of a run that has no folder (``record: False``), those of its experiment."""
        return self.path / WEIGHTS if self.run else RunPaths.of_folder(self.path).weights

    @property
    def description(self) -> str:
        """The description in the configuration."""
        return " ".join(str(self.config.get("description") or "").split())

    @property
    def label_names(self) -> list[str]:
        """Names of the labels."""
        return label_names(self.config)

    @property
    def data(self) -> dict[str, str]:
        """Hashes of the data files by setting, of ``fuxictr_mm.data.fingerprint``; empty of runs by older versions."""
        return self.environment.get(DATA) or {}

    @property
    def sources(self) -> dict[str, str | None]:
        """Hashes that seeds have in common: ``settings``, ``model file``, and data by setting except the test file.

        Settings are those without seed, names and paths of output.
        """
        data = {k: v for k, v in self.data.items() if k != TEST_DATA}
        return {"settings": seeds_hash(self.config), "model file": self.environment.get(MODEL_CODE), **data}

    @property
    def config_key(self) -> str:
        """Hash of ``sources``: equal for the seeds of one configuration on the same data."""
        return json_hash(self.sources)

    @property
    def is_usable(self) -> bool:
        """Whether it is finished and its folder can be read completely."""
        return self.finished and bool(self.config) and not self.problem

    @property
    def state(self) -> str:
        """``finished``, ``unfinished``, or the problem of the folder."""
        if self.problem:
            return f"broken: {self.problem}"
        return "finished" if self.finished else "unfinished"

    def history(self) -> list[dict[str, float]]:
        """Return the evaluations so far, also of a run that has not ended.

        Raises
        ------
        DataError
            A line is damaged, or the file cannot be read.
        """
        path = self.path / METRICS
        return read_lines(path) if path.exists() else []

    def predictions(self, split: str = "valid", task: str | None = None) -> Predictions:
        """Return label, prediction and group, ``(rows,)`` in the order of the split's file.

        The label of a test file without labels is None. Of a run on several labels, validation rows without the label
        are left out, and a label that some test rows do not have is None.

        Parameters
        ----------
        split : {"valid", "test"}
            Runs of version 0.1 have no predictions of the test rows; ``predict`` computes them.
        task : str, optional
            The label, for a run with several labels.

        Raises
        ------
        ConfigError
            The run does not have this label, or has several and none is named.
        MissingFileError, DataError
            The file is missing or damaged, labels are not 0 and 1, or predictions are not finite numbers.
        """
        found = self.all_rows(split, task)
        if split == "valid" or found.label is None or (found.label == found.label).all():
            return found.of_known_labels
        return Predictions(None, found.prediction, found.group)

    def all_rows(self, split: str = "valid", task: str | None = None) -> Predictions:
        """Return the result of ``predictions`` for all rows; a label that some rows do not have is float64 with NaN."""
        path = self.path / PREDICTIONS[split]
        if not path.is_file():
            state = "the run is unfinished" if not self.finished else "train it again"
            if self.finished and split == "test":
                command = f"fuxictr-mm predict --runs {quote(str(self.path))}"
                state = f"trained without test_data, or by an older version; compute them: {command}"
            raise MissingFileError(f"{path}: no predictions of this run; {state}")
        if task is not None and len(names := self.label_names) == 1 and names != [task]:
            raise ConfigError(f"{self.path}: the run has the label '{names[0]}', not '{task}'")
        found = Predictions.read(path, task, is_regression=self.is_regression(task))
        if found.label is None and split == "valid":
            raise DataError(f"{path}: is not a file of predictions of a run ('label'); train it again")
        return found

    def is_regression(self, label: str | None = None) -> bool:
        """Whether the task of a label is a regression; of the first label if none is named."""
        names = self.label_names
        tasks = per_label(self.config.get("task", "binary_classification"), max(len(names), 1))
        return tasks[names.index(label) if label in names else 0] == "regression"

    def predict(self, data: Any = None, *, gpu: int = -1) -> np.ndarray:
        """Return the predicted probabilities of the rows of a file or data frame, with the weights of this run.

        Parameters
        ----------
        data : path or data frame, optional
            A Parquet file, a folder of part files, or a pandas or Polars data frame, with the columns of the training
            file except the label; the dataset's ``test_data`` by default. Rows that ``fuxictr-mm prepare log --like``
            wrote, given by path, are read with their own item files.
        gpu : int
            Index of the GPU, -1 for the CPU.

        Returns
        -------
        ndarray
            ``(rows,)`` float32, in the order of the rows.

        Raises
        ------
        UserError
            The run has no weights, its model or item files are missing, or the data is invalid.
        """
        from fuxictr_mm.experiment import Experiment
        from fuxictr_mm.prediction import predict

        return predict(Experiment.of_run(self, gpu=gpu), data, self.weights, [])

    def diagnosis(self) -> dict[str, Any] | None:
        """Return the result of ``fuxictr-mm diagnose``, None if it has not been run."""
        path = self.path / DIAGNOSIS
        return read_json(path) if path.exists() else None
