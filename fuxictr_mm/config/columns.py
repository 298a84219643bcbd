"""Columns of an experiment: the features of its dataset with its own changes, and the rules that they keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fuxictr_mm.checking import validate
from fuxictr_mm.config.features import COMPUTED_TYPES, FeatureConfig, FeatureSpec, Roles
from fuxictr_mm.errors import nearest

#: What a model calls the target and the history, whatever their columns are called.
ITEM_ID = "item_id"
ITEM_SEQ = "item_seq"
ITEM_SOURCE = "item"

Column = Mapping[str, Any]

#: Keys that only features of some types have.
_ONLY_OF = {
    "norm": ("embedding",),
    "scale": ("embedding",),
    "of": ("similarity",),
    "history": ("sequence",),
    "statistics": ("similarity",),
    "dropout": ("categorical", "sequence", "numeric", "embedding", *COMPUTED_TYPES),
    "table": ("categorical", "sequence", "embedding"),
}

#: Keys that decide how raw columns are encoded, and what to do instead where there are item files.
OF_ENCODING = {
    "preprocess": "write the column into the files, and leave it out",
    "splitter": "split the texts in the files: frame.with_columns(pl.col(NAME).str.split(SEPARATOR)), and leave it out",
    "pretrained_emb": "add the file to item_info, with the key as its column of items, and its embedding to "
    "feature_cols as type: embedding, and leave it out",
    "category_processor": "write the buckets into the files, and leave it out",
    "min_categr_count": "replace rare values in the files by one value, and leave it out",
    "remap": "integers are ids as they are, and texts are numbered; leave it out",
}
NOT_ENCODED = "but the columns of a dataset with item files are not encoded"


def names_of(column: Column) -> list[str]:
    """Return the names of an entry, which has one or a list of them."""
    return column["name"] if isinstance(column["name"], list) else [column["name"]]


def merged_columns(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the columns of ``feature_cols`` by name, with the changes of ``feature_specs``."""
    columns = {
        name: {**column, "name": name} for column in params.get("feature_cols") or [] for name in names_of(column)
    }
    for spec in params.get("feature_specs") or []:
        for name in names_of(spec):
            columns.get(name, {}).update({k: v for k, v in spec.items() if k != "name"})
    return columns


