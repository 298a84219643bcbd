"""What graphs are given of items in place of a model's tables.

Shape letters: B rows, U distinct items, D item dim, E dim of buffers per item, M codes of an item. C dim of a context,
S statistics of a similarity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fuxictr_mm.layers.similarity import Compared, HistorySimilarity, has_ids, inverse_lengths
from fuxictr_mm.model import MultimodalModel


class ItemsGraph(nn.Module):
    """A graph whose model is given rows of the item table, with what it reads per item.

    The methods of the model that look up items are replaced, so give one that is not used otherwise.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model
        self.dims = row_dims(model)
        self._content_columns, self._code_counts = content_columns(model), code_columns(model)
        self._own_codes = sum(self._code_counts[name] for name in model.per_item_codes)
        self._rows: Tensor | None = None
        self._codes: Tensor | None = None

    def _give(self, rows: Tensor, codes: Sequence[Tensor]) -> None:
        """Let the model read these items, by the numbers of their rows, until it is given others."""
        self._rows, self._codes = rows, next(iter(codes), None)
        # Here, as graphs of user and candidates have one model.
        self.model.per_item = self._per_item  # type: ignore[method-assign]
        self.model.content_of = self._content_of  # type: ignore[method-assign]
        self.model.code_table = self._code_table  # type: ignore[method-assign]

    def _compared(self, of: str) -> Compared:
        """Return what similarities compare of the items in a column."""
        assert self._rows is not None
        if of in self._content_columns:  # at length 1
            return Compared(self._rows.split(self.dims, dim=1)[self._place_of(of)], None)
        assert self._codes is not None
        ids = self._codes.split([*self._code_counts.values()], dim=1)[[*self._code_counts].index(of)]
        return Compared(ids, inverse_lengths(ids))

    def _per_item(self, name: str, ids: Tensor) -> Tensor:
        assert self._rows is not None
        return per_item(self.model, self._rows, self.dims, name).index_select(0, ids)

    def _content_of(self, name: str, ids: Tensor) -> Tensor:
        assert self._rows is not None
        return self._rows.split(self.dims, dim=1)[self._place_of(name)].index_select(0, ids)

    def _place_of(self, content: str) -> int:
        return 1 + len(self.model.per_item_buffers) + self._content_columns.index(content)

    def _code_table(self) -> Tensor:
        assert self._codes is not None
        return self._codes[:, : self._own_codes]


def content_columns(model: MultimodalModel) -> list[str]:
    """Return the columns of the items that are stored with them at length 1."""
    ids = compared_ids(model)
    compared = [name for name in compared_columns(model) if name not in ids]
    return list(dict.fromkeys([*model.per_item_contents, *compared]))


def compared_columns(model: MultimodalModel) -> list[str]:
    """Return the columns of the items that similarities compare."""
    return list(dict.fromkeys(of for of, _ in similarities_of(model).values()))


def compared_ids(model: MultimodalModel) -> list[str]:
    """Return those of ``compared_columns`` that hold ids."""
    return [name for name in compared_columns(model) if has_ids(model.items.stored(name))]


def similarities_of(model: MultimodalModel) -> dict[str, tuple[str, HistorySimilarity]]:
    """Return the column that each similarity compares, and its layer."""
    found = {}
    for name, layer in model.similarities.items():
        assert isinstance(layer, HistorySimilarity)
        found[name] = model.computed[name]["of"], layer
    return found


def code_columns(model: MultimodalModel) -> dict[str, int]:
    """Return the columns of codes of items that graphs are given, and how many integers an item has in each.

    The model's own are first, then those that only similarities read.
    """
    return {name: model.items.stored(name)[0].numel() for name in [*model.per_item_codes, *compared_ids(model)]}


def stored_codes(model: MultimodalModel) -> Tensor:
    """Return the ``code_columns`` of the items side by side, ``(I, M)``."""
    columns = [model.items.stored(name).view(model.items.num_items, -1) for name in code_columns(model)]
    return torch.cat([column.long() for column in columns], dim=1)


def given_fields(model: MultimodalModel) -> list[str]:
    """Return the context fields that a graph is given; similarities are computed in it."""
    return [name for name in model.context_fields if name not in model.similarities]


def item_rows(model: MultimodalModel, ids: Tensor) -> Tensor:
    """Return rows of the item table ``(U, D + E)``: embeddings, then what models read per item."""
    buffers = [model.per_item(name, ids) for name in model.per_item_buffers]
    contents = [model.content_of(name, ids) for name in content_columns(model)]
    return torch.cat([model.embed_items(ids), *buffers, *contents], dim=1)


def row_dims(model: MultimodalModel) -> list[int]:
    """Return the dims of the parts of ``item_rows``."""
    buffers = [model.get_buffer(name).shape[1] for name in model.per_item_buffers]
    return [model.item_dim, *buffers, *map(model.items.dim, content_columns(model))]


def per_item(model: MultimodalModel, rows: Tensor, dims: Sequence[int], name: str) -> Tensor:
    """Return a buffer's columns of rows ``(U, D + E)`` of the item table."""
    return rows.split(list(dims), dim=1)[1 + model.per_item_buffers.index(name)]


def embed_context(model: MultimodalModel, columns: Mapping[str, Tensor], num_rows: int) -> Tensor:
    """Return the concatenated context fields ``(B, C)`` of ``num_rows`` rows.

    ``columns`` are by the name of the field: ``(B,)`` numbers, ``(B, P)`` stored embeddings, or the rows of the
    embedding table, ``(B, D)`` for a categorical field and ``(B, L, D)`` for a sequence.
    """
    parts = [_embed_field(model, name, columns[name]) for name in model.context_fields]
    return torch.cat(parts, dim=-1) if parts else torch.zeros(num_rows, 0)


def embed_similarities(model: MultimodalModel, columns: Mapping[str, Tensor], context: Tensor) -> Tensor:
    """Return contexts ``(M, C)``: one of any similarities ``(1, C)``, with those of each candidate ``(M, S)``."""
    parts = dict(zip(model.context_fields, context.split(context_dims(model), dim=1), strict=True))
    parts |= {name: _embed_field(model, name, column.to(context)) for name, column in columns.items()}
    num_rows = next(iter(columns.values())).shape[0]
    return torch.cat([part.expand(num_rows, -1) for part in parts.values()], dim=1)


def context_dims(model: MultimodalModel) -> list[int]:
    """Return the dim of each context field."""
    dims = model.field_dims
    return [dims[name] for name in model.context_fields]


def _embed_field(model: MultimodalModel, name: str, column: Tensor) -> Tensor:
    layers = model.embedding_layer.embedding_layer
    if model.feature_map.features[name]["type"] == "numeric":
        column = layers.embedding_layers[name](column.float().view(-1, 1))
    return layers.feature_encoders[name](column) if name in layers.feature_encoders else column
