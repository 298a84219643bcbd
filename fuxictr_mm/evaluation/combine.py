"""Combination of the predictions of several runs: averages, fitted weights, and a stack of trees.

Shape letters: n examples, M runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.evaluation.calibration import MARGIN, folds
from fuxictr_mm.evaluation.significance import Ranking

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


def combine(
    valid: Examples, test: Examples | None, average: str, fit_weights: bool, stack: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the combined predictions of valid and test rows, float32, and the weights of an average."""
    assert valid.label is not None
    if not fit_weights and not stack:
        return averaged(valid, average), averaged(test, average), equal_weights(len(valid.predictions))
    fold = folds(valid.label, valid.group)
    if stack:
        return *_cross_fit_stack(valid, test, fold), None
    values = transform(valid.predictions, average)
    of_valid, found = np.empty(len(fold)), []
    for held in _held_out(fold):
        found.append(greedy_weights(valid.label[~held], values[:, ~held]))
        of_valid[held] = weighted_mean(values[:, held], found[-1], average)
    weights = np.mean(found, axis=0)
    return of_valid.astype(np.float32), averaged(test, average, weights), weights


def averaged(examples: Examples | None, average: str, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the averaged predictions, float32, with equal weights by default; empty without examples."""
    if examples is None:
        return np.empty(0, dtype=np.float32)
    if weights is None:
        weights = equal_weights(len(examples.predictions))
    return weighted_mean(transform(examples.predictions, average), weights, average).astype(np.float32)


def _held_out(fold: np.ndarray) -> list[np.ndarray]:
    return [fold == number for number in range(int(fold.max()) + 1)]


def _cross_fit_stack(valid: Examples, test: Examples | None, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lightgbm = import_lightgbm()
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


def import_lightgbm() -> Any:
    """Return LightGBM, or raise a ConfigError if it is not installed."""
    try:
        import lightgbm
    except ImportError:
        raise ConfigError('--stack needs LightGBM, which is not installed: pip install "fuxictr-mm[stack]"') from None
    except OSError as error:  # the OpenMP library, which is part of the system
        raise ConfigError(f"--stack needs LightGBM, which cannot be loaded ({error}); install libgomp1") from None
    return lightgbm
