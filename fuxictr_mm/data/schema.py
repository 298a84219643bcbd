"""Features of an experiment, as its configuration and its files say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fuxictr_mm.config import COMPUTED_TYPES, Roles
from fuxictr_mm.errors import ConfigError, nearest

ITEM_ID = "item_id"
ITEM_SEQ = "item_seq"
ITEM_SOURCE = "item"


@dataclass(frozen=True)
class Feature:
    """A column that a model reads.

    Parameters
    ----------
    name : str
        Column name.
    type : {"categorical", "sequence", "numeric", "embedding", "meta", "length", "similarity"}
        ``meta`` columns are not embedded: group ids, and the history unless a model takes it as ``item_seq``. The last
        two have no column: they are computed from target and history.
    source : str
        ``"item"`` for a column of the item files, anything else for a column of the interactions.
    vocab_size : int, optional
        Ids are 0 to ``vocab_size - 1``; by default inferred from the item files.
    max_len : int, optional
        Length that a sequence is padded to; by default the longest one.
    embedding_dim : int, optional
        Dim of the embedding; the model's ``embedding_dim`` by default.
    pretrain_dim : int, optional
        Stored dim of a frozen embedding; by default inferred from the files.
    freeze_emb : bool
        False makes the stored embeddings trainable parameters.
    feature_encoder : str or list of str, optional
        A layer applied to the embedding, as FuxiCTR writes it.
    share_embedding : str, optional
        An earlier feature whose embedding table is shared.
    padding_idx : int, optional
        Id whose embedding stays zero.
    emb_output_dim : int, optional
        Dim after ``feature_encoder``, if that changes the dim.
    in_item_dict : bool
        True for a context column that is read from the item files as well, for the item dict of the challenge's format.
    norm : {"l2", "layer", "standard"}, optional
        How the stored embeddings are normalised.
    scale : float
        What they are multiplied by after that.
    dropout : float
        Probability that the value is missing in training.
    of : str, optional
        The embedding that a similarity compares.
    statistics : tuple of str
        What a similarity takes of the cosines.
    embedded : bool
        False for a column that only a similarity or a setting of the model reads, and for a sequence along a history.
    history : str, optional
        Of a sequence along a history, and of a further history: the history's column.
    is_number : bool
        Whether a sequence along a history holds numbers instead of ids.
    is_text : bool
        Whether it is declared a text (``dtype: str``).
    on_disk : str, optional
        Name of the column in the files, where it differs: the target's and the history's are ``item_id`` and
        ``item_seq`` in every model.
    padding : {"post", "pre"}
        Side on which a sequence of the interactions is padded and cut.
    table : {"auto", "dense", "touched", "sharded"}
        Which rows of the embedding table a step updates.
    sharding : {"row", "table", "column", "auto"}
        How a sharded table is spread over processes.
    has_items : bool
        False for a dataset without items: ``source`` is only a name, ``item_id`` and ``item_seq`` are ordinary columns.
    pretrained : mapping, optional
        FuxiCTR's settings of a file of embeddings that the embedding table starts from.
    fill_na : float, optional
        Of a numeric column: the number in place of a null or NaN.
    normalizer : {"StandardScaler", "MinMaxScaler"}, optional
        How a numeric column is scaled when it is read.
    """

    name: str
    type: str
    source: str = ""
    vocab_size: int | None = None
    max_len: int | None = None
    embedding_dim: int | None = None
    pretrain_dim: int | None = None
    freeze_emb: bool = True
    feature_encoder: str | list[str] | None = None
    share_embedding: str | None = None
    padding_idx: int | None = 0
    emb_output_dim: int | None = None
    in_item_dict: bool = False
    norm: str | None = None
    scale: float = 1.0
    dropout: float = 0.0
    of: str | None = None
    statistics: tuple[str, ...] = ()
    embedded: bool = True
    history: str | None = None
    is_number: bool = False
    is_text: bool = False
    on_disk: str | None = None
    padding: str = "post"
    table: str = "auto"
    sharding: str = "row"
    has_items: bool = True
    pretrained: Mapping[str, Any] | None = None
    fill_na: float | None = None
    normalizer: str | None = None

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


def parse_features(params: Mapping[str, Any]) -> list[Feature]:
    """Return the features that an experiment uses, in the order of ``feature_cols`` (or of ``use_features``).

    Raises
    ------
    ConfigError
        An unknown name in ``use_features``, ``feature_specs``, ``share_embedding`` or ``of``; a duplicate name; a table
        shared with a later feature; an ``item_id`` without ``source: item``; a setting that a feature of its type does
        not have.
    """
    roles = Roles.of(params)
    where = f"dataset {params.get('dataset_id')}"
    columns = _configured_columns(params, where)
    used = _used_columns(columns, params, where)
    for name, role in ((ITEM_ID, "target"), (ITEM_SEQ, "history")):
        if name in used and name != getattr(roles, role):
            raise ConfigError(
                f"{where}: the feature '{name}' has not the role {role}, which {getattr(roles, role)} has, and models "
                "give that this name; rename the column"
            )
    has_items = params.get("item_info") is not None
    if params.get("item_info"):
        _refuse_encoding(params, used, where)
    features: list[Feature] = []
    for column in used.values():
        feature = _feature(column, has_items)
        if params.get("item_info"):  # columns of other datasets are filled and scaled when they are encoded
            feature = replace(feature, fill_na=column.get("fill_na"), normalizer=column.get("normalizer"))
        shared = feature.share_embedding
        if shared is not None:
            _known(shared, used, f"share_embedding of '{feature.name}'", where)
            # FuxiCTR creates the tables in this order and would silently create a second one.
            if shared not in [f.column for f in features if f.embedded]:
                raise ConfigError(
                    f"share_embedding of '{feature.name}': '{shared}' is listed later, or is not embedded; list it "
                    f"before '{feature.name}'"
                )
        feature = _named_by_role(feature, roles)
        if has_items and feature.name == ITEM_ID and not feature.is_item and feature.type != "meta":
            raise ConfigError(
                f"{where}: {feature.column} has source '{feature.source}', expected source: {ITEM_SOURCE}"
            )
        if feature.history is not None and feature.history not in (roles.history, *roles.histories):
            raise ConfigError(
                f"feature '{feature.name}': history is {feature.history}, expected a column with the role history or "
                f"histories ({', '.join([roles.history, *roles.histories])})"
            )
        features.append(feature)
    if has_items:
        features = _with_histories(features, roles.histories)
    return features + _compared_embeddings(features, columns, where)


def _with_histories(features: Sequence[Feature], names: Sequence[str]) -> list[Feature]:
    """Return the features with those of further histories, which need no entry of their own."""
    listed = {feature.column for feature in features}
    added = [Feature(name, "meta") for name in names if name not in listed]
    found = [replace(f, history=f.column) if f.column in names else f for f in [*features, *added]]
    for feature in found:
        if feature.column in names and feature.type != "meta":
            raise ConfigError(f"feature '{feature.column}': type is {feature.type}, a history has type: meta")
    return found


def _configured_columns(params: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Return the columns of ``feature_cols`` by name, with the changes of ``feature_specs``."""
    columns: dict[str, dict[str, Any]] = {}
    for column in params["feature_cols"]:
        for name in _names(column):
            if name in columns:
                raise ConfigError(f"feature_cols: the feature '{name}' is listed twice; keep one of them")
            columns[name] = {**column, "name": name}
    for spec in params.get("feature_specs") or []:
        for name in _names(spec):
            _known(name, columns, f"feature_specs of {params.get('model_id')}", where)
            columns[name].update({k: v for k, v in spec.items() if k != "name"})
    return columns


