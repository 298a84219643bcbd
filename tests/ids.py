"""tiny_mm with other ids and other names: the same world, so that a model must learn the same, bit by bit."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.paths import TINY
from tests.projects import write_project

ITEMS = 1000

_random = np.random.default_rng(7)
_HASHES = _random.choice(2**62, ITEMS + 1, replace=False)

#: Ids of the items 1 to 1000 of tiny_mm (of 0, the padding, too: it is used where there is padding), by kind.
KINDS: dict[str, pa.Array] = {
    "text": pa.array([""] + [f"B{n:09X}" for n in _HASHES[1:] % 2**35]),
    "uuid": pa.array([None] + [uuid.UUID(int=int(n) << 3).bytes for n in _HASHES[1:]], pa.binary(16)),
    "uint64": pa.array([0] + [2**63 + int(n) for n in _HASHES[1:]], pa.uint64()),
    "negative": pa.array([0] + [int(n) * (-1) ** int(n % 2) for n in _HASHES[1:]], pa.int64()),
    "sparse": pa.array([0] + [int(n) % 10**9 * 2 + 1_000_003 for n in _HASHES[1:]], pa.int64()),
    "from_zero": pa.array([None, *range(ITEMS)], pa.int64()),
}

NAMES = {"item_id": "article", "item_seq": "clicked", "user_id": "uid"}
LEVELS = pa.array([None, *(f"level {n * 7 % 10}" for n in range(10))])


def tables(rows: int = 600) -> dict[str, pa.Table]:
    """Return a part of tiny_mm: train, valid, test (labelled) and items, ids as they are, histories without padding."""
    found = {
        "train": pq.read_table(TINY / "train.parquet").slice(0, rows),
        "valid": pq.read_table(TINY / "valid.parquet").slice(0, rows // 2),
        "test": pq.read_table(TINY / "test_labelled.parquet").slice(0, rows // 2),
        "items": pq.read_table(TINY / "item_info.parquet").slice(1),
    }
    for name in ("train", "valid", "test"):
        rows_of = [[item for item in row if item] for row in found[name]["item_seq"].to_pylist()]
        found[name] = put(found[name], "item_seq", pa.array(rows_of, pa.list_(pa.int64())))
    return found


def put(table: pa.Table, name: str, array: Any) -> pa.Table:
    """Return a table with another column of this name."""
    return table.set_column(table.schema.get_field_index(name), name, array)


def with_ids(found: dict[str, pa.Table], ids: pa.Array, *, padded: int = 0) -> dict[str, pa.Table]:
    """Replace the ids 0 to 1000 by others; with ``padded``, histories are left-padded to that length by ids[0]."""

    def of_rows(rows: list[list[int]]) -> pa.Array:
        if padded:
            rows = [[0] * (padded - len(row)) + row[-padded:] for row in rows]
        flat = ids.take(pa.array([item for row in rows for item in row], pa.int64()))
        offsets = np.cumsum([0, *map(len, rows)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)

    changed = {}
    for name, table in found.items():
        table = put(table, "item_id", ids.take(table["item_id"].combine_chunks()))
        if "item_seq" in table.column_names:
            table = put(table, "item_seq", of_rows(table["item_seq"].to_pylist()))
        changed[name] = table
    return changed


def renamed(found: dict[str, pa.Table], names: dict[str, str]) -> dict[str, pa.Table]:
    """Give columns other names."""
    return {
        key: table.rename_columns([names.get(name, name) for name in table.column_names])
        for key, table in found.items()
    }


def write(
    folder: Path,
    found: dict[str, pa.Table],
    change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda dataset, experiment: None,
    names: dict[str, str] | None = None,
) -> Path:
    """Write tables and a configuration ``X``; ``change`` may change dataset and experiment, ``names`` gives roles."""
    names = names or {}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, table in renamed(found, names).items():
        pq.write_table(table, folder / "data" / f"{name}.parquet", row_group_size=100)

    def of(name: str) -> str:
        return names.get(name, name)

    dataset: dict[str, Any] = {
        **{f"{split}_data": str(folder / "data" / f"{split}.parquet") for split in ("train", "valid", "test")},
        "item_info": str(folder / "data" / "items.parquet"),
        "feature_cols": [
            {"name": of("user_id"), "dtype": "str", "type": "meta"},
            {"name": of("item_seq"), "dtype": "str", "type": "meta"},
            {"name": "likes_level", "dtype": "int", "type": "categorical", "vocab_size": 11},
            {"name": of("item_id"), "dtype": "str", "type": "categorical", "source": "item"},
            {"name": "item_tags", "dtype": "int", "type": "sequence", "source": "item"},
            {"name": "item_emb_d16", "dtype": "float", "type": "embedding", "source": "item"},
        ],
        "label_col": {"name": "label", "dtype": "float"},
    }
    roles = {"item_id": "target", "item_seq": "history", "user_id": "user"}
    if names:
        dataset["roles"] = {role: names[name] for name, role in roles.items() if name in names}
    experiment: dict[str, Any] = {
        "model": "DIN_MM",
        "dataset_id": "d",
        "model_root": str(folder / "checkpoints"),
        "epochs": 1,
        "batch_size": 128,
        "max_len": 20,
        "embedding_dim": 8,
        "num_heads": 2,
        "dnn_hidden_units": [16],
        "metrics": ["AUC", "gAUC", "logloss"],
        "group_id": of("user_id"),
        "embedding_regularizer": 1e-4,
        "tensorboard": False,
        "verbose": 0,
    }
    change(dataset, experiment)
    return write_project(folder, {"X": experiment}, {"d": dataset})
