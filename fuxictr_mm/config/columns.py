"""Columns of an experiment: the features of its dataset with its own changes, and the rules that they keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar, cast

from fuxictr_mm.checking import validate
from fuxictr_mm.config.features import COMPUTED_TYPES, FeatureConfig, FeatureSpec, Roles
from fuxictr_mm.errors import nearest

#: What a model calls the target and the history, whatever their columns are called.
ITEM_ID = "item_id"
ITEM_SEQ = "item_seq"
ITEM_SOURCE = "item"

Entry = TypeVar("Entry", bound=FeatureSpec)

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


def names_of(entry: FeatureSpec) -> list[str]:
    """Return the names of an entry, which has one or a list of them."""
    return entry.name if isinstance(entry.name, list) else [entry.name]


def split_entries(entries: Iterable[FeatureConfig]) -> list[FeatureConfig]:
    """Return an entry for each column, in place of those with a list of names.

    Examples
    --------
    >>> both = FeatureConfig(name=["a", "b"], type="categorical", dtype="int")
    >>> [entry.name for entry in split_entries([both])]
    ['a', 'b']
    """
    return [entry.model_copy(update={"name": name}) for entry in entries for name in names_of(entry)]


def listed_twice(entries: Iterable[FeatureSpec]) -> dict[str, str]:
    """Return a sentence for each column that has several entries."""
    listed = Counter(name for entry in entries for name in names_of(entry))
    return {
        f"feature_cols.{name}": f"feature_cols: the feature '{name}' is listed twice; keep one of them"
        for name, times in listed.items()
        if times > 1
    }


def is_embedded(column: FeatureConfig, has_items: bool) -> bool:
    """Whether the column is a field of every model; one along a history is read as ``batch.context``."""
    return column.embedded and not (has_items and column.history)


@dataclass(frozen=True)
class Columns:
    """The columns of an experiment."""

    entries: Sequence[FeatureConfig] = ()  #: Of the dataset's ``feature_cols``.
    specs: Sequence[FeatureSpec] = ()  #: Of ``feature_specs``, the experiment's changes.
    use: Sequence[str] = ()  #: Of ``use_features``; empty: all active ones.
    roles: Roles = field(default_factory=Roles)  #: Of the dataset.
    #: Its item files; an empty list where the ids of the target are the items, None where it has none.
    item_info: str | Sequence[str] | None = None
    dataset_id: str = ""  #: For errors.
    wrong: frozenset[str] = frozenset()  #: Columns that are known to be wrong; nothing else is said about them.

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Columns:
        """Return those of flat settings that may be wrong; none at all where an entry has no name."""
        names = have_names(values)
        wrong: set[str] = set()

        def parse(kind: type[Entry], key: str) -> list[Entry]:
            found: list[Entry] = []
            blank = {"type": None} if kind is FeatureConfig else {}  # which may be what is missing
            for entry in (values.get(key) or []) if names else []:
                checked, _ = validate(kind, entry)
                if checked is not None:
                    found.append(checked)
                    continue
                known = {key: value for key, value in entry.items() if key in kind.model_fields}
                found.append(cast(Entry, kind.model_construct(**{**blank, **known})))
                wrong.update(names_of(found[-1]))
            return found

        entries, specs = parse(FeatureConfig, "feature_cols"), parse(FeatureSpec, "feature_specs")
        roles = values.get("roles") or {}
        return cls(
            entries,
            specs,
            values.get("use_features") or (),
            (validate(Roles, roles)[0] if isinstance(roles, Mapping) else None) or Roles(),
            values.get("item_info"),
            str(values.get("dataset_id")),
            frozenset(wrong),
        )

    @property
    def has_items(self) -> bool:
        """Whether target and history are items."""
        return self.item_info is not None

    @cached_property
    def by_name(self) -> dict[str, FeatureConfig]:
        """The columns by name, with the changes of ``specs``."""
        columns = {str(column.name): column for column in split_entries(self.entries)}
        for spec in self.specs:
            changes = {key: getattr(spec, key) for key in spec.model_fields_set if key != "name"}
            columns |= {n: columns[n].model_copy(update=changes) for n in names_of(spec) if n in columns}
        return columns

    @cached_property
    def used(self) -> dict[str, FeatureConfig]:
        """The columns of ``use``, by default the active ones; meta columns are kept in either case."""
        if not self.use:
            return {n: c for n, c in self.by_name.items() if c.active}
        meta = [n for n, c in self.by_name.items() if n not in self.use and c.type == "meta" and c.active]
        return {n: self.by_name[n] for n in [*meta, *self.use] if n in self.by_name}

    def problems(self) -> dict[str, str]:
        """Return a sentence for everything that is wrong with the columns."""
        where, has_items, roles = f"dataset {self.dataset_id}", self.has_items, self.roles
        problems = listed_twice(self.entries)
        named = {"use_features": self.use, "feature_specs": [n for spec in self.specs for n in names_of(spec)]}
        unknown = [(key, name) for key, names in named.items() for name in names if name not in self.by_name]
        is_listed = False
        for key, name in unknown:
            problems[f"{key}.{name}"] = _unknown(name, self.by_name, key, where, is_listed)
            is_listed = is_listed or not nearest(name, self.by_name)
        for name, role in ((ITEM_ID, "target"), (ITEM_SEQ, "history")):
            if name in self.used and name != getattr(roles, role):
                problems[f"roles.{role}"] = (
                    f"{where}: the feature '{name}' does not have the role {role}, which "
                    f"{getattr(roles, role)} has, and "
                    "models give that this name; rename the column"
                )
        earlier = set(self.wrong)
        for name, column in self.used.items():
            if name in self.wrong:
                continue
            rules = [*_of_type(column), *_of_table(column), *_of_shared(column, self.used, earlier, where)]
            if column.type == "embedding" and not (has_items and column.source == ITEM_SOURCE):
                rules += _of_row_embedding(column)
            if column.type == "similarity" and column.of not in self.wrong:
                rules += _of_compared(column, self.by_name, has_items, roles.target, where)
            if self.item_info:
                rules += _of_files(column)
            if has_items:
                rules += _of_roles(column, roles)
            if column.unknown == "trained":
                rules += _of_unknown(column, self.used, roles.target if has_items else None)
            for key, sentence in rules:
                problems[f"feature {name}.{key}"] = f"feature '{name}': {sentence}"
            if is_embedded(column, has_items):
                earlier.add(name)
        return problems


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
    are_names = isinstance(used, list | tuple) and all(isinstance(name, str) for name in used)
    are_roles = isinstance(roles, Mapping) and validate(Roles, roles)[0] is not None
    if not values.get("feature_cols") or not have_names(values) or not are_names or not are_roles:
        return {}
    columns = Columns.of(values)
    if not columns.has_items:
        histories = (columns.roles.history, *columns.roles.histories) if roles else ()
        columns = replace(columns, roles=Roles(), wrong=columns.wrong.union(histories))
    return columns.problems()


def _unknown(name: str, known: Collection[str], what: str, where: str, is_listed: bool = False) -> str:
    """Return a sentence with the nearest known name, or else with all, unless an earlier sentence lists them."""
    hint = nearest(name, known) or ("" if is_listed else f" (it has: {', '.join(known)})")
    return f"{what}: {where} has no feature '{name}'{hint}"


def _of_type(column: FeatureConfig) -> Iterator[tuple[str, str]]:
    """Yield keys that a feature of the type has not, or has not with this value."""
    kind = column.type
    for key, kinds in _ONLY_OF.items():
        if getattr(column, key) is not None and kind not in kinds:
            yield key, f"{key} is {getattr(column, key)}, but its type is {kind}; expected type: {' or '.join(kinds)}"
    if kind in COMPUTED_TYPES and column.source:
        yield "source", f"source is {column.source}, but type: {kind} has no column; leave it out"
    elif not column.embedded and column.source != ITEM_SOURCE:
        yield "embedded", f"embedded is False, expected source: {ITEM_SOURCE} with it"
    if kind == "length" and column.vocab_size == 1:
        yield "vocab_size", "vocab_size is 1, expected 2 or more: 0 is padding"


def _of_row_embedding(column: FeatureConfig) -> Iterator[tuple[str, str]]:
    """Yield keys that would have no effect: only embeddings of item files are normalised."""
    for key in ("norm", "scale"):
        if (given := getattr(column, key)) is not None:
            fix = f"scale the column in the files, or move it to the item files, with source: {ITEM_SOURCE}"
            yield key, f"{key} is {given}, but its embeddings are read with the rows, as they are; {fix}"


def _of_table(column: FeatureConfig) -> Iterator[tuple[str, str]]:
    """Yield what does not go with ``table`` and ``sharding``."""
    kind, table = column.type, column.table
    if table is not None and kind in _ONLY_OF["table"]:
        if kind == "embedding" and column.freeze_emb:
            fix = "set freeze_emb: False, or leave it out"
            yield "table", f"table is {table}, but its embeddings are frozen; {fix}"
        elif table == "sharded" and (kind == "embedding" or column.pretrained_emb):
            yield "table", "table is sharded, but it starts from stored embeddings; set table: touched"
        elif column.share_embedding:
            shared = column.share_embedding
            yield "table", f"table is {table}, but it shares the table of {shared}; set it there"
    if column.sharding is not None and table != "sharded":
        fix = "set table: sharded, or leave it out"
        yield "sharding", f"sharding is {column.sharding}, but its table is {table or 'auto'}; {fix}"


def _of_unknown(
    column: FeatureConfig, used: Mapping[str, FeatureConfig], target: str | None
) -> Iterator[tuple[str, str]]:
    """Yield what does not go with ``unknown: trained``."""
    if column.name != target:
        which = "the target of a dataset with item files" if target is None else f"the target ({target})"
        yield "unknown", f"unknown is trained, expected it of {which} alone; leave it out"
    elif not column.dropout:
        yield "unknown", "unknown is trained, but no id is dropped, which trains it; set dropout: 0.1"
    elif column.padding_idx:
        yield "unknown", f"unknown is trained, which takes 0 as a missing id, but padding_idx is {column.padding_idx}"
    elif shared := [name for name, other in used.items() if other.share_embedding == target]:
        # An id of the other column would be padding where the item is unknown.
        fix = f"leave out {', '.join(shared)}, or unknown"
        yield "unknown", f"unknown is trained, but {', '.join(shared)} shares its embeddings; {fix}"


def _of_shared(
    column: FeatureConfig, used: Mapping[str, FeatureConfig], earlier: Collection[str], where: str
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with ``share_embedding``."""
    shared = column.share_embedding
    if shared is not None and shared not in used:
        yield "share_embedding", _unknown(shared, used, "share_embedding", where)
    elif shared is not None and shared not in earlier:
        # FuxiCTR creates the tables in this order and would silently create a second one.
        fix = f"list it before '{column.name}'"
        yield "share_embedding", f"share_embedding: '{shared}' is listed later, or is not embedded; {fix}"