def _names(column: Mapping[str, Any]) -> list[str]:
    return column["name"] if isinstance(column["name"], list) else [column["name"]]


def _used_columns(
    columns: Mapping[str, dict[str, Any]], params: Mapping[str, Any], where: str
) -> dict[str, dict[str, Any]]:
    """Return the columns of ``use_features``, by default the active ones; meta columns are kept in either case."""
    used = params.get("use_features")
    if not used:
        return {n: c for n, c in columns.items() if c.get("active", True)}
    for name in used:
        _known(name, columns, f"use_features of {params.get('model_id')}", where)
    meta = [n for n, c in columns.items() if n not in used and c["type"] == "meta" and c.get("active", True)]
    return {n: columns[n] for n in [*meta, *used]}


def _named_by_role(feature: Feature, roles: Roles) -> Feature:
    """Give target and history the names that every model knows."""
    names = {roles.target: ITEM_ID, roles.history: ITEM_SEQ}
    name = names.get(feature.name, feature.name)
    on_disk = None if name == feature.name else feature.name
    shared = None if feature.share_embedding is None else names.get(feature.share_embedding, feature.share_embedding)
    return replace(feature, name=name, on_disk=on_disk, share_embedding=shared)


def _compared_embeddings(
    features: Sequence[Feature], columns: Mapping[str, dict[str, Any]], where: str
) -> list[Feature]:
    """Return the embeddings that only similarities read."""
    found: dict[str, Feature] = {}
    for feature in features:
        if feature.type != "similarity":
            continue
        _known(str(feature.of), columns, f"of of '{feature.name}'", where)
        compared = _feature(columns[str(feature.of)], feature.has_items)
        if compared.type != "embedding" or not compared.is_item or not compared.freeze_emb:
            raise ConfigError(f"feature '{feature.name}': of is {feature.of}, expected a frozen embedding of items")
        if compared.name not in [f.name for f in features]:
            found[compared.name] = replace(compared, embedded=False)
    return list(found.values())


