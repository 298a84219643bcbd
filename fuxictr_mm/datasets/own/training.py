"""What the training rows of a log hold: the values and the moments that the columns of all splits are written by."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from shlex import quote

import polars as pl

from fuxictr_mm.data.numbers import Moments
from fuxictr_mm.datasets.own.columns import LogColumn, moments_of
from fuxictr_mm.datasets.own.source import LogSource
from fuxictr_mm.datasets.own.warnings import (
    warn_of_duplicates,
    warn_of_events,
    warn_of_leaks,
    warn_of_new_items,
    warn_of_repeats,
    warn_of_short_histories,
    warn_of_weights,
)

logger = logging.getLogger(__name__)

#: A category is left out where training shows the values of a smaller fraction of the rows of valid and test: it names
#: an impression, a session or a day. Fewer rows than these tell nothing.
KNOWN, KNOWN_ROWS = 0.1, 20


@dataclass(frozen=True)
class Training:
    """What the training rows hold: distinct values by column, and moments of the numbers of the log.

    ``known`` is the fraction of the later rows whose value of a category training shows, where few are.
    """

    values: dict[str, pl.Series]
    moments: dict[str, Moments]
    known: dict[str, float]


def read_training(source: LogSource, chunks: Iterable[pl.DataFrame], max_len: int) -> Training:
    """Return what the training rows of all chunks hold, and warn of what those of the first one show."""
    columns = source.written("interactions")
    numbers = [column.source for column in columns if column.kind == "numeric"] + list(source.labels.numeric)
    moments = {name: Moments() for name in numbers}
    categories = [column.values() for column in columns if column.kind == "categorical"]
    kept: dict[str, pl.Series] = {}
    later: dict[str, list[pl.DataFrame]] = {}
    for number, rows in enumerate(chunks):
        train = rows.filter(pl.col(":split") == "train")
        for name in numbers:
            moments[name].add(moments_of(train[name]))
        for series in rows.filter(pl.col(":split") != "train").select(categories):
            later.setdefault(series.name, []).append(series.drop_nulls().value_counts(name=":rows"))
        if number == 0:
            _warn(source, rows, train, max_len)
        for series in train.select(":item", ":user", *categories):
            before = [kept[series.name]] if series.name in kept else []
            kept[series.name] = pl.concat([*before, series.unique()]).unique()
    values = {name: series.sort() for name, series in kept.items()}
    # The columns of a log that continues another are those of the other.
    known = _find_unknown(source, columns, later, values) if source.base is None else {}
    return Training(values, moments, known)


def _warn(source: LogSource, rows: pl.DataFrame, train: pl.DataFrame, max_len: int) -> None:
    features = [column for column in source.written("interactions") if column.kind != "group"]
    warn_of_leaks(source, train, features)
    warn_of_events(source, train)
    warn_of_weights(source, features)
    warn_of_repeats(source, train)
    warn_of_new_items(source, train)
    warn_of_duplicates(source, train)
    warn_of_short_histories(source, rows, max_len)


def _find_unknown(
    source: LogSource,
    columns: list[LogColumn],
    later: Mapping[str, list[pl.DataFrame]],
    values: Mapping[str, pl.Series],
) -> dict[str, float]:
    """Return the categories to leave out with the fraction of the later rows that training knows; warn of them."""
    found = {}
    for column in columns:
        if column.name not in later or column.source in source.asked.types:
            continue
        counts = pl.concat(later[column.name])
        is_known = counts[column.name].is_in(values[column.name].implode())
        total, known = counts[":rows"].sum(), counts.filter(is_known)[":rows"].sum()
        if total >= KNOWN_ROWS and known < KNOWN * total:
            found[column.source] = known / total
            logger.warning(
                f"{source.log.paths[0]}: {column.source} is excluded, {why_unknown(known / total)}; "
                f"--roles group={quote(column.source)} makes it the group of gAUC, and "
                f"--types {quote(column.source)}=categorical keeps it"
            )
    return found


def why_unknown(known: float) -> str:
    """Return why a category is left out of which training shows so small a fraction."""
    return f"only {known:.1%} of the rows of valid and test have a value that occurs in training"
