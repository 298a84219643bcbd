"""Ensembles: the predictions of several runs, averaged or stacked, saved like the predictions of a run.

Shape letters: n examples, M runs, F folds.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm.config import check_id
from fuxictr_mm.data.fingerprint import data_hashes
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.evaluation.calibration import MARGIN, folds
from fuxictr_mm.evaluation.compare import runs_of_one_configuration
from fuxictr_mm.evaluation.significance import Ranking
from fuxictr_mm.files import write_beside, write_json
from fuxictr_mm.runs import (
    CONFIG,
    DATA,
    ENSEMBLE,
    ENVIRONMENT,
    FALLING,
    PREDICTIONS,
    RESULT,
    TEST_DATA,
    Run,
    RunPaths,
    different_files,
    find_runs,
    read_run,
    resolve_one,
    runs_of,
    write_predictions,
)
from fuxictr_mm.yaml_files import dump_yaml

logger = logging.getLogger(__name__)

#: How predictions are averaged; the first is the default.
AVERAGES = ("rank", "logit", "mean")

#: Most runs that the greedy selection of weights adds.
ROUNDS = 50

#: Settings of the runs that an ensemble has as well.
SHARED = (
    "data_format",
    "group_id",
    "label_col",
    "metrics",
    "monitor",
    "monitor_mode",
    "task",
    "train_data",
    "valid_data",
    "test_data",
)

#: Settings of LightGBM: few and small trees, since the inputs are few and good already.
STACK = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 7,
    "min_data_in_leaf": 50,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "seed": 0,
    "verbosity": -1,
}

#: Trees of the stack.
TREES = 100


@dataclass(frozen=True)
class Examples:
    """The predictions of all runs for a split.

    Parameters
    ----------
    label, group : ndarray or None
        ``(n,)``
    predictions : ndarray
        ``(M, n)`` float32.
    """

    label: np.ndarray | None
    group: np.ndarray | None
    predictions: np.ndarray


def ensemble(
    names: Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str] = "checkpoints",
    *,
    average: str = "rank",
    fit_weights: bool = False,
    stack: bool = False,
    name: str | None = None,
    gpu: int = -1,
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
    average : {"rank", "logit", "mean"}
        The mean of the ranks over the number of rows, of the logits (as a probability), or of the probabilities.
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
    if average not in AVERAGES:
        raise ConfigError(f"--average is '{average}', expected one of {', '.join(AVERAGES)}")
    if stack and fit_weights:
        raise ConfigError("--stack fits to the validation rows already; leave --fit-weights out")
    if name is not None:
        check_id(name, "--name:")
    if stack:
        _lightgbm()
    runs = _members(names, root)
    if len(runs) == 1 and not _has_another_test_file(runs[0]):
        logger.info(f"{runs[0].path}: a single run, nothing to average")
        read_test_predictions(runs, gpu)
        return runs[0]
    name = name or _default_name(runs)
    paths = RunPaths(Path(root), runs[0].dataset_id, name)
    check_is_free(paths)
    valid = read_valid_predictions(runs)
    test = read_test_predictions(runs, gpu)
    combined, combined_test, weights = _combine(valid, test, average, fit_weights, stack)
    how = "stack" if stack else average
    description = f"{how} of {len(runs)} runs" + (", weights fitted on valid" if fit_weights else "")
    splits = (valid, combined), (test, combined_test)
    return combined_run(runs, paths, description, how, *splits, started, fit_weights=fit_weights, weights=weights)


def check_is_free(paths: RunPaths) -> None:
    """Refuse the name of an experiment for an ensemble.

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
    valid: tuple[Examples, np.ndarray],
    test: tuple[Examples | None, np.ndarray],
    started: float,
    *,
    fit_weights: bool = False,
    weights: np.ndarray | None = None,
) -> Run:
    """Save predictions that were combined of those of several runs like a run.

    Parameters
    ----------
    runs : sequence of Run
        What they were combined of.
    paths : RunPaths
        Where it is written, and its experiment id.
    description : str
        A line on it.
    how : str
        One of ``AVERAGES``, or ``stack``.
    valid, test : tuple of Examples and ndarray
        The examples of a split, and the combined predictions ``(n,)``; test examples may be None.
    started : float
        ``time.perf_counter`` at the beginning.
    fit_weights : bool
        Whether weights were fitted.
    weights : ndarray, optional
        ``(M,)``, of an average.
    """
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
    result = {
        "expid": paths.expid,
        "valid": _metrics(valid[0], valid[1], runs[0], how),
        "test": None if test[0] is None or test[0].label is None else _metrics(test[0], test[1], runs[0], how),
        "seconds": time.perf_counter() - started,
        "parameters": sum(run.parameters or 0 for run in runs),
        "valid_rows": len(valid[1]),
        "weights": None if weights is None else dict(zip(config["members"], weights.tolist(), strict=True)),
    }
    shared = {k: v for k, v in runs[0].data.items() if all(run.data.get(k) == v for run in runs)}
    data = {**shared, TEST_DATA: _test_file(runs[0])}
    return _write(paths, config, result, {k: v for k, v in data.items() if v}, valid, test)


