"""A model of FuxiCTR or of the challenge as one graph of rows: ids come in as numbers, embedding tables as inputs.

Such a model looks up ids itself, so that a graph cannot be given rows of its tables as those of this library are.

Shape letters: B rows, N history items of all rows, U distinct items, D numbers and M ids of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fuxictr_mm.data.batch import Batch, make_formatter
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.serving.graphs import NUM_ITEMS, NUM_ROWS, column_example, traced_rows
from fuxictr_mm.serving.tables import Content, Parts, starts_of
from fuxictr_mm.training.scoring import of_tasks, predictions_of

if TYPE_CHECKING:
    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.data.items import ItemTable
    from fuxictr_mm.experiment import Experiment


class ItemColumns:
    """The columns of the item files that a model reads, as two matrices: of numbers, and of ids.

    ``numbers`` and ``ids`` have the shape of each column in one item; the last of ``ids`` is the item's own.
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
    """In place of the item table of a batch format: items are rows of ``numbers`` ``(U, D)`` and ``ids`` ``(U, M)``."""

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
        codes: Sequence[Tensor],
        target: Tensor,
        history: Tensor,
        offsets: Tensor,
        context: Sequence[Tensor],
        tables: Sequence[Tensor],
    ) -> Tensor:
        """Return predictions ``(B, T)``.

        Parameters
        ----------
        items : Tensor
            ``(U, D)`` numbers of items, the padding item first.
        codes : sequence of Tensor
            ``(U, M)`` ids of them, as the only one.
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
        given: Any = GivenItems(self.columns, items, codes[0])
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


def fuxictr_parts(model: Any, dataset: Dataset, experiment: Experiment) -> Parts:
    """Return the parts of a model of FuxiCTR or of the challenge, whose graph is given ids and the tables."""
    model.device = torch.device("cpu")  # to which FuxiCTR moves what a model is given
    items, specs, columns = dataset.items, model.feature_map.features, ItemColumns(model, dataset.items)
    context = [f.name for f in dataset.features if f.is_context and f.embedded and f.name in specs]
    graph = FuxiCTRGraph(model, columns, context, experiment.batch_format(model), experiment.config.max_len)
    dims = {name: shape.numel() for name, shape in columns.numbers.items()}
    contents: dict[str, Content] = {}  # stored as they are read
    for name, start in zip(dims, starts_of(dims.values()), strict=True):
        contents[name] = {"start": start, "dim": dims[name]}, np.eye(dims[name], dtype=np.float32)
    counts = {name: shape.numel() for name, shape in columns.ids.items() if name != ITEM_ID}
    codes = columns.ids_of(torch.arange(items.num_items))
    weights = {name: model.get_parameter(name).detach() for name in graph.tables}
    # By the values of the example, no id is beyond a table.
    some = torch.zeros(NUM_ITEMS, dtype=torch.int64)
    given = {name: column_example(specs[name], NUM_ROWS) for name in context}
    example = columns.numbers_of(some), [columns.ids_of(some)], given
    graphs = {"rows": traced_rows(graph, *example, [*weights.values()], [*weights], [{} for _ in weights])}
    return Parts(graphs, context, columns.numbers_of, contents, counts, codes, weights=weights)
