"""Configuration of experiments and datasets: every key of the YAML with its type, range, default and meaning.

``ExperimentConfig.load`` reads ``model_config`` and ``dataset_config``, merges them and checks the result; everything
that is wrong is reported in one message. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from fuxictr_mm.checking import (
    Settings,
    check_call,
    describe,
    error_of,
    is_multimodal,
    matches,
    mismatch,
    model_schema,
    uncheckable,
    unknown_key,
    validate,
)
from fuxictr_mm.errors import ConfigError, MissingFileError, nearest
from fuxictr_mm.files import load_yaml

#: An integer stays an integer, so that a configuration is written, and its fingerprint computed, as it was given.
Number = int | float

#: A number is the weight of an L2 penalty; a string is one of ``l1(x)``, ``l2(x)``, ``l1_l2(x, y)``.
Regularizer = float | str | None

#: Probability of dropping a unit.
Dropout = Annotated[float, Field(ge=0, lt=1)]

#: Output dims of the hidden layers of an MLP.
HiddenUnits = Sequence[PositiveInt]

#: Types of features that are computed from the target and the history; they have no column.
COMPUTED_TYPES = ("length", "similarity")
FeatureType = Literal["meta", "categorical", "sequence", "numeric", "embedding", "length", "similarity"]


Task = Literal["binary_classification", "regression"]


def kind_of_task(task: str | Sequence[str]) -> str:
    """Return the kind of task of all labels; FuxiCTR's list has an entry for each, all equal."""
    return task if isinstance(task, str) else task[0]


def label_names(params: Mapping[str, Any]) -> list[str]:
    """Return the names of the label columns in flat settings, one for each task."""
    labels = params["label_col"]
    return [label["name"] for label in (labels if isinstance(labels, list) else [labels])]


_NO_EFFECT = "Accepted because FuxiCTR's files have it; no effect here."


