"""Reads the folders of runs, ``ROOT/DATASET/EXPID/RUN/``; nothing here imports torch."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm.checking import nearest
from fuxictr_mm.config import VOLATILE_KEYS
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.yaml_file import load_yaml

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
PREDICTIONS = "valid_predictions.parquet"
WEIGHTS = "best.model"
RESULT = "result.json"
DIAGNOSIS = "diagnosis.json"

#: Name of a run: when it began, its seed, and a number where another run began in the same second.
RUN_NAME = re.compile(r"(?P<stamp>\d{8}-\d{6})-seed(?P<seed>\d+)(-(?P<number>\d+))?")

#: Settings that do not make two runs of two configurations: what else they share makes them seeds of one.
NAMING_KEYS = (*VOLATILE_KEYS, "seed", "model_id", "model_root")


@dataclass(frozen=True)
class RunRecord:
    """What the folder of a run holds.

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
        Resolved parameters; empty where they cannot be read.
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
        What of the folder cannot be read; empty if nothing.
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

    @property
    def description(self) -> str:
        """What the configuration says of the experiment."""
        return " ".join(str(self.config.get("description") or "").split())

    @property
    def config_key(self) -> str:
        """Hash of the configuration without seed, names, paths of output: equal for seeds of one configuration."""
        kept = with_text_keys({k: v for k, v in self.config.items() if k not in NAMING_KEYS})
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def is_usable(self) -> bool:
        """Whether it is finished and all of its folder can be read, so that it speaks for its configuration."""
        return self.finished and bool(self.config) and not self.problem

    def history(self) -> list[dict[str, float]]:
        """Return the evaluations so far, also of a run that goes on.

        Raises
        ------
        DataError
            A line is damaged, or the file is none.
        """
        path = self.path / METRICS
        return read_lines(path) if path.exists() else []

    def predictions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return label (int8), prediction (float32) and group or None, ``(rows,)`` in the validation file's order.

        Groups are whole numbers or, with nulls among them, texts.

        Raises
        ------
        MissingFileError, DataError
            The file is not there or damaged, labels are not 0 and 1, or predictions no finite numbers.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / PREDICTIONS
        if not path.is_file():
            state = "it is unfinished" if not self.finished else "train it again"
            raise MissingFileError(f"{path}: no predictions of this run; {state}")
        try:
            table = pq.read_table(path)
            columns = {name: table[name].to_numpy() for name in table.column_names}
            label, prediction, group = columns["label"], columns["prediction"], columns.get("group")
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"{path}: no predictions of a run ({error}); train it again") from error
        if problem := _problem_of_rows(label, prediction):
            raise DataError(f"{path}: {problem}; train it again")
        return label, prediction, group.astype(str) if group is not None and group.dtype.kind not in "iu" else group

    def diagnosis(self) -> dict[str, Any] | None:
        """Return what ``fuxictr-mm diagnose`` found, None where it has not been run."""
        path = self.path / DIAGNOSIS
        return _read_json(path) if path.exists() else None


def find_runs(
    root: str | os.PathLike[str] = "checkpoints",
    *,
    dataset: str | None = None,
    model: str | None = None,
    expid: str | None = None,
) -> list[RunRecord]:
    """Return the runs below a folder, newest first, with unfinished and broken ones; links that lead out are left.

    Parameters
    ----------
    root : path
        The ``model_root`` of the configuration.
    dataset, model, expid : str, optional
        Keeps runs of these names only.
    """
    folders = Path(root).glob(f"{_literal(dataset)}/{_literal(expid)}/*")
    inside = Path(root).resolve()
    records = [read_run(folder) for folder in folders if is_run(folder) and folder.resolve().is_relative_to(inside)]
    return sorted((r for r in records if model is None or r.model == model), key=_age, reverse=True)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return folder.is_dir() and (RUN_NAME.fullmatch(folder.name) is not None or (folder / CONFIG).is_file())


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Read the folder of a run; what cannot be read of it is said in ``problem``."""
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
    environment = attempt(_read_json, ENVIRONMENT, True)
    attempt(lambda file: {"lines": read_lines(file)}, METRICS, False)
    result = attempt(_read_json, RESULT, False)
    if result and (problem := _problem_of(result)):
        problems.append(f"{RESULT}: {problem}")
        result = {}
    named = RUN_NAME.fullmatch(path.name)
    seed = config.get("seed", int(named["seed"]) if named else None)
    return RunRecord(
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


def resolve(names: Iterable[str | os.PathLike[str]], root: str | os.PathLike[str] = "checkpoints") -> list[RunRecord]:
    """Return the runs that names stand for, each once; see ``resolve_one``."""
    runs = find_runs(root)
    found = {run.path.resolve(): run for name in names for run in resolve_one(name, runs, root)}
    return list(found.values())


def resolve_one(
    name: str | os.PathLike[str], runs: Sequence[RunRecord], root: str | os.PathLike[str] = "checkpoints"
) -> list[RunRecord]:
    """Return the runs that a name stands for, newest first.

    Parameters
    ----------
    name : str or path
        An experiment id (all its finished runs), the name of a run, or the folder of a run or of an experiment's runs.
    runs : sequence of RunRecord
        From ``find_runs(root)``.
    root : path
        For the message.

    Raises
    ------
    MissingFileError
        There is no such run.
    ConfigError
        The name stands for runs of several experiments or datasets.
    """
    name = os.fspath(name)
    if named := [run for run in runs if run.run == name]:
        return [_only(named, name)]
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON mapping per line; a last line without its end was cut off and is left out.

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
            raise DataError(f"{path}, line {number}: is no evaluation of a run; delete the line")
        entries.append(entry)
    return entries


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no JSON mapping")
    return content


def _problem_of(result: dict[str, Any]) -> str:
    """Say what is wrong with a result, if anything."""
    for name in ("valid", "test"):
        metrics = result.get(name)
        if metrics is None and name == "test":
            continue
        if not isinstance(metrics, dict) or not all(map(_is_number, metrics.values())):
            return f"{name} is {metrics!r}, expected metrics"
    if not _is_number(result.get("seconds")):
        return f"seconds is {result.get('seconds')!r}, expected a number"
    return ""


def _problem_of_rows(label: np.ndarray, prediction: np.ndarray) -> str:
    """Say what is wrong with predictions, if anything."""
    if not len(label):
        return "there are no rows"
    if label.dtype.kind not in "biuf" or not np.isin(label, (0, 1)).all():
        return "labels are not 0 and 1"
    if prediction.dtype.kind not in "iuf":
        return f"predictions are {prediction.dtype}, expected numbers"
    strange = int((~np.isfinite(prediction)).sum())
    return f"{strange} predictions are not finite" if strange else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _literal(name: str | None) -> str:
    return "*" if name is None else glob.escape(name)


def _time_of(stamp: str) -> str:
    date, time = stamp.split("-")
    return f"{date[:4]}-{date[4:6]}-{date[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}"


def _age(record: RunRecord) -> tuple[str, int, str]:
    named = RUN_NAME.fullmatch(record.run)
    return record.started_at, int(named["number"] or 1) if named else 1, record.run


def _only(runs: Sequence[RunRecord], name: str) -> RunRecord:
    if len(runs) > 1:
        raise ConfigError(f"{name}: several runs have this name; give a folder: {', '.join(str(r.path) for r in runs)}")
    return runs[0]


def _finished(runs: Sequence[RunRecord], name: str) -> list[RunRecord]:
    finished = [run for run in runs if run.finished]
    if not finished:
        raise MissingFileError(f"{name}: none of its {len(runs)} runs is finished; go on with run_expid.py --resume")
    return finished
