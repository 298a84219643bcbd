"""Runs of experiments: paths and contents of their files, and ``fuxictr-mm runs``, which lists them."""

from __future__ import annotations

import argparse
import glob
import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.config import VOLATILE_KEYS
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError, nearest
from fuxictr_mm.files import read_json, write_beside
from fuxictr_mm.terminal import format_table
from fuxictr_mm.yaml_files import load_yaml

if TYPE_CHECKING:
    import numpy as np

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

#: The ``model`` of a run that combines the predictions of others and has no weights of its own.
ENSEMBLE = "Ensemble"

#: Files of a folder written by ``fuxictr-mm export-hub``.
HUB_WEIGHTS, HUB_CONFIG, HUB_FEATURES, HUB_CARD = "model.safetensors", "config.json", "feature_map.json", "README.md"

#: Name of a run: its start, its seed, and a number if another run started in the same second.
RUN_NAME = re.compile(r"(?P<stamp>\d{8}-\d{6})-seed(?P<seed>\d+)(-(?P<number>\d+))?")

#: Settings in which two seeds of one configuration may differ.
NAMING_KEYS = (*VOLATILE_KEYS, "seed", "model_id", "model_root")

#: Metrics for which lower is better.
FALLING = ("logloss", "binary_crossentropy")


def is_falling(metric: str) -> bool:
    """Whether lower is better, also of one label's metric, such as ``click_logloss``."""
    return metric.endswith(tuple(f"_{name}" for name in FALLING)) or metric in FALLING


@dataclass(frozen=True)
class RunPaths:
    """Paths of the files of an experiment, defined only here.

    ``EXPID.model``, ``.log`` and ``.json`` are those of its newest run. Every run also has a folder of its own,
    ``EXPID/RUN``, which holds the files that this module names.

    Parameters
    ----------
    model_root : Path
        Folder of all experiments.
    dataset_id, expid : str
        Names of the dataset and of the experiment.
    suffix : str
        Follows the experiment id in the names of the files; ``.seed3`` of a seed that trains beside others.
    """

    model_root: Path
    dataset_id: str
    expid: str
    suffix: str = ""

    @classmethod
    def of(cls, config: Any) -> RunPaths:
        """Return the paths of an experiment's configuration."""
        return cls(Path(config.model_root), config.dataset_id, config.expid)

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
    def lock(self) -> Path:
        """Lock held by the process that trains."""
        return self._file("lock")

    def _file(self, ending: str) -> Path:
        return self.folder / f"{self.expid}{self.suffix}.{ending}"

    @property
    def runs(self) -> Path:
        """The folder of the runs' folders."""
        return self.folder / self.expid

    def find_runs(self) -> list[Run]:
        """Return the runs of the experiment, newest first, with unfinished and broken ones."""
        return find_runs(self.model_root, dataset=self.dataset_id, expid=self.expid)

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
    return ConfigError(f"{path}: cannot be written ({error.strerror}); set model_root to a folder of yours")


def vocabulary_of_weights(weights: Path) -> Path:
    """Return the file of the vocabularies that belong to weights; there is none where ids are numbers of items."""
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