def _members(names: Sequence[str | os.PathLike[str]], root: str | os.PathLike[str]) -> list[Run]:
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
        raise ConfigError(f"runs on several datasets, {runs[0].dataset_id} and {datasets.pop()}; average those of one")
    return runs


def _default_name(runs: Sequence[Run]) -> str:
    expids = {run.expid for run in runs}
    return f"{expids.pop()}_ensemble" if len(expids) == 1 else "ensemble"


def read_valid_predictions(runs: Sequence[Run]) -> Examples:
    """Return the predictions of runs for the validation rows.

    Raises
    ------
    MissingFileError, DataError
        A run has none, or they are of other rows.
    """
    return _align(runs, [run.predictions() for run in runs], "valid")


def read_test_predictions(runs: Sequence[Run], gpu: int = -1) -> Examples | None:
    """Return the predictions of runs for the test rows; None without test rows.

    Missing ones are computed and saved. Those of a file that has changed since are computed, and the run keeps its own.

    Raises
    ------
    UserError
        They are of other rows, or cannot be computed.
    """
    if not all(run.config.get(TEST_DATA) for run in runs):
        return None
    files = {file: run for run in runs if (file := _test_file(run))}
    if len(files) > 1:  # as one with labels, and one without
        names = ", ".join(f"{run.config[TEST_DATA]} of {run.path}" for run in files.values())
        logger.warning(f"test files differ; their rows are taken for the same, in the same order: {names}")
    rows: list[tuple[np.ndarray | None, np.ndarray, np.ndarray | None]] = []
    for run in runs:
        saved = run.path / PREDICTIONS["test"]
        if _has_another_test_file(run):
            logger.info(f"{run.path}: {run.config[TEST_DATA]} has changed since; it is scored with the run's weights")
            rows.append((None, run.predict(gpu=gpu), None))
            continue
        if not saved.is_file():
            logger.info(f"{run.path}: test rows are scored with its weights")
            write_predictions(saved, prediction=run.predict(gpu=gpu))
        rows.append(run.predictions("test"))
    return _align(runs, rows, "test")


def _test_file(run: Run) -> str | None:
    """Return the hash of a run's test file as it is now; where it is gone, as it was; None if that is unknown."""
    now = data_hashes({key: run.config.get(key) for key in (TEST_DATA, "data_format")})
    return now.get(TEST_DATA, run.data.get(TEST_DATA))


def _has_another_test_file(run: Run) -> bool:
    return run.data.get(TEST_DATA, file := _test_file(run)) != file


