"""Combination of the predictions of several runs: averages, fitted weights, and a stack of trees.

Shape letters: n examples, M runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.evaluation.calibration import MARGIN, folds
from fuxictr_mm.evaluation.intervals import Ranking
from fuxictr_mm.runs import Predictions

#: How predictions are averaged; the first is the default.
AVERAGES = ("rank", "logit", "mean")

#: Most runs that the greedy selection of weights adds.
ROUNDS = 50

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


def transform(predictions: np.ndarray, average: str) -> np.ndarray:
    """Return what is averaged, ``(M, n)`` float64: ranks over n, logits, or the predictions ``(M, n)`` themselves.

    Raises
    ------
    DataError
        Logits of predictions that are not probabilities.

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
        raise DataError(
            f"predictions are {values.min():g} to {values.max():g}, expected probabilities; use --average rank"
        )
    clipped = values.clip(MARGIN, 1 - MARGIN)
    return np.log(clipped) - np.log1p(-clipped)


def equal_weights(count: int) -> np.ndarray:
    """Return the weights ``(M,)`` of a plain mean."""
    return np.full(count, 1 / count)


def weighted_mean(values: np.ndarray, weights: np.ndarray, average: str) -> np.ndarray:
    """Return the average ``(n,)`` of values ``(M, n)`` from ``transform``, of logits as probabilities."""
    mean = weights @ values
    return 1 / (1 + np.exp(-mean)) if average == "logit" else mean


def greedy_weights(label: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return weights ``(M,)``, not negative and with the sum 1, of a high AUC of values ``(M, n)`` from ``transform``.

    The run that raises the AUC most is added, with replacement, until none does; the weights are the counts. Caruana,
    Niculescu-Mizil, Crew and Ksikes, ICML 2004, https://doi.org/10.1145/1015330.1015432.
    """
    counts, total, best = np.zeros(len(values)), np.zeros(values.shape[1]), -1.0
    for _ in range(ROUNDS):
        aucs = [Ranking(label, total + value).value for value in values]
        chosen = int(np.argmax(aucs))
        if aucs[chosen] <= best:
            break
        best = aucs[chosen]
        counts[chosen] += 1
        total += values[chosen]
    return counts / counts.sum()


def combine(
    valid: Sequence[Predictions], test: Sequence[Predictions] | None, average: str, fit_weights: bool, stack: bool
) -> tuple[Predictions, Predictions | None, np.ndarray | None]:
    """Return the combined predictions of M runs for valid and test rows, float32, and the weights of an average."""
    label = valid[0].label
    assert label is not None
    if not fit_weights and not stack:
        return averaged(valid, average), averaged(test, average) if test else None, equal_weights(len(valid))
    fold = folds(label, valid[0].group)
    if stack:
        return *_cross_fit_stack(valid, test, fold), None
    values = transform(stacked(valid), average)
    of_valid, found = np.empty(len(fold)), []
    for held in _held_out(fold):
        found.append(greedy_weights(label[~held], values[:, ~held]))
        of_valid[held] = weighted_mean(values[:, held], found[-1], average)
    weights = np.mean(found, axis=0)
    return _with(valid, of_valid), averaged(test, average, weights) if test else None, weights


def stacked(runs: Sequence[Predictions]) -> np.ndarray:
    """Return the predictions of M runs, ``(M, n)``."""
    return np.stack([run.prediction for run in runs])


def averaged(runs: Sequence[Predictions], average: str, weights: np.ndarray | None = None) -> Predictions:
    """Return the averaged predictions of runs, float32, with equal weights by default."""
    if weights is None:
        weights = equal_weights(len(runs))
    return _with(runs, weighted_mean(transform(stacked(runs), average), weights, average))


def _with(runs: Sequence[Predictions], prediction: np.ndarray) -> Predictions:
    """Return other predictions of the rows of runs."""
    return Predictions(runs[0].label, prediction.astype(np.float32), runs[0].group)


def _held_out(fold: np.ndarray) -> list[np.ndarray]:
    return [fold == number for number in range(int(fold.max()) + 1)]


def _cross_fit_stack(
    valid: Sequence[Predictions], test: Sequence[Predictions] | None, fold: np.ndarray
) -> tuple[Predictions, Predictions | None]:
    lightgbm = import_lightgbm()
    label, inputs, of_valid = valid[0].label, _stack_inputs(valid), np.empty(len(fold))
    assert label is not None
    test_inputs = _stack_inputs(test) if test else None
    of_test: Any = 0
    held_out = _held_out(fold)
    for held in held_out:
        data = lightgbm.Dataset(inputs[~held], label[~held])
        model = lightgbm.train(STACK, data, TREES)
        of_valid[held] = model.predict(inputs[held])
        if test:
            of_test += model.predict(test_inputs) / len(held_out)
    return _with(valid, of_valid), _with(test, of_test) if test else None


def _stack_inputs(runs: Sequence[Predictions]) -> np.ndarray:
    """Return logits and ranks of all runs, ``(n, 2 M)``."""
    return np.concatenate([transform(stacked(runs), "logit"), transform(stacked(runs), "rank")]).T


def import_lightgbm() -> Any:
    """Return LightGBM, or raise a ConfigError if it is not installed."""
    try:
        import lightgbm
    except ImportError:
        raise ConfigError('--stack needs LightGBM, which is not installed: pip install "fuxictr-mm[stack]"') from None
    except OSError as error:  # the OpenMP library, which is part of the system
        raise ConfigError(f"--stack needs LightGBM, which cannot be loaded ({error}); install libgomp1") from None
    return lightgbm
