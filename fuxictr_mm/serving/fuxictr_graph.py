"""A model of FuxiCTR or of the challenge as one graph of rows: ids come in as numbers, embedding tables as inputs.

Such a model looks up ids itself, so that a graph cannot be given rows of its tables as those of this library are.

Shape letters: B rows, N history items of all rows, U distinct items, D numbers and M ids of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fuxictr_mm.data.batch import Batch, make_formatter
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.serving.graphs import Traced, dim_named
from fuxictr_mm.serving.tables import starts_of, write_table
from fuxictr_mm.training.loop import of_tasks, predictions_of

if TYPE_CHECKING:
    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.data.items import ItemTable


class ItemColumns:
    """The columns of the item files that a model reads, as two matrices: of numbers, and of ids.

    Parameters
    ----------
    model : BaseModel
        A model of FuxiCTR.
    items : ItemTable
        Its items.

    Attributes
    ----------
    numbers, ids : dict of str to torch.Size
        Shape of each column in one item; the last of ``ids`` is the item's own.
    """

    def __init__(self, model: Any, items: ItemTable) -> None:
        specs = model.feature_map.features
        self._items = items
        names = [n for n in items.names if n in specs and specs[n]["type"] != "meta"]
        found = items.rows(torch.zeros(1, dtype=torch.int64), [*names, ITEM_ID])
        self.numbers = {n: column.shape[1:] for n, column in found.items() if column.is_floating_point()}
        self.ids = {n: column.shape[1:] for n, column in found.items() if n not in self.numbers}

    def numbers_of(self, ids: Tensor) -> Tensor:
        """Return the numbers of items ``(U, D)``, a zero if there are none."""
        found = self._joined(ids, self.numbers)
        return torch.cat(found, dim=1).float() if found else torch.zeros(len(ids), 1)

    def ids_of(self, ids: Tensor) -> Tensor:
        """Return the ids of items ``(U, M)`` int64."""
        return torch.cat(self._joined(ids, self.ids), dim=1).long()

    def _joined(self, ids: Tensor, names: dict[str, torch.Size]) -> list[Tensor]:
        return [column.reshape(len(ids), -1) for column in self._items.rows(ids, list(names)).values()]


class GivenItems:
    """In place of the item table of a batch format: items are rows of what the graph is given.

    Parameters
    ----------
    columns : ItemColumns
        The columns.
    numbers, ids : Tensor
        ``(U, D)`` and ``(U, M)``.
    """

    def __init__(self, columns: ItemColumns, numbers: Tensor, ids: Tensor) -> None:
        self.names = tuple(name for name in (*columns.numbers, *columns.ids) if name != ITEM_ID)
        self._columns: dict[str, Tensor] = {}
        for matrix, shapes in ((numbers, columns.numbers), (ids, columns.ids)):
            starts = starts_of(shape.numel() for shape in shapes.values())
            for start, (name, shape) in zip(starts, shapes.items(), strict=True):
                self._columns[name] = matrix[:, start : start + shape.numel()].reshape(-1, *shape)

    def rows(self, ids: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the named columns of the items in these rows ``(M,)``."""
        return {name: self._columns[name].index_select(0, ids) for name in names}

    def trained_ids(self, ids: Tensor) -> Tensor:
        """Return the ids of the items in these rows, of any shape."""
        return self._columns[ITEM_ID][ids]


class FuxiCTRGraph(nn.Module):
    """Scores rows: ``(items, codes, target, history, offsets, context, tables) -> (B, T)`` predictions.

    Parameters
    ----------
    model : BaseModel
        A model of FuxiCTR, on the CPU.
    columns : ItemColumns
        What it reads of items.
    context : sequence of str
        Columns of the interactions that it reads.
    view : {"flat", "challenge"}
        Its batch format.
    max_len : int
        Length that its format pads histories to.
    """

    def __init__(self, model: Any, columns: ItemColumns, context: Sequence[str], view: str, max_len: int) -> None:
        super().__init__()
        self.model, self.columns, self.context = model, columns, list(context)
        self.view, self.max_len = view, max_len
        self.tables = embedding_tables(model)

    def forward(
        self,
        items: Tensor,
        codes: Tensor,
        target: Tensor,
        history: Tensor,
        offsets: Tensor,
        context: Sequence[Tensor],
        tables: Sequence[Tensor],
    ) -> Tensor:
        """Return predictions ``(B, T)``.

        Parameters
        ----------
        items, codes : Tensor
            ``(U, D)`` numbers and ``(U, M)`` ids of items, the padding item first.
        target, history : Tensor
            ``(B,)`` and ``(N,)`` rows of them.
        offsets : Tensor
            ``(B + 1,)``.
        context : sequence of Tensor
            ``(B, ...)`` columns, sequences padded.
        tables : sequence of Tensor
            The weights that ``embedding_tables`` names.
        """
        names = self.model.feature_map.labels
        given: Any = GivenItems(self.columns, items, codes)
        formatted = make_formatter(self.view, self.model.feature_map, given, self.max_len)
        assert formatted is not None
        batch = Batch(dict(zip(self.context, context, strict=True)), target, Jagged(history, offsets))
        weights = dict(zip(self.tables, tables, strict=True))
        output = functional_call(self.model, weights, (formatted(batch),))
        return of_tasks(predictions_of(output, names), len(names)).reshape(-1, len(names))


