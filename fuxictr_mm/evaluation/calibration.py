"""Calibration of predicted probabilities on the validation rows: Platt scaling, isotonic regression, beta calibration.

Shape letters: R rows, K bins.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import write_json
from fuxictr_mm.runs import CALIBRATION, Run

#: Methods, in the order of the number of their parameters.
METHODS = ("platt", "beta", "isotonic")

#: Folds of users by which a method is measured on rows that it was not fitted to.
FOLDS = 5

#: Bins of equal count of the expected calibration error.
BINS = 15

#: Predictions are kept this far from 0 and 1, where their logits are infinite.
MARGIN = 1e-7


@dataclass(frozen=True)
class Calibrator:
    r"""A fitted monotone function from predictions to probabilities.

    ::

        platt     sigmoid(a logit(p) + c)
        beta      sigmoid(a ln(p) - b ln(1 - p) + c),  a and b not negative
        isotonic  linear between the points (x, y) of a monotone fit, constant beyond them

    Platt, Advances in Large Margin Classifiers, 1999, applied to logits. Kull, Silva Filho and Flach, AISTATS 2017,
    https://proceedings.mlr.press/v54/kull17a.html. Zadrozny and Elkan, KDD 2002,
    https://doi.org/10.1145/775047.775151.

    Parameters
    ----------
    method : str
        One of ``METHODS``.
    parameters : dict
        ``a``, ``c`` and for beta ``b``; for isotonic the lists ``x`` and ``y``.
    """

    method: str
    parameters: dict[str, Any]

    @property
    def is_constant(self) -> bool:
        """Whether all predictions become the same."""
        lowest, highest = self(np.array([0.0, 1.0]))
        return bool(lowest == highest)

    def __call__(self, prediction: np.ndarray) -> np.ndarray:
        """Return the calibrated probabilities ``(R,)`` float64 of predictions ``(R,)``."""
        fitted = self.parameters
        if self.method == "isotonic":
            return np.interp(prediction.astype(np.float64), fitted["x"], fitted["y"])
        low, high = _logs(prediction)
        return _sigmoid(fitted["a"] * low + fitted.get("b", fitted["a"]) * high + fitted["c"])


def _logs(prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ln(p) and -ln(1 - p), whose sum is the logit."""
    clipped = prediction.astype(np.float64).clip(MARGIN, 1 - MARGIN)
    return np.log(clipped), -np.log1p(-clipped)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit.clip(-500, 500)))


def fit(method: str, label: np.ndarray, prediction: np.ndarray) -> Calibrator:
    """Fit a calibrator to labels and predictions ``(R,)``.

    Raises
    ------
    ConfigError
        The method is unknown.
    DataError
        Predictions are not from 0 to 1, or there is only one class.
    """
    if method not in METHODS:
        raise ConfigError(f"calibrate: there is no method '{method}', expected one of {', '.join(METHODS)}")
    if prediction.min() < 0 or prediction.max() > 1:
        raise DataError(f"predictions are {prediction.min():g} to {prediction.max():g}, expected probabilities")
    if label.min() == label.max():
        raise DataError(f"all {len(label)} labels are {label[0]}; calibration needs both classes")
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        found = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(prediction.astype(np.float64), label)
        return Calibrator(method, {"x": found.X_thresholds_.tolist(), "y": found.y_thresholds_.tolist()})
    low, high = _logs(prediction)
    if method == "platt":
        (a,), c = _logistic(label, low + high)
        return Calibrator(method, {"a": a, "c": c})
    (a, b), c = _logistic(label, low, high)
    return Calibrator(method, {"a": a, "b": b, "c": c})


def _logistic(label: np.ndarray, *columns: np.ndarray) -> tuple[list[float], float]:
    """Return coefficients, not negative, and intercept of a logistic regression without regularization."""
    from sklearn.linear_model import LogisticRegression

    kept = list(range(len(columns)))
    while kept:
        found = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
        found.fit(np.stack([columns[i] for i in kept], axis=1), label)
        fitted = dict(zip(kept, found.coef_[0].tolist(), strict=True))
        negative = [i for i in kept if fitted[i] < 0]
        if not negative:
            return [fitted.get(i, 0.0) for i in range(len(columns))], float(found.intercept_[0])
        # As in the paper on beta calibration: it would not be monotone, so it is left out.
        kept.remove(negative[0])
    return [0.0] * len(columns), float(np.log(label.mean() / (1 - label.mean())))


