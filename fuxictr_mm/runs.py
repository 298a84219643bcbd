"""Where and with what a run was made."""

from __future__ import annotations

import argparse
import glob
import hashlib
import io
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from fuxictr_mm import __version__
from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.config import VOLATILE_KEYS, config_hash, nearest
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.files import load_yaml, write_beside
from fuxictr_mm.runtime import device_of
from fuxictr_mm.terminal import format_table
from fuxictr_mm.training import distributed
from fuxictr_mm.training.loop import Scored


def environment(gpu: int, started_at: datetime) -> dict[str, Any]:
    """Return versions, device, commit of the working directory and command of this run.

    Parameters
    ----------
    gpu : int
        As in the configuration, -1 for the CPU.
    started_at : datetime
        When the run began.
    """
    device = device_of(gpu)
    return {
        "fuxictr_mm": __version__,
        "fuxictr": _version("fuxictr"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        **commit(),
        "command": sys.argv,
        "started_at": started_at.isoformat(timespec="seconds"),
    }


def commit() -> dict[str, Any]:
    """Return the git commit of the working directory, and whether files differ from it; None where there is no git."""
    head = _git("rev-parse", "HEAD")
    status = None if head is None else _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no repository, or one too large to look through in passing
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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


class RunFolder:
    """The folder of a run that goes on; an ``Observer`` of the training loop.

    Parameters
    ----------
    path : Path
        The folder, from ``begin``.
    params : mapping
        Resolved parameters of the experiment.
    started : float
        When this process began with the run, by ``time.perf_counter()``.
    """

    def __init__(self, path: Path, params: Mapping[str, Any], started: float) -> None:
        self.path = path
        self.params = params
        self.log = path / "run.log"
        self.tensorboard = path / "tensorboard"
        self._started = started
        self._seconds_before = 0.0
        self._metrics: TextIO | None = None

    @classmethod
    def open(cls, params: Mapping[str, Any], started: float, resume: bool = False) -> RunFolder:
        """Make a folder for a run, or go on in the newest unfinished one of the same configuration.

        Raises
        ------
        ConfigError
            The folder cannot be written.
        UserError
            The disk is full.
        """
        runs = Path(params["model_root"]) / params["dataset_id"] / params["model_id"]
        if resume and (unfinished := _newest_unfinished(params)):
            return cls(unfinished, params, started)
        started_at = datetime.now()
        try:
            path = _make_folder(runs, f"{started_at:%Y%m%d-%H%M%S}-seed{params['seed']}")
        except OSError as error:
            raise ConfigError(
                f"{runs}: cannot be written ({error.strerror}); set model_root to a folder of yours"
            ) from error
        try:
            config = yaml.dump(_plain(params), Dumper=_Dumper, allow_unicode=True)
            write_beside(path / CONFIG, lambda stream: stream.write(config.encode()))
            _write_json(path / ENVIRONMENT, environment(params["gpu"], started_at))
        except UserError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return cls(path, params, started)

    @property
    def seconds(self) -> float:
        """Wall time since the run began; what a run that was killed did after its last evaluation does not count."""
        return self._seconds_before + time.perf_counter() - self._started

    def begin(self, step: int) -> None:
        """Go on after ``step`` steps: forget the evaluations beyond them, and a line that was cut off."""
        path = self.path / METRICS
        kept = [line for line in read_lines(path) if line["step"] <= step] if path.exists() else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_beside(path, lambda stream: stream.write(text.encode()))
        self._seconds_before = kept[-1].get("seconds", 0.0) if kept else 0.0
        self._metrics = path.open("a", encoding="utf-8")

    def add_training(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: metrics.jsonl holds evaluations."""

    def add_evaluation(
        self, epoch: int, step: int, training: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Append a line to metrics.jsonl, at once.

        Raises
        ------
        UserError
            The disk is full.
        """
        assert self._metrics is not None
        line = {"epoch": epoch, "step": step, "seconds": round(self.seconds, 3), **training, **metrics}
        try:
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise UserError(f"{self.path / METRICS}: could not be written ({error.strerror})") from error

    def close(self) -> None:
        """End metrics.jsonl."""
        if self._metrics is not None:
            self._metrics.close()

    def finish(self, result: Mapping[str, Any], model: Any, scored: Scored) -> None:
        """Write what a finished run leaves; result.json comes last.

        Parameters
        ----------
        result : mapping
            ``expid``, ``config_hash``, ``valid``, ``test`` and ``seconds``.
        model : BaseModel
            Its best weights are at ``model.checkpoint``.
        scored : Scored
            The validation rows.
        """
        assert scored.label is not None
        columns = {"label": scored.label.to(torch.int8), "prediction": scored.prediction.float(), "group": scored.group}
        arrays = {name: column.cpu().numpy() for name, column in columns.items() if column is not None}
        buffer = io.BytesIO()
        pq.write_table(pa.table(arrays), buffer)
        write_beside(self.path / PREDICTIONS, lambda stream: stream.write(buffer.getbuffer()))
        _link(Path(model.checkpoint), self.path / WEIGHTS)
        params = self.params
        record = {
            **result,
            "finished_at": datetime.now().isoformat(timespec="seconds"),
            "run": self.path.name,
            "model": params["model"],
            "dataset_id": params["dataset_id"],
            "seed": params["seed"],
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "valid_rows": len(arrays["label"]),
            "description": params.get("description"),
        }
        _write_json(self.path / RESULT, record)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that ``load_yaml`` would take for a number, such as 1e-3, which YAML 1.1 does not."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Dumper.add_representer(str, _represent_text)


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of plain types, as ``config_hash`` sees them."""
    return json.loads(json.dumps(params, default=str))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_beside(path, lambda stream: stream.write(json.dumps(content, indent=1).encode() + b"\n"))


def _make_folder(parent: Path, name: str) -> Path:
    """Make a new folder that no other process has made; a number is added to a name that is taken."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("there is always a next number")


def _newest_unfinished(params: Mapping[str, Any]) -> Path | None:
    wanted = config_hash(_plain(params))
    runs = find_runs(params["model_root"], dataset=params["dataset_id"], expid=params["model_id"])
    unfinished = [run for run in runs if not (run.path / RESULT).exists() and run.config]
    return next((run.path for run in unfinished if config_hash(run.config) == wanted), None)


def _link(source: Path, target: Path) -> None:
    """Make a hard link, so that weights take their room once; a copy where the disk has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as weights:
            write_beside(target, lambda stream: shutil.copyfileobj(weights, stream))


#: Metrics of which less is better; all others are better when higher.
FALLING = ("logloss", "binary_crossentropy")


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


def best_first(runs: Sequence[RunRecord], metric: str) -> list[RunRecord]:
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
    return sorted(having, key=lambda run: run.valid[metric], reverse=metric not in FALLING)


def table(runs: Sequence[RunRecord]) -> str:
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
        rows.append([run.run, run.expid, run.dataset_id, seed, *figures, seconds, state(run)])
    return format_table(header, rows, right=["seed", *columns, "seconds"])


def state(run: RunRecord) -> str:
    """Say whether a run is finished, or what is wrong with its folder."""
    if run.problem:
        return f"broken: {run.problem}"
    return "finished" if run.finished else "unfinished"


def as_dict(run: RunRecord) -> dict[str, Any]:
    """Return what the list says of a run, for JSON."""
    names = ("run", "expid", "dataset_id", "model", "seed", "description", "started_at", "valid", "test", "parameters")
    values = {name: getattr(run, name) for name in (*names, "seconds", "finished", "problem")}
    return {**values, "path": str(run.path)}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _none_found(args: argparse.Namespace) -> str:
    everything = find_runs(args.root)
    if not everything:
        return f"no runs below {args.root}; run_expid.py makes them"
    hints = []
    for option, name in (("dataset", "dataset_id"), ("model", "model"), ("expid", "expid")):
        given, known = getattr(args, option), sorted({getattr(run, name) for run in everything})
        if given is not None and given not in known:
            hints.append(f"no run with --{option} {given}{nearest(given, known)} (there are: {', '.join(known)})")
    return "; ".join(hints) or f"none of the {len(everything)} runs below {args.root} is of this kind"


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluations of the newest run of an experiment, in their order.

    Parameters
    ----------
    folder : Path
        ``model_root/DATASET/EXPID``, which holds a folder with ``metrics.jsonl`` for each run.

    Returns
    -------
    list of dict
        One for each step, the metrics by their names; empty where there is no run. A run that went on after a kill may
        have written one twice.
    """
    newest = max(folder.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        return []
    # A line without its end is still being written.
    lines = [line for line in newest.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    evaluations = {evaluation["step"]: evaluation for evaluation in map(json.loads, lines)}
    return [evaluations[step] for step in sorted(evaluations)]
