"""Ensembles: the predictions of several runs, averaged or stacked, saved like the predictions of a run.

Shape letters: n examples, M runs.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from fuxictr_mm.config import check_id
from fuxictr_mm.data.fingerprint import data_hashes
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.evaluation.combine import AVERAGES, averaged, combine, import_lightgbm
from fuxictr_mm.evaluation.compare import runs_of_one_configuration
from fuxictr_mm.files import StrPath, read_json, write_json
from fuxictr_mm.runs import (
    DATA,
    ENSEMBLE,
    FALLING,
    PREDICTIONS,
    RESULT,
    TEST_DATA,
    Predictions,
    Run,
    RunPaths,
    different_files,
    find_runs,
    is_falling,
    read_run,
    resolve_one,
    runs_of,
)
from fuxictr_mm.terminal import format_table

logger = logging.getLogger(__name__)

#: Settings of the runs that an ensemble has as well.
SHARED = (
    "data_format",
    "group_id",
    "label_col",
    "metrics",
    "monitor",
    "monitor_mode",
    "sep",
    "task",
    "train_data",
    "valid_data",
    "test_data",
)


def ensemble(
    names: Sequence[StrPath],
    root: StrPath = "checkpoints",
    *,
    average: str | None = None,
    fit_weights: bool = False,
    stack: bool = False,
    name: str | None = None,
    gpu: int = -1,
    single: bool = True,
) -> Run:
    """Average the predictions of several runs; the result is saved like a run.

    Nothing is chosen by the test rows. Of a run without saved test predictions, or whose test file has changed since,
    they are computed with its weights.

    Parameters
    ----------
    names : sequence of str or path
        Experiment ids (see ``runs_of_one_configuration``), names of runs, or folders of either.
    root : path
        The ``model_root`` of the runs.
    average : {"rank", "logit", "mean"}, optional
        The mean of the ranks over the number of rows, of the logits (as a probability), or of the predictions. By
        default of the ranks, in a regression of the predictions, which allows no other.
    fit_weights : bool
        Fit weights, not negative and with the sum 1, to the AUC of the validation rows, by greedy selection. They are
        the mean over folds of users; the saved validation predictions and metrics are of users that a fold's weights
        were not fitted to.
    stack : bool
        Instead of an average, LightGBM on the logits and ranks of the runs, cross-fitted in the same way.
    name : str, optional
        Experiment id of the ensemble; ``EXPID_ensemble``, or ``ensemble`` for runs of several experiments.
    gpu : int
        For runs without test predictions: index of the GPU, -1 for the CPU.
    single : bool
        Whether the names may mean a single run, which is then returned.

    Returns
    -------
    Run
        The ensemble, or the run itself if the names mean a single one, whose test file has not changed.

    Raises
    ------
    MissingFileError, ConfigError, DataError
        No such runs, runs of different examples, unknown options, or LightGBM is not installed.
    """
    started = time.perf_counter()
    if average is not None and average not in AVERAGES:
        raise ConfigError(f"--average is '{average}', expected one of {', '.join(AVERAGES)}")
    if stack and fit_weights:
        raise ConfigError("--stack is already fitted to the validation rows; remove --fit-weights")
    if name is not None:
        check_id(name, "--name:")
    if stack:
        import_lightgbm()
    runs = _members([names] if isinstance(names, str | os.PathLike) else names, root)
    average = _average_of(runs, average, fit_weights or stack)
    _check_ensembles(runs, "logit" if stack else average)
    if len(runs) == 1 and not single:
        raise ConfigError(
            f"{runs[0].path}: a single run, so nothing is averaged; give several, or remove --average, "
            "--fit-weights, --stack and --name"
        )
    if len(runs) == 1 and not _has_another_test_file(runs[0]):
        logger.info(f"{runs[0].path}: a single run, so nothing is averaged")
        read_test_predictions(runs, gpu)
        return runs[0]
    if name is None:
        name = f"{runs[0].expid}_ensemble" if len({run.expid for run in runs}) == 1 else "ensemble"
    paths = RunPaths(Path(root), runs[0].dataset_id, name)
    check_is_free(paths)
    valid = read_valid_predictions(runs)
    test = read_test_predictions(runs, gpu)
    combined, combined_test, weights = combine(valid, test, average, fit_weights, stack)
    how = "stack" if stack else average
    description = f"{how} of {len(runs)} runs" + (", weights fitted on valid" if fit_weights else "")
    return combined_run(
        runs, paths, description, how, combined, combined_test, started, fit_weights=fit_weights, weights=weights
    )


def _average_of(runs: Sequence[Run], average: str | None, fitted: bool) -> str:
    """Return what is averaged; values of a regression only themselves, since they are not probabilities.

    Raises
    ------
    ConfigError
        Another average, or a fitted combination, of a regression; runs of a regression and of a classification.
    """
    numeric = next((run for run in runs if run.is_regression()), None)
    if numeric is None:
        return average or AVERAGES[0]
    if other := next((run for run in runs if not run.is_regression()), None):
        raise ConfigError(
            f"{numeric.path}: the task is a regression, and {other.path} is a classification; average runs of one task"
        )
    if fitted or average not in (None, "mean"):
        raise ConfigError(
            f"{numeric.path}: the task is a regression; its values can only be averaged, by --average mean"
        )
    return "mean"


def check_is_free(paths: RunPaths) -> None:
    """Check that the name of an ensemble is not that of an experiment.

    Raises
    ------
    ConfigError
        A run of an experiment has the name.
    """
    if other := next((run for run in runs_of(paths) if run.model != ENSEMBLE), None):
        raise ConfigError(
            f"{other.path}: a run of the experiment {paths.expid}; give the ensemble another name with --name"
        )


def combined_run(
    runs: Sequence[Run],
    paths: RunPaths,
    description: str,
    how: str,
    valid: Predictions,
    test: Predictions | None,
    started: float,
    *,
    fit_weights: bool = False,
    weights: np.ndarray | None = None,
) -> Run:
    """Save predictions that were combined of those of several runs like a run.

    ``how`` is one of ``AVERAGES`` or ``stack``; ``weights`` ``(M,)`` are those of an average; ``started`` is the
    ``time.perf_counter`` of the beginning.
    """
    from fuxictr_mm.training.callbacks import new_folder  # which imports torch

    config = {
        **{key: runs[0].config[key] for key in SHARED if key in runs[0].config},
        "model_id": paths.expid,
        "dataset_id": runs[0].dataset_id,
        "model": ENSEMBLE,
        "model_root": str(paths.model_root),
        "seed": None,
        "description": description,
        "average": how,
        "fit_weights": fit_weights,
        "members": [str(run.path) for run in runs],
    }
    of_test = None
    if test is not None and test.label is not None and len(np.unique(test.label)) > 1:
        of_test = _metrics(test, runs[0], how, "test")
    result = {
        "expid": paths.expid,
        "valid": _metrics(valid, runs[0], how),
        "test": of_test,
        "seconds": time.perf_counter() - started,
        "parameters": sum(run.parameters or 0 for run in runs),
        "valid_rows": len(valid.prediction),
        "weights": None if weights is None else dict(zip(config["members"], weights.tolist(), strict=True)),
    }
    shared = {k: v for k, v in runs[0].data.items() if all(run.data.get(k) == v for run in runs)}
    data = {**shared, TEST_DATA: _test_file(runs[0])}
    path = new_folder(paths, config, {DATA: {k: v for k, v in data.items() if v}})
    for split, rows in (("valid", valid), ("test", test)):
        if rows is not None:
            rows.write(path / PREDICTIONS[split])
    finished_at = datetime.now().isoformat(timespec="seconds")
    named = {"run": path.name, "model": ENSEMBLE, "dataset_id": config["dataset_id"]}
    write_json(path / RESULT, {**result, **named, "finished_at": finished_at})
    return read_run(path)


def _members(names: Sequence[StrPath], root: StrPath) -> list[Run]:
    if not names:
        raise ConfigError("ensemble: no name is given; give experiment ids, runs or folders, in one list")
    known, notes = find_runs(root), list[str]()
    found: dict[Path, Run] = {}
    for name in names:
        for run in runs_of_one_configuration(resolve_one(name, known, root), os.fspath(name), notes):
            found.setdefault(run.path.resolve(), run)
    runs = sorted(found.values(), key=lambda run: (run.expid, run.seed or 0, run.run))
    named: dict[str, Run] = {}
    for run in runs:
        if named.setdefault(run.expid, run).config_key != run.config_key:
            named[run.run] = run
    for note in [*notes, *different_files(named)]:
        logger.warning(note)
    if datasets := {run.dataset_id for run in runs} - {runs[0].dataset_id}:
        raise ConfigError(
            f"runs on several datasets, {runs[0].dataset_id} and {datasets.pop()}; average runs on one dataset"
        )
    return runs


def _check_ensembles(runs: Sequence[Run], average: str) -> None:
    """Refuse ensembles among the runs whose predictions cannot be averaged, or are not there."""
    for run in runs:
        if run.model != ENSEMBLE:
            continue
        members = " ".join(str(member) for member in run.config.get("members", []))
        if run.config.get(TEST_DATA) and (
            _has_another_test_file(run) or not (run.path / PREDICTIONS["test"]).is_file()
        ):
            raise ConfigError(
                f"{run.path}: an ensemble has no weights to score {run.config[TEST_DATA]} with; average its runs: "
                f"--runs {members}"
            )
        if len(runs) > 1 and average != "rank" and run.config.get("average") == "rank":
            raise ConfigError(
                f"{run.path}: its predictions are ranks, but --average {average} needs probabilities; give "
                f"its runs instead, --runs {members}, or --average rank"
            )


def read_valid_predictions(runs: Sequence[Run]) -> list[Predictions]:
    """Return the predictions of runs for the validation rows.

    Raises
    ------
    MissingFileError, DataError
        A run has none, or they are of other rows.
    """
    return _align(runs, [run.predictions() for run in runs], "valid")


def read_test_predictions(runs: Sequence[Run], gpu: int = -1) -> list[Predictions] | None:
    """Return the predictions of runs for the test rows; None if no run has a test file.

    Missing ones are computed and saved. Those of a file that has changed since are computed, and the run keeps its own.

    Raises
    ------
    UserError
        They are of other rows, cannot be computed, or some runs have a test file and others have none.
    """
    without = [run for run in runs if not run.config.get(TEST_DATA)]
    if len(without) == len(runs):
        return None
    if without:
        other = next(run for run in runs if run.config.get(TEST_DATA))
        raise ConfigError(
            f"{without[0].path}: trained without test_data, and {other.path} with {other.config[TEST_DATA]}; leave it "
            "out, or train it again with test_data"
        )
    files = {file: run for run in runs if (file := _test_file(run))}
    if len(files) > 1:  # as one with labels, and one without
        names = ", ".join(f"{run.config[TEST_DATA]} of {run.path}" for run in files.values())
        logger.warning(f"test files differ; their rows are assumed to be the same, in the same order: {names}")
    rows: list[Predictions] = []
    for run in runs:
        saved = run.path / PREDICTIONS["test"]
        if _has_another_test_file(run):
            logger.info(f"{run.path}: {run.config[TEST_DATA]} has changed since; it is scored with the run's weights")
            rows.append(Predictions(None, run.predict(gpu=gpu), None))
            continue
        if not saved.is_file():
            logger.info(f"{run.path}: test rows are scored with its weights")
            Predictions(None, run.predict(gpu=gpu), None).write(saved)
        rows.append(run.predictions("test"))
    return _align(runs, rows, "test")


def _test_file(run: Run) -> str | None:
    """Return the hash of a run's test file as it is now; where it is gone, as it was; None if that is unknown."""
    now = data_hashes({key: run.config.get(key) for key in (TEST_DATA, "data_format")})
    return now.get(TEST_DATA, run.data.get(TEST_DATA))