def folds(label: np.ndarray, group: np.ndarray | None) -> np.ndarray:
    """Return the fold of each row ``(R,)``, from 0: users are split at random, without groups the rows.

    Parameters
    ----------
    label : ndarray
        ``(R,)``
    group : ndarray or None
        ``(R,)``

    Raises
    ------
    DataError
        Without some fold, the rows are of one class, or all rows are of one user.
    """
    from fuxictr_mm.data.groups import group_keys, number_users

    user = number_users(None if group is None else group_keys(group), len(label))
    number = int(user.max()) + 1
    fold = (np.random.default_rng(0).permutation(number) % min(FOLDS, number))[user]
    unit, needed = "row" if group is None else "user", "fitting to the validation rows needs"
    if label.min() == label.max():
        raise DataError(f"the labels of all {len(label)} validation rows are {label[0]:g}; {needed} both classes")
    if number == 1:
        raise DataError(f"all {len(label)} validation rows are of one user; {needed} several, to measure it on others")
    positives, rows = np.bincount(fold, weights=label), np.bincount(fold)
    others = positives.sum() - positives
    one_class = (others == 0) | (others == len(label) - rows)
    if one_class.any():
        raise DataError(
            f"fold {int(np.argmax(one_class)) + 1} of {len(rows)}: the labels of all other {unit}s are of one class; "
            f"{needed} both classes"
        )
    return fold


def equal_bins(prediction: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each example ``(R,)``: bins of equal count by rising prediction.

    Equal predictions are in one bin, that of their mean rank, so bins may be empty.
    """
    from scipy.stats import rankdata

    bin_of_rank = np.repeat(np.arange(bins), [len(part) for part in np.array_split(prediction, bins)])
    return bin_of_rank[(rankdata(prediction) - 1).astype(np.int64)]


def expected_error(label: np.ndarray, prediction: np.ndarray, bin_of: np.ndarray) -> float:
    r"""Return the expected calibration error, :math:`\sum_k \frac{n_k}{R} |\bar y_k - \bar p_k|`.

    Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015,
    https://ojs.aaai.org/index.php/AAAI/article/view/9602; with bins of equal count instead of equal size.
    """
    return float(np.abs(np.bincount(bin_of, weights=label - prediction)).sum() / len(label))


@dataclass(frozen=True)
class Errors:
    """Errors of probabilities."""

    logloss: float
    expected_calibration_error: float


@dataclass(frozen=True)
class MethodErrors(Errors):
    """Errors of a method, of users that it was not fitted to; ``parameters`` are those fitted to all rows."""

    parameters: dict[str, Any]


@dataclass(frozen=True)
class Calibration:
    """What ``calibration.json`` holds: all methods on the validation rows of a run."""

    fitted_on: str
    rows: int
    cross_fitted_by: str  #: ``users``, or ``rows`` of a run without groups.
    uncalibrated: Errors
    methods: dict[str, MethodErrors]

    def calibrator(self, method: str) -> Calibrator:
        """Return the calibrator of a method."""
        return Calibrator(method, self.methods[method].parameters)

    def describe(self, method: str) -> str:
        """Return one line: what a method changes on the validation rows, and which would be better."""
        before, after = self.uncalibrated, self.methods[method]
        line = (
            f"calibrated by {method}: valid logloss {before.logloss:.4f} -> {after.logloss:.4f}, expected calibration "
            f"error {before.expected_calibration_error:.4f} -> {after.expected_calibration_error:.4f} (cross-fitted by "
            f"{self.cross_fitted_by})"
        )
        best = min(self.methods, key=lambda name: self.methods[name].logloss)
        if min(after.logloss, before.logloss) > self.methods[best].logloss + 1e-4 and best != method:
            line += f"; {best} reaches {self.methods[best].logloss:.4f}"
        elif after.logloss > before.logloss:
            line += "; not better than the uncalibrated predictions"
        if self.calibrator(method).is_constant:
            line += "; not applied, because no slope is positive and all scores would be equal"
        return line


def measure(label: np.ndarray, prediction: np.ndarray) -> Errors:
    """Return the errors of probabilities ``(R,)``."""
    clipped = prediction.astype(np.float64).clip(MARGIN, 1 - MARGIN)
    logloss = -np.where(label == 1, np.log(clipped), np.log1p(-clipped)).mean()
    bin_of = equal_bins(clipped, min(BINS, len(label)))
    return Errors(float(logloss), expected_error(label, clipped, bin_of))


def calibrate_run(run: Run) -> Calibration:
    """Fit all methods to the validation rows of a run and write them into its folder as ``calibration.json``.

    Raises
    ------
    MissingFileError, DataError
        The run has no validation predictions, they are not probabilities, or there are too few users to cross-fit.
    """
    if run.is_regression():
        raise DataError(f"{run.path}: the task is a regression, whose predictions are not probabilities")
    label, prediction, group = run.predictions()
    assert label is not None  # validation rows have one
    fold = folds(label, group)
    methods = {}
    for method in METHODS:
        fitted = fit(method, label, prediction)
        unseen = np.empty(len(label))
        for number in range(int(fold.max()) + 1):
            held = fold == number
            unseen[held] = fit(method, label[~held], prediction[~held])(prediction[held])
        methods[method] = MethodErrors(**asdict(measure(label, unseen)), parameters=fitted.parameters)
    by = "rows" if group is None else "users"
    found = Calibration("valid", len(label), by, measure(label, prediction), methods)
    write_json(run.path / CALIBRATION, asdict(found))
    return found