@dataclass(frozen=True)
class Run:
    """A run of an experiment: its configuration, its metrics, and predictions with its weights.

    It is a path, too: whatever takes the folder of a run takes a ``Run``.

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
    model_zoo: str | os.PathLike[str] | None = field(default=None, repr=False, compare=False)

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
        return self.path / WEIGHTS if self.run else self.path.with_name(f"{self.path.name}.model")

    @property
    def description(self) -> str:
        """The description in the configuration."""
        return " ".join(str(self.config.get("description") or "").split())

    @property
    def config_key(self) -> str:
        """Hash of the configuration without seed, names, paths of output: equal for seeds of one configuration."""
        kept = with_text_keys({k: v for k, v in self.config.items() if k not in NAMING_KEYS})
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()

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

    @overload
    def predictions(
        self, split: Literal["valid"] = "valid", task: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]: ...

    @overload
    def predictions(
        self, split: str, task: str | None = None
    ) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]: ...

    def predictions(
        self, split: str = "valid", task: str | None = None
    ) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
        """Return label (int8), prediction (float32) and group or None, ``(rows,)`` in the order of the split's file.

        Groups are integers or, with nulls among them, texts. The label of a test file without labels is None. Of a run
        on several labels, validation rows without the label are left out, and a label that some test rows do not
        have is None.

        Parameters
        ----------
        split : {"valid", "test"}
            Runs of version 0.1 have no predictions of the test rows; ``predict`` computes them.
        task : str, optional
            The label, of a run on several.

        Raises
        ------
        ConfigError
            The run has not this label, or has several and none is named.
        MissingFileError, DataError
            The file is not there or damaged, labels are not 0 and 1, or predictions are not finite numbers.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / PREDICTIONS[split]
        if not path.is_file():
            state = "it is unfinished" if not self.finished else "train it again"
            if self.finished and split == "test":
                state = f"trained without test_data, or by an older version: python prediction.py --runs {self.path}"
            raise MissingFileError(f"{path}: no predictions of this run; {state}")
        try:
            table = pq.read_table(path)
            columns = {name: table[name].to_numpy() for name in table.column_names}
            suffix = self._suffix_of(table.column_names, task)
            label, prediction, group = (columns.get(n) for n in (f"label{suffix}", f"prediction{suffix}", "group"))
            if prediction is None or (label is None and split == "valid"):
                raise KeyError("prediction" if prediction is None else "label")
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"{path}: no predictions of a run ({error}); train it again") from error
        if suffix and label is not None and label.dtype.kind == "f":  # of a column with nulls
            known = label == label
            if split == "valid":
                label, prediction = label[known].astype("int8"), prediction[known]
                group = None if group is None else group[known]
            else:
                label = label.astype("int8") if known.all() else None
        if problem := _problem_of_rows(label, prediction):
            raise DataError(f"{path}: {problem}; train it again")
        return label, prediction, group.astype(str) if group is not None and group.dtype.kind not in "iu" else group

    def _suffix_of(self, columns: Sequence[str], task: str | None) -> str:
        """Return what follows ``label`` and ``prediction`` in the names of a label's columns."""
        tasks = [name.removeprefix("prediction_") for name in columns if name.startswith("prediction_")]
        if not tasks:
            label = self.config.get("label_col")
            own = label.get("name") if isinstance(label, dict) else None
            if task is not None and own not in (None, task):
                raise ConfigError(f"{self.path}: the run has the label '{own}', not '{task}'")
            return ""
        if task not in tasks:
            found = "has" if task is None else f"has no label '{task}'{nearest(task, tasks)}; it has"
            raise ConfigError(
                f"{self.path}: the run {found} the labels {', '.join(tasks)}; name one (compare --label {tasks[0]}), "
                "ensembles and calibration are of runs on one label"
            )
        return f"_{task}"

    def predict(self, data: Any = None, *, gpu: int = -1) -> np.ndarray:
        """Return the predicted probabilities of the rows of a file or data frame, with the weights of this run.

        Parameters
        ----------
        data : path or data frame, optional
            A Parquet file, a folder of part files, or a pandas or Polars data frame, with the columns of the training
            file except the label; the dataset's ``test_data`` by default.
        gpu : int
            Index of the GPU, -1 for the CPU.

        Returns
        -------
        ndarray
            ``(rows,)`` float32, in the order of the rows.

        Raises
        ------
        UserError
            The run has no weights, its model or item files are not there, or anything is wrong with the data.
        """
        from fuxictr_mm.experiment import Experiment

        return Experiment.of_run(self, gpu=gpu).predict_of_run(self, data)

    def diagnosis(self) -> dict[str, Any] | None:
        """Return what ``fuxictr-mm diagnose`` found, None where it has not been run."""
        path = self.path / DIAGNOSIS
        return read_json(path) if path.exists() else None


def load_run(folder: str | os.PathLike[str], *, model_zoo: str | os.PathLike[str] | None = None) -> Run:
    """Read the folder of a run, such as ``checkpoints/tiny_mm/DIN_tiny/20260102-030405-seed1``.

    Parameters
    ----------
    folder : path
        The folder of a run, or that of an experiment's runs, of which the newest finished one is taken.
    model_zoo : path, optional
        A folder of model files to search first, for ``run.predict``.

    Raises
    ------
    MissingFileError
        It is not the folder of a run, or holds none that is finished.
    """
    path = Path(folder)
    if is_run(path):
        run = read_run(path)
    elif path.is_dir():
        run = resolve_one(path, ())[0]
    else:
        raise MissingFileError(f"{folder}: no such folder; give that of a run, ROOT/DATASET/EXPID/RUN")
    return replace(run, model_zoo=model_zoo)


