"""Keys that every model takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from fuxictr_mm.checking import Settings
from fuxictr_mm.config.features import Number
from fuxictr_mm.errors import ConfigError

#: A number is the weight of an L2 penalty; a string is one of ``l1(x)``, ``l2(x)``, ``l1_l2(x, y)``.
Regularizer = float | str | None

#: Output dims of the hidden layers of an MLP.
HiddenUnits = Sequence[PositiveInt]
Task = Literal["binary_classification", "regression"]


def kind_of_task(task: str | Sequence[str]) -> str:
    """Return the kind of task of all labels; FuxiCTR's list has an entry for each, all equal."""
    return task if isinstance(task, str) else task[0]


class ModelSettings(Settings):
    """Settings that the constructor of every ``MultimodalModel`` takes, most of them FuxiCTR's."""

    model_root: str = Field("./checkpoints/", description="Folder of checkpoints, logs and runs.")
    task: Task | Annotated[list[Task], Field(min_length=1)] = Field(
        "binary_classification",
        description="Classification trains on logits with binary cross-entropy, regression with squared error. A list, "
        "as FuxiCTR's, has an entry for each label, all equal.",
    )
    loss: str | Annotated[list[str], Field(min_length=1)] = Field(
        "binary_crossentropy",
        description="The task's loss: `binary_crossentropy` or `mse_loss`; or a list, one for each label.",
    )
    task_weights: dict[str, Annotated[Number, Field(ge=0, lt=math.inf)]] | Literal["uncertainty"] | None = Field(
        None,
        description="Weights of the labels' losses by name, such as `{click: 1, like: 0.5}`; 1 if not named. "
        "`uncertainty` learns them.",
    )
    optimizer: str = Field("adam", description="Name of a class of `torch.optim`; `adam` is fused.")
    learning_rate: Number = Field(1e-3, gt=0, lt=math.inf, description="Learning rate of the optimizer.")
    embedding_dim: PositiveInt = Field(
        64, description="Dim of every embedding without its own; a FuxiCTR model has its own default."
    )
    max_len: PositiveInt = Field(100, description="Histories are cut to their newest `max_len` items.")
    embedding_regularizer: Regularizer = Field(
        None, description="Penalty on embeddings: a number is L2; or `l1(x)`, `l2(x)`, `l1_l2(x, y)`."
    )
    net_regularizer: Regularizer = Field(None, description="The same for all other parameters.")
    embedding_learning_rate: Annotated[Number, Field(gt=0, lt=math.inf)] | None = Field(
        None, description="Learning rate of the embedding tables; null: `learning_rate`."
    )
    embedding_weight_decay: Annotated[Number, Field(ge=0, lt=math.inf)] | None = Field(
        None,
        description="Decoupled weight decay of the embedding tables, by `adam` (as AdamW), `adamw` or `sgd`; null: the "
        "optimizer's default.",
    )
    weight_decay: Annotated[Number, Field(ge=0, lt=math.inf)] | None = Field(
        None, description="The same for all other parameters."
    )
    table_optimizer: Literal["adam", "adagrad", "rowwise_adagrad", "sgd"] | None = Field(
        None,
        description="Optimizer of the embedding tables with `table: touched` or `sharded`; `rowwise_adagrad` keeps one "
        "number per row; null: as `optimizer`, which must be `adam`, `adamw`, `adagrad` or `sgd`.",
    )
    metrics: Sequence[str] = Field(["AUC", "logloss"], description="Metrics on validation and test data.")
    monitor: str | dict[str, Number] = Field(
        "AUC",
        description="Metric, or weighted sum of metrics such as `{AUC: 1, logloss: -1}`, that selects the best epoch.",
    )
    monitor_mode: Literal["max", "min"] = Field("max", description="Whether a larger or a smaller value is better.")
    early_stop_patience: PositiveInt = Field(
        2, description="Evaluations without improvement after which training stops."
    )
    eval_steps: PositiveInt | None = Field(None, description="Steps between evaluations; null: once per epoch.")
    save_best_only: bool = Field(True, description="False: keep the newest weights instead of the best.")
    reduce_lr_on_plateau: bool = Field(
        True, description="Reduce the learning rate after an evaluation without improvement."
    )
    plateau_patience: PositiveInt = Field(
        1, description="Evaluations without improvement after which the learning rate is reduced."
    )
    lr_schedule: Literal["plateau", "constant", "linear", "cosine"] | None = Field(
        None,
        description="`linear`, `cosine`: the learning rate falls to zero over all `epochs`; null: `plateau` or "
        "`constant`, as `reduce_lr_on_plateau` says.",
    )
    warmup_steps: NonNegativeInt = Field(
        0, description="Batches over which the learning rate rises linearly from zero."
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of an exponential moving average of the weights, which is evaluated and saved in their "
        "place; null: none.",
    )
    swa_start: PositiveInt | None = Field(
        None,
        description="Update from which on the plain average of the weights of all updates is evaluated and saved in "
        "their place (stochastic weight averaging); null: none.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Labels are moved by this fraction towards 1/2 in training."
    )
    max_gradient_norm: Number = Field(
        10.0, gt=0, description="Gradients are clipped to this norm; `.inf` turns clipping off."
    )
    accumulation_steps: PositiveInt = Field(1, description="Batches per update.")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="`bf16`: logits under autocast; `tf32`: matrix products of a GPU in TF32."
    )
    verbose: int = Field(1, description="Progress bars: 0 never, 1 on a terminal, 2 also elsewhere.")

    @field_validator("task")
    @classmethod
    def _check_tasks(cls, task: Any) -> Any:
        if isinstance(task, list) and len(set(task)) > 1:
            raise ConfigError(f"task: {task}, expected equal entries: labels of several kinds have no metric in common")
        return task

    @property
    def averages_weights(self) -> bool:
        """Whether an average of the weights is kept."""
        return self.ema is not None or self.swa_start is not None

    @classmethod
    def of(cls, params: Mapping[str, Any], where: str) -> ModelSettings:
        """Check those of a constructor's keywords that are settings of every model.

        Raises
        ------
        ConfigError
            A value of a wrong type or range.
        """
        return cls.read({k: v for k, v in params.items() if k in cls.model_fields}, where)
