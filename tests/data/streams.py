"""A file of numbered rows, and what loaders make of it."""

import itertools
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.schema import Feature

FEATURES = [
    Feature("user_id", "meta"),
    Feature("level", "categorical", vocab_size=11),
    Feature("price", "numeric"),
    Feature("item_id", "categorical", "item"),
]


KNOWN = np.ones(10_001, dtype=bool)


def write(folder, rows, parts=1, group=10):
    """Write numbered rows: item_id is the row's number from 1, everything else follows from it."""
    number = np.arange(rows)
    histories = [[0] * (i % 2) + [1 + (i + j) % 50 for j in range(i % 4)] for i in range(rows)]
    table = pa.table(
        {
            "user_id": 100 + number,
            "item_id": 1 + number,
            "item_seq": pa.array(histories, pa.list_(pa.int64())),
            "level": number % 11,
            "price": number / 4,
            "label": number % 2,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    bounds = np.linspace(0, rows, parts + 1).astype(int)
    for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(start, stop - start), folder / f"{part:02}.parquet", row_group_size=group)
    return InteractionFiles(folder, FEATURES, KNOWN, group_id="user_id")


def epoch(loader):
    """Items of one epoch, batch by batch."""
    return [batch.target.tolist() for batch in loader]


def flat(batches):
    return [item for batch in batches for item in batch]


def rows_of(loader):
    """All columns of every row of an epoch, as tuples."""
    rows = []
    for batch in loader:
        history = [values.tolist() for values in batch.history.values.split(batch.history.lengths.tolist())]
        columns = [batch.target, batch.context["level"], batch.context["price"], batch.label, batch.group]
        rows += zip(*(column.tolist() for column in columns), map(tuple, history), strict=True)
    return rows


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]