def _has_another_test_file(run: Run) -> bool:
    return run.data.get(TEST_DATA, file := _test_file(run)) != file


def _align(runs: Sequence[Run], rows: Sequence[Predictions], split: str) -> list[Predictions]:
    """Return the predictions of runs of the same rows, with the label and the group that any of them knows."""
    label = next((found.label for found in rows if found.label is not None), None)
    group = next((found.group for found in rows if found.group is not None), None)
    expected = Predictions(label, rows[0].prediction, group)
    for run, found in zip(runs, rows, strict=True):
        if reason := found.difference_of_rows(expected):
            raise DataError(
                f"{run.path}: its {split} rows differ from those of {runs[0].path}: {reason}; average runs "
                "on the same file"
            )
    return [Predictions(label, found.prediction, group) for found in rows]


def _metrics(rows: Predictions, like: Run, how: str, split: str = "valid") -> dict[str, float]:
    """Return the metrics of the runs that are defined; of ranks without those of probabilities, but always one."""
    import torch

    from fuxictr_mm.metrics import evaluate_metrics, find_undefined, leave_out

    names = [name for name in like.valid if how != "rank" or name not in FALLING] or ["AUC"]
    label = torch.tensor(rows.label)
    group = None if rows.keys is None else torch.tensor(rows.keys.astype(np.int64))
    names = leave_out(names, find_undefined(label, names, group), f"{like.path}: {split}")
    return dict(evaluate_metrics(label, rows.prediction, names, group))