def find_runs(
    root: str | os.PathLike[str] = "checkpoints",
    *,
    dataset: str | None = None,
    model: str | None = None,
    expid: str | None = None,
) -> list[Run]:
    """Return the runs below a folder, newest first, with unfinished and broken ones; outside links are ignored.

    Parameters
    ----------
    root : path
        The ``model_root`` of the configuration.
    dataset, model, expid : str, optional
        Keeps runs of these names only.
    """
    folders = Path(root).glob(f"{_literal(dataset)}/{_literal(expid)}/*")
    inside = Path(root).resolve()
    runs = [read_run(folder) for folder in folders if is_run(folder) and folder.resolve().is_relative_to(inside)]
    return sorted((run for run in runs if model is None or run.model == model), key=_age, reverse=True)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return folder.is_dir() and (RUN_NAME.fullmatch(folder.name) is not None or (folder / CONFIG).is_file())


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read the folder of a run; files that cannot be read are named in ``problem``."""
    path = Path(folder).resolve()
    problems: list[str] = []

    def attempt(read: Any, name: str, required: bool) -> dict[str, Any]:
        if not required and not (path / name).exists():
            return {}
        try:
            return read(path / name)
        except UserError as error:
            problems.append(str(error).replace(f"{path}{os.sep}", ""))
            return {}

    config = attempt(_read_config, CONFIG, True)
    environment = attempt(read_json, ENVIRONMENT, True)
    attempt(lambda file: {"lines": read_lines(file)}, METRICS, False)
    result = attempt(read_json, RESULT, False)
    if result and (problem := _problem_of_result(result)):
        problems.append(f"{RESULT}: {problem}")
        result = {}
    named = RUN_NAME.fullmatch(path.name)
    seed = config.get("seed", int(named["seed"]) if named else None)
    return Run(
        path=Path(folder),
        run=path.name,
        expid=str(config.get("model_id", path.parent.name)),
        dataset_id=str(config.get("dataset_id", path.parent.parent.name)),
        model=str(config.get("model", "")),
        seed=seed if isinstance(seed, int) else None,
        config=config,
        environment=environment,
        finished=bool(result),
        started_at=str(environment.get("started_at") or (_time_of(named["stamp"]) if named else "")),
        seconds=float(result["seconds"]) if result else math.nan,
        valid=result.get("valid", {}),
        test=result.get("test") or {},
        parameters=result.get("parameters"),
        valid_rows=result.get("valid_rows"),
        problem="; ".join(problems),
    )


def resolve(names: Iterable[str | os.PathLike[str]], root: str | os.PathLike[str] = "checkpoints") -> list[Run]:
    """Return the runs of several names, each once; see ``resolve_one``."""
    runs = find_runs(root)
    found = {run.path.resolve(): run for name in names for run in resolve_one(name, runs, root)}
    return list(found.values())


def resolve_one(
    name: str | os.PathLike[str], runs: Sequence[Run], root: str | os.PathLike[str] = "checkpoints"
) -> list[Run]:
    """Return the runs that a name means, newest first.

    Parameters
    ----------
    name : str or path
        An experiment id (all its finished runs), the name of a run, or the folder of a run or of an experiment's runs.
    runs : sequence of Run
        From ``find_runs(root)``.
    root : path
        For the message.

    Raises
    ------
    MissingFileError
        There is no such run.
    ConfigError
        The name means runs of several experiments or datasets.
    """
    name = os.fspath(name)
    if named := [run for run in runs if run.run == name]:
        if len(named) > 1:
            folders = ", ".join(str(run.path) for run in named)
            raise ConfigError(f"{name}: several runs have this name; give a folder: {folders}")
        return named
    if of_experiment := [run for run in runs if run.expid == name]:
        datasets = sorted({str(run.path.parent) for run in of_experiment})
        if len(datasets) > 1:
            raise ConfigError(f"{name}: there are runs on several datasets; give one folder: {', '.join(datasets)}")
        return _finished(of_experiment, name)
    folder = Path(name)
    if is_run(folder):
        return [read_run(folder)]
    if folder.is_dir():
        inside = sorted((read_run(path) for path in folder.iterdir() if is_run(path)), key=_age, reverse=True)
        if not inside:
            raise MissingFileError(f"{name}: a folder without runs; give that of an experiment, ROOT/DATASET/EXPID")
        return _finished(inside, name)
    known = [*dict.fromkeys(run.expid for run in runs), *(run.run for run in runs)]
    there = ", ".join(sorted({run.expid for run in runs})) or "none yet; train with run_expid.py, or give --root"
    raise MissingFileError(
        f"'{name}': no experiment id, run or folder of a run below {root}{nearest(name, known)} (there are: {there})"
    )


def _finished(runs: Sequence[Run], name: str) -> list[Run]:
    finished = [run for run in runs if run.finished]
    if not finished:
        raise MissingFileError(f"{name}: none of its {len(runs)} runs is finished; resume with run_expid.py --resume")
    return finished


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluations of the newest run of an experiment, in order of their steps, also while it is training.

    Parameters
    ----------
    folder : Path
        ``RunPaths.runs``.
    """
    newest = max(folder.glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime_ns, default=None)
    lines = [] if newest is None else read_lines(newest)
    return list({line["step"]: line for line in lines}.values())  # a killed run may have written a step twice


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; an incomplete last line is left out.

    Raises
    ------
    DataError
        Another line is damaged, or the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a file of evaluations") from error
    entries = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not _is_number(entry.get("step")):
            raise DataError(f"{path}, line {number}: is not an evaluation of a run; delete the line")
        entries.append(entry)
    return entries


