"""The ranking of training examples by influence: its table, and summaries of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.config import Roles
from fuxictr_mm.files import StrPath

if TYPE_CHECKING:
    import pyarrow as pa


#: Worst and best examples in the summary.
SHOWN = 10


def make_ranking(
    path: StrPath, label: str, influence: np.ndarray, roles: Roles | None = None, separator: str | None = None
) -> pa.Table:
    """Return ``row``, ``user_id`` (if the file has it), ``item_id``, ``label``, ``influence`` and ``rank``, by row.

    User and item are named as ``roles`` say, and are as in the file: Parquet or, with a ``separator``, CSV. Rank 1 has
    the lowest influence; of equals the first example.
    """
    import pyarrow as pa

    from fuxictr_mm.data import parquet
    from fuxictr_mm.data.arrow_types import is_plain_text

    roles = roles or Roles()
    wanted = [roles.user, roles.target, label]
    if separator is not None:
        rows = _read_csv(parquet.part_files(path, ".csv"), wanted, label, separator)
    else:
        parts = []
        for file in parquet.part_files(path):
            present = parquet.schema_of(file).names
            columns = [name for name in wanted if name != roles.user or name in present]
            parts += [pa.Table.from_batches([batch]).select(columns) for _, batch in parquet.read_chunks(file, columns)]
        rows = pa.concat_tables(parts, promote_options="permissive")
        if is_plain_text(rows[label].type):  # of raw columns
            rows = rows.set_column(rows.column_names.index(label), label, _to_numbers(rows[label]))
    rows = rows.rename_columns(["label" if name == label else name for name in rows.column_names])
    rank = np.empty(len(influence), dtype=np.int64)
    rank[np.argsort(influence, kind="stable")] = np.arange(1, len(influence) + 1)
    rows = rows.add_column(0, "row", pa.array(np.arange(rows.num_rows)))
    return rows.append_column("influence", pa.array(influence)).append_column("rank", pa.array(rank))


def _to_numbers(texts: pa.ChunkedArray) -> pa.Array:
    """Return labels that are texts as numbers, as the encoding reads them."""
    import polars as pl

    from fuxictr_mm.encoding.csv_files import to_numbers

    return pl.select(to_numbers(pl.lit(pl.Series(texts)), pl.Float64)).to_series().to_arrow()


def _read_csv(files: Sequence[Path], wanted: Sequence[str], label: str, separator: str) -> pa.Table:
    """Return those of the columns that the files have, as texts, and the label as a number."""
    import polars as pl

    from fuxictr_mm.encoding.csv_files import blank_rows, scan_csv, to_numbers

    frames = [scan_csv(file, separator, blank_rows(file, separator)) for file in files]
    columns = [name for name in wanted if name in frames[0].collect_schema()]
    return (
        pl.concat(frame.select(columns) for frame in frames)
        .with_columns(to_numbers(pl.col(label), pl.Float64))
        .collect()
        .to_arrow()
    )


def summarize(ranking: pa.Table, item_column: str = "item_id") -> list[dict[str, Any]]:
    """Summarize all examples, those of each label, and quarters by how often their item occurs.

    ``negative`` is the fraction below 0, ``among_worst`` that among the worst 1 % of all: 0.01 if they were spread
    evenly.
    """
    influence, rank = ranking["influence"].to_numpy(), ranking["rank"].to_numpy()
    label, item = ranking["label"].to_numpy(), ranking[item_column].combine_chunks().dictionary_encode().indices
    worst = rank <= max(1, len(rank) // 100)
    members = {"all rows": np.ones(len(rank), dtype=bool)}
    values = np.unique(label)
    if len(values) <= 2:
        members |= {f"label {value:g}": label == value for value in values}
    _, index, counts = np.unique(item, return_inverse=True, return_counts=True)
    popularity = counts[index]
    bounds = np.unique(np.quantile(popularity, [0, 0.25, 0.5, 0.75, 1], method="lower"))
    for position, (low, high) in enumerate(pairwise(bounds)):
        first = low + (position > 0)
        name = f"item in {first} to {high} rows" if first < high else f"item in {high} rows"
        members[name] = (popularity >= first) & (popularity <= high)
    return [
        {
            "name": name,
            "rows": int(chosen.sum()),
            "mean": float(influence[chosen].mean()),
            "negative": float((influence[chosen] < 0).mean()),
            "among_worst": float(worst[chosen].mean()),
        }
        for name, chosen in members.items()
    ]


def extremes(ranking: pa.Table, best: bool) -> list[dict[str, Any]]:
    """Return the ``SHOWN`` examples of lowest influence, or of highest, the most extreme first."""
    rank = ranking["rank"].to_numpy()
    return ranking.take(np.argsort(-rank if best else rank)[:SHOWN]).to_pylist()