class FeatureSpec(Settings):
    """What an entry of ``feature_specs`` may change of a feature."""

    example: ClassVar[str] = "{name: user_id, dtype: int, type: meta}"

    name: str | list[str] = Field(description="Name of the column, or of several columns with the same settings.")
    active: bool = Field(True, description="False: used only by experiments that list it in `use_features`.")
    dtype: Literal["int", "float", "str", "list"] | None = Field(None, description="Type of the stored values.")
    type: FeatureType | None = Field(
        None,
        description="Kind of feature; `meta` columns are read but not embedded, `embedding` is a frozen embedding, "
        "`length` and `similarity` are computed from the target and the history.",
    )
    source: str = Field("", description="`item` for a column of the item files; otherwise one of the interactions.")
    vocab_size: PositiveInt | None = Field(
        None, description="Number of ids, padding included; inferred from the item files if missing."
    )
    max_len: PositiveInt | None = Field(None, description="Stored length of a sequence; inferred if missing.")
    embedding_dim: PositiveInt | None = Field(
        None, description="Dim of the embedding; the experiment's `embedding_dim` if missing."
    )
    pretrain_dim: PositiveInt | None = Field(None, description="Stored dim of a frozen embedding; inferred if missing.")
    freeze_emb: bool = Field(True, description="False: the stored embeddings are trained as parameters.")
    norm: Literal["l2", "layer", "standard"] | None = Field(
        None,
        description="How stored embeddings are normalised: `l2` to length 1, `layer` to mean 0 and variance 1 over the "
        "dims of an item, `standard` to mean 0 and variance 1 of each dim over the items; a missing one stays zero.",
    )
    scale: Annotated[Number, Field(gt=0, lt=math.inf)] | None = Field(
        None,
        description="What stored embeddings are multiplied by, after `norm`; 8-bit integers stay 8 bits in memory.",
    )
    dropout: Dropout | None = Field(
        None,
        description="Probability that the feature of an item (for the whole batch) or of an example is missing in "
        "training: an id becomes padding, an embedding or a number zero.",
    )
    history: str | None = Field(
        None,
        description="Of a `sequence` with an entry for each item of a history, such as its time: the history's column. "
        "Models read it as `batch.context[NAME]`; `dtype: float` are numbers, others ids.",
    )
    table: Literal["auto", "dense", "touched"] | None = Field(
        None,
        description="Which rows of the embedding table a step updates: `dense` all, `touched` those of its batch, at a "
        "cost that does not grow with the table; null or `auto`: `touched` from 1,000,000 rows on. See "
        "[Scale](scale.md#embedding-tables).",
    )
    of: str | None = Field(None, description="The frozen embedding that `type: similarity` compares.")
    statistics: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="What `type: similarity` takes of the cosines of the target with the history: `mean`, `max`, "
        "`newest_K` (mean of the newest K) and `histogram_K` (log counts in K bins from -1 to 1).",
    )
    feature_encoder: str | list[str] | None = Field(
        None,
        description="Layers applied to the embedding, as calls: `layers.MaskedSumPooling()`. A sequence without one is "
        "averaged.",
    )
    share_embedding: str | None = Field(None, description="Name of an earlier feature whose embedding table is used.")
    padding_idx: int = Field(0, description="Id of the padding, whose embedding is zero.")
    emb_output_dim: PositiveInt | None = Field(
        None, description="Dim after `feature_encoder`, where the encoder changes it."
    )
    embedded: bool = Field(
        True, description="False: a column of the items that only a model's setting names, no field of every model."
    )
    in_item_dict: bool = Field(
        False,
        description="True: `batch_view: challenge` also has this context column in its item dict, read from the item "
        "files.",
    )
    padding: Literal["pre", "post"] | None = Field(
        None, description="Side on which a sequence of the interactions is padded and cut; null: `post`."
    )
    fill_na: str | Number | None = Field(None, description="Encoding: value in place of a missing one.")
    remap: bool | None = Field(None, description="Encoding: False keeps the integers of a `meta` column.")
    splitter: str | None = Field(None, description="Encoding: what separates the entries of a sequence; null: `^`.")
    min_categr_count: int | None = Field(None, description="Encoding: as the dataset's, for this feature.")
    normalizer: Literal["StandardScaler", "MinMaxScaler"] | None = Field(
        None, description="Encoding: scale a numeric column by the statistics of the training split."
    )
    preprocess: str | None = Field(None, description="Encoding: `copy_from(COLUMN)`; other functions are refused.")
    category_processor: str | None = Field(None, description="Encoding: refused, as FuxiCTR 2.3.10 fails with it.")
    num_buckets: int | None = Field(None, description="Belongs to `category_processor`.")
    pretrained_emb: str | None = Field(
        None, description="Encoding: file of embeddings (`key`, `value`) that the embedding table starts from."
    )
    pretrain_usage: Literal["init", "sum", "concat"] | None = Field(
        None, description="How FuxiCTR combines `pretrained_emb` with a trained embedding; null: `init`."
    )

    @field_validator("statistics")
    @classmethod
    def _check_statistics(cls, names: list[str] | None) -> list[str] | None:
        for name in names or []:
            if not re.fullmatch(r"mean|max|(newest|histogram)_[1-9]\d{0,3}", name):
                raise ConfigError(f"statistics: '{name}', expected mean, max, newest_K or histogram_K such as newest_5")
        return names

    @field_validator("feature_encoder")
    @classmethod
    def _check_encoder(cls, encoder: str | list[str] | None) -> str | list[str] | None:
        for text in [encoder] if isinstance(encoder, str) else encoder or []:
            if text.lower() not in ("null", "none"):
                check_call(text, "feature_encoder", (r"layers\.\w+", r"nn\.\w+"))
        return encoder


class FeatureConfig(FeatureSpec):
    """One entry of ``feature_cols``."""

    dtype: Literal["int", "float", "str", "list"] | None = Field(
        None, description="Type of the stored values; required, except for `length` and `similarity`."
    )
    type: FeatureType = Field(description=FeatureSpec.model_fields["type"].description)

    @field_validator("type")
    @classmethod
    def _check_dtype(cls, kind: str, info: ValidationInfo) -> str:
        if kind not in COMPUTED_TYPES and info.data.get("dtype", "wrong") is None:
            raise ConfigError("dtype is missing")
        return kind


class LabelConfig(Settings):
    """A label column."""

    example: ClassVar[str] = "{name: label, dtype: float}"

    name: str = Field(description="Name of the column.")
    dtype: Literal["int", "float"] = Field("float", description="Type of the stored values.")
    fill_na: Number | None = Field(None, description="Encoding: label in place of a missing one; null: an error.")