def _of_compared(
    column: FeatureConfig, columns: Mapping[str, FeatureConfig], has_items: bool, target: str, where: str
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with ``of`` of a similarity."""
    name = column.of
    if not name:
        yield "of", "of is missing; name the frozen embedding, the category or the tags that are compared"
    elif name not in columns:
        yield "of", _unknown(name, columns, "of", where)
    else:
        compared = columns[name]
        is_of_items = has_items and compared.source == ITEM_SOURCE and name != target
        is_frozen = compared.type == "embedding" and compared.freeze_emb
        if not is_of_items or not (is_frozen or compared.type in ("categorical", "sequence")):
            yield "of", f"of is {name}, expected a frozen embedding, a category or a sequence of ids of the items"


def _of_files(column: FeatureConfig) -> Iterator[tuple[str, str]]:
    """Yield keys that would have no effect: with item files, columns are read as they are.

    Those that ask for what is done anyway are accepted.
    """
    kind, is_text = column.type, column.dtype == "str"
    is_of_items = kind == "embedding" and column.source == ITEM_SOURCE
    done = {"min_categr_count": (None, 0, 1), "remap": (None, True, False) if kind == "meta" else (None, is_text)}
    for key, fix in OF_ENCODING.items():
        if (given := getattr(column, key)) not in done.get(key, (None,)):
            yield key, f"{key} is {given!r}, {NOT_ENCODED}; {fix}"
    for key, fix in (("fill_na", "fill the column in the files"), ("normalizer", "scale it in the files")):
        given = getattr(column, key)
        if given is not None and kind != "numeric":
            other = ", or set norm: standard" if key == "normalizer" and is_of_items else ""
            yield key, f"{key} is {given!r}, but its type is {kind}; expected type: numeric, {fix}{other}"
        elif key == "fill_na" and given is not None and not _is_finite(given):
            yield key, f"fill_na is {given!r}, expected a finite number for type: numeric"
    if column.normalizer is not None and column.in_item_dict:
        reason = "in_item_dict is True, so the column is in files of both kinds; scale it in the files"
        yield "in_item_dict", f"normalizer is {column.normalizer}, but {reason}"


def _of_roles(column: FeatureConfig, roles: Roles) -> Iterator[tuple[str, str]]:
    """Yield what does not go with the column's role, or with its history's."""
    name, kind, source = column.name, column.type, column.source
    if name == roles.target and source != ITEM_SOURCE and kind != "meta":
        yield "source", f"source is '{source}', expected source: {ITEM_SOURCE} for the target"
    histories = [roles.history, *roles.histories]
    if column.history is not None and column.history not in histories:
        expected = f"expected a column with the role history or histories ({', '.join(histories)})"
        yield "history", f"history is {column.history}, {expected}"
    if name in roles.histories and kind != "meta":
        yield "type", f"type is {kind}, expected type: meta for a history"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