def refuse_ensemble(expid: str) -> None:
    """Raise an error if an experiment id is that of an ensemble.

    Raises
    ------
    ConfigError
        It is an ensemble, which has no weights; the error names the best of its experiments and its configuration.
    """
    run = next((run for run in find_runs(expid=expid) if run.model == ENSEMBLE and run.is_usable), None)
    members = [read_run(path) for path in run.config.get("members", [])] if run else []
    if run is None or not members:
        return
    metric = next(iter(run.valid), "")
    sign = -1 if is_falling(metric) else 1
    best = max(members, key=lambda member: sign * member.valid.get(metric, -sign * math.inf))
    words = [str(word) for word in best.environment.get("command") or []]
    where = next((f" --config {quote(b)}" for a, b in itertools.pairwise(words) if a == "--config"), "")  # of a trial
    name, weights = best.expid, ""
    if fold := best.config.get("fold"):  # which is no entry of model_config.yaml
        name, weights = name.removesuffix(f"_fold{fold['number']}"), f" --weights {quote(str(best.path))}"
    raise ConfigError(
        f"{expid}: an ensemble of {len(members)} runs, which has no weights; use one of its "
        f"experiments, such as the best: --expid {quote(name)}{weights}{where}"
    )


def describe_ensemble(run: Run) -> list[str]:
    """Return the summary of an ensemble: the validation AUC of the runs, their weights, and that of the ensemble.

    Raises
    ------
    UserError
        Files of its runs are missing.
    """
    if run.model != ENSEMBLE:
        return []
    members = [read_run(path) for path in run.config["members"]]
    metric = next((name for name in ("AUC", *run.valid) if name in run.valid), None)
    if metric is None:
        raise MissingFileError(f"{run.path}: no metrics")
    weights = read_json(run.path / RESULT)["weights"] or {}
    rows: list[list[Any]] = []
    for member in members:
        weight = weights.get(str(member.path))
        rows.append([f"{member.expid} {member.run}", _shown(member.valid.get(metric)), _shown(weight, 3)])
    cross_fitted = run.config["fit_weights"] or run.config["average"] == "stack"
    rows.append([f"{run.expid} ({run.config['average']})", _shown(run.valid[metric]), None])
    lines = [format_table(["run", f"valid {metric}", "weight"], rows, right=[f"valid {metric}", "weight"])]
    if not cross_fitted:
        return lines
    rows_of_members = read_valid_predictions(members)
    average = run.config["average"] if run.config["average"] in AVERAGES else AVERAGES[0]
    plain = _metrics(averaged(rows_of_members, average), run, "rank")
    if metric in plain:
        sign = -1 if metric in FALLING else 1
        gain = sign * (run.valid[metric] - plain[metric])
        by = "users" if rows_of_members[0].group is not None else "rows"
        lines.append(
            f"cross-fitted by {by}: valid {metric} {run.valid[metric]:.4f}, with equal weights {plain[metric]:.4f}"
            + ("" if gain > 0 else "; equal weights are not worse, so prefer them")
        )
    return lines


def _shown(value: float | None, digits: int = 4) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
