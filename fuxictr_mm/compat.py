"""Adapter for model files written for FuxiCTR or for the challenge.

FuxiCTR's base class evaluates strings of the configuration as Python, unpickles weights and overwrites checkpoints in
place; some files were written for an older FuxiCTR, or for data without embeddings. The adapter handles each of these,
so that the files need no edit.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.checking import model_schema
from fuxictr_mm.config import COMPUTED_TYPES, ModelSettings, label_names
from fuxictr_mm.config.columns import Columns
from fuxictr_mm.data.batch import row_weights
from fuxictr_mm.embedding_model import check_encoders
from fuxictr_mm.errors import ConfigError, DataError, UserError, nearest
from fuxictr_mm.fuxictr_imports import BaseModel, FeatureEmbedding, FeatureEmbeddingDict, MultiTaskModel
from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.registry import describe_error, failed_on_first_batch
from fuxictr_mm.runtime import is_main
from fuxictr_mm.tasks import UncertaintyWeights, loss_of_tasks
from fuxictr_mm.training.checkpoints import load_state_dict, save_state_dict

logger = logging.getLogger(__name__)

#: Attributes of ``BaseModel`` that this library reads and sets, none of them public: a model of FuxiCTR may read them.
BASE_MODEL = (
    "_batch_index", "_best_metric", "_early_stop_patience", "_epoch_index", "_eval_steps", "_max_gradient_norm",
    "_monitor", "_monitor_mode", "_reduce_lr_on_plateau", "_save_best_only", "_steps_per_epoch", "_stop_training",
    "_stopping_steps", "_total_steps", "_verbose", "_embedding_regularizer", "_net_regularizer",
)  # fmt: skip


def check_base_model(base: type) -> None:
    """Check that the ``BaseModel`` of this version of FuxiCTR uses the attributes ``BASE_MODEL``.

    Raises
    ------
    ConfigError
        An attribute is missing; the error names the first one.
    """
    methods = [method for method in vars(base).values() if inspect.isfunction(method)]
    used = {name for method in methods for name in method.__code__.co_names}
    if missing := [name for name in BASE_MODEL if name not in used]:
        raise ConfigError(
            f"{inspect.getsourcefile(base)}: {base.__name__} has no {missing[0]}, so this version of "
            "FuxiCTR is not supported; pip install fuxictr~=2.3.10"
        )


check_base_model(BaseModel)

#: FuxiCTR's names of the binary cross-entropy, and the losses of torch that take a prediction and a label of one shape.
#: A fixed list, because FuxiCTR evaluates any other text as Python.
LOSSES = ("bce", "binary_crossentropy", "binary_cross_entropy", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")

#: Methods that FuxiCTR's training loop calls and this library's does not.
NOT_CALLED = ("fit", "train_epoch", "eval_step", "evaluate", "evaluate_metrics", "predict")


#: Settings of training that FuxiCTR's base class does not read, but its models, or this library in their place.
ALSO_READ = (
    "optimizer", "loss", "learning_rate", "embedding_dim", "max_len", "max_gradient_norm", "precision", "task_weights",
)  # fmt: skip

#: Settings of training that only a MultimodalModel has: FuxiCTR's base class names the others in its signature, or
#: reads them from its keywords.
OWN_SETTINGS = ModelSettings.model_fields.keys() - {
    *inspect.signature(BaseModel.__init__).parameters,
    *BaseModel.__init__.__code__.co_consts,
    *ALSO_READ,
}


def is_third_party(model_class: type) -> bool:
    """Whether a model is not a MultimodalModel, but a BaseModel of FuxiCTR."""
    return not issubclass(model_class, MultimodalModel)


def params_problems(model_class: type, params: Mapping[str, Any]) -> dict[str, str]:
    """Return settings that FuxiCTR would evaluate as Python or ignore silently, with a sentence for each.

    A loss that does not exist; embeddings that should be trained, which only a MultimodalModel can do; settings that
    only a MultimodalModel reads, unless the model's constructor names them.
    """
    problems: dict[str, str] = {}
    is_none = f"but {model_class.__name__} is not a MultimodalModel"
    losses = params.get("loss", ())
    for loss in [losses] if isinstance(losses, str) else losses:
        if loss not in LOSSES:
            known = ", ".join(LOSSES)
            problems["loss"] = f"loss: there is no '{loss}'{nearest(loss, LOSSES)} (there are: {known})"
    if params.get("precision") == "bf16":
        problems["precision"] = f"precision is bf16, {is_none}; fp32 and tf32 work"
    for key in sorted(OWN_SETTINGS - model_schema(model_class).keys()):
        value = params.get(key)
        if (value or value is False) and value != ModelSettings.model_fields[key].default:
            problems[key] = f"{key} is {value}, {is_none}; leave it out"
    columns = Columns.of(params)
    for name, column in columns.by_name.items():
        if not column.freeze_emb and not column.pretrained_emb:
            problems[f"feature {name}"] = (
                f"feature '{name}': freeze_emb is False, {is_none} and gets the stored embeddings unchanged; leave it "
                "out"
            )
    for name, column in columns.used.items():
        given = {key: getattr(column, key) for key in ("type", "table", "dropout")}
        for key, refused in (("type", COMPUTED_TYPES), ("table", ("touched", "sharded"))):
            if given[key] not in refused:
                given[key] = None
        for key in [key for key in given if given[key]]:
            problems[f"feature {name}"] = f"feature '{name}': {key} is {given[key]}, {is_none}; leave it out"
    if params.get("label_col") and "loss" not in problems:
        try:
            check_labels(model_class, params, label_names(params))
        except ConfigError as error:
            problems["labels"] = str(error)
    return problems


def check_labels(model_class: type, params: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Check the labels that a FuxiCTR model trains on.

    Raises
    ------
    ConfigError
        Several labels, or lists of settings for them, for a model of one label; another number of them than the model
        is set to.
    """
    name, names = model_class.__name__, ", ".join(labels)
    if not issubclass(model_class, MultiTaskModel):
        if len(labels) > 1:
            raise ConfigError(
                f"{name} trains on one label, but label_col names {len(labels)} ({names}); name one of "
                "them, or use a subclass of FuxiCTR's MultiTaskModel"
            )
        for key in ("task", "loss"):
            if isinstance(params.get(key), list):
                raise ConfigError(f"{key} is {params[key]}, but {name} trains on one label; write {params[key][0]}")
    elif (given := params.get("num_tasks", 1)) != len(labels):
        raise ConfigError(
            f"num_tasks is {given}, but the dataset has {len(labels)} labels ({names}); set num_tasks: {len(labels)}"
        )
    ModelSettings.of(params, name).check_labels(labels)


