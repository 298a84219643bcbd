"""Rows by a whole number: the length of the history, the clicks of an item."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fuxictr_mm import experiment
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.loaders import gather
from fuxictr_mm.errors import DataError
from fuxictr_mm.evaluation.significance import NORMAL_95, RankedRows, difference_variance
from fuxictr_mm.runtime import device_of
from fuxictr_mm.training import loop

#: First number of each bucket; the last one is open.
LENGTHS = (0, 1, 3, 6, 11, 21, 51, 101)


CLICKS = (0, 1, 3, 6, 11, 21, 51, 101, 201, 501, 1001)


def by_bucket(
    numbers: np.ndarray,
    counted: np.ndarray,
    describe: Callable[[np.ndarray], dict[str, Any]],
    first: tuple[int, ...] = LENGTHS,
) -> list[dict[str, Any]]:
    """Describe the rows of each bucket that has any.

    Parameters
    ----------
    numbers : ndarray
        ``(rows,)``, 0 or more.
    counted : ndarray
        ``(rows,)`` bool, which rows to look at.
    describe : callable
        Takes numbers of rows.
    first : tuple of int
        First number of each bucket.

    Returns
    -------
    list of dict
        ``name``, ``from``, ``to`` (None: open), ``rows``, and what ``describe`` returns.

    Examples
    --------
    >>> by_bucket(np.array([0, 2, 1]), np.array([True, True, True]), lambda rows: {"sum": int(rows.sum())})[1]
    {'name': '1-2', 'from': 1, 'to': 2, 'rows': 2, 'sum': 3}
    """
    place = np.searchsorted(np.array(first), numbers, side="right") - 1
    entries = []
    for bucket, low in enumerate(first):
        rows = np.flatnonzero((place == bucket) & counted)
        if not len(rows):
            continue
        high = first[bucket + 1] - 1 if bucket + 1 < len(first) else None
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
        entries.append({"name": name, "from": low, "to": high, "rows": len(rows), **describe(rows)})
    return entries


class Cost(NamedTuple):
    """What a change costs.

    Parameters
    ----------
    auc_lost : float
        AUC before less AUC after.
    variance : float
        DeLong's, of that difference over other rows.
    """

    auc_lost: float
    variance: float

    @property
    def noise(self) -> float:
        """Half of the 95 % interval of ``auc_lost``."""
        return NORMAL_95 * math.sqrt(self.variance)


class Scorer:
    """A trained model and the rows it is looked at with.

    Parameters
    ----------
    model : BaseModel
        Of this library or of another.
    table : InteractionTable
        R rows with labels.
    params : mapping
        Of the experiment: view, batch size, device.
    advance : callable
        Called after each pass over the rows.

    Raises
    ------
    DataError
        Fewer than two rows have a click, or none.
    """

    def __init__(
        self,
        model: Any,
        table: InteractionTable,
        params: Mapping[str, Any],
        advance: Callable[[], object] = lambda: None,
    ) -> None:
        assert table.label is not None
        self.model = model
        self.table = table.to(device_of(params["gpu"]))
        self.params = params
        self.advance = advance
        self.passes = 0
        self.label = table.label.cpu().numpy()
        clicks = int(self.label.sum())
        if min(clicks, len(self.label) - clicks) < 2:
            raise DataError(
                f"{table.source}: {clicks} clicks in the {len(self.label)} rows looked at, expected 2 or more with and "
                "without; look at more rows"
            )
        self.base: np.ndarray | None = None

    def score(self, table: InteractionTable | None = None, change: Callable[[Any], Any] | None = None) -> np.ndarray:
        """Return the predictions ``(R,)`` float64.

        Parameters
        ----------
        table : InteractionTable, optional
            Changed rows.
        change : callable, optional
            Applied to each batch in the model's view.
        """
        loader = experiment.make_loader(self.table if table is None else table, self.model, self.params)
        batches: Iterator[Any] = iter(loader) if change is None else map(change, loader)
        found = loop.predict(self.model, batches).double().numpy()
        self.passes += 1
        self.advance()
        return found

    def score_base(self) -> np.ndarray:
        """Return the predictions of the model as it is; later costs are counted from them.

        Raises
        ------
        DataError
            Some are not finite.
        """
        self.base = self.score()
        if not np.isfinite(self.base).all():
            raise DataError(f"{self.model.model_id}: {(~np.isfinite(self.base)).sum()} predictions are not finite")
        self._ranked = RankedRows(self.label, self.base)
        return self.base

    def cost(self, scores: np.ndarray) -> Cost:
        """Return what it costs to have these predictions ``(R,)`` in place of the model's own."""
        after = RankedRows(self.label, scores)
        return Cost(self._ranked.auc - after.auc, difference_variance(self._ranked, after))


def take(table: InteractionTable, rows: Tensor) -> InteractionTable:
    """Return the given rows of a table, in their order."""
    batch = gather(table, rows)
    return InteractionTable(
        batch.context,
        batch.target,
        batch.history.values,
        batch.history.offsets,
        batch.label,
        batch.group,
        table.source,
    )


def sample(table: InteractionTable, most: int, seed: int) -> InteractionTable:
    """Return at most so many rows, drawn at random, in the order of the table."""
    if len(table) <= most:
        return table
    drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:most]
    return take(table, drawn.sort().values.to(table.target.device))


def with_context(table: InteractionTable, names: list[str], rows: Tensor) -> InteractionTable:
    """Return a table whose named context columns come from other rows ``(R,)``."""
    moved = {name: table.context[name].index_select(0, rows) for name in names}
    return replace(table, context={**table.context, **moved})


def with_history(table: InteractionTable, rows: Tensor) -> InteractionTable:
    """Return a table whose histories come from other rows ``(R,)``."""
    history = gather(table, rows).history
    return replace(table, history_values=history.values, history_offsets=history.offsets)