def embedding_tables(model: nn.Module) -> list[str]:
    """Return the names of the weights of embedding layers, one that layers share once."""
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            found.setdefault(id(module.weight), f"{name}.weight" if name else "weight")
    return list(found.values())


def context_columns(model: Any, dataset: Dataset) -> list[str]:
    """Return the columns of the interactions that a graph is given."""
    specs = model.feature_map.features
    return [f.name for f in dataset.features if f.is_context and f.embedded and f.name in specs]


def rows_example(model: Any, dataset: Dataset, view: str, max_len: int) -> Traced:
    """Return the graph with an example without sizes 0 and 1, which tracing would take for constants."""
    columns, context = ItemColumns(model, dataset.items), context_columns(model, dataset)
    graph = FuxiCTRGraph(model, columns, context, view, max_len)
    # By their values, no id is beyond a table.
    some = torch.zeros(11, dtype=torch.int64)
    lengths = torch.tensor([3, 2, 4, 5, 2, 3, 7])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    num_rows, num_values = len(lengths), int(lengths.sum())
    tables = [model.get_parameter(name).detach() for name in graph.tables]
    rows, values, distinct = dim_named("rows"), dim_named("values"), dim_named("items")
    args = (
        columns.numbers_of(some),
        columns.ids_of(some),
        torch.arange(num_rows) + 1,
        torch.arange(num_values) % 10 + 1,
        offsets,
        [_column_example(model.feature_map.features[name], num_rows) for name in context],
        tables,
    )
    shapes: tuple[Any, ...] = (
        {0: distinct},
        {0: distinct},
        {0: rows},
        {0: values},
        {0: rows + 1},
        [{0: rows} for _ in context],
        [{} for _ in tables],
    )
    fields = [f"context_{name}" for name in context]
    names = ["items", "codes", "target", "history", "offsets", *fields, *graph.tables]
    return Traced(graph, args, names, shapes, ["prediction"])


def _column_example(spec: dict[str, Any], num_rows: int) -> Tensor:
    if spec["type"] == "numeric":
        return torch.rand(num_rows)
    if spec["type"] == "embedding":
        return torch.rand(num_rows, spec["pretrain_dim"])
    shape = (num_rows, spec["max_len"]) if spec["type"] == "sequence" else (num_rows,)
    return torch.zeros(shape, dtype=torch.int64)


def write_tables(model: Any, dataset: Dataset, folder: Path, manifest: dict[str, Any]) -> None:
    """Write what the graph is given of items, and the embedding tables; adds them to the manifest."""
    items, columns = dataset.items, ItemColumns(model, dataset.items)
    np.save(folder / "known.npy", items.known.numpy())
    entry = manifest["items"]
    entry["table"] = write_table(columns.numbers_of, items.num_items, folder, "items", "fp32")
    np.save(folder / "item_codes.npy", columns.ids_of(torch.arange(items.num_items)).numpy())
    counts = {name: shape.numel() for name, shape in columns.ids.items() if name != ITEM_ID}
    sizes = {f.name: f.vocab_size for f in dataset.features if f.name in counts and f.vocab_size}
    entry["codes"] = {"file": "item_codes.npy", "columns": counts, "vocab_sizes": sizes}
    entry["contents"] = _write_contents(columns, dataset, folder)
    manifest["tables"] = {}
    for number, name in enumerate(embedding_tables(model)):
        file = f"table_{number}.npy"
        np.save(folder / file, model.get_parameter(name).detach().numpy())
        manifest["tables"][name] = {"file": file}


def _write_contents(columns: ItemColumns, dataset: Dataset, folder: Path) -> dict[str, dict[str, Any]]:
    """Return which embeddings an item that the export does not hold can be given; they are stored as they are read."""
    starts = starts_of(shape.numel() for shape in columns.numbers.values())
    places = dict(zip(columns.numbers, starts, strict=True))
    found: dict[str, dict[str, Any]] = {}
    for feature in dataset.features:
        if feature.type == "embedding" and feature.norm in (None, "l2", "layer") and feature.name in places:
            dim, file = columns.numbers[feature.name].numel(), f"project_{feature.name}.npy"
            np.save(folder / file, np.eye(dim, dtype=np.float32))
            found[feature.name] = {
                "norm": feature.norm,
                "scale": feature.scale,
                "file": file,
                "start": places[feature.name],
                "dim": dim,
            }
    return found
