"""A model as graphs whose inputs are embeddings: tables stay outside.

Shape letters: B rows, N history items of all rows, U distinct items, D item dim, E dim of buffers per item, C context
dim, L history length, M candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_linear_bn_eval

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.fuxictr_imports import MLP_Block
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers.din_attention import DINAttention
from fuxictr_mm.layers.quadratic import QuadraticLayer
from fuxictr_mm.layers.similarity import HistorySimilarity, has_ids, inverse_lengths, products_of
from fuxictr_mm.layers.target_attention import MultiHeadTargetAttention
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

    def _per_item(self, name: str, ids: Tensor) -> Tensor:
        assert self._rows is not None
        return per_item(self.model, self._rows, self.dims, name).index_select(0, ids)

    def _content_of(self, name: str, ids: Tensor) -> Tensor:
        assert self._rows is not None
        place = 1 + len(self.model.per_item_buffers) + self._content_columns.index(name)
        return self._rows.split(self.dims, dim=1)[place].index_select(0, ids)

    def _code_table(self) -> Tensor:
        assert self._codes is not None
        return self._codes[:, : self._own_codes]


class RowsGraph(ItemsGraph):
    """Scores rows: ``(items, codes, target, history, offsets, context, steps) -> (B, T)`` predictions."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self._context: Tensor | None = None
        self._longest = 0
        # Ids are row numbers of `items`; item 0, padding, is row 0.
        model.embed_histories = self._embed_histories  # type: ignore[method-assign]
        model.embed_items = self._embed_items  # type: ignore[method-assign]
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
        columns |= {name: self._similarity(batch, name) for name in self.model.similarities}
        self._context = embed_context(self.model, columns, target.shape[0])
        logits = self.model.logits(batch)
        self._rows = self._codes = self._context = None
        return self.model.output_activation(logits.reshape(-1, self.model.num_tasks))

    def _similarity(self, batch: Batch, name: str) -> Tensor:
        layer, of = self.model.similarities[name], self.model.computed[name]["of"]
        assert isinstance(layer, HistorySimilarity)
        target = batch.target.index_select(0, batch.history.rows)
        assert self._rows is not None
        if of in self._content_columns:
            compared = self._content_of(of, torch.arange(self._rows.shape[0]))  # at length 1
            products = products_of(compared.index_select(0, target), compared.index_select(0, batch.history.values))
            return layer.of_cosines(batch.history, products)
        assert self._codes is not None
        compared = self._codes.split([*self._code_counts.values()], dim=1)[[*self._code_counts].index(of)]
        lengths = inverse_lengths(compared)
        scale = lengths.index_select(0, target) * lengths.index_select(0, batch.history.values)
        products = products_of(compared.index_select(0, target), compared.index_select(0, batch.history.values))
        return layer.of_cosines(batch.history, products * scale)

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


