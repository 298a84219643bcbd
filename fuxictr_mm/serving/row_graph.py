"""The graph of rows, each with a history of its own.

Shape letters: B rows, N history items of all rows, U distinct items, D item dim, E dim of buffers per item, T labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.serving.item_rows import ItemsGraph, embed_context, given_fields, similarities_of


class RowsGraph(ItemsGraph):
    """Scores rows: ``(items, codes, target, history, offsets, context, steps) -> (B, T)`` predictions."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self._context: Tensor | None = None
        self._longest = 0
        # Ids are row numbers of `items`; item 0, padding, is row 0.
        model.embed_histories = self._embed_histories  # type: ignore[method-assign]
        # Only losses of the training ask for zeros in place of the embedding of unknown items.
        model.embed_items = self._embed_items  # type: ignore[assignment, method-assign]
        model.embed_context = self._embed_context  # type: ignore[method-assign]
        model.contents = self._contents  # type: ignore[method-assign]
        model.history_codes = self._history_codes  # type: ignore[method-assign]
        model.__dict__["items"] = _NoItems()
        del model._modules["items"]
        model.with_computed = lambda batch: batch  # type: ignore[method-assign]

    def forward(
        self,
        items: Tensor,
        codes: Sequence[Tensor],
        target: Tensor,
        history: Tensor,
        offsets: Tensor,
        context: Sequence[Tensor],
        steps: Tensor,
    ) -> Tensor:
        """Return predictions ``(B, T)``.

        Parameters
        ----------
        items : Tensor
            ``(U, D + E)`` rows of the item table, the padding item first.
        codes : sequence of Tensor
            ``(U, M)`` int64 codes of these items, of a model that reads codes.
        target, history : Tensor
            ``(B,)`` and ``(N,)`` rows of ``items``.
        offsets : Tensor
            ``(B + 1,)``.
        context : sequence of Tensor
            ``given_fields`` as ``embed_context`` takes them.
        steps : Tensor
            ``(T,)``, T the length of the longest history, 1 or more: loops need it as a size.
        """
        self._longest = steps.shape[0]
        self._give(items, codes)
        batch = Batch({}, target, Jagged(history, offsets))
        columns = dict(zip(given_fields(self.model), context, strict=True))
        rows = target.index_select(0, batch.history.rows)
        for name, (of, layer) in similarities_of(self.model).items():
            compared = self._compared(of)
            columns[name] = layer.of_cosines(batch.history, compared.take(rows).cosines(compared.take(history)))
        self._context = embed_context(self.model, columns, target.shape[0])
        logits = self.model.logits(batch)
        self._rows = self._codes = self._context = None
        return self.model.output_activation(logits.reshape(-1, self.model.num_tasks))

    def _embed_histories(self, batch: Batch, *histories: Jagged) -> tuple[Tensor, list[Jagged]]:
        assert self._rows is not None
        items = self._rows[:, : self.dims[0]]
        found = [self._of_history(replace(batch, history=history), items) for history in histories]
        return items.index_select(0, batch.target), found

    def _embed_items(self, ids: Tensor) -> Tensor:
        assert self._rows is not None
        return self._rows[:, : self.dims[0]].index_select(0, ids)

    def _embed_context(self, batch: Batch) -> Tensor:
        assert self._context is not None
        return self._context

    def _contents(self, batch: Batch, name: str) -> tuple[Tensor, Jagged]:
        assert self._rows is not None
        contents = self._content_of(name, torch.arange(self._rows.shape[0]))
        return contents.index_select(0, batch.target), self._of_history(batch, contents)

    def _history_codes(self, batch: Batch) -> Jagged:
        return self._of_history(batch, self._code_table())

    def _of_history(self, batch: Batch, distinct: Tensor) -> Jagged:
        history = Jagged(distinct, batch.history.offsets, batch.history.values)
        history.__dict__["longest"] = self._longest  # otherwise computed from the data
        return history


class _NoItems:
    """In place of the items of a traced model."""

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"logits reads self.items.{name}; a graph has no item files, only per_item and embed")
