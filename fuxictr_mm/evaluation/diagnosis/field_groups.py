"""Which fields there are, and which of them belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ, ITEM_SOURCE

#: Parts of a column's name, between underscores, that say what it was made of.
TEXT = frozenset({"text", "txt", "title", "bert", "caption"})
IMAGE = frozenset({"image", "img", "clip", "visual", "cover", "picture"})


@dataclass(frozen=True)
class Group:
    """Fields that are permuted together.

    Parameters
    ----------
    name : str
        For reports.
    kind : {"field", "modality", "vectors", "ids", "context", "history"}
        What it is.
    fields : tuple of str
        Context columns or item fields, never both; empty for the history.
    source : {"context", "item", "history"}
        Where they stand.
    """

    name: str
    kind: str
    fields: tuple[str, ...]
    source: str


def modality_of(name: str, kind: str) -> str | None:
    """Return ``text`` or ``image`` where the column's name says so, else a vector's own name, None for an id.

    Examples
    --------
    >>> modality_of("txt_emb_BERT", "embedding"), modality_of("codes_rq_image", "sequence")
    ('text', 'image')
    >>> modality_of("item_emb_d128", "embedding"), modality_of("item_tags", "sequence")
    ('item_emb_d128', None)
    """
    parts = name.lower().split("_")
    for part in parts:
        if part in TEXT:
            return "text"
        if part in IMAGE:
            return "image"
    return name if kind == "embedding" else None


def context_fields(features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the context columns that a model reads."""
    return [n for n, s in features.items() if _is_read(s) and s.get("source") != ITEM_SOURCE and n != ITEM_SEQ]


def item_fields(features: Mapping[str, Mapping[str, Any]], stored: tuple[str, ...]) -> list[str]:
    """Return the item fields that a model reads, out of those that are ``stored``."""
    return [
        n
        for n, s in features.items()
        if _is_read(s) and s.get("source") == ITEM_SOURCE and (n == ITEM_ID or n in stored)
    ]


def vector_fields(features: Mapping[str, Mapping[str, Any]], stored: tuple[str, ...]) -> list[str]:
    """Return the item fields that are vectors."""
    return [n for n in item_fields(features, stored) if features[n]["type"] == "embedding"]


def _is_read(spec: Mapping[str, Any]) -> bool:
    return spec["type"] != "meta"


def all_groups(features: Mapping[str, Mapping[str, Any]], stored: tuple[str, ...]) -> list[Group]:
    """Return every field by itself, then modalities, all vectors, all ids, the whole context and the history.

    Parameters
    ----------
    features : mapping
        Of the model's feature map.
    stored : tuple of str
        Columns of the item table.
    """
    context, items = context_fields(features), item_fields(features, stored)
    groups = [Group(name, "field", (name,), "context") for name in context]
    groups += [Group(name, "field", (name,), "item") for name in items]
    modalities: dict[str, list[str]] = {}
    ids = []
    for name in items:
        modality = modality_of(name, features[name]["type"])
        if modality is None:
            ids.append(name)
        else:
            modalities.setdefault(modality, []).append(name)
    groups += [Group(name, "modality", tuple(fields), "item") for name, fields in modalities.items()]
    if len(modalities) > 1:
        groups.append(Group("all modalities", "vectors", tuple(f for m in modalities.values() for f in m), "item"))
    if ids:
        groups.append(Group("all ids", "ids", tuple(ids), "item"))
    if context:
        groups.append(Group("whole context", "context", tuple(context), "context"))
    return [*groups, Group("history", "history", (), "history")]
