"""Reading of a split: rows are checked chunk by chunk, and columns for the checks of whole splits are kept."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from fuxictr_mm.check_data.arrays import is_number, is_scalar, is_text
from fuxictr_mm.check_data.checks import Fault, Report
from fuxictr_mm.check_data.chunks import Chunk, Histories, KnownItems
from fuxictr_mm.check_data.columns import check_types, require
from fuxictr_mm.check_data.equal_rows import with_keys
from fuxictr_mm.check_data.files import DataFile
from fuxictr_mm.check_data.layout import EMPTY_FILE, Layout
from fuxictr_mm.check_data.met_again import count_again, find_own, find_repeats
from fuxictr_mm.check_data.number_columns import ContextColumn, ContextCounts
from fuxictr_mm.check_data.splits import Split
from fuxictr_mm.check_data.translation import LABEL, USER_ID
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ

#: Texts in a column that names the split: rows of two splits are not told apart by it.
SPLIT_NAMES = {"train", "training", "valid", "validation", "val", "dev", "eval", "test", "testing"}


def read_split(
    file: DataFile, items: KnownItems, later: Sequence[Split], layout: Layout, report: Report, verbose: int
) -> Split | None:
    """Check a split and return the data for the checks across splits; None without targets."""
    schema, roles = file.schema, file.translation.roles
    further, time = roles.histories, roles.time
    wanted = {USER_ID: "integers", ITEM_ID: "integers"} | dict.fromkeys([ITEM_SEQ, *further], "lists of integers")
    if file.name != "test" or LABEL in schema.names:
        wanted[LABEL] = "numbers"
    usable = require(file, wanted, report, lists=[ITEM_SEQ, *further])
    times = [f.name for f in schema if f.name == time and _is_time(f.type)]
    no_feature = (file.sources | ({layout.weight} if layout.weight else set())) - {time}
    layout.not_checked += check_types(file, {*wanted, *no_feature, *([time] if time else [])}, report)
    if ITEM_ID not in usable:
        return None
    others = [f for f in schema if f.name not in {*wanted, *no_feature}]
    context = [f for f in others if f.name != time and is_number(f.type)]
    names = [f.name for f in others if is_scalar(f.type) and not _names_the_split(file, f)]
    none = pl.DataFrame(schema={"user": pl.Int64, "item": pl.Int64})
    clicks = pl.concat([none, *(s.clicks().select("user", "item") for s in later)])
    parts: list[pl.DataFrame] = []
    repeats, own, future, again = [], [], [], []
    for row, batch in file.chunks(usable + names, verbose=verbose):
        chunk = Chunk.of(file, row, batch, items)
        report.examine(chunk)
        report.examine(Histories(chunk))
        for name in [name for name in further if name in usable]:
            report.examine(Histories(Chunk.of(file, row, batch, items, name)))
        parts.append(with_keys(chunk, names).with_columns(_as_number(chunk.raw[name]) for name in times))
        repeats.append(find_repeats(chunk))
        own.append(find_own(chunk))
        entries = chunk.entries.select("row", pl.col("user", "item").cast(pl.Int64))
        clicked_later = entries.join(clicks, on=["user", "item"], how="semi")
        future.append(clicked_later.sort("row", maintain_order=True))
        again.append(count_again(chunk.rows))
    if not parts:
        report.add(EMPTY_FILE, Fault(file.file))
        return None
    rows = pl.concat(parts)
    counts = ContextCounts(file, context)
    columns = {
        f.name: ContextColumn(file, f, rows["user"], counts, is_category=f.name in layout.categories) for f in context
    }
    without_role = [f.name for f in others if f.name not in (LABEL, time) and not f.name.startswith("__index_level_")]
    split = Split(
        file.path,
        rows,
        repeats=pl.concat(repeats),
        own=pl.concat(own),
        future=pl.concat(future),
        again=pl.concat(again),
        context=columns,
        others=without_role,
        translation=file.translation,
    )
    report.examine(split)
    for column in columns.values():
        report.examine(column)
    return split


def _names_the_split(file: DataFile, column: pa.Field) -> bool:
    """Whether a column of text is the name of the split in all rows, as far as its first chunk tells."""
    array = file.first_chunk(column.name) if is_text(column.type) else None
    values = [] if array is None else array.unique().drop_null().to_pylist()
    return len(values) == 1 and values[0].lower() in SPLIT_NAMES


def _is_time(kind: pa.DataType) -> bool:
    """Whether the values of a type are points in time that can be compared: numbers, dates, dates with times."""
    return is_number(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def _as_number(times: pl.Series) -> pl.Series:
    number = times.dt.epoch("us") if times.dtype in (pl.Date, pl.Datetime) else times
    return number.cast(pl.Float64).fill_nan(None).alias("time")
