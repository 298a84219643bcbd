"""Keys that every model takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from fuxictr_mm.checking import Settings
from fuxictr_mm.config.features import Number
from fuxictr_mm.errors import ConfigError, nearest

#: A number is the weight of an L2 penalty; a string is one of ``l1(x)``, ``l2(x)``, ``l1_l2(x, y)``.
Regularizer = float | str | None

#: Output dims of the hidden layers of an MLP.
HiddenUnits = Sequence[PositiveInt]
Task = Literal["binary_classification", "regression"]


#: Classes of ``torch.optim`` that a step without a closure and with gradients of all rows suffices for.
OPTIMIZERS = (
    "Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop",
    "SGD",
)  # fmt: skip

#: Optimizers whose weight decay is decoupled, with their form that has it: SGD has no momentum here.
DECOUPLED_DECAY = {"Adam": "AdamW", "AdamW": "AdamW", "SGD": "SGD"}

#: FuxiCTR's names of the loss of each task.
LOSSES = {
    "binary_classification": ("binary_crossentropy", "binary_cross_entropy", "bce"),
    "regression": ("mse_loss",),
}


def optimizer_name(name: str) -> str:
    """Return the name of the class of ``torch.optim`` that is meant, whatever its case."""
    classes = {known.lower(): known for known in OPTIMIZERS}
    if name.lower() not in classes:
        raise ConfigError(
            f"optimizer: there is no '{name}'{nearest(name.lower(), classes)} (there are: {', '.join(OPTIMIZERS)})"
        )
    return classes[name.lower()]


def parse_regularizer(value: Regularizer, name: str) -> list[tuple[int, float]]:
    """Return ``(norm, weight)`` pairs of a regularizer written as FuxiCTR does.

    FuxiCTR takes an integer (``embedding_regularizer: 1``) for no regularizer; here it is L2 with that weight.

    Examples
    --------
    >>> parse_regularizer("l1_l2(1e-4, 1e-5)", "net_regularizer")
    [(1, 0.0001), (2, 1e-05)]
    """
    if value is None:
        return []
    try:
        if isinstance(value, str):
            kind, _, rest = value.strip().partition("(")
            norms = {"l1": (1,), "l2": (2,), "l1_l2": (1, 2)}[kind.strip()]
            weights = [float(part) for part in rest.removesuffix(")").split(",")]
        else:
            norms, weights = (2,), [float(value)]
        pairs = list(zip(norms, weights, strict=True))
    except (KeyError, ValueError):
        raise ConfigError(f"{name} is {value!r}, expected a number, 'l1(x)', 'l2(x)' or 'l1_l2(x, y)'") from None
    if any(not 0 <= weight < float("inf") for _, weight in pairs):
        raise ConfigError(f"{name} is {value!r}, expected weights of 0 or more")
    return [(norm, weight) for norm, weight in pairs if weight]


def check_loss(task: str | Sequence[str], loss: str | Sequence[str]) -> None:
    """Check that the loss of every label fits its task."""
    count = max([1, *(len(given) for given in (task, loss) if not isinstance(given, str))])
    for kind, name in zip(per_label(task, count), per_label(loss, count), strict=False):
        if name not in LOSSES[kind]:
            is_mixed = not isinstance(task, str) and len(set(task)) > 1
            fits = f"[{', '.join(LOSSES[kind][0] for kind in task)}]" if is_mixed else LOSSES[kind][0]
            raise ConfigError(f"loss is {name}, which task: {kind} does not support; write loss: {fits}")


def per_label(given: str | Sequence[str], count: int) -> tuple[str, ...]:
    """Return the task or the loss of each label; a list has an entry for each, as in FuxiCTR."""
    return (given,) * count if isinstance(given, str) else tuple(given)


class ModelSettings(Settings):
    """Settings that the constructor of every ``MultimodalModel`` takes, most of them FuxiCTR's."""

    model_root: str = Field("./checkpoints/", description="Folder of checkpoints, logs and runs.")
    task: Task | Annotated[list[Task], Field(min_length=1)] = Field(
        "binary_classification",
        description="Classification trains on logits with binary cross-entropy, regression with squared error. A "
        "list, as in FuxiCTR, has one entry per label.",
    )
    loss: str | Annotated[list[str], Field(min_length=1)] = Field(
        "binary_crossentropy",
        description="The task's loss: `binary_crossentropy` or `mse_loss`; or a list with one per label.",
    )
    task_weights: dict[str, Annotated[Number, Field(ge=0, lt=math.inf)]] | Literal["uncertainty"] | None = Field(
        None,
        description="Weights of the labels' losses by name, such as `{click: 1, like: 0.5}`; 1 if not named. "
        "`uncertainty` learns them.",
    )
    optimizer: str = Field(
        "adam", description="Name of a class of `torch.optim`; `adam` uses the fused implementation."
    )
    learning_rate: Number = Field(1e-3, gt=0, lt=math.inf, description="Learning rate of the optimizer.")
    embedding_dim: PositiveInt = Field(
        64, description="Dim of every embedding that does not set its own; a FuxiCTR model has its own default."
    )
    max_len: PositiveInt = Field(100, description="Histories are truncated to their newest `max_len` items.")
    embedding_regularizer: Regularizer = Field(
        None, description="Penalty on embeddings: a number is L2; or `l1(x)`, `l2(x)`, `l1_l2(x, y)`."
    )
    net_regularizer: Regularizer = Field(None, description="Penalty on all other parameters, in the same form.")
    embedding_learning_rate: Annotated[Number, Field(gt=0, lt=math.inf)] | None = Field(
        None, description="Learning rate of the embedding tables; null: `learning_rate`."
    )
    embedding_weight_decay: Annotated[Number, Field(ge=0, lt=math.inf)] | None = Field(
        None,
        description="Decoupled weight decay of the embedding tables, for `adam` (as AdamW), `adamw` or `sgd`; null: "
        "the optimizer's default.",
    )
    weight_decay: Annotated[Number, Field(ge=0, lt=math.inf)] | None = Field(
        None, description="Decoupled weight decay of all other parameters, in the same form."
    )
    table_optimizer: Literal["adam", "adagrad", "rowwise_adagrad", "sgd"] | None = Field(
        None,
        description="Optimizer of the embedding tables with `table: touched` or `sharded`; `rowwise_adagrad` keeps "
        "one number per row; null: the same as `optimizer`, which must be `adam`, `adamw`, `adagrad` or "
        "`sgd`.",
    )
    metrics: Sequence[str] = Field(["AUC", "logloss"], description="Metrics on validation and test data.")
    monitor: str | dict[str, Number] = Field(
        "AUC",
        description="Metric, or weighted sum of metrics such as `{AUC: 1, logloss: -1}`, that selects the best epoch.",
    )
    monitor_mode: Literal["max", "min"] = Field("max", description="Whether a larger or a smaller value is better.")
    early_stop_patience: PositiveInt = Field(
        2, description="Number of evaluations without improvement before training stops."
    )
    eval_steps: PositiveInt | None = Field(None, description="Steps between evaluations; null: once per epoch.")
    save_best_only: bool = Field(True, description="False: keep the newest weights instead of the best.")
    reduce_lr_on_plateau: bool = Field(
        True, description="Reduce the learning rate after an evaluation without improvement."
    )
    lr_schedule: Literal["plateau", "constant", "linear", "cosine"] | None = Field(
        None,
        description="`linear`, `cosine`: the learning rate decays to zero over all `epochs`; null: `plateau` or "
        "`constant`, by `reduce_lr_on_plateau`.",
    )
    plateau_patience: PositiveInt = Field(
        1, description="Number of evaluations without improvement before the learning rate is reduced."
    )
    warmup_steps: NonNegativeInt = Field(
        0, description="Number of batches over which the learning rate increases linearly from zero."
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of an exponential moving average of the weights, which is evaluated and saved instead of "
        "the weights; null: none.",
    )
    swa_start: PositiveInt | None = Field(
        None,
        description="Update from which on the average of the weights of all updates is evaluated and saved instead of "
        "the weights (stochastic weight averaging); null: none.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="In training, labels of a classification are moved towards 1/2 by this fraction."
    )
    max_gradient_norm: Number = Field(
        10.0, gt=0, description="Gradients are clipped to this norm; `.inf` turns clipping off."
    )
    accumulation_steps: PositiveInt = Field(1, description="Batches per update.")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="`bf16`: logits under autocast; `tf32`: matrix products in TF32 on a GPU."
    )
    sync_batch_norm: bool = Field(
        True,
        description="Of several processes: batch norm uses the rows of all of them; False: of its own process.",
    )
    verbose: int = Field(1, description="Progress bars: 0 never, 1 on a terminal, 2 always.")

    # A rule on several keys is checked with the last of them: pydantic has the values of those declared before it, and
    # leaves out those that are wrong themselves.

    @field_validator("optimizer")
    @classmethod
    def _check_optimizer(cls, name: str) -> str:
        optimizer_name(name)
        return name

    @field_validator("embedding_regularizer", "net_regularizer")
    @classmethod
    def _check_regularizer(cls, value: Regularizer, info: ValidationInfo) -> Regularizer:
        parse_regularizer(value, str(info.field_name))
        return value

    @field_validator("embedding_weight_decay", "weight_decay")
    @classmethod
    def _check_decay(cls, decay: Number | None, info: ValidationInfo) -> Number | None:
        if decay is not None and "optimizer" in info.data:
            name = optimizer_name(info.data["optimizer"])
            if name not in DECOUPLED_DECAY:
                raise ConfigError(
                    f"{info.field_name}: {name} has no decoupled weight decay; use optimizer: adam, adamw or sgd, or "
                    "net_regularizer and embedding_regularizer"
                )
        return decay

    @field_validator("plateau_patience")
    @classmethod
    def _check_plateau(cls, patience: int, info: ValidationInfo) -> int:
        is_known = {"reduce_lr_on_plateau", "lr_schedule"} <= info.data.keys()
        if patience > 1 and is_known and not cls.model_construct(**info.data).reduces_on_plateau:
            raise ConfigError(
                f"plateau_patience is {patience}, but the learning rate is not reduced on a plateau; set lr_schedule: "
                "plateau, or leave it out"
            )
        return patience

    @field_validator("swa_start")
    @classmethod
    def _check_averages(cls, start: int | None, info: ValidationInfo) -> int | None:
        if start is not None and info.data.get("ema") is not None:
            raise ConfigError("ema and swa_start are both set, two averages of the weights; leave one out")
        return start

    @field_validator("label_smoothing")
    @classmethod
    def _check_smoothing(cls, smoothing: float, info: ValidationInfo) -> float:
        task = info.data.get("task", "binary_classification")
        if smoothing and "binary_classification" not in per_label(task, 1):
            raise ConfigError(f"label_smoothing is {smoothing}, but task: {task} has no classes")
        return smoothing

    def check_labels(self, labels: Sequence[str]) -> None:
        """Check the settings per label against the labels of the dataset."""
        problems, names = [], ", ".join(labels)
        for key in ("task", "loss"):
            given = getattr(self, key)
            if isinstance(given, list) and len(given) != len(labels):
                problems.append(
                    f"{key} has {len(given)} entries, but the dataset has {len(labels)} labels ({names}); expected one "
                    "entry for each, or no list"
                )
        weights = self.task_weights
        if weights == "uncertainty":
            if len(labels) == 1:
                problems.append(f"task_weights is uncertainty, but there is one label ({names}); leave it out")
        elif weights:
            unknown = [name for name in weights if name not in labels]
            problems += [
                f"task_weights: there is no label '{name}'{nearest(name, labels)} (there are: {names})"
                for name in unknown
            ]
            if len(labels) == 1 and not unknown:
                problems.append(f"task_weights with one label ({names}) scales the learning rate; leave it out")
            elif not any(weights.get(name, 1) for name in labels):
                problems.append(f"task_weights are 0 for all labels ({names}); nothing would be trained")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def reduces_on_plateau(self) -> bool:
        """Whether the learning rate is reduced after evaluations without improvement."""
        return self.reduce_lr_on_plateau if self.lr_schedule is None else self.lr_schedule == "plateau"

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
