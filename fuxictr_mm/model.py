"""The base class of the model zoo.

Shape letters: B rows, N history items of all rows, U distinct items of a batch, F fields, C context dim, D item dim,
T labels of a row, one for each task.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import Dropout, HiddenUnits, ModelSettings, kind_of_task
from fuxictr_mm.data.batch import Batch, pad_columns
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import ITEM_ID, unify_dims
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers.dropout import replace_dropout
from fuxictr_mm.layers.history_search import directions
from fuxictr_mm.layers.similarity import HistorySimilarity
from fuxictr_mm.runtime import device_of
from fuxictr_mm.tables import choose_kinds, touched_parameters
from fuxictr_mm.tasks import UncertaintyWeights, check_tasks, loss_of_tasks
from fuxictr_mm.training import loop
from fuxictr_mm.training.checkpoints import load_state_dict, save_state_dict
from fuxictr_mm.training.distributed import Replicas
from fuxictr_mm.training.optim import (
    Penalty,
    Schedule,
    WeightAverage,
    clip_gradients,
    embedding_tables,
    make_optimizer,
    touched_rule,
)

#: FuxiCTR's names of the loss of each task.
LOSSES = {
    "binary_classification": ("binary_crossentropy", "binary_cross_entropy", "bce"),
    "regression": ("mse_loss",),
}


#: Items per id of a batch above which its distinct ids are found by sorting.
FLAGS_PER_ID = 32


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
        The same of each further history that was asked for.
    """

    context: Tensor
    target: Tensor
    history: Jagged
    histories: Mapping[str, Jagged] = field(default_factory=dict)


