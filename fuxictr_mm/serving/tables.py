"""Tables, projections and vocabularies of an export.

Shape letters: I items, D item dim, V ids of a context field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from torch import Tensor, nn

from fuxictr_mm.data.numbers import scales_of
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.fuxictr_imports import MaskedAveragePooling, MaskedSumPooling
from fuxictr_mm.serving.graphs import Traced, graphs_of
from fuxictr_mm.serving.item_rows import (
    code_columns,
    compared_ids,
    content_columns,
    given_fields,
    item_rows,
    row_dims,
    stored_codes,
)
from fuxictr_mm.terminal import item_bar
from fuxictr_mm_serving.tables import quantize
from fuxictr_mm_serving.vocabulary import LARGE, Integers, Texts

if TYPE_CHECKING:
    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.data.vocabulary import Vocabulary
    from fuxictr_mm.experiment import Experiment

#: Rows of a table that are computed at a time.
CHUNK = 65536

#: How embeddings of ids become a field, by its type and encoder.
POOLINGS = {
    ("categorical", type(None)): "sum",
    ("sequence", MaskedAveragePooling): "mean",
    ("sequence", MaskedSumPooling): "sum",
}


#: Where an embedding is in a row of the item table, and its projection to there.
Content = tuple[dict[str, int], np.ndarray | None]


@dataclass(frozen=True)
class Parts:
    """What an export holds of a model.

    Rows of the item table have ``fields``, where they are embedded; an item that the export does not hold can be given
    ``contents`` and ``ids``. Graphs are given ``codes`` of items, of as many in each of ``code_columns``; ids of each
    column of the ``context`` that is not looked up in ``context_tables``; and ``weights``.
    """

    graphs: Mapping[str, Traced]
    context: list[str]
    item_rows: Callable[[Tensor], Tensor]
    contents: Mapping[str, Content]
    code_columns: Mapping[str, int]
    codes: Tensor | None
    code_lists: Sequence[str] = ()
    fields: Mapping[str, int] = field(default_factory=dict)
    context_tables: Mapping[str, nn.Module] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    ids: Sequence[tuple[dict[str, Any], nn.Module | None]] = ()


def zoo_parts(model: Any, dataset: Dataset, experiment: Experiment) -> Parts:
    """Return the parts of a model of this library, whose graphs are given rows of tables."""
    fields = {name: model.field_dims[name] for name in model.item_fields}
    codes_of = code_columns(model)
    codes = stored_codes(model) if codes_of else None
    lists = [name for name in compared_ids(model) if name not in model.per_item_codes]
    kinds = {name: model.feature_map.features[name]["type"] for name in given_fields(model)}
    layers = model.embedding_layer.embedding_layer.embedding_layers
    tables = {name: layers[name] for name, kind in kinds.items() if kind in ("categorical", "sequence")}
    rows, contents = partial(item_rows, model), _zoo_contents(model, fields)
    return Parts(
        graphs_of(model),
        [*kinds],
        rows,
        contents,
        codes_of,
        codes,
        lists,
        fields,
        tables,
        ids=_zoo_ids(model, fields),
    )


def _zoo_contents(model: Any, fields: Mapping[str, int]) -> dict[str, Content]:
    """Return what is known of embeddings and numbers, but for fields with an encoder of their own."""
    columns, starts = content_columns(model), starts_of(row_dims(model))
    found: dict[str, Content] = {}
    for name, start in zip(columns, starts[len(starts) - len(columns) :], strict=True):
        found[name] = {"content_start": start, "dim": model.items.dim(name)}, None
    layers = model.embedding_layer.embedding_layer
    encoders, tables = dict(layers.feature_encoders), dict(layers.embedding_layers)
    for name, start in zip(fields, starts_of(fields.values()), strict=True):
        place, _ = found.pop(name, ({}, None))
        is_number = model.feature_map.features[name]["type"] == "numeric" and name not in encoders
        layer = tables.get(name) if is_number else encoders.get(name)
        if isinstance(layer, nn.Linear) and layer.bias is None:
            weight = layer.weight.detach().numpy()
        elif isinstance(layer, nn.Identity):
            weight = np.eye(fields[name], dtype=np.float32)
        else:
            continue
        found[name] = place | {"start": start, "dim": weight.shape[1]}, weight
    return found


def _zoo_ids(model: Any, fields: Mapping[str, int]) -> list[tuple[dict[str, Any], nn.Module | None]]:
    """Return how ids that a new item can be given become fields of the item table, and their embeddings.

    Ids of items are looked up in their own field. Left out: tables on several devices, and encoders that do not pool.
    """
    layers, starts = model.embedding_layer.embedding_layer, dict(zip(fields, starts_of(fields.values()), strict=True))
    encoders, tables = dict(layers.feature_encoders), dict(layers.embedding_layers)
    found: list[tuple[dict[str, Any], nn.Module | None]] = []
    for name, start in starts.items():
        spec, layer = model.feature_map.features[name], tables.get(name)
        pooling = POOLINGS.get((spec["type"], type(encoders.get(name))))
        if name == ITEM_ID or pooling is None or type(layer) is not nn.Embedding:
            continue
        count = model.items.stored(name)[0].numel()
        entry = {"name": name, "column": name, "type": "categorical", "vocab_size": layer.num_embeddings}
        entry |= {"start": start, "dim": fields[name], "max_len": count, "pooling": pooling}
        if spec.get("share_embedding") != ITEM_ID:
            found.append((entry, layer))
        elif ITEM_ID in starts and ITEM_ID not in encoders:
            found.append((entry | {"as_ids": True, "items_start": starts[ITEM_ID]}, None))
    return found


def write_tables(
    parts: Parts, dataset: Dataset, folder: Path, manifest: dict[str, Any], precision: str, verbose: int = 0
) -> None:
    """Write the tables of items, of context fields and of graphs; adds them to the manifest."""
    items, entry = dataset.items, manifest["items"]
    np.save(folder / "known.npy", items.known.numpy())
    dims = [*parts.fields.values()]
    entry["table"] = write_table(parts.item_rows, items.num_items, folder, "items", precision, dims, verbose)
    entry["contents"], entry["ids"] = _write_contents(parts, dataset, folder), [one for one, _ in parts.ids]
    entry["numbers"] = _write_numbers(parts, dataset, folder)
    for one, embedding in parts.ids:
        if embedding is not None:
            one["table"] = write_table(embedding, one["vocab_size"], folder, f"ids_{one['name']}", precision)
    if parts.codes is not None:
        np.save(folder / "item_codes.npy", parts.codes.numpy())
        sizes = {f.name: f.vocab_size for f in dataset.features if f.name in parts.code_columns and f.vocab_size}
        of_items = [f.name for f in dataset.features if f.name in parts.code_columns and f.share_embedding == ITEM_ID]
        entry["codes"] = {"file": "item_codes.npy", "columns": parts.code_columns, "vocab_sizes": sizes}
        entry["codes"] |= {"lists": [*parts.code_lists], "of_items": of_items}
    for given in manifest["context"]:
        if given["name"] in parts.context_tables:
            layer, file = parts.context_tables[given["name"]], f"context_{given['name']}"
            given["table"] = write_table(layer, given["vocab_size"], folder, file, precision)
    manifest["tables"] = {name: {"file": f"table_{number}.npy"} for number, name in enumerate(parts.weights)}
    for name, table in manifest["tables"].items():
        np.save(folder / table["file"], parts.weights[name].numpy())


def _write_contents(parts: Parts, dataset: Dataset, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the projections of frozen embeddings; returns what an item that the export does not hold can be given.

    Left out is the norm that needs statistics of all items.
    """
    found: dict[str, dict[str, Any]] = {}
    for f in dataset.features:
        if f.type == "embedding" and f.norm in (None, "l2", "layer") and f.name in parts.contents:
            place, projection = parts.contents[f.name]
            found[f.name] = {"norm": f.norm, "scale": f.scale, **place}
            if projection is not None:
                found[f.name]["file"] = f"project_{f.name}.npy"
                np.save(folder / f"project_{f.name}.npy", projection)
    return found


