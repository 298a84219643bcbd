"""Sizes of a model: its parameters on the ``meta`` device, what a step keeps for its backward pass on a small copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.feature_map import build_feature_map
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.registry import describe_error
from fuxictr_mm.sparse_products import as_in_large_batches
from fuxictr_mm.tables import sharded_parameters, touched_parameters
from fuxictr_mm.tables.optim import LAST
from fuxictr_mm.training.embedding_tables import embedding_tables
from fuxictr_mm.training.optimizers import make_optimizer, touched_rule

#: Rows of the tables of the small copy; rows of its two batches.
SMALL_TABLE, SMALL_BATCHES = 1000, (32, 96)
#: Number of parameters besides tables above which no small copy of the model is made.
MOST_PARAMETERS = 2**26


@dataclass(frozen=True)
class Table:
    """An embedding table."""

    name: str  #: Of the feature.
    rows: int
    dim: int
    #: ``dense``: a step updates all rows; ``touched``: only those of its batch; ``sharded``: a process has a part.
    kind: str
    state: float  #: Numbers of the optimizer per weight.
    sharding: str  #: Its setting of this name.

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.dim

    @property
    def touched(self) -> bool:
        """Whether a step updates only the rows of its batch."""
        return self.kind != "dense"


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model."""

    tables: list[Table]  #: Its embedding tables that are trained.
    other: int  #: Number of its other parameters.
    other_state: float  #: Numbers of the optimizer for each of those.
    buffers: int  #: Bytes of its buffers, such as codes of the items.
    norm_channels: int  #: Number of channels of all batch norms.
    rule: str | None  #: How touched rows are updated.
    #: Bytes that the forward pass keeps: of a batch, and of each of its rows. None for a large network.
    activations: tuple[float, float] | None


def measure_model(experiment: Experiment, features: Sequence[Feature], num_items: int, history: int) -> ModelSizes:
    """Return the sizes of the MultimodalModel of an experiment, with a history of so many items.

    ``features`` are complete; ``num_items`` includes padding.

    Raises
    ------
    ConfigError
        The model cannot be built without item features.
    """
    try:
        with torch.device("meta"):
            model = _build(experiment, features, num_items)
    except (NotImplementedError, RuntimeError) as error:  # of torch, for values of a tensor that has none
        raise ConfigError(
            f"plan: {experiment.config.model} reads item features while it is built "
            f"({describe_error(error)}), so its memory cannot be estimated"
        ) from error
    settings = model.model_settings
    kinds = {id(p): "touched" for p in touched_parameters(model)}
    kinds |= {id(p): "sharded" for p in sharded_parameters(model)}
    names = {id(p): name for name, p in model.named_parameters()}
    tables = []
    for table in embedding_tables(model, model.item_vectors):
        if not table.requires_grad:
            continue
        kind = kinds.get(id(table), "dense")
        rows, dim = table.shape
        state = _state_per_weight(settings.optimizer, settings.table_optimizer, dim, kind != "dense")
        if kind == "touched" and model.optimizer.parts["touched"].notes_updates:
            state += 1 / dim
        name = names[id(table)].split(".")[-2]
        tables.append(Table(name, rows, dim, kind, state, model.feature_map.features[name].get("sharding", "row")))
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    other = total - sum(table.weights for table in tables)
    state = _state_per_weight(settings.optimizer, None, 16, False)
    activations = None
    if other <= MOST_PARAMETERS:
        activations = _measure_activations(experiment, features, num_items, history)
    of_items = {id(b) for b in model.items.buffers()}
    buffers = sum(b.numel() * b.element_size() for b in model.buffers() if id(b) not in of_items)
    channels = sum(m.num_features for m in model.modules() if isinstance(m, _BatchNorm))
    rule = touched_rule(settings.optimizer, settings.table_optimizer)
    return ModelSizes(tables, other, state, buffers, channels, rule, activations)


def _build(experiment: Experiment, features: Sequence[Feature], num_items: int) -> Any:
    """Return the model, with item features of zeros, on the default device."""
    feature_map = build_feature_map(features, experiment.config)
    columns = {
        f.name: _column(f, num_items) for f in features if f.is_item and f.type in _KINDS and f.name != "item_id"
    }
    feature_map.items = ItemTable(columns, torch.ones(num_items, dtype=torch.bool))
    # What would move it off the meta device.
    kept: dict[str, Any] = {"model_to_device": lambda self: None, "__module__": experiment.model_class.__module__}
    model_class = type(experiment.model_class.__name__, (experiment.model_class,), kept)
    arguments = {
        **experiment.config.model_arguments(),
        "gpu": -1,
        "compile": False,
        "ema": None,
        "swa_start": None,
        "verbose": 0,
    }
    return model_class(feature_map, **arguments)


