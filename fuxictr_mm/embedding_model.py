"""The part of a model that embeds a batch: its context, its target and its histories.

Shape letters: B rows, L history items of a row, N history items of all rows, U distinct items of a batch, C context
dim, D item dim, A dim of a frozen embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fuxictr_mm.data.batch import Batch, pad_columns
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import ITEM_ID, why_no_layers
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.fuxictr_imports import BaseModel, FeatureEmbeddingDict, FeatureMap
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers.field_embedding import FieldEmbedding
from fuxictr_mm.layers.history_search import directions, newest
from fuxictr_mm.layers.similarity import HistorySimilarity
from fuxictr_mm.layers.unknown_item import UnknownItem
from fuxictr_mm.tables.placement import place_tables, without_rows

#: Items per id of a batch above which its distinct ids are found by sorting.
FLAGS_PER_ID = 32
#: On a CPU in bfloat16, a multiple of as many items is embedded, so that few sizes occur.
ITEMS_IN_BF16 = 64


@dataclass(frozen=True)
class Embedded:
    """A batch after embedding.

    Parameters
    ----------
    context : Tensor
        ``(B, C)`` concatenated context fields; ``C = 0`` without context.
    target : Tensor
        ``(B, D)`` concatenated fields of the target item.
    history : Jagged
        ``(N, D)`` concatenated fields of each history item, stored once per distinct item.
    histories : dict of str to Jagged
        The same for each requested further history.
    """

    context: Tensor
    target: Tensor
    history: Jagged
    histories: Mapping[str, Jagged] = field(default_factory=dict)


class EmbeddingModel(BaseModel):
    """A FuxiCTR ``BaseModel`` with the embedding of jagged histories and of items with frozen embeddings."""

    #: Buffers with one row per trained item that ``logits`` reads by ``per_item``; exports store them with the items.
    per_item_buffers: tuple[str, ...] = ()
    #: Columns of the items that ``logits`` reads by ``contents``, which exports store in the same way.
    per_item_contents: tuple[str, ...] = ()
    #: Columns of the items with integers that ``logits`` reads by ``code_table``, which exports store beside the items.
    per_item_codes: tuple[str, ...] = ()
    #: Whether ``logits`` reads the newest items by ``newest_items``, from the short history of a dataset that has one.
    reads_short_history: bool = False
    #: Whether the embeddings of distinct items may end with more of the last one, which no index refers to.
    fills_items: bool = True

    def make_embedding(
        self, feature_map: FeatureMap, embedding_dim: int, sharded: dict[str, Any] | None = None
    ) -> None:
        """Create the embedding tables of the features; ``sharded`` has the optimizer's settings of sharded ones.

        Raises
        ------
        ConfigError
            The dataset has no item features, or the encoder of a feature does not fit it.
        """
        self.embedding_dim = embedding_dim
        self.items: ItemTable = feature_map.items
        specs = {n: s for n, s in feature_map.features.items() if s["type"] != "meta"}
        self.computed = {n: s for n, s in specs.items() if "computed" in s}
        self.feature_dropout = {n: s["dropout"] for n, s in specs.items() if s.get("dropout")}
        self.item_fields = [n for n, s in specs.items() if s.get("source") == "item"]
        self.context_fields = [n for n, s in specs.items() if s.get("source") != "item"]
        if not self.item_fields:
            raise ConfigError(
                f"{self.model_id}: no feature with source: item, expected at least one for the target and its history"
            )
        spread = [n for n, s in specs.items() if s.get("table") == "sharded"]
        try:
            self.embedding_layer = FieldEmbedding(without_rows(feature_map, spread), self.embedding_dim)
        except ValueError as error:
            raise ConfigError(f"{self.model_id}: {error} Its layer does not accept these arguments") from error
        if spread:
            layers, folder = self.embedding_layer.embedding_layer.embedding_layers, Path(self.model_settings.model_root)
            place_tables(layers, spread, feature_map.features, sharded or {}, self.device, folder.absolute())
        check_encoders(self)
        shares_unknown = specs.get(ITEM_ID, {}).get("unknown") == "trained"
        self.unknown_item = UnknownItem(self.items.num_trained, self.field_dims[ITEM_ID]) if shares_unknown else None
        self.similarities = nn.ModuleDict(
            {n: HistorySimilarity(self.items.stored(s["of"]), s["statistics"])
             for n, s in self.computed.items() if s["computed"] == "similarity"}
        )  # fmt: skip
        # Trainable embeddings start from the stored values and are parameters of the model.
        self.item_vectors = nn.ModuleDict(
            {n: nn.Embedding.from_pretrained(self.items[n][: self.items.num_trained].clone(), freeze=False)
             for n in self.item_fields if specs[n]["type"] == "embedding" and not specs[n].get("freeze_emb", True)}
        )  # fmt: skip

    @property
    def field_dims(self) -> dict[str, int]:
        """Dim of every field, in the feature map's order."""
        dims = {}
        for name in self.context_fields + self.item_fields:
            spec = self.feature_map.features[name]
            dims[name] = spec.get("emb_output_dim", spec.get("embedding_dim", self.embedding_dim))
        return dims

    @property
    def context_dim(self) -> int:
        """C, the dim of all context fields together."""
        return sum(self.field_dims[n] for n in self.context_fields)

    @property
    def item_dim(self) -> int:
        """D, the dim of all fields of an item together."""
        return sum(self.field_dims[n] for n in self.item_fields)

    def embed(self, batch: Batch, histories: Sequence[str] = ()) -> Embedded:
        """Embed a batch, each distinct item once.

        Parameters
        ----------
        batch : Batch
            B rows.
        histories : sequence of str
            Further histories to embed as well, columns with the role ``histories``.

        Raises
        ------
        ConfigError
            The dataset does not have the history.
        """
        others: dict[str, Jagged] = {}
        for name in histories:
            column = batch.context.get(name)
            if not isinstance(column, Jagged):
                raise ConfigError(
                    f"{self.model_id}: the dataset has no history '{name}', which {type(self).__name__} embeds; write "
                    f"roles: {{histories: [{name}]}} in its entry"
                )
            others[name] = column
        target, (history, *further) = self.embed_histories(batch, batch.history, *others.values())
        return Embedded(self.embed_context(batch), target, history, dict(zip(others, further, strict=True)))

    def embed_histories(self, batch: Batch, *histories: Jagged) -> tuple[Tensor, list[Jagged]]:
        """Embed the target items ``(B, D)`` and histories of ids, each distinct item once.

        Parts of the batch's history, for instance; items that are in none of them are not embedded.
        """
        first, *others = histories
        distinct, target, *indices = distinct_items(replace(batch, history=first), self.items.num_items, others)
        device = distinct.device.type
        if self.fills_items and device == "cpu" and torch.is_autocast_enabled(device):
            # Nothing reads these embeddings. oneDNN compiles a product in bfloat16 for every number of rows.
            distinct = torch.cat([distinct, distinct[-1:].expand(-distinct.numel() % ITEMS_IN_BF16)])
        embeddings = self.embed_items(distinct)
        return embeddings.index_select(0, target), [
            Jagged(embeddings, history.offsets, index) for history, index in zip(histories, indices, strict=True)
        ]

    def newest_items(self, batch: Batch, count: int) -> Jagged:
        """Return the ids of the newest items of each row, of the short history where the dataset has one.

        Raises
        ------
        ConfigError
            The rows have no short history.
        """
        name = self.short_history
        if name is None:
            return newest(batch.history, count)
        if not isinstance(column := batch.context.get(name), Jagged):
            raise ConfigError(f"{self.model_id}: the rows have no short history '{name}', which the model reads")
        return newest(column, count)

    @property
    def short_history(self) -> str | None:
        """Name of the column with the short history, if the dataset has one."""
        return getattr(self.feature_map, "short_history", None)

    def item_column(self, key: str, name: str | None, command: str, kind: Literal["code", "codes", "embedding"]) -> str:
        """Return the name of a column of the items that a model reads as it is stored.

        Parameters
        ----------
        key, name : str
            The model's setting and its value.
        command : str
            What writes such a column.
        kind : {"code", "codes", "embedding"}
            What it has for each item: one integer, integers, or an embedding.

        Raises
        ------
        ConfigError
            The experiment does not read it, or it is of another kind.
        """
        if name not in self.items.names:
            raise ConfigError(
                f"{self.model_id}: {key} is {name}, expected a column of the items that the experiment reads "
                f"({', '.join(self.items.names)}); list it in use_features, with embedded: False unless it "
                f"is also a field. Written by: {command}"
            )
        column = self.items.stored(name)
        numbers, is_embedding = column[0].numel(), column.is_floating_point() or column.dtype == torch.int8
        if kind == "embedding":
            fits = is_embedding and column.dim() == 2
        else:
            fits = not is_embedding and (kind == "codes" or numbers == 1)
        if not fits:
            expected = {"code": "one integer", "codes": "integers", "embedding": "a vector of floats"}[kind]
            raise ConfigError(
                f"{self.model_id}: {key} is {name}, of which an item has {numbers} "
                f"{'float' if is_embedding else 'integer'}{'s' * (numbers > 1)}; expected {expected} for each. Written "
                f"by: {command}"
            )
        return name

    def code_table(self) -> Tensor:
        """Return the columns ``per_item_codes`` of the items side by side, ``(I, M)`` integers."""
        columns = [self.items.stored(name).view(self.items.num_items, -1) for name in self.per_item_codes]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)

    def history_codes(self, batch: Batch) -> Jagged:
        """Return the codes of the history items, ``(.., M)``."""
        return Jagged(self.code_table(), batch.history.offsets, batch.history.values.long())

    def contents(self, batch: Batch, name: str) -> tuple[Tensor, Jagged]:
        """Return a frozen embedding of the targets ``(B, A)`` and histories at length 1, once per distinct item."""
        distinct, target, index = distinct_items(batch, self.items.num_items)
        contents = self.content_of(name, distinct)
        return contents.index_select(0, target), Jagged(contents, batch.history.offsets, index)

    def content_of(self, name: str, ids: Tensor) -> Tensor:
        """Return a frozen embedding of the items ``ids`` ``(U,)`` at length 1, ``(U, A)``."""
        return directions(self.items.stored(name).index_select(0, ids))

    def embed_items(self, ids: Tensor, *, fills_unknown: bool = True) -> Tensor:
        """Return the concatenated fields ``(U, D)`` of the items ``ids`` ``(U,)``.

        An id that is missing has the embedding of its ``unknown_item``; without one or ``fills_unknown``, it is zero.
        """
        frozen = [n for n in self.item_fields if n not in self.item_vectors]
        inputs = self.items.rows(ids, frozen)
        inputs.update({n: self._trained_vectors(n, ids) for n in self.item_vectors})
        inputs = self._dropped({n: inputs[n] for n in self.item_fields})
        if self.unknown_item is not None:
            inputs[ITEM_ID] = self.unknown_item.known(inputs[ITEM_ID])
        embedded = self.embedding_layer(inputs, flatten_emb=True)
        if self.unknown_item is None or not fills_unknown:
            return embedded
        dims = self.field_dims
        fields = dict(zip(inputs, embedded.split([dims[n] for n in inputs], dim=1), strict=True))
        fields[ITEM_ID] = self.unknown_item.fill(fields[ITEM_ID], inputs[ITEM_ID])
        return torch.cat([*fields.values()], dim=1)

    def _trained_vectors(self, name: str, ids: Tensor) -> Tensor:
        """Return trainable embeddings ``(U, D)``; those of new items are as they are stored."""
        items = self.items
        vectors = self.item_vectors[name](items.trained_ids(ids))
        if items.num_trained == items.num_items:
            return vectors
        return torch.where((ids < items.num_trained).unsqueeze(1), vectors, items[name].index_select(0, ids))

    def per_item(self, name: str, ids: Tensor) -> Tensor:
        """Return the rows of a buffer of ``per_item_buffers``; new items have row 0."""
        return self.get_buffer(name).index_select(0, self.items.trained_ids(ids))

    def embed_context(self, batch: Batch) -> Tensor:
        """Return the concatenated context fields ``(B, C)``."""
        if not self.context_fields:
            return torch.zeros(len(batch), 0, device=batch.target.device)
        context = self.with_computed(batch).context
        columns = pad_columns({n: context[n] for n in self.context_fields}, self.feature_map)
        return self.embedding_layer(self._dropped(columns), flatten_emb=True)

    def with_computed(self, batch: Batch) -> Batch:
        """Return a batch with the features of ``type: length`` and ``similarity`` in its context.

        A batch that has them already is returned as it is, so that a model may shorten the history before ``embed``.
        """
        missing = {n: spec for n, spec in self.computed.items() if n not in batch.context}
        return (
            replace(batch, context=batch.context | {n: self._compute(n, batch) for n in missing}) if missing else batch
        )

    def _compute(self, name: str, batch: Batch) -> Tensor:
        spec = self.computed[name]
        if spec["computed"] == "similarity":
            return self.similarities[name](self.items.stored(spec["of"]), batch.target, batch.history)
        lengths = batch.history.lengths
        if spec["type"] == "numeric":
            return lengths.float().log1p()
        # Bin k holds lengths from 2^(k - 1) - 1 on, so that an empty history has a bin, and 0 stays padding.
        bounds = 2 ** torch.arange(1, spec["vocab_size"] - 1, device=lengths.device) - 1
        return torch.bucketize(lengths, bounds, right=True) + 1

    def _dropped(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs of the embedding, in training with ``dropout`` of features: some values are missing.

        Of an item, a field is missing for the whole batch, so that the target and every history agree. Values that are
        kept are not scaled up: a missing id or modality is what the model sees of a cold item. It is zero, unless the
        id has an ``unknown_item``.
        """
        if not self.training:
            return inputs
        for name in [n for n in self.feature_dropout if n in inputs]:
            value, spec = inputs[name], self.feature_map.features[name]
            missing = torch.rand(value.shape[0], device=value.device) < self.feature_dropout[name]
            padding = spec.get("padding_idx") or 0
            inputs[name] = value.masked_fill(missing.view(-1, *[1] * (value.dim() - 1)), padding)
        return inputs


def check_names(names: Sequence[str]) -> None:
    """Check that PyTorch can name the embedding layers of features (not ``user.id``, ``type``, ``values``).

    Raises
    ------
    ConfigError
        A name is invalid; one line lists all of them with the fix.
    """
    if reasons := why_no_layers(names):
        raise ConfigError(
            "; ".join(
                f"feature '{name}': its name {reason}, so it cannot be that of an embedding layer; rename the column, "
                "in the files and in feature_cols"
                for name, reason in reasons.items()
            )
        )


def distinct_items(batch: Batch, num_items: int, histories: Sequence[Jagged] = ()) -> tuple[Tensor, ...]:
    """Find the distinct items of a batch.

    Parameters
    ----------
    batch : Batch
        B rows, N history items.
    num_items : int
        Ids are below this.
    histories : sequence of Jagged
        Further histories.

    Returns
    -------
    distinct : Tensor
        ``(U,)`` ids, ascending.
    target : Tensor
        ``(B,)`` index of each target among them.
    history : Tensor
        ``(N,)`` index of each history item among them.
    *further : Tensor
        The same of each further history.
    """
    target = batch.target.long()
    parts = [history.values.long() for history in (batch.history, *histories)]
    sizes = [ids.numel() for ids in (target, *parts)]
    if num_items > FLAGS_PER_ID * sum(sizes):
        distinct, index = torch.unique(torch.cat([target, *parts]), return_inverse=True)
        return distinct, *index.split(sizes)
    # A pass over a table of flags is cheaper than sorting the ids, as torch.unique does, unless the table is long.
    seen = torch.zeros(num_items, dtype=torch.bool, device=target.device)
    for ids in (*parts, target):
        seen[ids] = True
    distinct = seen.nonzero().squeeze(1)
    index = torch.zeros(num_items, dtype=torch.int64, device=target.device)
    index[distinct] = torch.arange(distinct.numel(), device=target.device)
    return distinct, index.index_select(0, target), *(index.index_select(0, ids) for ids in parts)


def check_encoders(model: Any) -> None:
    """Check that the encoder of a sequence, an id or a number returns one embedding per row.

    A model of FuxiCTR may use a sequence as it is, and is checked where its ``forward`` fails.

    Raises
    ------
    ConfigError
        It does not; the error names the feature and what to add.
    """
    layers = [module for module in model.modules() if isinstance(module, FeatureEmbeddingDict)]
    for owner, (name, encoder) in [(layer, pair) for layer in layers for pair in layer.feature_encoders.items()]:
        spec, table = owner._feature_map.features[name], owner.embedding_layers[name]
        if spec["type"] == "embedding" or not isinstance(table, nn.Embedding | nn.Linear):
            continue
        dim = table.embedding_dim if isinstance(table, nn.Embedding) else table.out_features
        of_row = (spec["max_len"], dim) if spec["type"] == "sequence" else (dim,)
        inputs = torch.zeros(1, *of_row, device=table.weight.device)
        encoder.eval()
        try:
            with torch.no_grad():
                shape = tuple(encoder(inputs).shape)
        except Exception as error:  # of any layer
            reason = " ".join(str(error).split())
            what = "a sequence" if len(of_row) > 1 else "an embedding"
            raise ConfigError(
                f"{model.model_id}: feature '{name}': {spec['feature_encoder']} does not take {what} of {of_row} "
                f"({reason})"
            ) from error
        encoder.train()
        if len(shape) != 2:
            pooling = f"; add a pooling layer: [{spec['feature_encoder']}, layers.MaskedAveragePooling()]"
            raise ConfigError(
                f"{model.model_id}: feature '{name}': {spec['feature_encoder']} returns {shape[1:]} per row, "
                f"expected one embedding{pooling if len(of_row) > 1 else ''}"
            )
