"""Names of the files of runs, and where they are."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fuxictr_mm.errors import ConfigError

#: Files in the folder of a run; ``PREDICTIONS`` by split.
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
PREDICTIONS = {"valid": "valid_predictions.parquet", "test": "test_predictions.parquet"}
WEIGHTS = "best.model"
RESULT = "result.json"
DIAGNOSIS = "diagnosis.json"
CALIBRATION = "calibration.json"
LOG = "run.log"
TENSORBOARD = "tensorboard"
VOCABULARY = "vocabulary.parquet"

#: Key of the hash of the model's file, in ``EXPID.json`` and in the environment of a run; older ones have none.
MODEL_CODE = "model_code"

#: Key of the hashes of the data, beside it; see ``fuxictr_mm.data.fingerprint``.
DATA = "data"

#: The ``model`` of a run that combines the predictions of others and has no weights of its own.
ENSEMBLE = "Ensemble"

#: Files of a folder written by ``fuxictr-mm export-hub``.
HUB_WEIGHTS, HUB_CONFIG, HUB_FEATURES, HUB_CARD = "model.safetensors", "config.json", "feature_map.json", "README.md"

#: Name of a run: its start, its seed, and a number if another run started in the same second.
RUN_NAME = re.compile(r"(?P<stamp>\d{8}-\d{6})-seed(?P<seed>\d+)(-(?P<number>\d+))?")


@dataclass(frozen=True)
class RunPaths:
    """Paths of the files of an experiment, defined only here.

    ``EXPID.model``, ``.log`` and ``.json`` are those of its newest run. Every run also has its own folder,
    ``EXPID/RUN``, which holds the files that this module names.
    """

    model_root: Path  #: Folder of all experiments.
    #: Names of the dataset and of the experiment.
    dataset_id: str
    expid: str
    #: Follows the experiment id in the names of the files; ``.seed3`` for a seed that is trained in parallel.
    suffix: str = ""

    @classmethod
    def of(cls, config: Any) -> RunPaths:
        """Return the paths of an experiment's configuration."""
        return cls(Path(config.model_root), config.dataset_id, config.expid)

    @classmethod
    def of_folder(cls, runs: Path) -> RunPaths:
        """Return the paths of an experiment by the folder of its runs' folders."""
        return cls(runs.parent.parent, runs.parent.name, runs.name)

    @property
    def folder(self) -> Path:
        """The folder of all experiments on the dataset."""
        return self.model_root / self.dataset_id

    @property
    def log(self) -> Path:
        """Log of the newest run."""
        return self._file("log")

    @property
    def result(self) -> Path:
        """Metrics of the newest run, once it has finished."""
        return self._file("json")

    @property
    def weights(self) -> Path:
        """Best weights of the newest run, as ``BaseModel`` of FuxiCTR names them."""
        return self._file("model")

    @property
    def checkpoint(self) -> Path:
        """Training checkpoint of a run that is not finished."""
        return self._file("snapshot")

    @property
    def diagnosis(self) -> Path:
        """Diagnosis of weights that belong to no run; that of a run is in its folder."""
        return self._file("diagnosis.json")

    @property
    def influence(self) -> Path:
        """Ranking of the training examples by influence."""
        return self._file("influence.parquet")

    @property
    def process_logs(self) -> Path:
        """Folder of what the processes of seeds and folds print."""
        return self.folder / "logs"

    @property
    def lock(self) -> Path:
        """Lock held by the process that trains."""
        return self._file("lock")

    def _file(self, ending: str) -> Path:
        return self.folder / f"{self.expid}{self.suffix}.{ending}"

    @property
    def runs(self) -> Path:
        """The folder of the runs' folders."""
        return self.folder / self.expid

    def new_run(self, seed: int, started_at: datetime) -> Path:
        """Create the folder of a new run, with a name that no other process has taken.

        Raises
        ------
        ConfigError
            It cannot be written.
        """
        name = f"{started_at:%Y%m%d-%H%M%S}-seed{seed}"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(1):
                path = self.runs / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return path
        except OSError as error:
            raise unwritable(self.runs, error) from error
        raise AssertionError("there is always a next number")


def unwritable(path: Path, error: OSError) -> ConfigError:
    """Return the error of a ``model_root`` that cannot be written."""
    return ConfigError(f"{path}: cannot be written ({error.strerror}); set model_root to a writable folder")


def file_of_weights(path: Path) -> Path:
    """Return the file of weights at a path, which may be the folder of a run or of an export to the Hub."""
    return next((path / name for name in (WEIGHTS, HUB_WEIGHTS) if (path / name).is_file()), path)


def vocabulary_of_weights(weights: Path) -> Path:
    """Return the file of the vocabularies of weights; it does not exist if ids are used as they are."""
    if weights.is_dir():
        return weights / VOCABULARY
    named = weights.name in (WEIGHTS, HUB_WEIGHTS)
    return weights.with_name(VOCABULARY) if named else weights.with_suffix(f".{VOCABULARY}")


def config_of_weights(weights: Path) -> Path | None:
    """Return the configuration file of the run that wrote weights, None if that is unknown."""
    if weights.name == WEIGHTS and (weights.parent / CONFIG).is_file():
        return weights.parent / CONFIG
    # The weights of an experiment are the same file as those of its newest run.
    runs = weights.with_suffix("").glob(f"*/{WEIGHTS}") if weights.exists() else ()
    return next((path.parent / CONFIG for path in runs if path.samefile(weights)), None)