class UserGraph(ItemsGraph):
    """What is computed once per user: ``(history (L, D + E), codes (L, M), context) -> state``."""

    def forward(self, history: Tensor, codes: Sequence[Tensor], context: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the tensors that ``CandidateGraph`` reads."""
        self._give(history, codes)
        ids = torch.arange(history.shape[0], device=history.device)
        columns = dict(zip(given_fields(self.model), context, strict=True))
        state = self.model.user_state(embed_context(self.model, columns, 1), history[:, : self.dims[0]], ids)
        self._rows = self._codes = None
        return tuple(state)


class CandidateGraph(ItemsGraph):
    """Scores candidates of one user: ``(candidates (M, D + E), state, codes) -> (M, T)`` predictions."""

    def forward(self, candidates: Tensor, state: Sequence[Tensor], codes: Sequence[Tensor] = ()) -> Tensor:
        """Return predictions ``(M, T)``."""
        return self.model.output_activation(self._logits(candidates, state, codes).reshape(-1, self.model.num_tasks))

    def _logits(self, candidates: Tensor, state: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        self._give(candidates, codes)
        columns = self.model.candidate_columns(torch.arange(candidates.shape[0], device=candidates.device))
        self._rows = self._codes = None
        return self.model.score_candidates(candidates[:, : self.model.item_dim], *columns, *state)


class AttentionGraph(CandidateGraph):
    """What candidates of one user attend to: ``(candidates (M, D + E), state) -> (M, L)`` shares of the history items.

    Shares are absolute weights over their sum, or 0 where all are; the mean over heads and attention layers.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self._found: list[Tensor] = []
        for layer in attention_layers(model):
            layer.weights_of = self._recorded(layer.weights_of)  # type: ignore[method-assign]

    def forward(self, candidates: Tensor, state: Sequence[Tensor], codes: Sequence[Tensor] = ()) -> Tensor:
        """Return the shares."""
        self._found = []
        self._logits(candidates, state, codes)
        shares = torch.cat([F.normalize(weights.abs(), p=1, dim=2) for weights in self._found])
        self._found = []
        return shares.mean(dim=0)

    def _recorded(self, weights_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def record(*inputs: Tensor) -> Tensor:
            weights = weights_of(*inputs)
            self._found.append(weights if weights.dim() == 3 else weights.unsqueeze(0))
            return weights

        return record


def attention_layers(model: MultimodalModel) -> list[DINAttention | MultiHeadTargetAttention]:
    """Return the layers by which candidates attend to the history, of a model that computes a user's part once."""
    layers = [m for m in model.modules() if isinstance(m, DINAttention | MultiHeadTargetAttention)]
    return layers if has_fold(model) and model.attends_to_history else []


def content_columns(model: MultimodalModel) -> list[str]:
    """Return the columns of the items that are stored with them at length 1."""
    ids = compared_ids(model)
    compared = [of for n in model.similarities if (of := model.computed[n]["of"]) not in ids]
    return list(dict.fromkeys([*model.per_item_contents, *compared]))


def compared_ids(model: MultimodalModel) -> list[str]:
    """Return the columns of ids of the items that similarities compare."""
    compared = dict.fromkeys(model.computed[name]["of"] for name in model.similarities)
    return [name for name in compared if has_ids(model.items.stored(name))]


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
    layers = model.embedding_layer.embedding_layer
    parts = []
    for name in model.context_fields:
        column = columns[name]
        if model.feature_map.features[name]["type"] == "numeric":
            column = layers.embedding_layers[name](column.float().view(-1, 1))
        if name in layers.feature_encoders:
            column = layers.feature_encoders[name](column)
        parts.append(column)
    return torch.cat(parts, dim=-1) if parts else torch.zeros(num_rows, 0)


def fuse_batch_norm(model: MultimodalModel) -> MultimodalModel:
    """Make each batch norm of an ``MLP_Block`` a part of the weights before it, in place; returns the model.

    Elsewhere a batch norm may be over another axis, or the linear layer be read for itself.
    """
    for layers in [m.mlp for m in model.modules() if isinstance(m, MLP_Block)]:
        for place, (linear, norm) in enumerate(pairwise(list(layers))):
            if (
                isinstance(linear, nn.Linear)
                and isinstance(norm, nn.BatchNorm1d)
                and norm.affine
                and norm.track_running_stats
            ):
                layers[place], layers[place + 1] = fuse_linear_bn_eval(linear, norm), nn.Identity()
    return model


def fix_slopes(model: MultimodalModel) -> MultimodalModel:
    """Make each ``PReLU`` of one slope a ``LeakyReLU``, in place; returns the model. ONNX Runtime is 8 times faster."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
                setattr(module, name, nn.LeakyReLU(layer.weight.item()))
    return model


def sum_projections(model: MultimodalModel) -> MultimodalModel:
    """Make the linear projections of each ``QuadraticLayer`` their sum, in place; returns the model.

    Graphs would otherwise store all, and those of torch would sum them in every call.
    """
    for layer in [m for m in model.modules() if isinstance(m, QuadraticLayer)]:
        weight, bias = (total.detach() for total in layer.sums())
        summed = nn.Linear(weight.shape[1], weight.shape[0])
        summed.weight.data, summed.bias.data = weight, bias
        layer.linear[0], layer.num_row = summed, 1
    return model


def fuse_projections(model: MultimodalModel) -> MultimodalModel:
    r"""Make the candidates' projections of one large head a part of the history's, in place; returns the model.

    .. math:: (W_q t) \cdot (W_k s) = t \cdot (W_q^\top W_k s), \qquad W_o \sum_n a_n W_v s_n = \sum_n a_n (W_o W_v) s_n

    A candidate then costs L D instead of D A + A L products. ``forward`` of these layers stays as it is.
    """
    for layer in [m for m in model.modules() if isinstance(m, MultiHeadTargetAttention)]:
        if layer.use_qkvo and layer.num_heads == 1 and layer.head_dim >= layer.W_q.in_features:
            fused = copy.deepcopy(layer)
            query, key, value, output = (layer.get_parameter(f"W_{name}.weight").detach().double() for name in "qkvo")
            for name, weight in (("W_k", query.t() @ key), ("W_v", output @ value)):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight.data = weight.to(layer.W_q.weight.dtype)
                setattr(fused, name, linear)
            for name in ("W_q", "W_o"):
                setattr(fused, name, nn.Identity())
            fused.head_dim = layer.W_q.in_features
            layer.fused = fused
            for name in ("keys_and_values", "attend", "weights_of"):
                setattr(layer, name, getattr(fused, name))
    return model


def has_fold(model: MultimodalModel) -> bool:
    """Whether a model computes a user's part once; similarities among the context depend on the candidate."""
    defined = type(model).user_state is not MultimodalModel.user_state
    return defined and model.has_user_state and not model.similarities


@dataclass(frozen=True)
class Traced:
    """A graph, an example of its inputs by name, and which dims of each vary."""

    module: nn.Module
    args: tuple[Any, ...]
    names: list[str]
    shapes: tuple[Any, ...]
    outputs: list[str]


def dim_named(name: str) -> Any:
    """Return a size that varies."""
    return torch.export.Dim(name, max=2**31 - 1)  # sums of several sizes must stay below 2**63


def column_example(spec: Mapping[str, Any], num_rows: int, *dim: int) -> Tensor:
    """Return a context column of some rows, for tracing: rows of a table of this dim, or ids."""
    shape = {
        "numeric": (num_rows,),
        "embedding": (num_rows, spec.get("pretrain_dim", *dim)),
        "sequence": (num_rows, spec.get("max_len", 1), *dim),
    }.get(spec["type"], (num_rows, *dim))
    given = dim or spec["type"] in ("numeric", "embedding")
    return torch.rand(shape) if given else torch.zeros(shape, dtype=torch.int64)


def context_example(model: MultimodalModel, num_rows: int) -> list[Tensor]:
    """Return context columns of some rows, for tracing."""
    specs = [model.feature_map.features[name] for name in given_fields(model)]
    return [column_example(spec, num_rows, spec.get("embedding_dim", model.embedding_dim)) for spec in specs]


def codes_example(model: MultimodalModel, num_items: int) -> list[Tensor]:
    """Return codes of some items, for tracing; an empty list for a model without codes."""
    count = sum(code_columns(model).values())
    return [torch.arange(1, 1 + num_items).unsqueeze(1).repeat(1, count)] if count else []


def reads_codes_of_candidates(model: MultimodalModel) -> bool:
    """Whether a graph of candidates is given their codes."""
    reads = type(model).candidate_columns is not MultimodalModel.candidate_columns
    return reads and bool(model.per_item_codes)


def code_names(model: MultimodalModel) -> list[str]:
    """Return the names of the inputs of codes: one, or none."""
    return ["codes"] if code_columns(model) else []


#: Rows of the example of a graph of rows, and items of their histories. Tracing would take sizes 0 and 1 for constants.
NUM_ROWS, NUM_ITEMS = 7, 11
LENGTHS = (3, 2, 4, 5, 2, 3, 7)


def traced_rows(
    graph: nn.Module, items: Tensor, codes: Any, context: Mapping[str, Tensor], others: Any, names: list[str], dims: Any
) -> Traced:
    """Return a graph of rows with an example of ``NUM_ROWS`` rows and ``NUM_ITEMS`` items; ``others`` are named."""
    offsets = torch.tensor([0, *accumulate(LENGTHS)])
    target, history = torch.arange(NUM_ROWS) + 1, torch.arange(sum(LENGTHS)) % (NUM_ITEMS - 1) + 1
    rows, distinct = dim_named("rows"), {0: dim_named("items")}
    shapes = (
        distinct,
        [distinct for _ in codes],
        {0: rows},
        {0: dim_named("values")},
        {0: rows + 1},
        [{0: rows} for _ in context],
        dims,
    )
    fields = [f"context_{name}" for name in context]
    return Traced(
        graph,
        (items, codes, target, history, offsets, [*context.values()], others),
        ["items", *["codes"][: len(codes)], "target", "history", "offsets", *fields, *names],
        shapes,
        ["prediction"],
    )


def rows_example(model: MultimodalModel) -> Traced:
    """Return the graph of rows with an example."""
    codes, graph = codes_example(model, NUM_ITEMS), RowsGraph(model)
    items = torch.rand(NUM_ITEMS, sum(graph.dims))
    context = dict(zip(given_fields(model), context_example(model, NUM_ROWS), strict=True))
    return traced_rows(graph, items, codes, context, torch.zeros(max(LENGTHS)), ["steps"], {0: dim_named("steps")})


def user_examples(model: MultimodalModel) -> dict[str, Traced]:
    """Return the graphs of a user, of the candidates and, where there is one, of the attention, with examples.

    Projections of the model are fused, so use a model that is not used otherwise.
    """
    model = fuse_projections(model)
    user, candidates = UserGraph(model), CandidateGraph(model)
    context, dim = context_example(model, 1), sum(user.dims)
    history, length = torch.rand(5, dim), dim_named("length")
    names = ["history", *code_names(model), *(f"context_{name}" for name in given_fields(model))]
    with torch.no_grad():
        state, other = (user(rows, codes_example(model, len(rows)), context) for rows in (history, history[:0]))
    varying = [
        {axis: length for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b}
        for one, two in zip(state, other, strict=True)
    ]
    outputs = [f"state_{number}" for number in range(len(state))]
    of_user = Traced(
        user,
        (history, codes_example(model, len(history)), context),
        names,
        ({0: length}, [{0: length}] * len(code_names(model)), [{} for _ in context]),
        outputs,
    )
    count = dim_named("candidates")
    args: tuple[Any, ...] = (torch.rand(6, dim), list(state))
    inputs = ["candidates", *outputs]
    shapes: tuple[Any, ...] = ({0: count}, varying)
    if reads_codes_of_candidates(model):
        args, inputs = (*args, codes_example(model, 6)), [*inputs, "candidate_codes"]
        shapes = (*shapes, [{0: count}])
    found = {"user": of_user, "candidates": Traced(candidates, args, inputs, shapes, ["prediction"])}
    if attention_layers(model):
        found["attention"] = Traced(AttentionGraph(copy.deepcopy(model)), args, inputs, shapes, ["shares"])
    return found


def graphs_of(model: MultimodalModel) -> dict[str, Traced]:
    """Return the graphs of a model of this library: rows, and those of one user where it has them."""
    model = sum_projections(fix_slopes(fuse_batch_norm(copy.deepcopy(model))))
    graphs = {"rows": rows_example(copy.deepcopy(model))}
    return graphs | user_examples(model) if has_fold(model) else graphs