class Roles(Settings):
    """Names of the columns of the interactions that have a role; a mapping in ``dataset_config.yaml``."""

    example: ClassVar[str] = "{target: article_id, history: clicked, user: uid, time: ts}"

    target: str = Field(
        "item_id",
        min_length=1,
        description="The item that was shown. The key of the item files has the same name, or `item_id`.",
    )
    history: str = Field(
        "item_seq",
        min_length=1,
        validate_default=True,
        description="List of the items that the user had clicked.",
    )
    user: str = Field(
        "user_id",
        min_length=1,
        validate_default=True,
        description="The user, for `check-data`, `embed align` and `influence`. Metrics group by `group_id`.",
    )
    time: str | None = Field(
        None, min_length=1, description="When the item was shown; `check-data` takes it for no context column."
    )
    histories: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="Further lists of items, for models that ask for them: `embed(batch, [NAME])`."
    )

    @field_validator("histories")
    @classmethod
    def _check_histories(cls, columns: list[str], info: ValidationInfo) -> list[str]:
        for column in columns:
            if column in info.data.values() or columns.count(column) > 1:
                raise ConfigError(f"histories: the column '{column}' has two roles; expected one for each")
        return columns

    @field_validator("history", "user", "time")
    @classmethod
    def _check_distinct(cls, column: str | None, info: ValidationInfo) -> str | None:
        other = next((role for role, name in info.data.items() if name == column), None) if column else None
        if other is not None:
            raise ConfigError(f"{info.field_name}: is the column '{column}', as is {other}; expected one for each role")
        return column

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Roles:
        """Return those of flat settings."""
        return cls.read(values.get("roles") or {}, "roles")

    @classmethod
    def parse(cls, words: Sequence[str] | None) -> Roles:
        """Return those of ``--roles target=article_id history=clicked``.

        Raises
        ------
        ConfigError
            A word of another form, an unknown role.
        """
        pairs = [word.partition("=")[::2] for word in words or ()]
        bad = next((f"{role}={column}" for role, column in pairs if not role or not column), None)
        if bad is not None:
            raise ConfigError(f"--roles {bad}: expected ROLE=COLUMN, such as target=article_id")
        return cls.read(dict(pairs), "--roles")