def used_columns(columns: Mapping[str, dict[str, Any]], params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the columns of ``use_features``, by default the active ones; meta columns are kept in either case."""
    used = params.get("use_features")
    if not used:
        return {n: c for n, c in columns.items() if c.get("active", True)}
    meta = [n for n, c in columns.items() if n not in used and c.get("type") == "meta" and c.get("active", True)]
    return {n: columns[n] for n in [*meta, *used] if n in columns}


def is_embedded(column: Column, has_items: bool) -> bool:
    """Whether the column is a field of every model; one along a history is read as ``batch.context``."""
    return column.get("embedded", True) and not (has_items and column.get("history"))


def have_names(values: Mapping[str, Any]) -> bool:
    """Whether the entries of features are mappings with names, whatever else may be wrong with them."""
    lists = [values.get(key) or [] for key in ("feature_cols", "feature_specs")]
    return all(isinstance(entries, list | tuple) for entries in lists) and all(
        isinstance(entry, Mapping) and validate(FeatureSpec, {"name": entry.get("name")})[0] is not None
        for entries in lists
        for entry in entries
    )


def problems_of_entries(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with the features of settings that may be wrong themselves.

    An entry with a problem of its own, which its type reports, is left out. Of a dataset without item files, the roles
    are not known to be those of its columns before it is encoded.
    """
    roles, used = values.get("roles") or {}, values.get("use_features") or []
    found = validate(Roles, roles)[0] if isinstance(roles, Mapping) else None
    are_names = isinstance(used, list | tuple) and all(isinstance(name, str) for name in used)
    if not values.get("feature_cols") or not have_names(values) or not are_names or found is None:
        return {}
    wrong = {
        name
        for key, kind in (("feature_cols", FeatureConfig), ("feature_specs", FeatureSpec))
        for entry in values.get(key) or []
        if validate(kind, entry)[0] is None
        for name in names_of(entry)
    }
    if values.get("item_info") is None:
        wrong.update((found.history, *found.histories) if roles else ())
        values = {**values, "roles": {}}
    return column_problems(values, wrong)


def column_problems(params: Mapping[str, Any], wrong: Collection[str] = ()) -> dict[str, str]:
    """Return a sentence for everything that is wrong with the columns of an experiment.

    Parameters
    ----------
    params : mapping
        Flat settings.
    wrong : collection of str
        Columns that are known to be wrong; nothing else is said about them.
    """
    where = f"dataset {params.get('dataset_id')}"
    listed = Counter(name for column in params["feature_cols"] for name in names_of(column))
    problems = {
        f"feature_cols.{name}": f"feature_cols: the feature '{name}' is listed twice; keep one of them"
        for name, times in listed.items()
        if times > 1
    }
    named = {
        "use_features": params.get("use_features") or [],
        "feature_specs": [name for spec in params.get("feature_specs") or [] for name in names_of(spec)],
    }
    for key, names in named.items():
        for name in [name for name in names if name not in listed]:
            problems[f"{key}.{name}"] = _unknown(name, listed, key, where)
    columns = merged_columns(params)
    used = used_columns(columns, params)
    roles = Roles.of(params)
    for name, role in ((ITEM_ID, "target"), (ITEM_SEQ, "history")):
        if name in used and name != getattr(roles, role):
            problems[f"roles.{role}"] = (
                f"{where}: the feature '{name}' has not the role {role}, which {getattr(roles, role)} has, and models "
                "give that this name; rename the column"
            )
    has_items = params.get("item_info") is not None
    earlier = set(wrong)
    for name, column in used.items():
        if name in wrong:
            continue
        rules = [*_of_type(column), *_of_table(column), *_of_shared(column, used, earlier, where)]
        if column["type"] == "similarity" and column.get("of") not in wrong:
            rules += _of_compared(column, columns, has_items, where)
        if params.get("item_info"):
            rules += _of_files(column)
        if has_items:
            rules += _of_roles(column, roles)
        for key, sentence in rules:
            problems[f"feature {name}.{key}"] = f"feature '{name}': {sentence}"
        if is_embedded(column, has_items):
            earlier.add(name)
    return problems


def _unknown(name: str, known: Collection[str], what: str, where: str) -> str:
    """Return a sentence with the nearest known name, or else with all."""
    hint = nearest(name, known) or f" (it has: {', '.join(known)})"
    return f"{what}: {where} has no feature '{name}'{hint}"


def _of_type(column: Column) -> Iterator[tuple[str, str]]:
    """Yield keys that a feature of the type has not, or has not with this value."""
    kind = column["type"]
    for key, kinds in _ONLY_OF.items():
        if column.get(key) is not None and kind not in kinds:
            yield key, f"{key} is {column[key]}, but its type is {kind}; expected type: {' or '.join(kinds)}"
    if kind in COMPUTED_TYPES and column.get("source"):
        yield "source", f"source is {column['source']}, but type: {kind} has no column; leave it out"
    elif not column.get("embedded", True) and column.get("source") != ITEM_SOURCE:
        yield "embedded", f"embedded is False, expected source: {ITEM_SOURCE} with it"
    if kind == "length" and column.get("vocab_size") == 1:
        yield "vocab_size", "vocab_size is 1, expected 2 or more: 0 is padding"


def _of_table(column: Column) -> Iterator[tuple[str, str]]:
    """Yield what does not go with ``table`` and ``sharding``."""
    kind, table = column["type"], column.get("table")
    if table is not None and kind in _ONLY_OF["table"]:
        if kind == "embedding" and column.get("freeze_emb", True):
            fix = "set freeze_emb: False, or leave it out"
            yield "table", f"table is {table}, but its embeddings are frozen; {fix}"
        elif table == "sharded" and (kind == "embedding" or column.get("pretrained_emb")):
            yield "table", "table is sharded, but it starts from stored embeddings; set table: touched"
        elif column.get("share_embedding"):
            shared = column["share_embedding"]
            yield "table", f"table is {table}, but it shares the table of {shared}; set it there"
    if column.get("sharding") is not None and table != "sharded":
        fix = "set table: sharded, or leave it out"
        yield "sharding", f"sharding is {column['sharding']}, but its table is {table or 'auto'}; {fix}"


def _of_shared(
    column: Column, used: Mapping[str, Column], earlier: Collection[str], where: str
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with ``share_embedding``."""
    shared = column.get("share_embedding")
    if shared is not None and shared not in used:
        yield "share_embedding", _unknown(shared, used, "share_embedding", where)
    elif shared is not None and shared not in earlier:
        # FuxiCTR creates the tables in this order and would silently create a second one.
        fix = f"list it before '{column['name']}'"
        yield "share_embedding", f"share_embedding: '{shared}' is listed later, or is not embedded; {fix}"


def _of_compared(
    column: Column, columns: Mapping[str, Column], has_items: bool, where: str
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with ``of`` of a similarity."""
    name = column.get("of")
    if not name:
        yield "of", "of is missing; name the frozen embedding that is compared"
    elif name not in columns:
        yield "of", _unknown(name, columns, "of", where)
    else:
        is_of_items = has_items and columns[name].get("source") == ITEM_SOURCE
        if columns[name]["type"] != "embedding" or not is_of_items or not columns[name].get("freeze_emb", True):
            yield "of", f"of is {name}, expected a frozen embedding of items"


def _of_files(column: Column) -> Iterator[tuple[str, str]]:
    """Yield keys that would have no effect: with item files, columns are read as they are.

    Those that ask for what is done anyway are accepted.
    """
    kind, is_text = column["type"], column.get("dtype") == "str"
    done = {"min_categr_count": (None, 0, 1), "remap": (None, True, False) if kind == "meta" else (None, is_text)}
    for key, fix in OF_ENCODING.items():
        if (given := column.get(key)) not in done.get(key, (None,)):
            yield key, f"{key} is {given!r}, {NOT_ENCODED}; {fix}"
    for key, fix in (("fill_na", "fill the column in the files"), ("normalizer", "scale it in the files")):
        given = column.get(key)
        if given is not None and kind != "numeric":
            other = ", or set norm: standard" if key == "normalizer" and kind == "embedding" else ""
            yield key, f"{key} is {given!r}, but its type is {kind}; expected type: numeric, {fix}{other}"
        elif key == "fill_na" and given is not None and not _is_finite(given):
            yield key, f"fill_na is {given!r}, expected a finite number for type: numeric"
    if column.get("normalizer") is not None and column.get("in_item_dict"):
        reason = "in_item_dict is True, and the column is in files of both kinds; scale it in the files"
        yield "in_item_dict", f"normalizer is {column['normalizer']}, but {reason}"


def _of_roles(column: Column, roles: Roles) -> Iterator[tuple[str, str]]:
    """Yield what does not go with the column's role, or with its history's."""
    name, kind, source = column["name"], column["type"], column.get("source", "")
    if name == roles.target and source != ITEM_SOURCE and kind != "meta":
        yield "source", f"source is '{source}', expected source: {ITEM_SOURCE} for the target"
    histories = [roles.history, *roles.histories]
    if column.get("history") is not None and column["history"] not in histories:
        expected = f"expected a column with the role history or histories ({', '.join(histories)})"
        yield "history", f"history is {column['history']}, {expected}"
    if name in roles.histories and kind != "meta":
        yield "type", f"type is {kind}, a history has type: meta"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