def make_safe(model: Any, view: str = "flat", task_weights: Mapping[str, float] | str | None = None) -> None:
    """Adapt a FuxiCTR model to this library's training, on batches of a format.

    A multi-task model with FuxiCTR's loss takes labels that are missing, and weights of the labels. Models with
    FuxiCTR's loss take weights of rows; others are refused where the dataset has them. In the challenge's
    format, labels and groups are read of the rows' columns if the model does not read them itself. State dicts are
    written atomically and read without unpickling. Frozen embeddings get the weight that is missing in linear terms,
    and the feature embedding takes the arguments of older versions. An exception on the first batch becomes an error of
    one line. Overridden methods that are not called are logged.
    """

    def save_weights(checkpoint: str) -> None:
        if is_main():  # a model that decides itself when to save does not know of other processes
            save_state_dict(model.state_dict(), checkpoint)

    model.save_weights = save_weights
    model.load_weights = partial(load_state_dict, model)
    model.has_scored = False
    model.forward = partial(_first_forward, model, view)
    if getattr(type(model), "add_loss", None) is MultiTaskModel.add_loss:
        if isinstance(task_weights, str):
            if any(loss not in (F.binary_cross_entropy, F.mse_loss) for loss in model.loss_fn):
                raise ConfigError(
                    f"{model.model_id}: task_weights: uncertainty supports only loss: binary_crossentropy and mse_loss"
                )
            model.task_uncertainty = UncertaintyWeights(model.loss_fn).to(model.device)
            model.optimizer.add_param_group({"params": list(model.task_uncertainty.parameters())})
        given = task_weights if isinstance(task_weights, Mapping) else {}
        weights = [given.get(name, 1.0) for name in model.feature_map.labels]
        model.add_loss = partial(_add_loss_of_tasks, model, weights)
    model.row_weights = None
    if (column := getattr(model.feature_map, "sample_weight", None)) is not None:
        _refuse_own_loss(model, column)
        if not isinstance(model, MultiTaskModel):
            model.add_loss = partial(_add_weighted_loss, model)
        model.train_step = partial(_train_with_weights, model, column, model.train_step)
    if view == "challenge":
        for name in ("get_labels", "get_group_id"):
            if getattr(type(model), name) in (getattr(BaseModel, name), getattr(MultiTaskModel, name)):
                setattr(model, name, partial(_read_columns, getattr(model, name)))
    _add_linear_weights(model)
    _take_older_arguments(model)
    if len(inspect.signature(model.add_loss).parameters) == 1 and type(model).train_step is BaseModel.train_step:
        model.train_step = partial(_train_by_loss_of_batch, model)
    model.train_step = partial(_train_on_probabilities, model, model.train_step)
    for name in NOT_CALLED:
        if getattr(type(model), name) not in (getattr(BaseModel, name), getattr(MultiTaskModel, name)):
            logger.warning(
                f"{type(model).__name__} overrides {name}, which is not called, because this library trains the model"
            )