class DatasetConfig(Settings):
    """Settings of a dataset in ``dataset_config.yaml``."""

    description: str | None = Field(None, description="One line about the dataset, for `fuxictr-mm list datasets`.")
    data_root: str | None = Field(
        None, description="Folder that `--data_root` replaces in the paths below; environment variables are expanded."
    )
    data_format: Literal["parquet", "csv", "npz"] = Field(
        "parquet", description="Format of the files; `csv` and `npz` are converted once, see [Your data](your_data.md)."
    )
    sep: str = Field(",", min_length=1, max_length=1, description="Separator of the columns of CSV files.")
    train_data: str | None = Field(
        None, description="Interactions of the training split: a file, or a folder of files."
    )
    valid_data: str | None = Field(None, description="Interactions of the validation split.")
    test_data: str | None = Field(None, description="Interactions of the test split; it may lack labels.")
    item_info: Annotated[str | list[str], Field(min_length=1)] | None = Field(
        None,
        description="Item files, joined by `item_id`: a file, a folder of files, or a list of these; null: one of "
        "FuxiCTR's datasets, without items.",
    )
    global_item_info: str | None = Field(
        None, description="Catalogue of the published Transformer_DCN_Quant; no effect on the models of this library."
    )
    roles: Roles = Field(Roles(), description="Names of the columns with a role, see below.")
    ids: Literal["auto", "as_is", "vocabulary"] = Field(
        "auto",
        description="Item ids: `as_is` are positive integers, by which tables are indexed, and 0 is padding; "
        "`vocabulary` takes any integers or texts and numbers the items in the order of the item files; `auto` takes a "
        "vocabulary for ids that cannot be taken as they are.",
    )
    rebuild_dataset: bool | None = Field(
        None, description="True: encode the columns of Parquet files as those of CSV files are; null: only CSV files."
    )
    feature_cols: list[FeatureConfig] | None = Field(
        None,
        min_length=1,
        validate_default=True,
        description="The features, see below; null: those of FuxiCTR's `feature_map.json`.",
    )
    label_col: LabelConfig | Annotated[list[LabelConfig], Field(min_length=1)] | None = Field(
        None,
        validate_default=True,
        description="The label, or a list of labels, one for each task, see below; null: that of FuxiCTR's "
        "`feature_map.json`.",
    )
    min_categr_count: int = Field(1, description="Encoding: rarer values of the training split share one id.")
    valid_size: Number = Field(0, description="Must be 0: FuxiCTR 2.3.10 fails with it; name the split's file.")
    test_size: Number = Field(0, description="Must be 0, as `valid_size`.")
    split_type: str | None = Field(None, description=_NO_EFFECT)
    data_block_size: int = Field(0, description=_NO_EFFECT)
    num_buckets: int | None = Field(None, description=_NO_EFFECT)

    @property
    def item_files(self) -> list[str]:
        """The item files, an empty list without any."""
        return [self.item_info] if isinstance(self.item_info, str) else list(self.item_info or [])

    @property
    def label_names(self) -> list[str]:
        """Names of the label columns, one for each task; empty for a dataset whose entry has none."""
        if self.label_col is None:
            return []
        return [label.name for label in (self.label_col if isinstance(self.label_col, list) else [self.label_col])]

    def require_one_label(self, command: str) -> str:
        """Return the name of the label, and refuse a dataset with several.

        Raises
        ------
        ConfigError
            It has several.
        """
        if len(self.label_names) > 1:
            raise ConfigError(
                f"{command}: label_col names {len(self.label_names)} labels ({', '.join(self.label_names)}); this "
                "command reads only experiments on one label, train one with a dataset entry that names it alone"
            )
        return self.label_names[0]

    def require_items(self, command: str) -> None:
        """Refuse a dataset without item files.

        Raises
        ------
        ConfigError
            It has none.
        """
        if self.item_info is None:
            raise ConfigError(
                f"{command}: the dataset has no item_info; this command takes models of this library, on item files or "
                "on columns with the roles target and history"
            )

    @field_validator("label_col", mode="before")
    @classmethod
    def _check_labels(cls, given: Any) -> Any:
        entries = given if isinstance(given, list) else [given]
        if given is None or not entries:
            return given
        labels: list[LabelConfig] = []
        for entry in entries:
            if not isinstance(entry, dict | LabelConfig):
                raise ConfigError(f"label_col: found {entry!r}, expected {describe(LabelConfig)} or a list of these")
            label = LabelConfig.read(entry, "label_col") if isinstance(entry, dict) else entry
            if label.name in [other.name for other in labels]:
                raise ConfigError(f"label_col: the label '{label.name}' is listed twice; keep one of them")
            labels.append(label)
        return labels if isinstance(given, list) else labels[0]

    @field_validator("valid_size", "test_size")
    @classmethod
    def _check_size(cls, size: Number, info: ValidationInfo) -> Number:
        if size:
            split = str(info.field_name).split("_")[0]
            raise ConfigError(f"{info.field_name}: {size}; splits are not cut here, name the file as {split}_data")
        return size

    @field_validator("item_info")
    @classmethod
    def _check_items(cls, paths: Any, info: ValidationInfo) -> Any:
        if paths is not None and info.data.get("data_format") != "parquet":
            raise ConfigError(
                f"data_format: {info.data.get('data_format')} with item_info; item files need Parquet files"
            )
        return paths

    @field_validator("rebuild_dataset")
    @classmethod
    def _check_rebuild(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("item_info") is not None:
            raise ConfigError(
                "rebuild_dataset: True; ids must be integers already where there are item files, "
                "set rebuild_dataset: False"
            )
        if value is False and info.data.get("data_format") == "csv":
            raise ConfigError(
                "rebuild_dataset: False with data_format: csv; CSV files are always encoded, leave it out"
            )
        return value

    @field_validator("feature_cols", "label_col")
    @classmethod
    def _check_present(cls, value: Any, info: ValidationInfo) -> Any:
        """Only FuxiCTR's encoded datasets may leave these out: their ``feature_map.json`` has them."""
        encoded = info.data.get("data_format") != "csv" and not info.data.get("rebuild_dataset")
        if value is None and not (encoded and info.data.get("item_info") is None):
            raise ConfigError(f"{info.field_name} is missing")
        return value


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
        description="Optimizer of the embedding tables with `table: touched`; `rowwise_adagrad` keeps one number per "
        "row; null: as `optimizer`, which must be `adam`, `adamw`, `adagrad` or `sgd`.",
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

    @classmethod
    def of(cls, params: Mapping[str, Any], where: str) -> ModelSettings:
        """Check those of a constructor's keywords that are settings of every model.

        Raises
        ------
        ConfigError
            A value of a wrong type or range.
        """
        return cls.read({k: v for k, v in params.items() if k in cls.model_fields}, where)


class ExperimentConfig(ModelSettings):
    """Settings of an experiment: those of ``model_config.yaml``, with its dataset and the settings of its model."""

    expid: str = Field(description="Experiment id, the name of the entry.")
    dataset: DatasetConfig = Field(description="Settings of the dataset.")
    model_settings: dict[str, Any] = Field({}, description="Settings of the model alone, see `check_model`.")

    description: str | None = Field(
        None, description="One line about the experiment, for `fuxictr-mm list experiments`."
    )
    model: str = Field(description="Name of the model, or `package.module:Class`.")
    dataset_id: str = Field(description="Name of an entry of `dataset_config.yaml`.")
    batch_size: PositiveInt = Field(2048, description="Examples per batch.")
    epochs: PositiveInt = Field(10, description="Most passes over the training split.")
    shuffle: bool = Field(True, description="Shuffle the training split before every epoch.")
    seed: int = Field(2025, ge=0, lt=2**32, description="Seed of initialisation, shuffling and dropout.")
    resident: bool | Literal["auto"] = Field(
        "auto", description="Hold the splits in memory (True), stream them (False), or decide by their size."
    )
    buffer_rows: PositiveInt = Field(1_000_000, description="Examples in the shuffle buffer of a streamed split.")
    streams: PositiveInt | None = Field(
        None,
        description="Virtual streams that the processes read the training split in, a multiple of their number; null: "
        "none for one process, 24 (or the next multiple of their number) for several.",
    )
    batch_view: Literal["jagged", "challenge", "flat"] | None = Field(
        None, description="Batch format; null: the one of the model's class."
    )
    group_id: str | None = Field(None, description="Column that group metrics such as gAUC group by.")
    use_features: Sequence[str] | None = Field(None, description="Names of the features to use; null: all active ones.")
    feature_specs: Sequence[FeatureSpec] | None = Field(
        None, description="Changes to the dataset's features for this experiment, by name."
    )
    gpu: int = Field(-1, description="Index of the GPU, -1 for the CPU; set by `--gpu`.")
    keep_memory: bool = Field(True, description="Keep freed memory for later batches (CPU only).")
    threads: PositiveInt | Literal["auto"] = Field(
        "auto", description="Threads of torch on the CPU; auto: by the size of the model and the batch."
    )
    tensorboard: bool | None = Field(None, description="Write TensorBoard logs; null: if TensorBoard is installed.")
    record: bool = Field(True, description="Write the folder of the run.")
    num_workers: int = Field(0, description=_NO_EFFECT)
    pickle_feature_encoder: bool = Field(True, description=_NO_EFFECT)
    debug_mode: bool = Field(False, description=_NO_EFFECT)
    feature_config: Any = Field(None, description=_NO_EFFECT)

    @field_validator("group_id", mode="before")
    @classmethod
    def _take_only_group(cls, columns: Any) -> Any:
        """Take the column of a list of one; FuxiCTR's files may name several."""
        if not isinstance(columns, list):
            return columns
        if len(columns) == 1:
            return columns[0]
        raise ConfigError(
            f"group_id is {columns}, but groups are taken from one column; name one (group_id: user_id), or add a "
            "column that combines them"
        )

    @field_validator("model_settings")
    @classmethod
    def _check_initializers(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for key in ("initializer", "embedding_initializer"):
            if key in settings:
                check_call(str(settings[key]), key, (r"nn\.init\.\w+_", r"torch\.nn\.init\.\w+_", r"partial"))
        return settings

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        expid: str,
        data_root: str | os.PathLike[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        find_model: Callable[[str], type] | None = None,
    ) -> ExperimentConfig:
        """Read and check an experiment.

        Parameters
        ----------
        folder : path
            Holds ``model_config`` and ``dataset_config``, each a file ``.yaml`` or a folder of such files.
        expid : str
            Experiment id.
        data_root : path, optional
            Replaces the dataset's ``data_root`` in its paths.
        overrides : mapping, optional
            Values that take precedence over those of the files.
        find_model : callable, optional
            Returns the class of a model by its name; the model's own settings are then checked as well.

        Returns
        -------
        ExperimentConfig
            ``Base``, experiment and dataset merged, the later ones taking precedence. Paths are absolute or relative
            to the working directory; relative ones that do not exist there are looked up from ``folder``.

        Raises
        ------
        ConfigError, MissingFileError
            No such file or entry; or all that is wrong with the settings, in one line.
        """
        folder = Path(folder)
        if folder.is_file():
            raise ConfigError(
                f"{folder}: a file; --config takes the folder that holds model_config.yaml "
                "(a tuner file is for run_param_tuner.py --config)"
            )
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: no such folder; --config takes the folder that holds model_config.yaml")
        experiment = load_model_config(folder, expid)
        dataset = load_dataset_config(folder, experiment["dataset_id"])
        where = f"dataset {experiment['dataset_id']}"
        known = {*DATASET_KEYS, *SHARED_KEYS}
        problems = {f"dataset.{key}": f"{where}: {unknown_key(key, known)}" for key in dataset if key not in known}
        values = {**experiment, **{k: v for k, v in dataset.items() if k in known and k != "description"}}
        holders = [(values, key) for key in PATH_KEYS]
        if isinstance(columns := values.get("feature_cols"), list):
            holders += [(c, "pretrained_emb") for c in columns if isinstance(c, dict) and "pretrained_emb" in c]
        for holder, key in holders:
            try:
                holder[key] = _resolve(holder[key], folder, values.get("data_root"), data_root)
            except KeyError:
                pass  # no such split
            except ConfigError as error:
                problems[key] = f"{where}: {key}: {error}"
        if data_root is not None:
            values["data_root"] = str(data_root)
        elif values.get("item_info") is None and isinstance(values.get("data_root"), str):
            # Read and written below it: FuxiCTR's feature_map.json, and encoded files.
            values["data_root"] = os.path.expanduser(os.path.expandvars(values["data_root"]))
            if not Path(values["data_root"]).exists() and (folder / values["data_root"]).exists():
                values["data_root"] = str(folder / values["data_root"])
        values.update(overrides or {})
        values.pop("model_id", None)
        config, found = cls._check(expid, values)
        problems = {**found, **problems}
        if find_model is not None and "model" not in problems:
            try:
                problems |= _check_signature(find_model(values["model"]), values, problems)[0]
            except ConfigError as error:
                problems["model"] = str(error)
        if config is None or problems:
            raise error_of(f"{folder}: {expid}", problems)
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExperimentConfig:
        """Check the flat settings of an experiment, as ``to_dict`` returns them and a run's ``config.yaml`` holds them.

        Raises
        ------
        ConfigError
            All that is wrong with them, in one line.
        """
        expid = str(values.get("model_id", "experiment"))
        config, problems = cls._check(expid, {k: v for k, v in values.items() if k != "model_id"})
        if config is None:
            raise error_of(expid, problems)
        return config

    @classmethod
    def _check(cls, expid: str, values: Mapping[str, Any]) -> tuple[ExperimentConfig | None, dict[str, str]]:
        """Check flat settings, except those of the model alone."""
        where = f"dataset {values.get('dataset_id')}: "
        dataset, problems = validate(DatasetConfig, {k: v for k, v in values.items() if k in DATASET_KEYS}, where)
        rest = {
            "expid": expid,
            # Replaced below; the experiment is checked even if its dataset is wrong.
            "dataset": dataset or DatasetConfig.model_construct(),
            "model_settings": {k: v for k, v in values.items() if k not in DATASET_KEYS and k not in EXPERIMENT_KEYS},
        }
        config, more = validate(cls, {**{k: v for k, v in values.items() if k in EXPERIMENT_KEYS}, **rest})
        problems |= more
        return None if problems else config, problems

    def check_model(self, model_class: type) -> list[str]:
        """Check the settings against the annotated signature of a model.

        Returns
        -------
        list of str
            Keys that could not be checked, to warn of: a FuxiCTR model may read any key from its ``**kwargs``.

        Raises
        ------
        ConfigError
            A key that neither the library nor the model has, a value that does not fit its annotation, or an
            annotation that cannot be checked; all in one line.
        """
        problems, doubts = _check_signature(model_class, self.to_dict(), {})
        if problems:
            raise error_of(self.expid, problems)
        return doubts

    def to_dict(self) -> dict[str, Any]:
        """Return the settings flat and of plain types, as they were given, with the defaults that decide a result."""
        own = self.model_dump(exclude_unset=True, exclude={"expid", "dataset", "model_settings"})
        dataset = self.dataset.model_dump(exclude_unset=True)
        return {**DEFAULTS, **own, **dataset, **self.model_settings, "model_id": self.expid}

    def model_arguments(self) -> dict[str, Any]:
        """Return the keywords for the constructor of the model, flat, as FuxiCTR passes them."""
        return {k: v for k, v in self.to_dict().items() if k != "model"}

    def fingerprint(self, paths: bool = True) -> str:
        """Return a hash of all that decides a result, which leaves out the device and what is printed.

        Parameters
        ----------
        paths : bool
            False: the same wherever the files are, and for every seed.
        """
        return config_hash(self.to_dict(), with_paths=paths)


def key_types(cls: type[Settings], *without: str) -> dict[str, Any]:
    """Return the annotated type of every key."""
    return {name: field.rebuild_annotation() for name, field in cls.model_fields.items() if name not in without}


#: Keys of an entry of dataset_config.yaml with their types.
DATASET_KEYS = key_types(DatasetConfig, "description")

#: Keys of an entry of model_config.yaml, except those of the model alone, with their types.
EXPERIMENT_KEYS = key_types(ExperimentConfig, "expid", "dataset", "model_settings")

#: Keys of an entry of ``feature_cols`` or ``feature_specs`` with their types.
FEATURE_KEYS = key_types(FeatureSpec)

#: Keys of an experiment that an entry of dataset_config.yaml may hold too.
SHARED_KEYS = ("description", "resident", "buffer_rows")

#: What a configuration holds even if its file does not; another key here would change every fingerprint.
DEFAULTS: dict[str, Any] = {
    name: ExperimentConfig.model_fields[name].default
    for name in (
        "model_root", "task", "loss", "optimizer", "learning_rate", "metrics", "monitor", "monitor_mode", "batch_size",
        "epochs", "shuffle", "seed", "max_len", "resident", "buffer_rows", "verbose", "group_id", "use_features",
        "feature_specs",
    )
}  # fmt: skip

PATH_KEYS = ("train_data", "valid_data", "test_data", "item_info", "global_item_info")

#: Keys that decide no result.
VOLATILE_KEYS = (
    "gpu", "threads", "keep_memory", "tensorboard", "record", "verbose", "num_workers", "debug_mode", "description",
    "pickle_feature_encoder",
)  # fmt: skip


def config_hash(values: Mapping[str, Any], *, with_paths: bool = True) -> str:
    """Return the fingerprint of flat settings, see ``ExperimentConfig.fingerprint``."""
    paths = () if with_paths else (*PATH_KEYS, "data_root", "model_root", "seed")
    kept = {k: v for k, v in values.items() if k not in VOLATILE_KEYS and k not in paths}
    try:
        text = json.dumps(kept, sort_keys=True, default=str)
    except TypeError:  # keys of several types have no order
        text = json.dumps(json.loads(json.dumps(kept, default=str)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_config(
    folder: str | os.PathLike[str], expid: str, *, data_root: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Return the flat settings of an experiment, see ``ExperimentConfig.load``."""
    return ExperimentConfig.load(folder, expid, data_root).to_dict()


def list_experiments(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return every experiment id of a folder with its own settings (``Base`` left out)."""
    return _list_entries(folder, "model_config")


def list_datasets(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return every dataset id of a folder with its settings."""
    return _list_entries(folder, "dataset_config")


def load_model_config(folder: str | os.PathLike[str], expid: str) -> dict[str, Any]:
    """Return the settings of one experiment, ``Base`` included, unchecked."""
    files = _read_files(folder, "model_config")
    base: dict[str, Any] = {}
    for path, content in files.items():
        if "Base" in content:
            base.update(_entry(path, content, "Base"))
    path, entry = _find_entry(files, expid, "experiment id")
    values = {**base, **entry}
    for key in ("model", "dataset_id"):
        if not isinstance(values.get(key), str):
            raise ConfigError(f"{path}: {expid}: {key} is {values.get(key)!r}, expected a name such as '{key}: X'")
    return values


def load_dataset_config(folder: str | os.PathLike[str], dataset_id: str) -> dict[str, Any]:
    """Return the settings of one dataset, unchecked."""
    return _find_entry(_read_files(folder, "dataset_config"), dataset_id, "dataset id")[1]


def _read_files(folder: str | os.PathLike[str], stem: str) -> dict[Path, dict[str, Any]]:
    """Return the content of each file of one kind, either ``stem.yaml`` or all of a folder ``stem/``."""
    folder = Path(folder)
    single = folder / f"{stem}.yaml"
    paths = [single] if single.is_file() else sorted((folder / stem).glob("*.yaml"))
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected one that holds {stem}.yaml")
    if not paths:
        raise MissingFileError(
            f"{folder}: holds neither {stem}.yaml nor a folder {stem}/ with .yaml files; "
            "give the folder of your configuration with --config, or a tuner file that has it as base_config to "
            "run_param_tuner.py"
        )
    return {path: load_yaml(path) for path in paths}


def _list_entries(folder: str | os.PathLike[str], stem: str) -> dict[str, dict[str, Any]]:
    files = _read_files(folder, stem)
    return {n: _entry(path, content, n) for path, content in files.items() for n in content if _is_id(n)}


def _is_id(name: str) -> bool:
    """Whether a name is neither ``Base`` nor that of settings for others to merge (``<<: *name``)."""
    return name != "Base" and not name.startswith((".", "_"))


def _entry(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    entry = content[name]
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: '{name}' is {entry!r}, expected a mapping of settings")
    return entry


def _find_entry(files: Mapping[Path, dict[str, Any]], name: str, kind: str) -> tuple[Path, dict[str, Any]]:
    holding = [path for path, content in files.items() if name in content]
    if len(holding) > 1:
        raise ConfigError(f"{' and '.join(map(str, holding))}: both hold the {kind} '{name}'; keep one of them")
    if holding:
        return holding[0], _entry(holding[0], files[holding[0]], name)
    known = sorted(key for content in files.values() for key in content if _is_id(key))
    where = ", ".join(map(str, files))
    listing = ", ".join(known) or "none"
    raise ConfigError(f"{where}: no {kind} '{name}'{nearest(name, known)} (there are: {listing})")


def _resolve(paths: Any, folder: Path, root: str | None, new_root: str | os.PathLike[str] | None) -> Any:
    """Return paths with another root, variables expanded, and looked up from ``folder`` where they exist only there."""
    if isinstance(paths, list):
        return [_resolve(path, folder, root, new_root) for path in paths]
    if not isinstance(paths, str) or not paths:
        return paths
    text = paths
    if new_root is not None:
        inside = root is not None and os.path.normpath(text).startswith(os.path.normpath(root) + os.sep)
        relative = os.path.relpath(os.path.normpath(text), os.path.normpath(root)) if inside and root else text
        text = os.path.join(new_root, relative)
    text = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$\{?(\w+)", text)
    if unset:
        raise ConfigError(
            f"'{paths}' names the environment variable {unset[1]}, which is not set; "
            "set it to the folder of the data, or give --data_root FOLDER"
        )
    if not os.path.isabs(text) and not _exists(Path(text)) and _exists(folder / text):
        return str(folder / text)
    return text


def _exists(path: Path) -> bool:
    return path.exists() or Path(f"{path}.parquet").exists()


def _check_signature(
    model_class: type, values: Mapping[str, Any], known_problems: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return what is wrong with flat settings by the signature of a model, and which keys could not be checked."""
    schema = model_schema(model_class)
    known = {*schema, *EXPERIMENT_KEYS, *DATASET_KEYS, "model_id"}
    problems: dict[str, str] = {}
    doubts: list[str] = []
    where = f"model {model_class.__name__}: "
    for key, value in values.items():
        if key in known_problems:
            continue
        if key not in known:
            sentence = where + unknown_key(key, known)
            if is_multimodal(model_class):
                problems[key] = sentence
            else:
                doubts.append(sentence)
        else:
            for annotation in (schema.get(key, Any), _usual(key, value)):
                try:
                    if not matches(value, annotation):
                        problems.setdefault(key, where + mismatch(key, value, annotation))
                except TypeError as error:  # a constraint that the type does not have
                    problems[key] = uncheckable(model_class, key, annotation, error)
    return problems, doubts


def _usual(key: str, value: Any) -> Any:
    """Return the range that FuxiCTR's names of settings imply where a model does not annotate it."""
    if key.endswith("dropout") and isinstance(value, int | float):
        return Dropout
    if key.endswith("hidden_units") and isinstance(value, list) and all(isinstance(dim, int) for dim in value):
        return HiddenUnits
    return Any
