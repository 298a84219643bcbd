"""Features of an experiment, from its configuration and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fuxictr_mm.config import COMPUTED_TYPES, Columns, EncodedFeature, FeatureConfig, Roles
from fuxictr_mm.config.columns import ITEM_ID as ITEM_ID
from fuxictr_mm.config.columns import ITEM_SEQ as ITEM_SEQ
from fuxictr_mm.config.columns import ITEM_SOURCE as ITEM_SOURCE
from fuxictr_mm.config.columns import is_embedded
from fuxictr_mm.errors import ConfigError


@dataclass(frozen=True)
class Feature:
    """A column that a model reads."""

    name: str  #: Column name.
    #: "categorical", "sequence", "numeric", "embedding", "meta", "length" or "similarity". Columns of "meta" are not
    #: embedded: group ids, and the history unless a model takes it as ``item_seq``. The last two have no column: they
    #: are computed from target and history.
    type: str
    source: str = ""  #: ``"item"`` for a column of the item files, anything else for a column of the interactions.
    vocab_size: int | None = None  #: Ids are 0 to ``vocab_size - 1``; by default inferred from the item files.
    max_len: int | None = None  #: Length that a sequence is padded to; by default the longest one.
    embedding_dim: int | None = None  #: Dim of the embedding; the model's ``embedding_dim`` by default.
    pretrain_dim: int | None = None  #: Stored dim of a frozen embedding; by default inferred from the files.
    freeze_emb: bool = True  #: False makes the stored embeddings trainable parameters.
    feature_encoder: str | list[str] | None = None  #: A layer applied to the embedding, as FuxiCTR writes it.
    share_embedding: str | None = None  #: An earlier feature whose embedding table is shared.
    padding_idx: int | None = 0  #: Id whose embedding stays zero.
    emb_output_dim: int | None = None  #: Dim after ``feature_encoder``, if that changes the dim.
    #: True for a context column that is read from the item files as well, for the item dict of the challenge's format.
    in_item_dict: bool = False
    norm: str | None = None  #: How the stored embeddings are normalised: "l2", "layer", "standard".
    scale: float = 1.0  #: Factor on the stored embeddings, applied after ``norm``.
    dropout: float = 0.0  #: Probability that the value is missing in training.
    #: What dropped ids and items without training rows have: "padding" or "trained", one embedding that they share.
    unknown: str = "padding"
    of: str | None = None  #: The embedding or the ids that a similarity compares.
    statistics: tuple[str, ...] = ()  #: Statistics of the cosines that a similarity returns.
    #: False for a column that only a similarity or a setting of the model reads, and for a sequence along a history.
    embedded: bool = True
    history: str | None = None  #: Of a sequence along a history, and of a further history: the history's column.
    is_number: bool = False  #: Whether a sequence along a history holds numbers instead of ids.
    is_text: bool = False  #: Whether it is declared a text (``dtype: str``).
    #: Name of the column in the files, where it differs: the target's and the history's are ``item_id`` and
    #: ``item_seq`` in every model.
    on_disk: str | None = None
    padding: str = "post"  #: Side on which a sequence of the interactions is padded and cut: "post", "pre".
    table: str = "auto"  #: Which rows of the embedding table a step updates: "auto", "dense", "touched", "sharded".
    sharding: str = "row"  #: How a sharded table is spread over processes ("row", "table", "column", "auto").
    #: False for a dataset without items: ``source`` is only a name, ``item_id`` and ``item_seq`` are ordinary columns.
    has_items: bool = True
    #: FuxiCTR's settings of a file of embeddings that the embedding table starts from.
    pretrained: Mapping[str, Any] | None = None
    fill_na: float | None = None  #: Of a numeric column: the number in place of a null or NaN.
    normalizer: str | None = None  #: How a numeric column is scaled when it is read: "StandardScaler", "MinMaxScaler".

    @property
    def column(self) -> str:
        """Name of the column in the files."""
        return self.on_disk or self.name

    @property
    def is_computed(self) -> bool:
        """Whether the feature is computed from target and history, instead of read from a column."""
        return self.type in COMPUTED_TYPES

    @property
    def is_item(self) -> bool:
        """Whether the column describes items."""
        return self.has_items and self.source == ITEM_SOURCE

    @property
    def is_history(self) -> bool:
        """Whether the column is the history of items."""
        return self.has_items and self.name == ITEM_SEQ

    @property
    def is_further_history(self) -> bool:
        """Whether the column is one of the role ``histories``."""
        return self.type == "meta" and self.history == self.column

    @property
    def is_context(self) -> bool:
        """Whether models read the column from the interactions."""
        return not (self.is_item or self.is_computed or self.is_history or self.type == "meta")


def key_of_items(target: str, present: Sequence[str]) -> str:
    """Return the name of the key of an item file: the target's, or ``item_id`` where only that is present."""
    return target if target in present or ITEM_ID not in present else ITEM_ID


