"""What the influence of training rows looks like: the file of all rows, and the summary that is printed.

Shape letters: R training rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.data import parquet
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.files import write_beside

USER_ID = "user_id"


@dataclass(frozen=True)
class Group:
    """Training rows that have something in common.

    Parameters
    ----------
    name : str
        What they have in common.
    rows : int
        How many there are.
    mean : float
        Mean influence.
    negative : float
        Share with a negative influence.
    among_worst : float
        Share that is among the worst 1 % of all rows; 0.01 if they were spread evenly.
    """

    name: str
    rows: int
    mean: float
    negative: float
    among_worst: float


def rank_rows(influence: np.ndarray) -> np.ndarray:
    """Return the rank of each row, ``(R,)`` int64: 1 has the lowest influence, of equals the first row.

    >>> rank_rows(np.array([0.5, -2.0, 0.0])).tolist()
    [3, 1, 2]
    """
    ranks = np.empty(len(influence), dtype=np.int64)
    ranks[np.argsort(influence, kind="stable")] = np.arange(1, len(influence) + 1)
    return ranks


def read_rows(path: str | os.PathLike[str], label: str) -> pa.Table:
    """Return ``row``, ``user_id`` (if the file has it), ``item_id`` and ``label`` of all training rows."""
    pieces = []
    for file in parquet.part_files(path):
        present = parquet.open_parquet(file).schema_arrow.names
        columns = [*([USER_ID] if USER_ID in present else []), ITEM_ID, label]
        pieces += [pa.Table.from_batches([batch]).select(columns) for _, batch in parquet.read_chunks(file, columns)]
    rows = pa.concat_tables(pieces, promote_options="permissive")
    rows = rows.rename_columns(["label" if name == label else name for name in rows.column_names])
    return rows.add_column(0, "row", pa.array(np.arange(rows.num_rows)))


def write_ranking(path: str | os.PathLike[str], ranking: pa.Table) -> None:
    """Write the rows with ``influence`` and ``rank`` as Parquet."""
    write_beside(path, lambda stream: pq.write_table(ranking, stream))


def summarize(ranking: pa.Table) -> list[Group]:
    """Return all rows, the rows of each label, and the rows by how often their item occurs among them (quarters)."""
    influence, rank = ranking["influence"].to_numpy(), ranking["rank"].to_numpy()
    label, item = ranking["label"].to_numpy(), ranking[ITEM_ID].to_numpy()
    worst = rank <= max(1, len(rank) // 100)

    def group(name: str, members: np.ndarray) -> Group:
        chosen = influence[members]
        return Group(name, len(chosen), float(chosen.mean()), float((chosen < 0).mean()), float(worst[members].mean()))

    groups = [group("all rows", np.ones(len(rank), dtype=bool))]
    values = np.unique(label)
    if len(values) <= 2:
        groups += [group(f"label {value:g}", label == value) for value in values]
    _, place, counts = np.unique(item, return_inverse=True, return_counts=True)
    popularity = counts[place]
    bounds = np.unique(np.quantile(popularity, [0, 0.25, 0.5, 0.75, 1], method="lower"))
    for position, (low, high) in enumerate(pairwise(bounds)):
        first = low + (position > 0)
        name = f"item in {first} to {high} rows" if first < high else f"item in {high} rows"
        groups.append(group(name, (popularity >= first) & (popularity <= high)))
    return groups


def format_groups(groups: Sequence[Group]) -> str:
    """Return the groups as a table."""
    width = max(len(g.name) for g in groups)
    lines = [f"{'':{width}}  {'rows':>9}  {'mean influence':>14}  {'negative':>8}  {'in worst 1 %':>12}"]
    lines += [
        f"{g.name:{width}}  {g.rows:9d}  {g.mean:14.3e}  {g.negative:8.1%}  {g.among_worst:12.2%}" for g in groups
    ]
    return "\n".join(lines)


def extremes(ranking: pa.Table, number: int, best: bool) -> list[dict[str, Any]]:
    """Return the ``number`` rows of lowest influence, or of highest, the most extreme first."""
    rank = ranking["rank"].to_numpy()
    places = np.argsort(-rank if best else rank)[:number]
    return ranking.take(pa.array(places)).to_pylist()


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table."""
    names = list(rows[0])
    cells = [[f"{row[n]:.3e}" if n == "influence" else f"{row[n]:g}" if n == "label" else str(row[n]) for n in names]
             for row in rows]  # fmt: skip
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in [names, *cells])


def to_dict(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the groups for JSON."""
    return [asdict(g) for g in groups]
