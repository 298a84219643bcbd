"""The base class of the model zoo.

Shape letters: B rows, L history items of a row, M candidates of a user, C context dim, D item dim, T labels of a row,
one for each task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import Dropout, HiddenUnits, ModelSettings, per_label
from fuxictr_mm.config.model import check_loss
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.feature_map import unify_dims
from fuxictr_mm.embedding_model import Embedded as Embedded  # model files import it from here
from fuxictr_mm.embedding_model import EmbeddingModel
from fuxictr_mm.errors import ConfigError, UserError, first_line
from fuxictr_mm.files import StrPath
from fuxictr_mm.fuxictr_imports import FeatureEmbeddingDict, FeatureMap, MLP_Block
from fuxictr_mm.layers.dropout import replace_dropout
from fuxictr_mm.layers.triton_kernels import fuse
from fuxictr_mm.registry import failed_on_first_batch, source_of
from fuxictr_mm.runtime import compiled, device_of, is_main
from fuxictr_mm.table_settings import check_widths, sharded_group, touched_obstacle
from fuxictr_mm.tables import (
    choose_kinds,
    gathered_state,
    is_spread,
    sharded_parameters,
    sharded_tables,
    touched_parameters,
)
from fuxictr_mm.tasks import MixedActivation, UncertaintyWeights, loss_of_tasks
from fuxictr_mm.training import loop, scoring
from fuxictr_mm.training.checkpoints import load_state_dict, save_state_dict
from fuxictr_mm.training.clipping import clip_gradients
from fuxictr_mm.training.embedding_tables import embedding_tables
from fuxictr_mm.training.optimizers import add_sharded, make_optimizer
from fuxictr_mm.training.penalty import Penalty
from fuxictr_mm.training.replicas import Replicas
from fuxictr_mm.training.schedule import Schedule
from fuxictr_mm.training.weight_average import WeightAverage

logger = logging.getLogger(__name__)


class MultimodalModel(EmbeddingModel):
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
        ``"logits"`` computes the loss on logits. ``"probability"`` computes it on the sigmoid's output, as FuxiCTR
        does, which saturates beyond a logit of 17 in float32.
    factor : float
        Factor on the learning rate on a plateau.
    compile : bool
        Compile the logits with ``torch.compile``; for its speed see ``docs/performance.md``.
    fused_attention : bool
        On a GPU, attention of the target to the history in kernels of its own, which have not been timed yet, see
        ``docs/performance.md``. Without effect on a CPU, with ``compile``, and where a layer has no kernel.
    **params
        Those of ``fuxictr_mm.config.ModelSettings``, with their defaults; others are ignored.

    Raises
    ------
    ConfigError
        A setting has a wrong type or range, the loss does not fit the task, or the dataset has no item features.
    """

    batch_view: str = "jagged"
    #: Whether every field gets the dim ``embedding_dim``, frozen embeddings by a linear projection.
    same_dims: bool = False
    #: Of models with ``same_dims``: further numbers of every field's embedding, and the weight of their regularizer.
    factor_dim: int = 0
    factor_table_regularizer: float = 0.0
    #: Whether its attention layers weight the whole history, so that an export explains scores by their weights.
    attends_to_history: bool = True
    #: Whether its ``user_state`` holds with its settings; otherwise an export scores each candidate as a row.
    has_user_state: bool = True
    #: Whether a batch has been scored: what its file raises on the first one is a mistake of its author.
    _has_scored: bool = False
    #: Steps of the run and the batch of the epoch, done and planned, as the training loop sets them.
    _total_steps = _planned_steps = _batch_index = 0
    _steps_per_epoch = 1
    #: Whether gradients wait for those of further batches.
    is_accumulating: bool = False
    #: Weights of the rows ``(B,)`` of the batch whose loss is computed, and whether that takes them.
    row_weights: Tensor | None = None
    _takes_weights: bool = False

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        model_id: str = "MultimodalModel",
        gpu: int = -1,
        loss_from: Literal["logits", "probability"] = "logits",
        factor: Annotated[float, Field(gt=0, le=1)] = 0.1,
        compile: bool = False,
        fused_attention: bool = False,
        **params: Any,
    ) -> None:
        device_of(gpu)
        settings = ModelSettings.of(params, model_id)
        tasks = _tasks_of(settings, feature_map.labels, model_id)
        if self.same_dims:
            feature_map = unify_dims(feature_map, settings.embedding_dim + self.factor_dim)
        super().__init__(
            feature_map,
            model_id=model_id,
            task=tasks[0],
            gpu=gpu,
            monitor=settings.monitor,
            save_best_only=settings.save_best_only,
            monitor_mode=settings.monitor_mode,
            early_stop_patience=settings.early_stop_patience,
            eval_steps=settings.eval_steps,
            embedding_regularizer=settings.embedding_regularizer,
            net_regularizer=settings.net_regularizer,
            reduce_lr_on_plateau=settings.reduces_on_plateau,
            verbose=settings.verbose,
            model_root=settings.model_root,
            metrics=list(settings.metrics),
        )
        self.model_settings = settings
        # Those that model files and the training loop read; all others are read of model_settings.
        self.loss_from, self.factor = loss_from, factor
        self.learning_rate, self.precision = settings.learning_rate, settings.precision
        self.max_len, self.plateau_patience = settings.max_len, settings.plateau_patience
        self._max_gradient_norm = settings.max_gradient_norm
        #: Of several processes that train together.
        self.replicas: Replicas | None = None
        self.compiled_logits = compiled(self.logits) if compile else None
        self._fuses_attention = fused_attention and gpu >= 0
        self._set_tasks(tasks)
        features = feature_map.features.items()
        sharded = {n: s.get("sharding", "row") for n, s in features if s.get("table") == "sharded"}
        #: Settings of the optimizer of sharded tables.
        self._sharded_group: dict[str, Any] = {}
        if sharded:
            of_factors = self.factor_table_regularizer if self.factor_dim else 0.0
            self._sharded_group = sharded_group(sharded, settings, compile, self.own_step(), of_factors)
        if is_spread():
            dims = {n: feature_map.features[n].get("embedding_dim", settings.embedding_dim) for n in sharded}
            check_widths(dims, self.factor_dim)
        self.make_embedding(feature_map, settings.embedding_dim, self._sharded_group)

    def _set_tasks(self, tasks: tuple[str, ...]) -> None:
        """Set what the loss and the output depend on: the task of each label, and the weights of their losses."""
        #: The task of each label, ``binary_classification`` or ``regression``.
        self.label_tasks = tasks
        self.num_tasks = len(tasks)
        if len(set(tasks)) > 1:
            self.output_activation = MixedActivation(tasks)
        given, labels = self.model_settings.task_weights, self.feature_map.labels
        self.task_weights = [given.get(name, 1.0) if isinstance(given, dict) else 1.0 for name in labels]
        self.task_uncertainty = None
        if given == "uncertainty":
            self.task_uncertainty = UncertaintyWeights([self._loss_of(task)[0] for task in tasks])

    def check_heads(self, num_heads: int, dim: int, name: str) -> None:
        """Check that a number of attention heads divides a dim.

        Raises
        ------
        ConfigError
            It does not; the error names the next smaller divisor.
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
        if self._fuses_attention:
            fuse(self)
        self.model_to_device()
        settings = self.model_settings
        tables = [m.embedding_layers for m in self.modules() if isinstance(m, FeatureEmbeddingDict)]
        choose_kinds(
            [pair for layer in [*tables, self.item_vectors] for pair in layer.items()],
            self.feature_map.features,
            touched_obstacle(settings, self.compiled_logits is not None),
            self.own_step(),
        )
        # Sharded tables are updated in the backward pass, before the norm of the gradients is known.
        apart = {id(p) for p in sharded_parameters(self)}
        self._trained = [p for p in self.parameters() if p.requires_grad and id(p) not in apart]
        self.penalty = Penalty(
            self,
            self._embedding_regularizer,
            self._net_regularizer,
            self.item_vectors,
            self.factor_dim,
            self.factor_table_regularizer,
        )
        self.optimizer = make_optimizer(
            settings.optimizer,
            self._trained,
            self.learning_rate,
            weight_decay=settings.weight_decay,
            tables=embedding_tables(self, self.item_vectors),
            table_learning_rate=settings.embedding_learning_rate,
            table_weight_decay=settings.embedding_weight_decay,
            touched=touched_parameters(self),
            table_optimizer=settings.table_optimizer,
            penalty=self.penalty.of_rows,
        )
        self.optimizer = add_sharded(self.optimizer, self, self._sharded_group)
        self.schedule = Schedule(self.optimizer, settings.lr_schedule, settings.warmup_steps)
        self.average = WeightAverage(self, settings.ema, settings.swa_start or 1) if settings.averages_weights else None

    @property
    def has_own_step(self) -> bool:
        """Whether the model's class defines how it takes a step."""
        return self.own_step() is not None

    @classmethod
    def own_step(cls) -> str | None:
        """Return a phrase if the class defines how it takes a step, which may not take sparse gradients; else None."""
        return None if cls.train_step is MultimodalModel.train_step else f"{cls.__name__} defines its own train_step"

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)`` or ``(B,)``, or ``(B, T)``; every model defines this method."""
        raise ConfigError(f"{source_of(type(self))}: class {type(self).__name__} defines no method logits(batch)")

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
            ``(L,)``, for ``per_item``, ``content_of`` and ``code_table``.
        """
        raise NotImplementedError

    def candidate_columns(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Return what ``score_candidates`` reads of candidates ``(M,)`` besides their embeddings; empty by default.

        Rows of ``content_of`` and ``code_table``; every tensor has a row for each candidate.
        """
        return ()

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)`` of candidates ``(M, D)`` for the user of a ``user_state``.

        The state begins with the tensors of ``candidate_columns``.
        """
        raise NotImplementedError

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
                f"{source_of(type(self), 'logits')}: {type(self).__name__}.logits returns {tuple(logit.shape)} for a "
                f"batch of {len(batch)} rows, expected {expected}{labels}"
            )
        logit = logit.reshape(expected)
        return {"y_pred": self.output_activation(logit), "logit": logit}

    def _compute_logits(self, batch: Batch) -> Tensor:
        batch = self.with_computed(batch)
        try:
            logit = self.logits(batch) if self.compiled_logits is None else self.compiled_logits(batch)
        except (UserError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # a model file may raise anything
            if self.compiled_logits is not None:
                from torch._dynamo.exc import TorchDynamoException

                if isinstance(error, TorchDynamoException):
                    reason = first_line(error)
                    raise ConfigError(f"compile: True does not work here ({reason}); set compile: False") from error
            if self._has_scored:
                raise
            advice = f"batch.context has {', '.join(batch.context)}; " if isinstance(error, KeyError) else ""
            raise failed_on_first_batch(self.model_id, f"{type(self).__name__}.logits", error, advice) from error
        if not self._has_scored:
            self._has_scored = True
        return logit

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of a batch, without the regularizers: summed over labels, see ``loss_of_tasks``."""
        is_plain = self.num_tasks == 1 and self.row_weights is None
        labels = [y_true] if is_plain else list(y_true.unbind(dim=1))
        if self.training and (amount := self.model_settings.label_smoothing):
            labels = [
                label + amount * (0.5 - label) if task == "binary_classification" else label
                for label, task in zip(labels, self.label_tasks, strict=True)
            ]
        losses, keys = zip(*map(self._loss_of, self.label_tasks), strict=True)
        if is_plain:
            return losses[0](return_dict[keys[0]], labels[0])
        inputs = [return_dict[key][:, column] for column, key in enumerate(keys)]
        weights, more = (self.task_weights, 0.0) if self.task_uncertainty is None else self.task_uncertainty()
        self._takes_weights = True
        return loss_of_tasks(losses, inputs, labels, weights, self.row_weights) + more

    def _loss_of(self, task: str) -> tuple[Callable[..., Tensor], str]:
        """Return the function of the loss of a task, and which of the tensors that ``forward`` returns it takes."""
        if task == "regression":
            return F.mse_loss, "y_pred"
        if self.loss_from == "probability":
            return F.binary_cross_entropy, "y_pred"
        return F.binary_cross_entropy_with_logits, "logit"

    def lr_decay(self, factor: float | None = None, min_lr: float = 1e-6) -> float:
        """Multiply the learning rates by ``factor``, the model's own by default, and return that of the first group.

        None falls below ``min_lr``; one that is below it already stays as it is.
        """
        return self.schedule.decay(self.factor if factor is None else factor, min_lr)

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
        steps = self.model_settings.accumulation_steps
        done = self._batch_index % steps
        # The last update of an epoch may accumulate fewer batches.
        count = min(steps, self._steps_per_epoch - (self._batch_index - done))
        self.is_accumulating = done + 1 < count
        self.schedule.set_rates(self._total_steps, self._planned_steps)
        loss = self.backward(batch, count)
        if self._total_steps == 1 and self.replicas is None:
            self._warn_of_unused()
        if not self.is_accumulating:
            self.penalty.add_gradients()
            clip_gradients(self._trained, self._max_gradient_norm)
            if self.average is not None:
                self.average.before_update()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.average is not None:
                self.average.update()
        return loss

    def _warn_of_unused(self) -> None:
        """Warn of trained parameters without a gradient of the first batch, such as those of a layer without a call."""
        trained = set(map(id, self._trained))
        unused = [name for name, p in self.named_parameters() if id(p) in trained and p.grad is None]
        if unused and is_main():
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            logger.warning(
                f"{self.model_id}: {', '.join(unused[:3])}{more}: no gradient of the first batch; "
                f"if {type(self).__name__}.logits does not use them, remove them"
            )

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, without the regularizers; all that a gradient of training comes from."""
        outputs = self.forward(batch)
        self.row_weights = None if batch.weight is None else batch.weight.to(self.device)
        try:
            loss = self.add_loss(outputs, self.get_labels(batch))
        finally:
            self.row_weights = None
        if batch.weight is not None and not self._takes_weights:
            raise ConfigError(
                f"{source_of(type(self), 'add_loss')}: {type(self).__name__}.add_loss has its own loss, without "
                "sample_weight; call super().add_loss, or leave sample_weight out of the dataset"
            )
        return loss

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
        return scoring.evaluate(self, data_generator, metrics or self.validation_metrics)

    def predict(self, data_generator: Iterable[Any]) -> np.ndarray:
        """Return the predictions ``(rows,)``, or ``(rows, T)`` of T labels, float64, over a loader, in its order."""
        return scoring.predict(self, data_generator).double().numpy()

    def save_weights(self, checkpoint: StrPath) -> None:
        """Write the state dict atomically. With sharded tables, all processes call it together."""
        state = gathered_state(self)
        if is_main() or not sharded_tables(self):
            save_state_dict(state, checkpoint)

    def load_weights(self, checkpoint: StrPath) -> None:
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


def _tasks_of(settings: ModelSettings, labels: Sequence[str], model_id: str) -> tuple[str, ...]:
    """Return the task of each label; a ConfigError names settings that do not go with it."""
    try:
        settings.check_labels(labels)
        check_loss(settings.task, settings.loss)
    except ConfigError as error:
        raise ConfigError(f"{model_id}: {error}") from None
    return per_label(settings.task, len(labels))


def check_is_built(model: nn.Module) -> None:
    """Check that a MultimodalModel defines ``logits`` and calls ``build()``.

    Raises
    ------
    ConfigError
        ``logits`` is not defined, or ``build()`` was not called.
    """
    if not isinstance(model, MultimodalModel):
        return
    cls = type(model)
    if cls.logits is MultimodalModel.logits:
        raise ConfigError(f"{source_of(cls)}: class {cls.__name__} defines no method logits(batch)")
    if not hasattr(model, "penalty"):
        raise ConfigError(
            f"{source_of(cls, '__init__')}: {cls.__name__}.__init__ does not call self.build(); make it the last line"
        )
