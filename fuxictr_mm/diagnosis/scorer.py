"""A trained model scored on changed inputs: what each change costs of its metric, and examples in buckets.

Shape letters: R examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.loaders import gather, gather_column, take_rows
from fuxictr_mm.errors import DataError
from fuxictr_mm.evaluation.intervals import NORMAL_95, measured, metric_of, sampling_variance
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.runs import is_falling
from fuxictr_mm.runtime import device_of
from fuxictr_mm.training import scoring

#: Lower bounds of the buckets of history lengths; the last bucket is open.
LENGTHS = (0, 1, 3, 6, 11, 21, 51, 101)


class Cost(NamedTuple):
    """How much worse a change makes the metric, such as an AUC drop, and its variance for independent examples."""

    value: float
    variance: float

    @property
    def noise(self) -> float:
        """Half width of the 95 % interval."""
        return NORMAL_95 * math.sqrt(self.variance)


class Scorer:
    """A trained model and the R examples with labels that it is diagnosed with.

    ``advance`` is called after each pass over the examples; ``metric`` is that of ``metric_of``.

    Raises
    ------
    DataError
        A class has fewer than two examples.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: Any,
        table: InteractionTable,
        advance: Callable[[], object] = lambda: None,
    ) -> None:
        assert table.label is not None
        self.experiment = experiment
        self.model = model
        self.table = table.to(device_of(experiment.config.gpu))
        self.advance = advance
        self.passes = 0
        self.label = table.label.cpu().numpy()
        config = experiment.config
        self.metric = metric_of("regression" in config.tasks.values(), config.metrics)
        clicks = int(self.label.sum())
        if self.metric == "AUC" and min(clicks, len(self.label) - clicks) < 2:
            raise DataError(
                f"{table.source}: {clicks} clicks in {len(self.label)} examples, expected 2 or more of each class; "
                "raise --rows"
            )

    def score(self, table: InteractionTable | None = None, change: Callable[[Any], Any] | None = None) -> np.ndarray:
        """Return the predictions ``(R,)`` float64, also of another table, or with ``change`` applied to each batch."""
        loader = self.experiment.make_loader(self.table if table is None else table, self.model)
        batches: Iterator[Any] = iter(loader) if change is None else map(change, loader)
        prediction = scoring.predict(self.model, batches).double().numpy()
        self.passes += 1
        self.advance()
        return prediction

    def score_base(self) -> np.ndarray:
        """Return the predictions ``(R,)`` of the unchanged model; costs refer to them.

        Raises
        ------
        DataError
            Some are not finite.
        """
        prediction = self.score()
        if not np.isfinite(prediction).all():
            raise DataError(f"{self.model.model_id}: {(~np.isfinite(prediction)).sum()} predictions are not finite")
        self._base = measured(self.label, prediction, self.metric)
        return prediction

    def cost(self, prediction: np.ndarray) -> Cost:
        """Return what these predictions ``(R,)`` cost against the unchanged model's."""
        changed = measured(self.label, prediction, self.metric)
        sign = -1 if is_falling(self.metric) else 1
        return Cost(sign * (self._base.value - changed.value), sampling_variance([self._base], [changed]))


def sample(table: InteractionTable, most: int, seed: int) -> InteractionTable:
    """Return a random sample of at most ``most`` examples, in the order of the table."""
    if len(table) <= most:
        return table
    drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:most]
    return take_rows(table, drawn.sort().values.to(table.target.device))


def with_context(table: InteractionTable, names: Sequence[str], rows: Tensor) -> InteractionTable:
    """Return a table whose named context columns come from other examples ``(R,)``."""
    moved = {name: gather_column(table.context[name], rows) for name in names}
    return replace(table, context={**table.context, **moved})


def with_history(table: InteractionTable, rows: Tensor) -> InteractionTable:
    """Return a table whose histories come from other examples ``(R,)``."""
    history = gather(table, rows).history
    return replace(table, history_values=history.values, history_offsets=history.offsets)


def by_bucket(
    numbers: np.ndarray,
    counted: np.ndarray,
    describe: Callable[[np.ndarray], dict[str, Any]],
    first: Sequence[int] = LENGTHS,
) -> list[dict[str, Any]]:
    """Describe the examples of each bucket that has any: ``name``, ``from``, ``to`` (None: open), ``rows``, and more.

    ``describe`` takes the indices of a bucket's examples, of those that are ``counted`` ``(R,)``; ``numbers`` are 0 or
    more, and ``first`` has the lower bound of each bucket.

    Examples
    --------
    >>> by_bucket(np.array([0, 2, 1]), np.array([True, True, True]), lambda rows: {"sum": int(rows.sum())})[1]
    {'name': '1-2', 'from': 1, 'to': 2, 'rows': 2, 'sum': 3}
    """
    bucket_of = np.searchsorted(np.array(first), numbers, side="right") - 1
    entries = []
    for bucket, low in enumerate(first):
        rows = np.flatnonzero((bucket_of == bucket) & counted)
        if not len(rows):
            continue
        high = first[bucket + 1] - 1 if bucket + 1 < len(first) else None
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
        entries.append({"name": name, "from": low, "to": high, "rows": len(rows), **describe(rows)})
    return entries