class MultimodalModel(BaseModel):
    """A FuxiCTR ``BaseModel`` over jagged histories and items with frozen embeddings.

    A model builds its layers in ``__init__``, calls ``build()`` last, and defines ``logits(batch)``.

    Parameters
    ----------
    feature_map : FeatureMap
        Features, with the ItemTable as its attribute ``items``.
    model_id : str
        Experiment id; names the checkpoint.
    gpu : int
        Index of the GPU, -1 for the CPU.
    loss_from : {"logits", "probability"}
        FuxiCTR takes the loss on the sigmoid's output, which saturates beyond a logit of 17 in float32;
        ``"probability"`` reproduces that.
    factor : float
        What the learning rate is multiplied by on a plateau.
    compile : bool
        Compile the logits with ``torch.compile``; ``docs/performance.md`` has its speed.
    **params
        Those of ``fuxictr_mm.config.ModelSettings``, with their defaults; others are ignored.

    Raises
    ------
    ConfigError
        A setting of a wrong type or range, a loss that is not of the task, or a dataset without features of items.
    """

    batch_view: str = "jagged"
    #: Whether every field gets the dim ``embedding_dim``, frozen embeddings by a linear projection.
    same_dims: bool = False
    #: Of models with ``same_dims``: further numbers of every field's embedding, which the regularizers leave out.
    factor_dim: int = 0
    #: Buffers with one row per trained item that ``logits`` reads by ``per_item``; exports store them with the items.
    per_item_buffers: tuple[str, ...] = ()
    #: Columns of the items that ``logits`` reads by ``contents``, which exports store in the same way.
    per_item_contents: tuple[str, ...] = ()

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        model_id: str = "MultimodalModel",
        gpu: int = -1,
        loss_from: Literal["logits", "probability"] = "logits",
        factor: Annotated[float, Field(gt=0, le=1)] = 0.1,
        compile: bool = False,
        **params: Any,
    ) -> None:
        device_of(gpu)
        settings = ModelSettings.of(params, model_id)
        task = kind_of_task(settings.task)
        check_tasks(settings, feature_map.labels, model_id)
        for loss in settings.loss if isinstance(settings.loss, list) else [settings.loss]:
            if loss not in LOSSES[task]:
                raise ConfigError(
                    f"{model_id}: task: {task} does not train on loss: {loss}; write loss: {LOSSES[task][0]}"
                )
        plateau = settings.reduce_lr_on_plateau if settings.lr_schedule is None else settings.lr_schedule == "plateau"
        if settings.plateau_patience > 1 and not plateau:
            raise ConfigError(
                f"{model_id}: plateau_patience is {settings.plateau_patience}, but the learning rate is not reduced on "
                "a plateau; set lr_schedule: plateau, or leave it out"
            )
        if settings.label_smoothing and task != "binary_classification":
            raise ConfigError(
                f"{model_id}: label_smoothing is {settings.label_smoothing}, but task: {task} has no classes"
            )
        if self.same_dims:
            feature_map = unify_dims(feature_map, settings.embedding_dim + self.factor_dim)
        super().__init__(
            feature_map,
            model_id=model_id,
            task=task,
            gpu=gpu,
            monitor=settings.monitor,
            save_best_only=settings.save_best_only,
            monitor_mode=settings.monitor_mode,
            early_stop_patience=settings.early_stop_patience,
            eval_steps=settings.eval_steps,
            embedding_regularizer=settings.embedding_regularizer,
            net_regularizer=settings.net_regularizer,
            reduce_lr_on_plateau=plateau,
            verbose=settings.verbose,
            model_root=settings.model_root,
            metrics=list(settings.metrics),
        )
        self.task = task
        self.num_tasks = len(feature_map.labels)
        given = settings.task_weights
        self.task_uncertainty = None
        if given == "uncertainty":
            self.task_uncertainty = UncertaintyWeights(self.num_tasks, 0.5 if task == "regression" else 1.0)
        self.task_weights = [given.get(name, 1.0) if isinstance(given, dict) else 1.0 for name in feature_map.labels]
        self.loss_from = loss_from
        self.factor = factor
        self.learning_rate = settings.learning_rate
        self.optimizer_name = settings.optimizer
        self.embedding_dim = settings.embedding_dim
        self.max_len = settings.max_len
        self.label_smoothing = settings.label_smoothing
        self.plateau_patience = settings.plateau_patience
        self._settings = settings
        self._total_steps = self._planned_steps = 0
        self.accumulation_steps = settings.accumulation_steps
        self.precision = settings.precision
        self.compiled_logits = compiled(self.logits) if compile else None
        self._max_gradient_norm = settings.max_gradient_norm
        self._batch_index, self._steps_per_epoch = 0, 1
        #: Whether gradients wait for those of further batches.
        self.is_accumulating = False
        #: Of several processes that train together.
        self.replicas: Replicas | None = None
        self.items: ItemTable = feature_map.items
        specs = {n: s for n, s in feature_map.features.items() if s["type"] != "meta"}
        self.computed = {n: s for n, s in specs.items() if "computed" in s}
        self.feature_dropout = {n: s["dropout"] for n, s in specs.items() if s.get("dropout")}
        self.item_fields = [n for n, s in specs.items() if s.get("source") == "item"]
        self.context_fields = [n for n, s in specs.items() if s.get("source") != "item"]
        if not self.item_fields:
            raise ConfigError(f"{model_id}: no feature with source: item; a target and its history need at least one")
        try:
            self.embedding_layer = FeatureEmbedding(feature_map, self.embedding_dim)
        except ValueError as error:
            raise ConfigError(f"{model_id}: {error} Its layer does not take these arguments") from error
        self._check_encoders()
        self.similarities = nn.ModuleDict(
            {n: HistorySimilarity(self.items.stored(s["of"]), s["statistics"])
             for n, s in self.computed.items() if s["computed"] == "similarity"}
        )  # fmt: skip
        # Trainable embeddings start from the stored values and are parameters of the model.
        self.item_vectors = nn.ModuleDict(
            {n: nn.Embedding.from_pretrained(self.items[n][: self.items.num_trained].clone(), freeze=False)
             for n in self.item_fields if not specs[n].get("freeze_emb", True)}
        )  # fmt: skip

    def _check_encoders(self) -> None:
        """Refuse an encoder of a sequence that does not return one embedding per row."""
        for name, encoder in self.embedding_layer.embedding_layer.feature_encoders.items():
            spec = self.feature_map.features[name]
            if spec["type"] != "sequence":
                continue
            inputs = torch.zeros(1, spec["max_len"], spec.get("embedding_dim", self.embedding_dim))
            encoder.eval()
            try:
                with torch.no_grad():
                    shape = tuple(encoder(inputs).shape)
            except Exception as error:  # of any layer
                reason = " ".join(str(error).split())
                raise ConfigError(
                    f"{self.model_id}: feature '{name}': {spec['feature_encoder']} does not take a sequence of "
                    f"{tuple(inputs.shape[1:])} ({reason})"
                ) from error
            encoder.train()
            if len(shape) != 2:
                raise ConfigError(
                    f"{self.model_id}: feature '{name}': {spec['feature_encoder']} returns {shape[1:]} per row, "
                    "expected one embedding; add a pooling layer: "
                    f"[{spec['feature_encoder']}, layers.MaskedAveragePooling()]"
                )

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

    def check_heads(self, num_heads: int, dim: int, name: str) -> None:
        """Refuse a number of attention heads that does not divide a dim.

        Raises
        ------
        ConfigError
            With the next smaller number that does.
        """
        if dim % num_heads:
            fits = max(heads for heads in range(1, num_heads) if dim % heads == 0)
            raise ConfigError(
                f"{self.model_id}: num_heads is {num_heads}, expected a divisor of {name} {dim}; set num_heads: {fits}"
            )

    def build(self) -> None:
        """Initialise the layers, move to the device, create the optimizer. The last line of a model's ``__init__``."""
        self.reset_parameters()
        replace_dropout(self)
        self.model_to_device()
        settings = self._settings
        self._trained = [p for p in self.parameters() if p.requires_grad]
        self._choose_tables()
        self.optimizer = make_optimizer(
            self.optimizer_name,
            self.parameters(),
            self.learning_rate,
            weight_decay=settings.weight_decay,
            tables=embedding_tables(self, self.item_vectors),
            table_learning_rate=settings.embedding_learning_rate,
            table_weight_decay=settings.embedding_weight_decay,
            touched=touched_parameters(self),
            table_optimizer=settings.table_optimizer,
        )
        self.schedule = Schedule(self.optimizer, settings.lr_schedule, settings.warmup_steps)
        self.average = None if settings.ema is None else WeightAverage(self, settings.ema)
        self.penalty = Penalty(
            self, self._embedding_regularizer, self._net_regularizer, self.item_vectors, self.factor_dim
        )

    @property
    def has_own_step(self) -> bool:
        """Whether the model's class defines how it takes a step."""
        return type(self).train_step is not MultimodalModel.train_step

    def _choose_tables(self) -> None:
        """Give the embedding table of every feature its kind (``table``)."""
        layers = [m.embedding_layers for m in self.modules() if isinstance(m, FeatureEmbeddingDict)]
        tables = [(name, module) for layer in [*layers, self.item_vectors] for name, module in layer.items()]
        obstacle = None
        if touched_rule(self.optimizer_name, self._settings.table_optimizer) is None:
            obstacle = f"optimizer: {self.optimizer_name} updates all rows and table_optimizer is not set"
        elif self.compiled_logits is not None:
            obstacle = "compile is True"
        # Its own may not take sparse gradients.
        doubt = f"{type(self).__name__} has a train_step of its own" if self.has_own_step else None
        choose_kinds(tables, self.feature_map.features, obstacle, doubt)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)`` or ``(B,)``, or ``(B, T)``; every model defines this method."""
        raise ConfigError(f"{_source_of(type(self))}: class {type(self).__name__} defines no method logits(batch)")

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
            The dataset has no such history.
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
        embeddings = self.embed_items(distinct)
        return embeddings.index_select(0, target), [
            Jagged(embeddings, history.offsets, index) for history, index in zip(histories, indices, strict=True)
        ]

    def item_column(self, key: str, name: str | None, command: str) -> str:
        """Return the name of a column of the items that a model reads as it is stored.

        Parameters
        ----------
        key, name : str
            The model's setting and its value.
        command : str
            What writes such a column.

        Raises
        ------
        ConfigError
            The experiment does not read it.
        """
        if name not in self.items.names:
            raise ConfigError(
                f"{self.model_id}: {key} is {name}, expected a column of the items that the experiment reads "
                f"({', '.join(self.items.names)}); list it in use_features, with embedded: False unless it is a field "
                f"as well. Written by: {command}"
            )
        return str(name)

    def contents(self, batch: Batch, name: str) -> tuple[Tensor, Jagged]:
        """Return a frozen embedding of the targets ``(B, A)`` and histories at length 1, once per distinct item."""
        distinct, target, index = distinct_items(batch, self.items.num_items)
        contents = directions(self.items.stored(name).index_select(0, distinct))
        return contents.index_select(0, target), Jagged(contents, batch.history.offsets, index)

    def embed_items(self, ids: Tensor) -> Tensor:
        """Return the concatenated fields ``(U, D)`` of the items ``ids`` ``(U,)``."""
        frozen = [n for n in self.item_fields if n not in self.item_vectors]
        inputs = self.items.rows(ids, frozen)
        inputs.update({n: self._trained_vectors(n, ids) for n in self.item_vectors})
        return self.embedding_layer(self._dropped({n: inputs[n] for n in self.item_fields}), flatten_emb=True)

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

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return everything that serving computes once per user, free of the candidate.

        Optional: without this method and ``score_candidates``, an exported model scores each candidate as a row.

        Parameters
        ----------
        context : Tensor
            ``(1, C)``.
        history : Tensor
            ``(L, D)``, oldest first; L may be 0.
        ids : Tensor
            ``(L,)``, for ``per_item``.
        """
        raise NotImplementedError

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)`` of candidates ``(M, D)`` for the user of a ``user_state``."""
        raise NotImplementedError

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
        kept are not scaled up: a missing id or modality is what the model sees of a cold item.
        """
        if not self.training:
            return inputs
        for name in [n for n in self.feature_dropout if n in inputs]:
            value, spec = inputs[name], self.feature_map.features[name]
            missing = torch.rand(value.shape[0], device=value.device) < self.feature_dropout[name]
            padding = spec.get("padding_idx") or 0
            inputs[name] = value.masked_fill(missing.view(-1, *[1] * (value.dim() - 1)), padding)
        return inputs

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Score a batch.

        Returns
        -------
        dict
            ``y_pred`` ``(B, T)``, the probability of a click (the value itself for a regression), and ``logit``
            ``(B, T)``; T is 1 for one label.
        """
        if self.precision == "bf16":
            with torch.autocast(self.device.type, torch.bfloat16):
                logit = self._compute_logits(batch)
            logit = logit.float()
        else:
            logit = self._compute_logits(batch)
        expected = (len(batch), self.num_tasks)
        if logit.shape != expected and (self.num_tasks > 1 or logit.shape != (len(batch),)):
            labels = f", a column for each label ({', '.join(self.feature_map.labels)})" if self.num_tasks > 1 else ""
            raise ConfigError(
                f"{_source_of(type(self))}: {type(self).__name__}.logits returns {tuple(logit.shape)} for a batch of "
                f"{len(batch)} rows, expected {expected}{labels}"
            )
        logit = logit.reshape(expected)
        return {"y_pred": self.output_activation(logit), "logit": logit}

    def _compute_logits(self, batch: Batch) -> Tensor:
        batch = self.with_computed(batch)
        if self.compiled_logits is None:
            return self.logits(batch)
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self.compiled_logits(batch)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"compile: True does not work here ({reason}); set compile: False") from error

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of a batch, without the regularizers: summed over labels, see ``loss_of_tasks``."""
        if self.task == "regression":
            loss: Callable[..., Tensor] = F.mse_loss
            inputs = return_dict["y_pred"]
        elif self.loss_from == "probability":
            loss, inputs = F.binary_cross_entropy, return_dict["y_pred"]
        else:
            loss, inputs = F.binary_cross_entropy_with_logits, return_dict["logit"]
        if self.training and self.label_smoothing:
            y_true = y_true + self.label_smoothing * (0.5 - y_true)
        if self.num_tasks == 1:
            return loss(inputs, y_true)
        weights, more = (self.task_weights, 0.0) if self.task_uncertainty is None else self.task_uncertainty()
        return loss_of_tasks([loss] * self.num_tasks, inputs.unbind(dim=1), y_true.unbind(dim=1), weights) + more

    def lr_decay(self, factor: float | None = None, min_lr: float = 1e-6) -> float:
        """Multiply the learning rate by ``factor``, the model's own by default, and return it."""
        factor = self.factor if factor is None else factor
        self.schedule.decay(factor, min_lr)
        return super().lr_decay(factor, min_lr)

    def regularization_loss(self) -> Tensor:
        """Return the value of the regularizers; training uses their gradients directly."""
        return self.penalty.value()

    def get_labels(self, batch: Batch) -> Tensor:
        """Return the labels ``(B, T)``, NaN for one of several that is missing."""
        assert batch.label is not None
        return batch.label.to(self.device).view(-1, self.num_tasks)

    def get_group_id(self, batch: Batch) -> Tensor | None:
        """Return the group of each row ``(B,)``."""
        return batch.group

    def train_step(self, batch: Batch) -> Tensor:
        """Take one step on a batch.

        Returns
        -------
        Tensor
            The batch's loss, detached and still on the device.
        """
        done = self._batch_index % self.accumulation_steps
        # The last update of an epoch may accumulate fewer batches.
        count = min(self.accumulation_steps, self._steps_per_epoch - (self._batch_index - done))
        self.is_accumulating = done + 1 < count
        loss = self.backward(batch, count)
        if not self.is_accumulating:
            self.penalty.add_gradients()
            clip_gradients(self._trained, self._max_gradient_norm)
            self.schedule.set_rates(self._total_steps, self._planned_steps)
            if self.average is not None:
                self.average.before_update()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.average is not None:
                self.average.update()
        return loss

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, without the regularizers; all that a gradient of training comes from."""
        return self.add_loss(self.forward(batch), self.get_labels(batch))

    def backward(self, batch: Batch, count: int = 1) -> Tensor:
        """Add the gradient of the loss, divided by ``count``, to the gradients, and return the loss, detached."""
        if self.replicas is not None:
            return self.replicas.backward(batch, count, synchronize=not self.is_accumulating)
        loss = self.batch_loss(batch)
        (loss / count).backward()
        return loss.detach()

    def fit(
        self,
        data_generator: Iterable[Any],
        epochs: int = 1,
        validation_data: Iterable[Any] | None = None,
        max_gradient_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Train, keep the best weights, load them at the end; see ``fuxictr_mm.training.loop.fit``."""
        loop.fit(self, data_generator, epochs, validation_data, max_gradient_norm)

    def evaluate(self, data_generator: Iterable[Any], metrics: Sequence[str] | None = None) -> dict[str, float]:
        """Return metrics over a loader."""
        return loop.evaluate(self, data_generator, metrics or self.validation_metrics)

    def predict(self, data_generator: Iterable[Any]) -> np.ndarray:
        """Return the predictions ``(rows,)``, or ``(rows, T)`` of T labels, float64, over a loader, in its order."""
        return loop.predict(self, data_generator).double().numpy()

    def save_weights(self, checkpoint: str | os.PathLike[str]) -> None:
        """Write the state dict atomically."""
        save_state_dict(self.state_dict(), checkpoint)

    def load_weights(self, checkpoint: str | os.PathLike[str]) -> None:
        """Read a state dict.

        Raises
        ------
        MissingFileError, UserError
            No such file; not a file of weights; parameters missing, unexpected or of other shapes.
        """
        load_state_dict(self, checkpoint)


