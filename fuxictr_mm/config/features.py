"""Keys of features, labels and roles of columns in ``dataset_config.yaml``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from fuxictr_mm.checking import Settings, check_call
from fuxictr_mm.errors import ConfigError

#: An integer stays an integer, so that a configuration is written, and its fingerprint computed, as it was given.
Number = int | float

#: Probability of dropping a unit.
Dropout = Annotated[float, Field(ge=0, lt=1)]

#: Types of features that are computed from the target and the history; they have no column.
COMPUTED_TYPES = ("length", "similarity")
FeatureType = Literal["meta", "categorical", "sequence", "numeric", "embedding", "length", "similarity"]


class FeatureSpec(Settings):
    """What an entry of ``feature_specs`` may change of a feature."""

    example: ClassVar[str] = "{name: user_id, dtype: int, type: meta}"

    name: str | list[str] = Field(description="Name of the column, or of several columns with the same settings.")
    active: bool = Field(True, description="False: used only by experiments that list the feature in `use_features`.")
    dtype: Literal["int", "float", "str", "list"] | None = Field(None, description="Type of the stored values.")
    type: FeatureType | None = Field(
        None,
        description="Kind of feature; `meta` columns are read but not embedded, `embedding` is a frozen embedding, "
        "`length` and `similarity` are computed from the target and the history.",
    )
    source: str = Field("", description="`item` for a column of the item files; otherwise one of the interactions.")
    vocab_size: PositiveInt | None = Field(
        None, description="Number of ids, including padding; inferred from the item files if missing."
    )
    max_len: PositiveInt | None = Field(None, description="Stored length of a sequence; inferred if missing.")
    embedding_dim: PositiveInt | None = Field(
        None, description="Dim of the embedding; the experiment's `embedding_dim` if missing."
    )
    pretrain_dim: PositiveInt | None = Field(None, description="Stored dim of a frozen embedding; inferred if missing.")
    freeze_emb: bool = Field(True, description="False: the stored embeddings are trained as parameters.")
    norm: Literal["l2", "layer", "standard"] | None = Field(
        None,
        description="Normalisation of stored embeddings: `l2` to length 1, `layer` to mean 0 and variance 1 over the "
        "dims of an item, `standard` to mean 0 and variance 1 of each dim over the items; a missing "
        "embedding stays zero.",
    )
    scale: Annotated[Number, Field(gt=0, lt=math.inf)] | None = Field(
        None,
        description="Factor on stored embeddings, applied after `norm`; 8-bit integers stay 8-bit in memory.",
    )
    dropout: Dropout | None = Field(
        None,
        description="Probability in training that the feature is dropped, for an item in the whole batch, for a "
        "context column in a row: an id becomes padding, an embedding or a number zero.",
    )
    unknown: Literal["padding", "trained"] | None = Field(
        None,
        description="For the target's id with `dropout`: what a dropped id has, and in evaluation and serving an item "
        "without training rows. `padding` (null): zeros; `trained`: one embedding that they share, trained by the "
        "dropped ids.",
    )
    history: str | None = Field(
        None,
        description="For a `sequence` with one entry per item of a history, such as its time: the history's column. "
        "Models read it as `batch.context[NAME]`; `dtype: float` are numbers, others ids.",
    )
    table: Literal["auto", "dense", "touched", "sharded"] | None = Field(
        None,
        description="Which rows of the embedding table a step updates: `dense`: all; `touched`: those that its batch "
        "looks up, at a cost that does not grow with the table; `sharded`: likewise, with the table "
        "divided among processes. Null or `auto`: `touched` from 1,000,000 rows on. See "
        "[Scale](scale.md#embedding-tables).",
    )
    sharding: Literal["row", "table", "column", "auto"] | None = Field(
        None,
        description="How `table: sharded` is divided among processes: by rows (null or `row`), by columns, or the "
        "whole table in one process; `auto`: chosen by TorchRec's planner. See "
        "[Scale](scale.md#embedding-tables).",
    )
    of: str | None = Field(None, description="What `type: similarity` compares: a frozen embedding, or ids.")
    statistics: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Statistics of the cosines of the target with the history for `type: similarity`: `mean`, `max`, "
        "`newest_K` (mean of the newest K) and `histogram_K` (logarithm of one plus the counts in K bins from -1 to "
        "1).",
    )
    feature_encoder: str | list[str] | None = Field(
        None,
        description="Layers applied to the embedding, as calls: `layers.MaskedSumPooling()`. A sequence without one is "
        "averaged.",
    )
    share_embedding: str | None = Field(None, description="Name of an earlier feature whose embedding table is used.")
    padding_idx: int = Field(0, description="Id of the padding, whose embedding is zero.")
    emb_output_dim: PositiveInt | None = Field(
        None, description="Dim after `feature_encoder`, if the encoder changes it."
    )
    embedded: bool = Field(
        True,
        description="False: an item column that is not a field of the model; a model reads it if one of its settings "
        "names it.",
    )
    in_item_dict: bool = Field(
        False,
        description="True: `batch_view: challenge` also has this context column in its item dict, read from the item "
        "files.",
    )
    padding: Literal["pre", "post"] | None = Field(
        None, description="Side on which a sequence of the interactions is padded and truncated; null: `post`."
    )
    fill_na: str | Number | None = Field(
        None, description="Value that replaces a missing one; with item files, only for `numeric` features."
    )
    remap: bool | None = Field(None, description="Encoding: False keeps the integers of a `meta` column.")
    splitter: str | None = Field(None, description="Encoding: separator of the entries of a sequence; null: `^`.")
    min_categr_count: int | None = Field(
        None, description="Encoding: the dataset's `min_categr_count` for this feature."
    )
    normalizer: Literal["StandardScaler", "MinMaxScaler"] | None = Field(
        None,
        description="Scale a numeric column by the statistics of the training split, see "
        "[Data](data.md#features-in-dataset_configyaml).",
    )
    preprocess: str | None = Field(None, description="Encoding: `copy_from(COLUMN)`; other functions are refused.")
    category_processor: str | None = Field(None, description="Encoding: refused, as FuxiCTR 2.3.10 fails with it.")
    num_buckets: int | None = Field(None, description="Used with `category_processor`.")
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


class EncodedFeature(FeatureConfig):
    """An entry of ``feature_cols`` for files that are encoded; it is made of a checked one."""

    pretrained: dict[str, Any] | None = Field(
        None, description="FuxiCTR's settings of a file of embeddings that the embedding table starts from."
    )


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
        description="List of the items that the user clicked before.",
    )
    user: str = Field(
        "user_id",
        min_length=1,
        validate_default=True,
        description="The user, for `check-data`, `embed align`, `embed pretrain` and `influence`. Metrics group by "
        "`group_id`.",
    )
    time: str | None = Field(
        None,
        min_length=1,
        description="Time at which the item was shown; `check-data` does not treat it as a context column.",
    )
    short_history: str | None = Field(
        None,
        min_length=1,
        description="The newest items where they are a column of their own, as `history: {short: recent, long: "
        "clicked}`: models that search a long history read it in place of its newest items.",
    )
    histories: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        validate_default=True,
        description="Further lists of items, for models that request them by `embed(batch, [NAME])`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_short_and_long(cls, values: Any) -> Any:
        two = values.get("history") if isinstance(values, Mapping) else None
        if not isinstance(two, Mapping) or two.keys() != {"short", "long"} or values.get("short_history") is not None:
            return values
        named = all(isinstance(column, str) and column for column in two.values())
        return {**values, "history": two["long"], "short_history": two["short"]} if named else values

    @field_validator("history", mode="before")
    @classmethod
    def _check_history(cls, column: Any) -> Any:
        if isinstance(column, Mapping):
            expected = "expected a column, or {short: COLUMN, long: COLUMN} without short_history"
            raise ConfigError(f"history is {dict(column)}, {expected}")
        return column

    @field_validator("histories")
    @classmethod
    def _check_histories(cls, columns: list[str], info: ValidationInfo) -> list[str]:
        short = info.data.get("short_history")
        others = [column for role, column in info.data.items() if role != "short_history"]
        for column in columns:
            if column in others or columns.count(column) > 1:
                raise ConfigError(f"histories: the column '{column}' has two roles; expected one for each")
        return columns if short is None or short in columns else [short, *columns]

    @field_validator("history", "user", "time", "short_history")
    @classmethod
    def _check_distinct(cls, column: str | None, info: ValidationInfo) -> str | None:
        other = next((role for role, name in info.data.items() if name == column), None) if column else None
        if other is not None:
            raise ConfigError(f"{info.field_name}: is the column '{column}', as is {other}; expected one for each role")
        return column

    @classmethod
    def parse(cls, words: Sequence[str] | None) -> Roles:
        """Return those of ``--roles target=article_id history=clicked``; ``histories=carted,bought`` are several.

        So are ``histories=carted histories=bought``.
        """
        pairs = [word.partition("=")[::2] for word in words or ()]
        bad = next((f"{role}={column}" for role, column in pairs if not role or not column), None)
        if bad is not None:
            raise ConfigError(f"--roles {bad}: expected ROLE=COLUMN, such as target=article_id")
        roles: dict[str, Any] = {}
        for role, column in pairs:
            if role == "histories":
                roles.setdefault(role, []).extend(column.split(","))
            elif role in roles:
                raise ConfigError(f"--roles {role}={column}: {role} is {roles[role]} already; name one column")
            else:
                roles[role] = column
        return cls.read(roles, "--roles")
