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

#: In a folder that continues another, whose clicks are not in the files, only a leak of nearly all clicks can be told
#: from items met before.
NEARLY_ALL = 0.9
EARLIER_DAYS = "clicks on items met before; the clicks of the folder that this one continues are not in the files"

#: Columns of ``count_again`` beside ``click``.
_COUNTS = (
    "rows", "longer", "both_ends", "last_again", "first_twice", "last_twice"
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


def _of_continued(split: Split, severity: str, text: str, fraction: float) -> tuple[str, str]:
    """Return severity and what is expected; of a folder that continues another, for a ``fraction`` of clicks found."""
    is_sure = fraction >= NEARLY_ALL and split.of_clicks["longer"] >= FEWEST_HISTORIES
    return (INFO, EARLIER_DAYS) if split.continues and not is_sure else (severity, text)


# Cleaning leaves it as it is: which of these clicks are on an item met before, and which leak, is not known.
@check(SplitInTime, WARNING, "a history before the click")
def target_in_history(subject: SplitInTime) -> Iterator[Fault]:
    """Targets that are in their own history."""
    # A target that the user has clicked before belongs there. That click may be missing in the files; the histories
    # tell in how many rows: their newest item is a click without a leak, and how often was it met before?
    split, n = subject.split, subject.split.of_clicks
    clicks = split.own.filter(pl.col("click") == 1) if split.has_both_labels else split.own
    clicks = clicks.unique("row", maintain_order=True)
    new = _without_earlier_click(subject, clicks, itself=True)
    scale = n["rows"] / max(n["longer"], 1)
    expected = scale * max(n["last_again"], AT_MOST)
    ends = [(int(new[end].sum()), scale * max(n[f"{end}_twice"], n["both_ends"], AT_MOST)) for end in ("first", "last")]
    severities = [_severity_of_leak(new.height, expected, n["longer"]), *(severity_of_excess(*end) for end in ends)]
    found = f"targets that are in their own history, {clicks.height:,} of {n['rows']:,} clicks"
    found += f", {new.height:,} without an earlier click in the files"
    text = f"a history before the click, so at most some {expected:.1f} clicks on an item met before the files"
    severity = WARNING if WARNING in severities else INFO
    at_end = max(count for count, _ in ends) / max(n["rows"], 1)
    severity, text = _of_continued(split, severity, text, at_end)
    yield fault_of(split.file, ITEM_SEQ, split.own, pl.col("item"), found=found, expected=text, severity=severity)


# Cleaning leaves it as it is: the history may be right, where a click is missing, such as one before the log.
@check(SplitInTime, WARNING, "histories older than the clicks")
def future_click(subject: SplitInTime) -> Iterator[Fault]:
    """Clicks of a later split in the user's history, without an earlier one."""
    split, pair = subject.split, ["user", "item"]
    rows, n = _without_earlier_click(subject, split.future, itself=False), split.of_clicks
    clicked = pl.concat(
        [rows.select(pair).clear(), *(s.clicks().select(pair) for s in subject.splits[subject.index + 1 :])]
    )
    users = split.rows.filter(pl.col("length") > 0).select("user").unique()
    total = clicked.unique().join(users, on="user", how="semi").height
    expected = total * max(n["last_again"], AT_MOST) / max(n["longer"], 1)
    found = rows.select(pair).unique().height
    severity = _severity_of_leak(found, expected, n["longer"])
    text = f"histories older than the clicks, so at most some {expected:.1f} clicks on an item met before"
    severity, text = _of_continued(split, severity, text, found / max(total, 1))
    yield fault_of(split.file, ITEM_SEQ, rows, pl.col("item"), expected=text, severity=severity)


def _without_earlier_click(subject: SplitInTime, rows: pl.DataFrame, itself: bool) -> pl.DataFrame:
    """Return the history entries, ``rows`` of ``user`` and ``item``, without an earlier click of the user on the item.

    Without times, a click is earlier in an earlier split, or in any row of this one. With ``itself``, the row is a
    click on the item, which does not count.
    """
    split, pair = subject.split, ["user", "item"]
    if rows.height and all(s.times for s in subject.splits):
        clicks = pl.concat(s.clicks() for s in subject.splits).group_by(pair).agg(since=pl.col("time").min())
        rows = rows.with_columns(split.rows["time"].gather(rows["row"]))
        rows = rows.join(clicks, on=pair, how="left", maintain_order="left")
        is_earlier = pl.col("since") < pl.col("time") if itself else pl.col("since") <= pl.col("time")
        return rows.filter(~is_earlier.fill_null(False))
    if rows.height:
        clicks = split.click_rows.join(rows, on=pair, how="semi").group_by(pair).agg(n=pl.col("row_key").n_unique())
        for known in (clicks.filter(pl.col("n") > int(itself)), *(s.clicks() for s in subject.splits[: subject.index])):
            rows = rows.join(known, on=pair, how="anti", maintain_order="left")
    return rows


def find_own(chunk: Chunk) -> pl.DataFrame:
    """Return ``row``, ``user``, ``item`` and ``click`` of the history entries that are the target of their row.

    ``first`` and ``last`` tell whether it is at that end of the history.
    """
    entries = chunk.entries.filter(pl.col("item") == pl.col("target"))
    entries = entries.select("row", pl.col("user", "item").cast(pl.Int64))
    history, target = pl.col("history").list, pl.col("target")
    ends = chunk.rows.select("row", "click", first=history.first() == target, last=history.last() == target)
    return entries.join(ends, on="row", how="left", maintain_order="left")


def count_again(rows: pl.DataFrame) -> pl.DataFrame:
    """Count, by ``click``, histories, and how often an item is met again in them.

    Returns
    -------
    DataFrame
        ``rows`` that have a history; histories that are ``longer`` than one item, and those whose last item is in the
        rest of it (``_again``), whose first or last item equals its neighbour (``_twice``), or the other of the two
        (``both_ends``).
    """
    rows = rows.filter(pl.col("length") > 0)
    if rows.is_empty():  # histories may be of nulls
        return pl.DataFrame(schema={"click": pl.Int8, **dict.fromkeys(_COUNTS, pl.Int64)})
    history = pl.col("history")
    first, last = history.list.first(), history.list.last()
    found = rows.select(
        "click",
        rows=pl.lit(True),
        longer=pl.col("length") > 1,
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