class DNNModel(MultimodalModel):
    """A MultimodalModel that ends in a DNN, which it builds with ``make_dnn``.

    Parameters
    ----------
    feature_map : FeatureMap
        Features, with the ItemTable as its attribute ``items``.
    dnn_hidden_units : sequence of int
        Dims of the DNN's hidden layers.
    dnn_activations : str
        Activation of the hidden layers.
    net_dropout : float
        Dropout after each hidden layer.
    batch_norm : bool
        Batch norm before each activation.
    **params
        Those of MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        dnn_hidden_units: HiddenUnits = (1024, 512, 256),
        dnn_activations: str = "ReLU",
        net_dropout: Dropout = 0.0,
        batch_norm: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self._dnn_settings = {
            "hidden_units": list(dnn_hidden_units),
            "hidden_activations": dnn_activations,
            "dropout_rates": net_dropout,
            "batch_norm": batch_norm,
        }

    def make_dnn(self, input_dim: int, output_dim: int | None = None) -> MLP_Block:
        """Return an MLP from ``(B, input_dim)`` to logits ``(B, T)``, a column for each label by default."""
        return MLP_Block(input_dim=input_dim, output_dim=output_dim or self.num_tasks, **self._dnn_settings)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function of batches of any size."""
    import torch._inductor

    # An analysis of torch 2.11 that fails for jagged rows on a GPU.
    analysis = "triton.coalesce_tiling_analysis"
    options: dict[str, Any] = {analysis: False} if analysis in torch._inductor.list_options() else {}
    return torch.compile(function, dynamic=True, options=options)


def check_is_built(model: nn.Module) -> None:
    """Refuse a MultimodalModel that its author did not finish.

    Raises
    ------
    ConfigError
        ``logits`` is not defined, or ``build()`` was not called.
    """
    if not isinstance(model, MultimodalModel):
        return
    cls = type(model)
    if cls.logits is MultimodalModel.logits:
        raise ConfigError(f"{_source_of(cls)}: class {cls.__name__} defines no method logits(batch)")
    if not hasattr(model, "penalty"):
        raise ConfigError(
            f"{_source_of(cls)}: {cls.__name__}.__init__ does not call self.build(); make it the last line"
        )


def _source_of(cls: type) -> str:
    """Return the file of a class, for errors."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__


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


__all__ = ["ITEM_ID", "DNNModel", "Embedded", "MultimodalModel", "distinct_items"]