def monitored(settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> float:
    """Return the monitored metric, or weighted sum of metrics; NaN where it is not among them."""
    monitor = settings["monitor"]
    weights = {monitor: 1.0} if isinstance(monitor, str) else monitor
    return sum(weight * metrics.get(name, math.nan) for name, weight in weights.items())


def best_epoch_was_last(history: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> bool:
    """Whether the best evaluation is of the last epoch that the settings allow, so that more epochs may be better."""
    if not {"monitor", "monitor_mode", "epochs"} <= settings.keys():
        return False
    sign = -1 if settings["monitor_mode"] == "min" else 1
    values = [(sign * monitored(settings, line), line.get("epoch")) for line in history]
    best = max((value for value, _ in values if not math.isnan(value)), default=math.nan)
    return next((epoch == settings["epochs"] for value, epoch in values if value == best), False)


def with_text_keys(value: Any) -> Any:
    """Return a configuration whose keys are texts at every depth, so that they can be sorted.

    Examples
    --------
    >>> with_text_keys({"x": [{1: 2, "b": 3}]})
    {'x': [{'1': 2, 'b': 3}]}
    """
    if isinstance(value, dict):
        return {str(k): with_text_keys(v) for k, v in value.items()}
    return [with_text_keys(v) for v in value] if isinstance(value, list | tuple) else value


def _read_config(path: Path) -> dict[str, Any]:
    config = load_yaml(path)
    if not config:
        raise DataError(f"{path}: is empty, expected the settings of the run")
    return config


def _problem_of_result(result: dict[str, Any]) -> str:
    """Return the problem of a result, empty if none."""
    for name in ("valid", "test"):
        metrics = result.get(name)
        if metrics is None and name == "test":
            continue
        if not isinstance(metrics, dict) or not all(map(_is_number, metrics.values())):
            return f"{name} is {metrics!r}, expected metrics"
    if not _is_number(result.get("seconds")):
        return f"seconds is {result.get('seconds')!r}, expected a number"
    return ""


def write_predictions(
    path: Path,
    *,
    prediction: np.ndarray,
    label: np.ndarray | None = None,
    group: np.ndarray | None = None,
    tasks: Sequence[str] = (),
) -> None:
    """Write predictions ``(rows,)`` and, where they are known, labels and groups, by an atomic write.

    Of T ``tasks``, predictions and labels are ``(rows, T)``, NaN for a label that is missing, and written as columns
    ``prediction_TASK`` and ``label_TASK``.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fuxictr_mm.data.parquet import from_numbers

    columns = {"label": label, "prediction": prediction, "group": group}
    arrays: dict[str, pa.Array] = {}
    for index, task in enumerate(tasks):
        if label is not None:
            missing = np.isnan(label[:, index])
            arrays[f"label_{task}"] = pa.array(np.nan_to_num(label[:, index]).astype(np.int8), mask=missing)
        arrays[f"prediction_{task}"] = from_numbers(np.ascontiguousarray(prediction[:, index]))
    for name, column in columns.items():
        if column is not None and (not tasks or name == "group"):
            arrays[name] = from_numbers(column) if column.dtype.kind in "iuf" else pa.array(column)
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer)
    write_beside(path, lambda stream: stream.write(buffer.getbuffer()))


def _problem_of_rows(label: np.ndarray | None, prediction: np.ndarray) -> str:
    """Return the problem of predictions, empty if none."""
    import numpy as np

    if not len(prediction):
        return "there are no rows"
    if label is not None and (label.dtype.kind not in "biuf" or not np.isin(label, (0, 1)).all()):
        return "labels are not 0 and 1"
    if prediction.dtype.kind not in "iuf":
        return f"predictions are {prediction.dtype}, expected numbers"
    strange = int((~np.isfinite(prediction)).sum())
    return f"{strange} predictions are not finite" if strange else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _literal(name: str | None) -> str:
    return "*" if name is None else glob.escape(name)


def _time_of(stamp: str) -> str:
    date, time = stamp.split("-")
    return f"{date[:4]}-{date[4:6]}-{date[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}"


def _age(run: Run) -> tuple[str, int, str]:
    named = RUN_NAME.fullmatch(run.run)
    return run.started_at, int(named["number"] or 1) if named else 1, run.run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm runs``."""
    add_examples(
        parser,
        "fuxictr-mm runs",
        "fuxictr-mm runs --dataset tiny_mm --best AUC --last 5",
        "fuxictr-mm runs --expid DIN_MM_tiny --finished --json",
    )
    parser.add_argument("--root", default="checkpoints", metavar="DIR", help="the model_root of the runs (checkpoints)")
    parser.add_argument("--dataset", metavar="ID", help="runs on this dataset only")
    parser.add_argument("--model", metavar="NAME", help="runs of this model only")
    parser.add_argument("--expid", metavar="ID", help="runs of this experiment only")
    parser.add_argument("--finished", action="store_true", help="leave out unfinished and broken runs")
    parser.add_argument("--best", metavar="METRIC", help="best on the validation rows first, such as AUC")
    parser.add_argument("--last", type=int, metavar="N", help="the first N of the list only")
    add_output_options(parser, quiet=False)


def main_from_args(args: argparse.Namespace) -> None:
    """Print the list."""
    if not Path(args.root).is_dir():
        raise MissingFileError(f"{args.root}: no such folder; --root takes the model_root that runs were written to")
    if args.last is not None and args.last < 1:
        raise ConfigError(f"--last is {args.last}, expected 1 or more")
    runs = find_runs(args.root, dataset=args.dataset, model=args.model, expid=args.expid)
    if args.finished:
        runs = [run for run in runs if run.finished and not run.problem]
    if args.best is not None:
        runs = best_first(runs, args.best)
    runs = runs[: args.last]
    show(args, [as_dict(run) for run in runs], table(runs) if runs else _none_found(args))


def best_first(runs: Sequence[Run], metric: str) -> list[Run]:
    """Sort finished runs by a metric on the validation rows; those without it are left out.

    Raises
    ------
    ConfigError
        No run has this metric.
    """
    having = [run for run in runs if _is_finite(run.valid.get(metric))]
    if runs and not having:
        known = sorted({name for run in runs for name in run.valid})
        there = ", ".join(known) or "none, no run is finished"
        raise ConfigError(f"--best: no run has the metric '{metric}'{nearest(metric, known)} (there are: {there})")
    return sorted(having, key=lambda run: run.valid[metric], reverse=not is_falling(metric))


def table(runs: Sequence[Run]) -> str:
    """Return a line for each run."""
    valid = list(dict.fromkeys(name for run in runs for name in run.valid))
    test = list(dict.fromkeys(name for run in runs for name in run.test))
    columns = [f"valid {name}" for name in valid] + [f"test {name}" for name in test]
    header = ["run", "experiment", "dataset", "seed", *columns, "seconds", "state"]
    rows = []
    for run in runs:
        metrics = [*(run.valid.get(name) for name in valid), *(run.test.get(name) for name in test)]
        figures = [f"{value:.4f}" if _is_finite(value) else "" for value in metrics]
        seconds = f"{run.seconds:.0f}" if math.isfinite(run.seconds) else ""
        seed = "" if run.seed is None else str(run.seed)
        rows.append([run.run, run.expid, run.dataset_id, seed, *figures, seconds, run.state])
    return format_table(header, rows, right=["seed", *columns, "seconds"])


def as_dict(run: Run) -> dict[str, Any]:
    """Return the entry of a run, for JSON."""
    names = ("run", "expid", "dataset_id", "model", "seed", "description", "started_at", "valid", "test", "parameters")
    values = {name: getattr(run, name) for name in (*names, "seconds", "finished", "problem")}
    return {**values, "path": str(run.path)}


def _none_found(args: argparse.Namespace) -> str:
    everything = find_runs(args.root)
    if not everything:
        return f"no runs below {args.root}; run_expid.py writes them"
    hints = []
    for option, name in (("dataset", "dataset_id"), ("model", "model"), ("expid", "expid")):
        given, known = getattr(args, option), sorted({getattr(run, name) for run in everything})
        if given is not None and given not in known:
            hints.append(f"no run with --{option} {given}{nearest(given, known)} (there are: {', '.join(known)})")
    return "; ".join(hints) or f"none of the {len(everything)} runs below {args.root} matches"