def parse_features(columns: Columns) -> list[Feature]:
    """Return the features that an experiment uses, in the order of ``feature_cols`` (or of ``use_features``)."""
    if problems := columns.problems():
        raise ConfigError("; ".join(problems.values()))
    features: list[Feature] = []
    for column in columns.used.values():
        feature = _feature(column, columns.has_items)
        if columns.item_info:  # columns of other datasets are filled and scaled when they are encoded
            fill = None if column.fill_na is None else float(column.fill_na)
            feature = replace(feature, fill_na=fill, normalizer=column.normalizer)
        features.append(_named_by_role(feature, columns.roles))
    if columns.has_items:
        features = _with_histories(features, columns.roles.histories)
    return features + _compared_columns(features, columns)


def _with_histories(features: Sequence[Feature], names: Sequence[str]) -> list[Feature]:
    """Return the features with those of further histories, which need no entry of their own."""
    listed = {feature.column for feature in features}
    added = [Feature(name, "meta") for name in names if name not in listed]
    return [replace(f, history=f.column) if f.column in names else f for f in [*features, *added]]


def _named_by_role(feature: Feature, roles: Roles) -> Feature:
    """Give target and history the names that every model knows."""
    names = {roles.target: ITEM_ID, roles.history: ITEM_SEQ}
    name = names.get(feature.name, feature.name)
    on_disk = None if name == feature.name else feature.name
    shared = None if feature.share_embedding is None else names.get(feature.share_embedding, feature.share_embedding)
    return replace(feature, name=name, on_disk=on_disk, share_embedding=shared)


def _compared_columns(features: Sequence[Feature], columns: Columns) -> list[Feature]:
    """Return the columns that only similarities read."""
    entries = [(columns.by_name[str(f.of)], f.has_items) for f in features if f.type == "similarity"]
    compared = [_named_by_role(_feature(entry, has_items), columns.roles) for entry, has_items in entries]
    names = [f.name for f in features]
    return list({f.name: replace(f, embedded=False) for f in compared if f.name not in names}.values())


#: Settings of a column that its feature has under the same name and with the same default.
_AS_GIVEN = (
    "source", "vocab_size", "max_len", "embedding_dim", "pretrain_dim", "freeze_emb", "share_embedding",
    "emb_output_dim", "in_item_dict", "norm", "scale", "dropout", "unknown", "of", "padding", "table", "sharding",
    "padding_idx",
)  # fmt: skip


def _feature(column: FeatureConfig, has_items: bool) -> Feature:
    kind, encoder = column.type, column.feature_encoder
    if kind == "sequence" and "feature_encoder" not in column.model_fields_set:
        encoder = "layers.MaskedAveragePooling()"
    if isinstance(encoder, str) and encoder.lower() in ("null", "none"):
        encoder = None
    return Feature(
        name=str(column.name),
        type=kind,
        feature_encoder=encoder,
        embedded=is_embedded(column, has_items),
        statistics=tuple(column.statistics or ("mean", "max")) if kind == "similarity" else (),
        has_items=has_items,
        history=column.history if has_items else None,
        is_number=column.history is not None and column.dtype == "float",
        is_text=column.dtype == "str",
        pretrained=column.pretrained if isinstance(column, EncodedFeature) else None,
        **{key: value for key in _AS_GIVEN if (value := getattr(column, key)) is not None},
    )


def complete(features: Sequence[Feature], dims: Mapping[str, int], sizes: Mapping[str, int]) -> list[Feature]:
    """Fill in what the configuration leaves out from the files.

    ``dims`` are the stored lengths of sequences of items and the dims of their frozen embeddings, ``sizes`` the largest
    id plus one of categorical features and sequences.
    """
    completed = []
    for feature in features:
        if feature.type == "embedding":
            feature = replace(feature, pretrain_dim=dims.get(feature.name, feature.pretrain_dim))
        if feature.type == "sequence" and not feature.is_history:
            feature = replace(feature, max_len=dims.get(feature.name, feature.max_len))
        if feature.type in ("categorical", "sequence") and feature.vocab_size is None and not feature.is_number:
            feature = replace(feature, vocab_size=sizes[feature.name])
        completed.append(feature)
    return completed


def why_no_layers(names: Sequence[str]) -> dict[str, str]:
    """Return the names that cannot name an embedding layer, each with the reason."""
    from torch.nn import ModuleDict  # slow to import

    taken = ModuleDict()
    reasons = {name: "holds a dot" for name in names if "." in name}
    reasons |= {
        name: "is the name of a method of torch.nn.ModuleDict" for name in names if not name or hasattr(taken, name)
    }
    return reasons
