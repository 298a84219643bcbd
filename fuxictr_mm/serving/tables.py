"""Tables, projections and vocabularies of an export.

Shape letters: I items, D item dim, V ids of a context field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from fuxictr.pytorch.layers import MaskedAveragePooling, MaskedSumPooling
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.serving.graphs import content_columns, context_tables, item_rows, row_dims
from fuxictr_mm_serving.tables import quantize

if TYPE_CHECKING:
    from fuxictr_mm.data.dataset import Dataset

#: Rows of a table that are computed at a time.
CHUNK = 65536

#: How embeddings of ids become a field, by its type and encoder.
POOLINGS = {
    ("categorical", type(None)): "sum",
    ("sequence", MaskedAveragePooling): "mean",
    ("sequence", MaskedSumPooling): "sum",
}


def write_tables(model: Any, dataset: Dataset, folder: Path, manifest: dict[str, Any], precision: str) -> None:
    """Write the table of items and those of context fields; adds them to the manifest."""
    np.save(folder / "known.npy", model.items.known.numpy())
    manifest["items"]["table"] = write_table(
        partial(item_rows, model),
        model.items.num_items,
        folder,
        "items",
        precision,
        [*manifest["items"]["fields"].values()],
    )
    manifest["items"]["contents"] = _write_contents(model, dataset, folder)
    manifest["items"]["ids"] = _write_id_fields(model, folder, precision)
    if model.per_item_codes:
        counts = {name: model.items.stored(name)[0].numel() for name in model.per_item_codes}
        np.save(folder / "item_codes.npy", model.code_table().numpy())
        sizes = {f.name: f.vocab_size for f in dataset.features if f.name in counts and f.vocab_size}
        manifest["items"]["codes"] = {"file": "item_codes.npy", "columns": counts, "vocab_sizes": sizes}
    layers = context_tables(model)
    for entry in manifest["context"]:
        if entry["name"] in layers:
            layer, file = layers[entry["name"]], f"context_{entry['name']}"
            entry["table"] = write_table(layer, entry["vocab_size"], folder, file, precision)


def _write_contents(model: Any, dataset: Dataset, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the projections of frozen embeddings; returns what an item that the export does not hold can be given.

    Left out: fields with an encoder of their own, and the norm that needs statistics of all items.
    """
    starts = dict(zip(model.item_fields, starts_of(model.field_dims[name] for name in model.item_fields), strict=True))
    columns, dims = content_columns(model), row_dims(model)
    content_starts = dict(zip(columns, starts_of(dims)[len(dims) - len(columns) :], strict=True))
    encoders = model.embedding_layer.embedding_layer.feature_encoders
    found: dict[str, dict[str, Any]] = {}
    for feature in dataset.features:
        name = feature.name
        if feature.type != "embedding" or feature.norm not in (None, "l2", "layer"):
            continue
        entry: dict[str, Any] = {"norm": feature.norm, "scale": feature.scale}
        if name in starts:
            layer = encoders[name]
            if isinstance(layer, nn.Linear) and layer.bias is None:
                weight = layer.weight.detach().numpy()
            elif isinstance(layer, nn.Identity):
                weight = np.eye(model.field_dims[name], dtype=np.float32)
            else:
                continue
            entry.update(file=f"project_{name}.npy", start=starts[name], dim=weight.shape[1])
            np.save(folder / entry["file"], weight)
        if name in content_starts:
            entry.update(content_start=content_starts[name], dim=model.items.dim(name))
        if "dim" in entry:
            found[name] = entry
    return found


def _write_id_fields(model: Any, folder: Path, precision: str) -> list[dict[str, Any]]:
    """Write the tables of ids that a new item can be given; returns how they become fields of the item table.

    Ids of items are looked up in their own field. Left out: tables on several devices, and encoders that do not pool.
    """
    layers = model.embedding_layer.embedding_layer
    starts = dict(zip(model.item_fields, starts_of(model.field_dims[name] for name in model.item_fields), strict=True))
    encoders, tables = dict(layers.feature_encoders), dict(layers.embedding_layers)
    found = []
    for name, start in starts.items():
        spec, layer = model.feature_map.features[name], tables.get(name)
        pooling = POOLINGS.get((spec["type"], type(encoders.get(name))))
        if name == ITEM_ID or pooling is None or type(layer) is not nn.Embedding:
            continue
        count = model.items.stored(name)[0].numel()
        entry = {"name": name, "column": name, "type": "categorical", "vocab_size": layer.num_embeddings}
        entry |= {"start": start, "dim": model.field_dims[name], "max_len": count, "pooling": pooling}
        if spec.get("share_embedding") != ITEM_ID:
            entry["table"] = write_table(layer, layer.num_embeddings, folder, f"ids_{name}", precision)
        elif ITEM_ID in starts and ITEM_ID not in encoders:
            entry |= {"as_ids": True, "items_start": starts[ITEM_ID]}
        else:
            continue
        found.append(entry)
    return found


def starts_of(dims: Iterable[int]) -> list[int]:
    """Return the first column of each of several parts."""
    return [0, *accumulate(dims)][:-1]


def write_table(
    rows_of: Callable[[Tensor], Tensor],
    num_rows: int,
    folder: Path,
    name: str,
    precision: str,
    dims: Sequence[int] = (),
) -> dict[str, Any]:
    """Write the rows of ids 0 to ``num_rows - 1`` as ``NAME.npy``; returns the entry of the manifest.

    Of 8 bits, fields of ``dims`` columns, and what follows them, have factors of their own.
    """
    kind = {"fp16": np.float16, "int8-tables": np.int8}.get(precision, np.float32)
    entry: dict[str, Any] = {"file": f"{name}.npy"}
    table, scales = None, []
    with torch.no_grad():
        for start in range(0, num_rows, CHUNK):
            stop = min(start + CHUNK, num_rows)
            rows = rows_of(torch.arange(start, stop)).float().numpy()
            if table is None:
                table = open_memmap(folder / entry["file"], "w+", dtype=kind, shape=(num_rows, rows.shape[1]))
                dims = [dim for dim in (*dims, rows.shape[1] - sum(dims)) if dim]
            if precision == "int8-tables":
                rows, factors = quantize(rows, dims)
                scales.append(factors)
            table[start:stop] = rows
    assert table is not None
    table.flush()
    if precision == "int8-tables":
        entry.update(scales=f"{name}_scales.npy", dims=dims)
        np.save(folder / entry["scales"], np.concatenate(scales))
    return entry


def write_vocabularies(dataset: Dataset, path: Path) -> None:
    """Write the vocabularies, with the items that are new since training."""
    found = dict(dataset.vocabularies)
    if dataset.items.vocabulary is not None:
        found[ITEM_ID] = dataset.items.vocabulary
    content: dict[str, dict[str, Any]] = {}
    for name, vocabulary in found.items():
        values = vocabulary.values.to_pylist()
        if pa.types.is_integer(vocabulary.values.type):
            content[name] = {"type": "integer", "values": values}
        elif pa.types.is_large_binary(vocabulary.values.type):
            content[name] = {"type": "bytes", "values": [value.hex() for value in values]}
        else:
            content[name] = {"type": "text", "values": values}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
