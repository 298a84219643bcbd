"""Warnings of a log: of columns that a model should not read as they are, and of short histories."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from shlex import quote

import polars as pl

from fuxictr_mm.datasets.histories import lengths_before
from fuxictr_mm.datasets.own.columns import LogColumn
from fuxictr_mm.datasets.own.leaks import find_leaks, find_ranking, of_items
from fuxictr_mm.datasets.own.source import LogSource

logger = logging.getLogger(__name__)

#: Histories that are on average shorter are warned of, where another label would make them longer.
SHORT = 2

#: Where negatives are sampled, more rows of an item that the user has met are warned of.
REPEATED = 0.1

#: Where negatives are sampled, this fraction of them, beyond chance, before the first row of their item is warned of.
LATER = 0.1

#: Rows with a label that follow one without it, of the same user and item, are warned of from this fraction on.
FOLLOWING = 0.3

#: Training rows that are equal to one before are warned of from this fraction on.
DUPLICATES = 0.005

#: Names of columns that are meant as weights of rows.
WEIGHTS = ("weight", "weights", "sample_weight", "sample_weights")


def warn_of_leaks(source: LogSource, train: pl.DataFrame, columns: Sequence[LogColumn]) -> None:
    """Warn of columns from which a model reads the label: of the item, where negatives copy them, or known too late."""
    if source.asked.negatives:
        for column, between in of_items(train, columns):
            found = "each item has one value" if between == 1 else f"items explain {between:.0%} of the variance"
            logger.warning(
                f"{source.log.paths[0]}: {found} of {column.source}, and negatives copy the value of the "
                "clicked item, from which a model recognises them; move the column to --items, or exclude it: "
                f"--types {quote(column.source)}=none"
            )
        return
    told = set()
    for name in source.labels.classes:
        for column, rows, value, only in find_leaks(train, [c for c in columns if c.name not in told], name):
            told.add(column.name)
            logger.warning(
                f"{source.log.paths[0]}: all {rows} training rows with {column.source} {value} have "
                f"{name} {only}; if the value is known only after the click, exclude the column: --types "
                f"{quote(column.source)}=none"
            )
        for column, auc in find_ranking(train, [c for c in columns if c.name not in told], name):
            told.add(column.name)
            logger.warning(
                f"{source.log.paths[0]}: {column.source} alone has an AUC of {auc:.2f} for {name} in the training "
                f"rows; if it is known only after the click, exclude the column: --types {quote(column.source)}=none"
            )


def warn_of_repeats(source: LogSource, train: pl.DataFrame) -> None:
    """Warn where users take items again: those are never negatives, so that a model recognises them."""
    again = train.select((~pl.struct(":code", ":item").is_first_distinct()).mean()).item() or 0.0
    if source.asked.negatives and source.asked.negatives_from == "new" and again > REPEATED:
        logger.warning(
            f"{source.log.paths[0]}: in {again:.0%} of the training rows the user had the item before, which no "
            f"negative is; this alone gives an AUC of about {0.5 + again / 2:.2f}; --negatives_from matched samples "
            "negatives of these rows from the user's history; to predict new items, keep the first row of each user "
            "and item"
        )


def warn_of_new_items(source: LogSource, train: pl.DataFrame) -> None:
    """Warn where items come and go: many negatives of the whole split are of items that are not there yet."""
    if not source.asked.negatives or source.asked.negatives_near is not None or source.base is not None:
        return
    # Of each row, the fraction of rows before the first one of its item; of k rows of an item, chance explains 1/(k+1).
    rows = train.select(":item", before=(pl.col(":time").rank("min") - 1) / pl.len())
    of_item = pl.col("before").min().over(":item").mean(), (1 / (1 + pl.len().over(":item"))).mean().alias("chance")
    later, by_chance = rows.select(of_item).row(0)
    if len(train) and later - by_chance >= LATER:
        logger.warning(
            f"{source.log.paths[0]}: {later:.0%} of the negatives are of items whose first row is later, since items "
            f"come and go ({by_chance:.0%} would be by chance): a model learns that new items are negatives; "
            "--negatives_near 0.01 samples from rows near in time"
        )


def warn_of_events(source: LogSource, train: pl.DataFrame) -> None:
    """Warn where a label by the value of a column is that of a log of events, in which a view precedes a purchase."""
    if source.labels.events is not None:
        return
    pairs = train.drop_nulls(":user").sort(":user", ":item", ":time", maintain_order=True)
    for name, value in source.labels.values.items():
        is_after = (pl.col(name) == 0).cum_max().over(":user", ":item")
        after = pairs.select(is_after.filter(pl.col(name) == 1).mean()).item() or 0.0
        if after >= FOLLOWING:
            logger.warning(
                f"{source.log.paths[0]}: {after:.0%} of the rows with {value.column} {value.text} follow another row "
                "of the same user and item, which has the label 0; if the rows are events, name those that are to be "
                f"predicted, such as --impressions {quote(value.column)}=view"
            )


def warn_of_duplicates(source: LogSource, train: pl.DataFrame) -> None:
    """Warn of rows that are equal in all columns that are read, as of a file that was exported twice."""
    read = [name for name in train.columns if name not in (":source_row", ":row")]
    again = ~train.select(pl.struct(read).is_first_distinct()).to_series()
    fraction = again.sum() / max(len(train), 1)
    if fraction >= DUPLICATES:
        row = int(train[":source_row"].filter(again).min())  # type: ignore[arg-type]
        logger.warning(
            f"{source.log.where(row)}: is equal to an earlier row, as are {fraction:.1%} of the training rows; they "
            "count twice: if a file was exported twice, drop them"
        )


def warn_of_short_histories(source: LogSource, rows: pl.DataFrame, max_len: int) -> None:
    """Warn where histories of the first label are short, and those of another one are longer."""
    labels, is_train = source.labels.classes, (rows[":split"] == "train").fill_null(False).to_numpy()
    is_given = (
        source.asked.history is not None or source.asked.history_from is not None or source.labels.events is not None
    )
    if is_given or len(labels) < 2 or not is_train.any():
        return
    users, times = rows[":code"].to_numpy(), rows[":time"].to_numpy()
    means = {}
    for name in labels:
        lengths = lengths_before(users, times, (rows[name] == 1).fill_null(False).to_numpy(), max_len)
        means[name] = float(lengths[is_train].mean())
    first, longest = labels[0], max(means, key=means.__getitem__)
    if means[first] < SHORT and means[longest] >= max(2 * means[first], 1):
        logger.warning(
            f"{source.log.paths[0]}: histories are of {first}, {means[first]:.1f} items on average; those of "
            f"{longest} would have {means[longest]:.1f}: --history_from {longest}"
        )


def warn_of_weights(source: LogSource, columns: Sequence[LogColumn]) -> None:
    """Warn of columns that are named as weights of rows, and become features."""
    for column in columns:
        if column.source.lower() in WEIGHTS and column.source not in source.asked.types:
            logger.warning(
                f"{source.log.paths[0]}: {column.source} becomes a feature; if it weights the rows, add "
                f"--roles weight={quote(column.source)}, and otherwise --types {quote(column.source)}={column.kind}"
            )
