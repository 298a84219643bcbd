"""Clicks on items that are already in a history: repeated items, or a leak of the click into its history."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from fuxictr_mm.check_data.checks import INFO, WARNING, Fault, check
from fuxictr_mm.check_data.chunks import Chunk, fault_of
from fuxictr_mm.check_data.splits import Split, SplitInTime, severity_of_excess
from fuxictr_mm.data.schema import ITEM_SEQ

#: Histories of two items or more that tell how often an item is met again.
FEWEST_HISTORIES = 100

#: If none of n histories shows something, its fraction is at most 3 / n (with a confidence of 95 %).
AT_MOST = 3

#: Columns of ``count_again`` beside ``click``.
_COUNTS = (
    "rows", "longer", "own", "own_first", "own_last", "both_ends", "last_again", "first_twice", "last_twice"
)  # fmt: skip


@check(Split, INFO, "every item once, or repeated consumption")
def repeated_history(split: Split) -> Iterator[Fault]:
    """An item more than once in a history."""
    fraction = split.repeats.height / max(int((split.rows["length"] > 0).sum()), 1)
    found = f"an item more than once, in {fraction:.1%} of the histories that are not empty"
    yield fault_of(split.file, ITEM_SEQ, split.repeats, pl.col("item"), found=found)


def _severity_of_leak(found: float, expected: float, histories: int) -> str:
    """As ``severity_of_excess``; one is a warning where too few histories tell how often an item is met again."""
    return WARNING if found and histories < FEWEST_HISTORIES else severity_of_excess(found, expected)


# Cleaning leaves it as it is: which of these clicks are on an item met before, and which leak, is not known.
@check(Split, WARNING, "a history before the click")
def target_in_history(split: Split) -> Iterator[Fault]:
    """Targets that are in their own history."""
    # The newest item of a history is a click as the target is, without a leak: how often was it met before?
    n = split.of_clicks
    scale = n["rows"] / max(n["longer"], 1)
    expected = scale * max(n["last_again"], AT_MOST)
    ends = [(n[f"own_{end}"], scale * max(n[f"{end}_twice"], n["both_ends"], AT_MOST)) for end in ("first", "last")]
    severities = [_severity_of_leak(n["own"], expected, n["longer"]), *(severity_of_excess(*end) for end in ends)]
    found = f"targets that are in their own history, {n['own']:,} of {n['rows']:,} clicks"
    text = f"a history before the click, so at most some {expected:.1f} clicks on an item met before"
    severity = WARNING if WARNING in severities else INFO
    yield fault_of(split.file, ITEM_SEQ, split.own, pl.col("item"), found=found, expected=text, severity=severity)


# Cleaning leaves it as it is: the history may be right, where the files lack a click, such as one before the log.
@check(SplitInTime, WARNING, "histories older than the clicks")
def future_click(subject: SplitInTime) -> Iterator[Fault]:
    """Clicks of a later split in the user's history, without an earlier one."""
    split = subject.splits[subject.index]
    rows, pair = split.future, ["user", "item"]
    if rows.height and all(s.times for s in subject.splits):
        clicks = pl.concat(s.clicks() for s in subject.splits).group_by(pair).agg(first=pl.col("time").min())
        rows = rows.with_columns(split.rows["time"].gather(rows["row"]))
        rows = rows.join(clicks, on=pair, how="left", maintain_order="left")
        rows = rows.filter(~(pl.col("first") <= pl.col("time")).fill_null(False))
    elif rows.height:
        for earlier in subject.splits[: subject.index + 1]:
            rows = rows.join(earlier.clicks(), on=pair, how="anti", maintain_order="left")
    n = split.of_clicks
    clicked = pl.concat(
        [rows.select(pair).clear(), *(s.clicks().select(pair) for s in subject.splits[subject.index + 1 :])]
    )
    users = split.rows.filter(pl.col("length") > 0).select("user").unique()
    total = clicked.unique().join(users, on="user", how="semi").height
    expected = total * max(n["last_again"], AT_MOST) / max(n["longer"], 1)
    severity = _severity_of_leak(rows.select(pair).unique().height, expected, n["longer"])
    text = f"histories older than the clicks, so at most some {expected:.1f} clicks on an item met before"
    yield fault_of(split.file, ITEM_SEQ, rows, pl.col("item"), expected=text, severity=severity)


def count_again(rows: pl.DataFrame) -> pl.DataFrame:
    """Count, by ``click``, histories, and how often an item is met again in them.

    Returns
    -------
    DataFrame
        ``rows`` that have a history, and those whose target is in it (``own``), is its first or last item; histories
        that are ``longer`` than one item, and those whose last item is in the rest of it (``_again``), whose first or
        last item equals its neighbour (``_twice``), or the other of the two (``both_ends``).
    """
    rows = rows.filter(pl.col("length") > 0)
    if rows.is_empty():  # histories may be of nulls
        return pl.DataFrame(schema={"click": pl.Int8, **dict.fromkeys(_COUNTS, pl.Int64)})
    history, target = pl.col("history"), pl.col("target")
    first, last = history.list.first(), history.list.last()
    found = rows.select(
        "click",
        rows=pl.lit(True),
        longer=pl.col("length") > 1,
        own=history.list.contains(target),
        own_first=first == target,
        own_last=last == target,
        both_ends=(first == last) & (pl.col("length") > 1),
        last_again=history.list.head(pl.col("length") - 1).list.contains(last),
        first_twice=first == history.list.get(1, null_on_oob=True),
        last_twice=last == history.list.get(-2, null_on_oob=True),
    )
    return found.group_by("click").agg(pl.col(*_COUNTS).cast(pl.Int64).sum())


def find_repeats(chunk: Chunk) -> pl.DataFrame:
    """Return ``row``, ``user`` and the first repeated ``item`` of the histories that have one."""
    keys = chunk.entries.select(key=pl.struct("row", "item").hash()).to_series()
    repeated = chunk.entries.filter(keys.is_duplicated() & (chunk.entries["item"] > 0))
    return repeated.unique("row", keep="first").sort("row").select("row", "user", "item")