def _write_numbers(parts: Parts, dataset: Dataset, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the projections of numbers of the item files; returns which an item not held by the export can be given."""
    found: dict[str, dict[str, Any]] = {}
    scales = scales_of(dataset.vocabularies)
    for f in dataset.features:
        place, projection = parts.contents.get(f.name, ({}, None))
        if f.type == "numeric" and projection is not None:
            shift, scale = scales.get(f.name, (0.0, 1.0))
            found[f.name] = {"file": f"project_{f.name}.npy", "start": place["start"], "shift": shift, "scale": scale}
            np.save(folder / f"project_{f.name}.npy", projection)
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
    verbose: int = 0,
) -> dict[str, Any]:
    """Write the rows of ids 0 to ``num_rows - 1`` as ``NAME.npy``; returns the entry of the manifest.

    Of 8 bits, fields of ``dims`` columns, and what follows them, have factors of their own. ``verbose`` is as of
    ``progress_bar``.
    """
    kind = {"fp16": np.float16, "int8-tables": np.int8}.get(precision, np.float32)
    entry: dict[str, Any] = {"file": f"{name}.npy"}
    scales = []
    # Not mapped: on a full disk, a write to a mapping would end the process by a signal.
    with torch.no_grad(), (folder / entry["file"]).open("wb") as stream, item_bar(num_rows, name, verbose) as bar:
        for start in range(0, num_rows, CHUNK):
            rows = rows_of(torch.arange(start, min(start + CHUNK, num_rows))).float().numpy()
            if start == 0:
                shape = (num_rows, rows.shape[1])
                header = {"descr": dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
                write_array_header_1_0(stream, header)
                dims = [dim for dim in (*dims, rows.shape[1] - sum(dims)) if dim]
            if precision == "int8-tables":
                rows, factors = quantize(rows, dims)
                scales.append(factors)
            stream.write(np.ascontiguousarray(rows, dtype=kind).data)
            bar.update(len(rows))
    if precision == "int8-tables":
        entry.update(scales=f"{name}_scales.npy", dims=dims)
        np.save(folder / entry["scales"], np.concatenate(scales))
    return entry


def write_vocabularies(dataset: Dataset, path: Path, own: Mapping[str, Vocabulary], *, as_arrays: bool = False) -> bool:
    """Write the vocabularies, with the items that are new since training, and the owner's of numbers in the files.

    With ``as_arrays``, large ones are files of their own, which servers map; returns whether there are any.
    """
    found = dict(dataset.vocabularies)
    if dataset.items.vocabulary is not None:
        found[ITEM_ID] = dataset.items.vocabulary
    content: dict[str, dict[str, Any]] = {}
    for number, (name, vocabulary) in enumerate({**found, **own}.items()):
        values, type = vocabulary.values.to_pylist(), vocabulary.values.type
        kind = "integer" if pa.types.is_integer(type) else "bytes" if pa.types.is_large_binary(type) else "text"
        content[name] = {"type": kind}
        if kind == "text" and name in own:  # prepare makes texts of the numbers of a category
            content[name]["takes_numbers"] = True
        if as_arrays and len(values) >= LARGE:
            arrays = Integers.of(values).arrays if kind == "integer" else Texts.of(values).arrays
            # A column may have a name that no file can have.
            content[name]["arrays"] = {part: f"vocabulary_{number}_{part}.npy" for part in arrays}
            for part, array in arrays.items():
                np.save(path.parent / f"vocabulary_{number}_{part}.npy", array)
        else:
            content[name]["values"] = [value.hex() for value in values] if kind == "bytes" else values
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return any("arrays" in entry for entry in content.values())