def _align(
    runs: Sequence[Run], rows: Sequence[tuple[np.ndarray | None, np.ndarray, np.ndarray | None]], split: str
) -> Examples:
    from fuxictr_mm.data.groups import group_keys, partition_of

    label = next((found for found, _, _ in rows if found is not None), None)
    group = next((found for _, _, found in rows if found is not None), None)
    for run, (labels, prediction, groups) in zip(runs, rows, strict=True):
        reason = ""
        if len(prediction) != len(rows[0][1]):
            reason = f"{len(prediction)} against {len(rows[0][1])}"
        elif labels is not None and label is not None and not np.array_equal(labels, label):
            reason = f"labels differ, first in row {int(np.argmax(labels != label))}"
        elif groups is not None and group is not None and not np.array_equal(partition_of(groups), partition_of(group)):
            reason = f"groups differ, first in row {int(np.argmax(group_keys(groups) != group_keys(group)))}"
        if reason:
            raise DataError(
                f"{run.path}: its {split} rows are others than those of {runs[0].path}: {reason}; average runs of one "
                "file"
            )
    return Examples(label, group, np.stack([prediction for _, prediction, _ in rows]))


def transform(predictions: np.ndarray, average: str) -> np.ndarray:
    """Return what is averaged, ``(M, n)`` float64: ranks over n, logits, or the predictions ``(M, n)`` themselves.

    Raises
    ------
    DataError
        Logits of predictions that are no probabilities.

    Examples
    --------
    >>> transform(np.array([[0.1, 0.5, 0.5, 0.9]]), "rank").tolist()
    [[0.25, 0.625, 0.625, 1.0]]
    """
    values = predictions.astype(np.float64)
    if average == "mean":
        return values
    if average == "rank":
        from scipy.stats import rankdata

        return rankdata(values, axis=1) / values.shape[1]
    if values.min() < 0 or values.max() > 1:
        raise DataError(f"predictions are {values.min():g} to {values.max():g}, no probabilities; use --average rank")
    clipped = values.clip(MARGIN, 1 - MARGIN)
    return np.log(clipped) - np.log1p(-clipped)


def _average(values: np.ndarray, weights: np.ndarray, average: str) -> np.ndarray:
    mean = weights @ values
    return 1 / (1 + np.exp(-mean)) if average == "logit" else mean


