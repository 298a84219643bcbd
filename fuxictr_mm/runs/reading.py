"""Runs by their folders and names."""

from __future__ import annotations

import filecmp
import glob
import math
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError, nearest
from fuxictr_mm.files import StrPath, read_json
from fuxictr_mm.runs.evaluations import read_lines
from fuxictr_mm.runs.paths import (
    CONFIG,
    DATA,
    ENVIRONMENT,
    METRICS,
    MODEL_CODE,
    RESULT,
    RUN_NAME,
    RunPaths,
    file_of_weights,
)
from fuxictr_mm.runs.result import Result
from fuxictr_mm.runs.run import Run
from fuxictr_mm.yaml_files import load_yaml

Content = TypeVar("Content")


def load_run(name: StrPath, root: StrPath = "checkpoints", *, model_zoo: StrPath | None = None) -> Run:
    """Return a run by its folder, such as ``checkpoints/tiny_mm/DIN_tiny/20260102-030405-seed1``, or by a name.

    Parameters
    ----------
    name : str or path
        An experiment id or the folder of its runs, of which the newest finished one is taken; the name or the folder of
        a run.
    root : path
        The ``model_root`` of the runs, for names.
    model_zoo : path, optional
        A folder of model files to search first, for ``run.predict``.

    Raises
    ------
    MissingFileError
        There is no such run, or none that is finished.
    ConfigError
        The name means runs of several datasets.
    """
    path = Path(name)
    run = read_run(path) if is_run(path) else resolve_one(name, find_runs(root), root)[0]
    return replace(run, model_zoo=model_zoo)


def find_runs(
    root: StrPath = "checkpoints", *, dataset: str | None = None, model: str | None = None, expid: str | None = None
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


def runs_of(paths: RunPaths) -> list[Run]:
    """Return the runs of an experiment, newest first, with unfinished and broken ones."""
    return find_runs(paths.model_root, dataset=paths.dataset_id, expid=paths.expid)


def run_of_weights(paths: RunPaths, weights: Path) -> Run:
    """Return the finished run of an experiment that wrote weights, whose predictions belong to them.

    Raises
    ------
    MissingFileError
        The weights belong to no run with a folder.
    """
    for run in runs_of(paths):
        # One file under two names; a copy of the folder holds it twice.
        if not run.is_usable or not run.weights.exists():
            continue
        if run.weights.samefile(weights) or filecmp.cmp(run.weights, weights, shallow=False):
            return run
    raise MissingFileError(
        f"{weights}: belongs to no finished run with a folder (record: False?), so there are no "
        "validation predictions; train "
        "again"
    )


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return folder.is_dir() and (RUN_NAME.fullmatch(folder.name) is not None or (folder / CONFIG).is_file())


def read_run(folder: StrPath) -> Run:
    """Read the folder of a run; files that cannot be read are named in ``problem``."""
    path = Path(folder).resolve()
    problems: list[str] = []

    def attempt(read: Callable[[Path], Content], name: str, required: bool) -> Content | None:
        if not required and not (path / name).exists():
            return None
        try:
            return read(path / name)
        except UserError as error:
            problems.append(str(error).replace(f"{path}{os.sep}", ""))
            return None

    config = attempt(_read_config, CONFIG, True) or {}
    environment = attempt(read_json, ENVIRONMENT, True) or {}
    if problem := _problem_of_environment(environment):
        problems.append(f"{ENVIRONMENT}: {problem}")
        environment = {}
    attempt(read_lines, METRICS, False)
    finished = attempt(Result.read, RESULT, False)
    result = finished or Result(valid={}, seconds=math.nan)
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
        finished=finished is not None,
        started_at=str(environment.get("started_at") or (_time_of(named["stamp"]) if named else "")),
        seconds=float(result.seconds),
        valid=result.valid,
        test=result.test,
        parameters=result.parameters,
        valid_rows=result.valid_rows,
        problem="; ".join(problems),
    )


def resolve(names: Iterable[StrPath], root: StrPath = "checkpoints") -> list[Run]:
    """Return the runs of several names, each once; see ``resolve_one``."""
    runs = find_runs(root)
    found = {run.path.resolve(): run for name in names for run in resolve_one(name, runs, root)}
    return list(found.values())