def _read_columns(read: Callable[[Mapping[str, Tensor]], Tensor], batch: Any) -> Tensor:
    """Return labels or groups by FuxiCTR's own method, which takes a dict of columns, of a batch for the challenge."""
    return read(batch if isinstance(batch, Mapping) else batch[0])


def _add_loss_of_tasks(
    model: Any, weights: Sequence[float] | Tensor, return_dict: Mapping[str, Tensor], y_true: Sequence[Tensor]
) -> Tensor:
    """Return the sum of the losses of a multi-task model of FuxiCTR."""
    predictions = [return_dict[f"{name}_pred"] for name in model.feature_map.labels]
    more: Tensor | float = 0.0
    if hasattr(model, "task_uncertainty"):
        weights, more = model.task_uncertainty()
    return loss_of_tasks(model.loss_fn, predictions, y_true, weights, model.row_weights) + more


def _refuse_own_loss(model: Any, column: str) -> None:
    """Refuse weights of rows for a model that does not take FuxiCTR's loss."""
    for name in ("train_step", "compute_loss", "add_loss"):
        if getattr(type(model), name) not in (getattr(BaseModel, name), getattr(MultiTaskModel, name)):
            raise ConfigError(
                f"{model.model_id}: sample_weight is {column}, but {type(model).__name__}.{name} computes its own "
                "loss, without weights of rows; leave sample_weight out of the dataset, or use another model"
            )


