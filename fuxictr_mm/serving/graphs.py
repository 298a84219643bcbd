"""A model as graphs whose inputs are embeddings: tables stay outside.

Shape letters: B rows, N history items of all rows, U distinct items, D item dim, E dim of buffers per item, C context
dim, L history length, M candidates.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.registry import describe_error
from fuxictr_mm.serving.item_rows import (
    code_columns,
    compared_columns,
    compared_ids,
    given_fields,
    row_dims,
    stored_codes,
)
from fuxictr_mm.serving.rewrites import fix_slopes, fuse_batch_norm, fuse_projections, sum_projections
from fuxictr_mm.serving.row_graph import RowsGraph
from fuxictr_mm.serving.user_graphs import AttentionGraph, CandidateGraph, UserGraph, attention_layers, has_fold

logger = logging.getLogger(__name__)

#: By how much logits of float32 differ at most if the same is computed in another order.
LARGEST_ROUNDING = 1e-3

#: What code raises that is given tensors of other shapes, or more or fewer of them, than it was written for.
OF_MODEL_FILES = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


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
    return (reads and bool(model.per_item_codes)) or bool(compared_ids(model))


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
    # The model's own tensors may have fewer entries, such as groups of items, than what similarities compare.
    of_model = len(state) - len(compared_columns(model)) - len(compared_ids(model))
    sizes = [length if number < of_model else dim_named("compared") for number in range(len(state))]
    varying = [
        {axis: size for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b}
        for size, one, two in zip(sizes, state, other, strict=True)
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
    """Return the graphs of a model of this library: rows, and those of one user where it has them.

    The global generator of random numbers is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed reseeds GPUs as well
        return _graphs_of(model)


def _graphs_of(model: MultimodalModel) -> dict[str, Traced]:
    model = sum_projections(fix_slopes(fuse_batch_norm(copy.deepcopy(model))))
    graphs = {"rows": rows_example(copy.deepcopy(model))}
    if not has_fold(model):
        return graphs
    if not model.similarities:
        return graphs | user_examples(model)
    try:
        return graphs | _with_similarities(model, graphs["rows"].module)
    except OF_MODEL_FILES as error:
        logger.warning(
            f"{model.model_id}: user_state and score_candidates do not score as logits with features of type: "
            f"similarity ({', '.join(model.similarities)}; {describe_error(error)}), so each candidate is scored as a "
            "row; see docs/write_a_model.md"
        )
        return graphs


def _with_similarities(model: MultimodalModel, of_rows: nn.Module) -> dict[str, Traced]:
    """Return ``user_examples`` of a model whose candidates differ in context.

    Raises
    ------
    ValueError
        They score otherwise than rows. Code of a model file that cannot take the shapes raises any of OF_MODEL_FILES.
    """
    length, count, dim = 5, 6, sum(row_dims(model))
    numbers = torch.arange(length + count) % max(model.items.num_items - 1, 1) + 1
    codes = [stored_codes(model)[numbers]] if code_columns(model) else []
    rows, context = torch.randn(length + count, dim), context_example(model, 1)
    context = [column.normal_() if column.is_floating_point() else column for column in context]
    places, offsets = torch.arange(1, 1 + length + count), torch.arange(count + 1) * length
    items = torch.cat([torch.zeros(1, dim), rows])
    repeated = [column.expand(count, *column.shape[1:]) for column in context]
    all_codes = [F.pad(one, (0, 0, 1, 0)) for one in codes]
    folded = user_examples(model)
    user, candidates = folded["user"].module, folded["candidates"].module
    with torch.no_grad(), _as_logits(of_rows), _as_logits(candidates):
        state = user(rows[:length], [one[:length] for one in codes], context)
        found = candidates(rows[length:], state, [one[length:] for one in codes])
        history = places[:length].repeat(count)
        expected = of_rows(items, all_codes, places[length:], history, offsets, repeated, torch.zeros(length))
    differing = (found - expected).abs() / expected.abs().clamp(min=1)
    if not bool((differing <= LARGEST_ROUNDING).all()):
        raise ValueError(f"logits differ by up to {float(differing.max()):.2g}")
    return folded


@contextmanager
def _as_logits(graph: nn.Module) -> Iterator[None]:
    """Let a graph return logits: predictions near 0 or 1 would hide differences."""
    model = graph.get_submodule("model")
    activation, model.output_activation = model.output_activation, nn.Identity()
    try:
        yield
    finally:
        model.output_activation = activation