def resolve_one(name: StrPath, runs: Sequence[Run], root: StrPath = "checkpoints") -> list[Run]:
    """Return the runs that a name means, newest first.

    It is an experiment id (all its finished runs), the name of a run, or the folder of a run or of an experiment's
    runs; ``runs`` are those of ``find_runs(root)``.

    Raises
    ------
    MissingFileError
        No run has this name.
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
            raise MissingFileError(
                f"{name}: the folder holds no runs; give the folder of an experiment, ROOT/DATASET/EXPID"
            )
        return _finished(inside, name)
    none = "none yet; train first: fuxictr-mm train --expid NAME, or give --root"
    there = ", ".join(sorted({run.expid for run in runs})) or none
    raise MissingFileError(
        f"'{name}': is not an experiment id, a run or a folder of a run below "
        f"{root}{_nearest_run(name, runs)} (there are: {there})"
    )


def _nearest_run(name: str | os.PathLike[str], runs: Sequence[Run]) -> str:
    return nearest(name, [*dict.fromkeys(run.expid for run in runs), *(run.run for run in runs)])


def weights_of(name: str | os.PathLike[str], root: str | os.PathLike[str] = "checkpoints") -> Path:
    """Return the file of weights at a path, or that of the newest run that a name means, as of ``resolve_one``.

    Raises
    ------
    MissingFileError
        There are no weights at the path, and no finished run below ``root`` has this name.
    ConfigError
        The name means runs of several experiments or datasets.
    """
    path = found = file_of_weights(Path(name))
    runs: list[Run] = []
    if not path.is_file():
        with suppress(MissingFileError):
            runs = find_runs(root)
            found = resolve_one(name, runs, root)[0].weights
    if not found.is_file():
        raise MissingFileError(
            f"{found}: no such weights, and no finished run below {root} has this name or experiment id; expected one "
            "of them, a file of weights, or the folder of a run or of fuxictr-mm export-hub (runs are listed by "
            f"fuxictr-mm runs){_nearest_run(name, runs)}"
        )
    return found


def _finished(runs: Sequence[Run], name: str) -> list[Run]:
    finished = [run for run in runs if run.finished]
    if not finished:
        raise MissingFileError(
            f"{name}: none of its {len(runs)} runs is finished; continue the newest: {_command_to_resume(runs[0])}"
        )
    return finished


def _command_to_resume(run: Run) -> str:
    """Return the command line that resumes a run, with the options that it was started with where they are known."""
    given = run.environment.get("command")
    program, *words = map(str, given) if isinstance(given, list) and given else [""]
    if words[:1] == ["train"]:
        words = words[1:]
    elif Path(program).name != "run_expid.py":
        words = ["--expid", run.expid]  # of a notebook, or of a command that trains other things as well
    return shlex.join(["fuxictr-mm", "train", *(word for word in words if word != "--resume"), "--resume"])


def _read_config(path: Path) -> dict[str, Any]:
    config = load_yaml(path)
    if not config:
        raise DataError(f"{path}: is empty, expected the settings of the run")
    return config


def _problem_of_environment(environment: dict[str, Any]) -> str:
    """Return the problem of an environment, empty if none."""
    data, code = environment.get(DATA), environment.get(MODEL_CODE)
    if data is not None and not (isinstance(data, dict) and all(isinstance(v, str) for v in data.values())):
        return f"{DATA} is {data!r}, expected hashes by setting; delete the entry"
    if code is not None and not isinstance(code, str):
        return f"{MODEL_CODE} is {code!r}, expected a hash; delete the entry"
    return ""


def _literal(name: str | None) -> str:
    return "*" if name is None else glob.escape(name)


def _time_of(stamp: str) -> str:
    date, time = stamp.split("-")
    return f"{date[:4]}-{date[4:6]}-{date[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}"


def _age(run: Run) -> tuple[str, int, str]:
    named = RUN_NAME.fullmatch(run.run)
    return run.started_at, int(named["number"] or 1) if named else 1, run.run