def _add_weighted_loss(model: Any, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
    """Return the loss of a model of one label, with the weights of the rows of the batch."""
    return loss_of_tasks([model.loss_fn], [return_dict["y_pred"]], [y_true], [1.0], model.row_weights)


def _train_with_weights(model: Any, column: str, step: Callable[[Any], Tensor], batch: Any) -> Tensor:
    """Take a step with the weights of the rows, a column of the batch."""
    weights = row_weights(batch, column)
    model.row_weights = None if weights is None else weights.to(model.device)
    return step(batch)


def _first_forward(model: Any, view: str, inputs: Any) -> Any:
    """Score the first batch; afterwards the model's own ``forward`` is called, also if processes wrap this."""
    if model.has_scored:
        return type(model).forward(model, inputs)
    model.has_scored = True
    if isinstance(model.forward, partial):
        del model.forward
    try:
        return type(model).forward(model, inputs)
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a model file may raise anything
        name = type(model).__name__
        check_encoders(model)  # of those that return a sequence, the error names no feature
        if not _is_about_format(error):
            advice = _advice_on_columns(model, error) if view == "challenge" else _advice_on_sequences(model, error)
            raise failed_on_first_batch(model.model_id, f"{name}.forward", error, advice) from error
        if view == "challenge":
            other = "if it takes one dict of columns, set batch_view: flat"
        else:
            other = "if it takes a tuple of three, set batch_view: challenge"
            if context := _context_columns(model):
                other += f"; if the file reads {', '.join(context)} of every item, also set in_item_dict: True for them"
        raise ConfigError(
            f"{model.model_id}: {name}.forward fails on a batch of batch_view: {view} ({describe_error(error)}); "
            f"{other}"
        ) from error


def _context_columns(model: Any) -> list[str]:
    """Return the context columns that files of the challenge may expect in the item dict as well."""
    return [
        name
        for name, spec in model.feature_map.features.items()
        if spec["type"] == "categorical" and spec.get("source") != "item" and name != model.feature_map.group_id
    ]


def _advice_on_columns(model: Any, error: Exception) -> str:
    """Return what to set for a file of the challenge that expects context columns in the item dict as well."""
    context = _context_columns(model)
    is_about_columns = isinstance(error, RuntimeError) and "shape" in str(error)
    is_about_columns |= isinstance(error, KeyError) and error.args[0] in context
    if not context or not is_about_columns:
        return ""
    return f"if the file reads {', '.join(context)} of every item, set in_item_dict: True for them; "


def _advice_on_sequences(model: Any, error: Exception) -> str:
    """Return what to set for a file that takes no sequence as it is."""
    specs = model.feature_map.features.items()
    names = [name for name, spec in specs if spec["type"] == "sequence" and not spec.get("feature_encoder")]
    if (
        not names
        or not isinstance(error, RuntimeError)
        or not re.search(r"\b(size|sizes|shapes?|dimensions?)\b", str(error))
    ):
        return ""
    return f"{', '.join(names)} has feature_encoder: null; if the file does not take sequences, remove it; "


def _is_about_format(error: Exception) -> bool:
    """Whether an error is about a tuple or a dict where the other was expected, as of a batch in another format."""
    if isinstance(error, KeyError):
        return bool(error.args) and isinstance(error.args[0], int)  # inputs[0] of a dict
    text = str(error)
    # Unpacking a dict of three columns gives their names.
    return isinstance(error, AttributeError | TypeError | ValueError) and bool(
        re.search(r"\b(tuple|dict)\b|\bunpack\b|'str' object has no attribute", text)
    )


def _add_linear_weights(model: Any) -> None:
    """Give frozen embeddings a linear projection to the one number that a linear term sums.

    FuxiCTR's ``LogisticRegression`` embeds every field with one number, but a field of ``type: embedding`` keeps its
    stored dim, so that DeepFM, xDeepFM, FiBiNET and all others with a linear term fail on the first batch.
    """
    for tables in [m for m in model.modules() if isinstance(m, FeatureEmbeddingDict)]:
        for name in tables.embedding_layers:
            spec = tables._feature_map.features[name]
            # Elsewhere, FuxiCTR projects the stored dim by an encoder.
            if spec["type"] == "embedding" and name not in tables.feature_encoders:
                weights = nn.Linear(spec["pretrain_dim"], 1, bias=False)
                nn.init.xavier_normal_(weights.weight)
                tables.feature_encoders[name] = weights.to(model.device)
                model.optimizer.add_param_group({"params": list(weights.parameters())})


def _take_older_arguments(model: nn.Module) -> None:
    """Let FuxiCTR's embedding take ``dynamic_emb_dim``, the older name of ``flatten_emb``."""
    methods = ((FeatureEmbedding, "forward"), (FeatureEmbeddingDict, "dict2tensor"))
    for module in model.modules():
        for kind, name in methods:
            if type(module) is kind and "dynamic_emb_dim" not in inspect.signature(getattr(kind, name)).parameters:
                setattr(module, name, partial(_call_with_older_arguments, getattr(module, name)))


def _call_with_older_arguments(
    call: Callable[..., Any], *arguments: Any, dynamic_emb_dim: bool = False, **named: Any
) -> Any:
    if dynamic_emb_dim:
        named["flatten_emb"] = True
    return call(*arguments, **named)


def _train_on_probabilities(model: Any, step: Callable[[Any], Tensor], batch: Any) -> Tensor:
    """Take a step; torch's own check of the predictions, which raises on the CPU, becomes an error of one line."""
    try:
        return step(batch)
    except RuntimeError as error:
        if "between 0 and 1" not in str(error):
            raise
        raise DataError(
            f"{model.model_id}: {type(model).__name__}.forward gives NaN, or a prediction outside 0 to 1, for a "
            "training batch; reduce learning_rate, or drop the rows that it cannot score (often those "
            "without a history)"
        ) from error


def _train_by_loss_of_batch(model: Any, batch: Any) -> Tensor:
    """Take a step of a model whose ``add_loss`` takes the batch and calls ``forward`` itself, as older ones do."""
    model.optimizer.zero_grad()
    loss = model.add_loss(batch) + model.regularization_loss()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), model._max_gradient_norm)
    model.optimizer.step()
    return loss