def greedy_weights(label: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return weights ``(M,)``, not negative and with the sum 1, of a high AUC.

    The run that raises the AUC most is added, with replacement, until none does; the weights are the counts. Caruana,
    Niculescu-Mizil, Crew and Ksikes, ICML 2004, https://doi.org/10.1145/1015330.1015432.

    Parameters
    ----------
    label : ndarray
        ``(n,)``
    values : ndarray
        ``(M, n)`` from ``transform``.
    """
    counts, total, best = np.zeros(len(values)), np.zeros(values.shape[1]), -1.0
    for _ in range(ROUNDS):
        aucs = [Ranking(label, total + value).auc for value in values]
        chosen = int(np.argmax(aucs))
        if aucs[chosen] <= best:
            break
        best = aucs[chosen]
        counts[chosen] += 1
        total += values[chosen]
    return counts / counts.sum()


def _combine(
    valid: Examples, test: Examples | None, average: str, fit_weights: bool, stack: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the combined predictions of valid and test rows, float32, and the weights of an average."""
    assert valid.label is not None
    if not fit_weights and not stack:
        weights = np.full(len(valid.predictions), 1 / len(valid.predictions))
        of_valid = _average(transform(valid.predictions, average), weights, average)
        return of_valid.astype(np.float32), of_test(test, average, weights), weights
    fold = folds(valid.group, len(valid.label))
    if stack:
        return *_cross_fit_stack(valid, test, fold), None
    values = transform(valid.predictions, average)
    of_valid, found = np.empty(len(fold)), []
    for held in _held_out(fold):
        found.append(greedy_weights(valid.label[~held], values[:, ~held]))
        of_valid[held] = _average(values[:, held], found[-1], average)
    weights = np.mean(found, axis=0)
    return of_valid.astype(np.float32), of_test(test, average, weights), weights


def of_test(test: Examples | None, average: str, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the averaged predictions of the test rows, float32, with equal weights by default; empty without rows."""
    if test is None:
        return np.empty(0, dtype=np.float32)
    if weights is None:
        weights = np.full(len(test.predictions), 1 / len(test.predictions))
    return _average(transform(test.predictions, average), weights, average).astype(np.float32)


def _held_out(fold: np.ndarray) -> list[np.ndarray]:
    return [fold == number for number in range(int(fold.max()) + 1)]


def _cross_fit_stack(valid: Examples, test: Examples | None, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lightgbm = _lightgbm()
    inputs, of_valid = _stack_inputs(valid), np.empty(len(fold))
    test_inputs = None if test is None else _stack_inputs(test)
    of_test = np.zeros(0 if test_inputs is None else len(test_inputs))
    held_out = _held_out(fold)
    for held in held_out:
        data = lightgbm.Dataset(inputs[~held], valid.label[~held])  # type: ignore[index]
        model = lightgbm.train(STACK, data, TREES)
        of_valid[held] = model.predict(inputs[held])
        if test_inputs is not None:
            of_test += model.predict(test_inputs) / len(held_out)
    return of_valid.astype(np.float32), of_test.astype(np.float32)


def _stack_inputs(examples: Examples) -> np.ndarray:
    """Return logits and ranks of all runs, ``(n, 2 M)``."""
    return np.concatenate([transform(examples.predictions, "logit"), transform(examples.predictions, "rank")]).T


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise ConfigError('--stack needs LightGBM, which is not installed: pip install "fuxictr-mm[stack]"') from None
    return lightgbm


def _metrics(examples: Examples, prediction: np.ndarray, like: Run, how: str) -> dict[str, float]:
    """Return the metrics of the runs; of ranks without those of probabilities."""
    from fuxictr_mm.metrics import evaluate_metrics

    names = [name for name in like.valid if how != "rank" or name not in FALLING]
    return dict(evaluate_metrics(examples.label, prediction, names, examples.group))


def _write(
    paths: RunPaths,
    config: dict[str, Any],
    result: dict[str, Any],
    data: dict[str, str],
    valid: tuple[Examples, np.ndarray],
    test: tuple[Examples | None, np.ndarray],
) -> Run:
    from fuxictr_mm.training.callbacks import environment

    started_at = datetime.now()
    path = paths.new_run(0, started_at)
    write_beside(path / CONFIG, lambda stream: stream.write(dump_yaml(dict(sorted(config.items()))).encode()))
    write_json(path / ENVIRONMENT, {**environment(-1, started_at), DATA: data})
    for split, (examples, prediction) in (("valid", valid), ("test", test)):
        if examples is not None:
            target = path / PREDICTIONS[split]
            write_predictions(target, prediction=prediction, label=examples.label, group=examples.group)
    finished_at = datetime.now().isoformat(timespec="seconds")
    named = {"run": path.name, "model": ENSEMBLE, "dataset_id": config["dataset_id"]}
    write_json(path / RESULT, {**result, **named, "finished_at": finished_at})
    return read_run(path)


def describe(run: Run) -> list[str]:
    """Return lines on an ensemble: the validation AUC of the runs, their weights, and that of the ensemble.

    Raises
    ------
    UserError
        Files of its runs are gone.
    """
    from fuxictr_mm.files import read_json
    from fuxictr_mm.terminal import format_table

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
    examples = read_valid_predictions(members)
    average = run.config["average"] if run.config["average"] in AVERAGES else AVERAGES[0]
    equal = np.full(len(members), 1 / len(members))
    plain = _metrics(examples, _average(transform(examples.predictions, average), equal, average), run, "rank")
    if metric in plain:
        sign = -1 if metric in FALLING else 1
        gain = sign * (run.valid[metric] - plain[metric])
        by = "users" if examples.group is not None else "rows"
        lines.append(
            f"cross-fitted by {by}: valid {metric} {run.valid[metric]:.4f}, with equal weights {plain[metric]:.4f}"
            + ("" if gain > 0 else "; equal weights are no worse, so prefer them")
        )
    return lines


def _shown(value: float | None, digits: int = 4) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