_KINDS = ("categorical", "sequence", "numeric", "embedding")


def _column(feature: Feature, rows: int) -> Tensor:
    """Return a column of an item table without content."""
    if feature.type == "embedding":
        return torch.zeros(rows, feature.pretrain_dim or 1)
    if feature.type == "sequence":
        return torch.zeros(rows, feature.max_len or 1, dtype=torch.int32)
    return torch.zeros(rows, dtype=torch.float32 if feature.type == "numeric" else torch.int32)


def _state_per_weight(optimizer: str, table_optimizer: str | None, dim: int, touched: bool) -> float:
    """Return how many numbers an optimizer keeps for each weight of a matrix, from a step on a small one.

    Without when its rows were updated last, which depends on settings of the model.
    """
    matrix = nn.Parameter(torch.zeros(4, dim))
    sparse: dict[str, Any] = {"touched": [matrix], "table_optimizer": table_optimizer} if touched else {}
    others = [nn.Parameter(torch.zeros(1))] if touched else []
    made = make_optimizer(optimizer, [matrix, *others], 1e-3, **sparse)
    matrix.grad = torch.ones(4, dim).to_sparse(1) if touched else torch.ones(4, dim)
    made.step()
    used = made.parts["touched"] if touched else made  # type: ignore[union-attr]
    state = {name: value for name, value in used.state[matrix].items() if name != LAST}  # type: ignore[union-attr]
    values = [value for value in state.values() if isinstance(value, Tensor) and value.dim() > 1]
    return sum(value.numel() for value in values) / matrix.numel()


def _measure_activations(
    experiment: Experiment, features: Sequence[Feature], num_items: int, history: int
) -> tuple[float, float]:
    """Return the bytes that a forward pass keeps, of a batch and of each row, by two batches of a small copy."""
    small = [replace(f, vocab_size=min(f.vocab_size, SMALL_TABLE)) if f.vocab_size else f for f in features]
    model = _build(experiment, small, min(num_items, SMALL_TABLE)).train()
    with as_in_large_batches():
        held = [_kept_bytes(model, _batch(model, small, rows, history)) for rows in SMALL_BATCHES]
    per_row = (held[1] - held[0]) / (SMALL_BATCHES[1] - SMALL_BATCHES[0])
    return max(held[0] - per_row * SMALL_BATCHES[0], 0.0), per_row


def _kept_bytes(model: Any, batch: Batch) -> float:
    """Return the bytes that the graph of a batch keeps, parameters and items left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.items.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.add_loss(model(batch), model.get_labels(batch))
    del loss
    return float(sum(kept.values()))


def _batch(model: Any, features: Sequence[Feature], rows: int, history: int) -> Batch:
    """Return a batch of random rows, each with a history of ``history`` items."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int, limit: int) -> Tensor:
        return torch.randint(min(1, limit - 1), limit, (count,), generator=generator, dtype=torch.int32)

    def column(feature: Feature) -> Tensor | Jagged:
        if feature.type == "embedding":
            return torch.zeros(rows, feature.pretrain_dim or 1)
        if feature.type == "sequence":
            length = feature.max_len or 1
            return Jagged(ids(rows * length, feature.vocab_size or 2), torch.arange(rows + 1) * length)
        return torch.zeros(rows) if feature.type == "numeric" else ids(rows, feature.vocab_size or 2)

    context = {f.name: column(f) for f in features if f.is_context and f.history is None}
    num_items = model.items.num_items
    offsets = torch.arange(rows + 1) * history
    for feature in [f for f in features if f.history is not None]:
        limit = num_items if feature.is_further_history else feature.vocab_size or 2
        entries = torch.zeros(rows * history) if feature.is_number else ids(rows * history, limit)
        context[feature.name] = Jagged(entries, offsets)
    labels = (torch.arange(rows) % 2).float().unsqueeze(1).expand(rows, model.num_tasks)
    return Batch(context, ids(rows, num_items), Jagged(ids(rows * history, num_items), offsets), labels)