def _known(name: str, columns: Mapping[str, Any], what: str, where: str) -> None:
    if name not in columns:
        raise ConfigError(
            f"{what}: {where} has no feature '{name}'{nearest(name, columns)} (it has: {', '.join(columns)})"
        )


#: Settings that decide how raw columns are encoded, and what to do instead where there are item files.
_OF_ENCODING = {
    "preprocess": "write the column into the files, and leave it out",
    "splitter": "split the texts in the files: frame.with_columns(pl.col(NAME).str.split(SEPARATOR)), and leave it out",
    "pretrained_emb": "add the file to item_info, with the key as its column of items, and its embedding to "
    "feature_cols as type: embedding, and leave it out",
    "category_processor": "write the buckets into the files, and leave it out",
    "min_categr_count": "replace rare values in the files by one value, and leave it out",
    "remap": "integers are ids as they are, and texts are numbered; leave it out",
}


def _refuse_encoding(params: Mapping[str, Any], used: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Refuse settings that would have no effect: with item files, columns are read as they are.

    Those that ask for what is done anyway are accepted.

    Raises
    ------
    ConfigError
        The first of them.
    """
    reading = "but the columns of a dataset with item files are not encoded"
    if (params.get("min_categr_count") or 1) > 1:
        raise ConfigError(
            f"{where}: min_categr_count is {params['min_categr_count']}, {reading}; {_OF_ENCODING['min_categr_count']}"
        )
    for name, column in used.items():
        kind, is_text = column["type"], column.get("dtype") == "str"
        done = {"min_categr_count": (None, 0, 1), "remap": (None, True, False) if kind == "meta" else (None, is_text)}
        for key, fix in _OF_ENCODING.items():
            if (given := column.get(key)) not in done.get(key, (None,)):
                raise ConfigError(f"feature '{name}': {key} is {given!r}, {reading}; {fix}")
        for key, fix in (("fill_na", "fill the column in the files"), ("normalizer", "scale it in the files")):
            given = column.get(key)
            if given is not None and kind != "numeric":
                other = ", or set norm: standard" if key == "normalizer" and kind == "embedding" else ""
                raise ConfigError(
                    f"feature '{name}': {key} is {given!r}, but its type is {kind}; expected type: numeric, {fix}"
                    f"{other}"
                )
            if key == "fill_na" and given is not None and not _is_finite(given):
                raise ConfigError(f"feature '{name}': fill_na is {given!r}, expected a finite number for type: numeric")
        if column.get("normalizer") is not None and column.get("in_item_dict"):
            raise ConfigError(
                f"feature '{name}': normalizer is {column['normalizer']}, but in_item_dict is True, and the column is "
                "in files of both kinds; scale it in the files"
            )
    labels = params["label_col"] if isinstance(params.get("label_col"), list) else [params.get("label_col") or {}]
    for label in labels:
        if label.get("fill_na") is not None:
            raise ConfigError(
                f"label '{label['name']}': fill_na is {label['fill_na']}, {reading}; fill it in the files"
            )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


#: Settings that only features of some types have.
_ONLY_OF = {
    "norm": ("embedding",),
    "scale": ("embedding",),
    "of": ("similarity",),
    "history": ("sequence",),
    "statistics": ("similarity",),
    "dropout": ("categorical", "sequence", "numeric", "embedding", *COMPUTED_TYPES),
    "table": ("categorical", "sequence", "embedding"),
}


#: Settings of a column that its feature has under the same name and with the same default.
_AS_GIVEN = (
    "source", "vocab_size", "max_len", "embedding_dim", "pretrain_dim", "freeze_emb", "share_embedding",
    "emb_output_dim", "in_item_dict", "norm", "scale", "dropout", "of", "padding", "table", "sharding", "pretrained",
)  # fmt: skip


def _feature(column: Mapping[str, Any], has_items: bool) -> Feature:
    kind = column["type"]
    for key, kinds in _ONLY_OF.items():
        if column.get(key) is not None and kind not in kinds:
            raise ConfigError(
                f"feature '{column['name']}': {key} is {column[key]}, but its type is {kind}; expected type: "
                f"{' or '.join(kinds)}"
            )
    if kind in COMPUTED_TYPES and column.get("source"):
        raise ConfigError(
            f"feature '{column['name']}': source is {column['source']}, but type: {kind} has no column; leave it out"
        )
    if not column.get("embedded", True) and column.get("source") != ITEM_SOURCE:
        raise ConfigError(f"feature '{column['name']}': embedded is False, expected source: {ITEM_SOURCE} with it")
    if kind == "length" and column.get("vocab_size") == 1:
        raise ConfigError(f"feature '{column['name']}': vocab_size is 1, expected 2 or more: 0 is padding")
    if kind == "similarity" and not column.get("of"):
        raise ConfigError(f"feature '{column['name']}': of is missing; name the frozen embedding that is compared")
    if column.get("table") is not None:
        if kind == "embedding" and column.get("freeze_emb", True):
            raise ConfigError(
                f"feature '{column['name']}': table is {column['table']}, but its embeddings are frozen; set "
                "freeze_emb: False, or leave it out"
            )
        if column["table"] == "sharded" and (kind == "embedding" or column.get("pretrained_emb")):
            raise ConfigError(
                f"feature '{column['name']}': table is sharded, but it starts from stored embeddings; set table: "
                "touched"
            )
        if column.get("share_embedding"):
            raise ConfigError(
                f"feature '{column['name']}': table is {column['table']}, but it shares the table of "
                f"{column['share_embedding']}; set it there"
            )
    if column.get("sharding") is not None and column.get("table") != "sharded":
        raise ConfigError(
            f"feature '{column['name']}': sharding is {column['sharding']}, but its table is "
            f"{column.get('table') or 'auto'}; set table: sharded, or leave it out"
        )
    encoder = column.get("feature_encoder", "layers.MaskedAveragePooling()" if kind == "sequence" else None)
    if isinstance(encoder, str) and encoder.lower() in ("null", "none"):
        encoder = None
    return Feature(
        name=column["name"],
        type=kind,
        feature_encoder=encoder,
        padding_idx=column.get("padding_idx", 0),
        embedded=column.get("embedded", True) and not (has_items and column.get("history")),
        statistics=tuple(column.get("statistics") or ("mean", "max")) if kind == "similarity" else (),
        has_items=has_items,
        history=column.get("history") if has_items else None,
        is_number=column.get("history") is not None and column.get("dtype") == "float",
        is_text=column.get("dtype") == "str",
        **{key: column[key] for key in _AS_GIVEN if column.get(key) is not None},
    )


def complete(features: Sequence[Feature], dims: Mapping[str, int], sizes: Mapping[str, int]) -> list[Feature]:
    """Fill in what the configuration leaves out from the files.

    Parameters
    ----------
    features : list of Feature
        As parsed.
    dims : mapping
        Stored length of every sequence of items and dim of their frozen embeddings.
    sizes : mapping
        Largest id plus one of every categorical and sequence feature.
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
