"""Which fields there are, and which of them belong together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.layers import SqueezeExcitation
from torch import Tensor, nn

from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ, ITEM_SOURCE
from fuxictr_mm.diagnosis.scorer import Cost, Scorer, with_context, with_history
from fuxictr_mm.evaluation.significance import NORMAL_95

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


def draw(items: ItemTable, seed: int) -> Tensor:
    """Return which item each item takes its features from, ``(I,)``: a permutation of the known ones, padding fixed."""
    known = items.known.nonzero().squeeze(1)[1:].cpu()
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    permutation = torch.arange(items.num_items)
    permutation[known] = known[order]
    return permutation.to(items.known.device)


@contextmanager
def swapped(model: Any, names: Sequence[str], permutation: Tensor) -> Iterator[Callable[[Any], Any] | None]:
    """Let items show the named features of other items, wherever they stand: as target and in every history.

    Parameters
    ----------
    model : BaseModel
        Its feature map's items are meant.
    names : sequence of str
        Item fields; those given together move together.
    permutation : Tensor
        ``(I,)`` of ``draw``.

    Yields
    ------
    callable or None
        What is to be done to each batch as well, where a view holds ids of items beside the item fields.
    """
    items = model.feature_map.items
    moved = set(names)

    def rows(ids: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        others = permutation.index_select(0, ids.long()).to(ids.dtype)
        found = ItemTable.rows(items, ids, [n for n in wanted if n not in moved])
        found.update(ItemTable.rows(items, others, [n for n in wanted if n in moved]))
        return {name: found[name] for name in wanted}

    def of_batch(batch: Any) -> Any:
        if not isinstance(batch, dict) or ITEM_SEQ not in batch:
            return batch
        return {**batch, ITEM_SEQ: permutation[batch[ITEM_SEQ]]}

    # Vectors that train along are the model's own, and are asked for by id.
    trained = getattr(model, "item_vectors", {})
    handles = [
        trained[name].register_forward_pre_hook(lambda _, arguments: (permutation[arguments[0]],))
        for name in names
        if name in trained
    ]
    items.rows = rows
    try:
        yield of_batch if ITEM_ID in moved else None
    finally:
        del items.rows
        for handle in handles:
            handle.remove()


def permute_once(scorer: Scorer, group: Group, seed: int) -> Cost:
    """Return what one permutation of a group costs.

    Context columns and histories are permuted among the rows, item fields among the items, so that an item keeps one
    set of features as target and in every history. Fields of a group move together. A seed means one permutation, of
    rows and of items, for all groups.
    """
    if group.source == "item":
        permutation = draw(scorer.model.feature_map.items, seed)
        with swapped(scorer.model, group.fields, permutation) as change:
            return scorer.cost(scorer.score(change=change))
    table = scorer.table
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).to(table.target.device)
    if group.source == "history":
        return scorer.cost(scorer.score(with_history(table, rows)))
    return scorer.cost(scorer.score(with_context(table, list(group.fields), rows)))


def measure(scorer: Scorer, groups: Sequence[Group], repeats: int, seed: int) -> list[dict[str, Any]]:
    """Permute each group ``repeats`` times.

    Returns
    -------
    list of dict
        ``name``, ``kind``, ``source``, ``fields``; ``auc_lost``, the mean over the repeats; ``deviation`` of the
        repeats; ``noise``, half of the 95 % interval of ``auc_lost``, from the repeats and from DeLong's variance of
        the difference; ``lost``, of each repeat.
    """
    measured: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    entries = []
    for group in groups:
        key = (group.source, group.fields)
        if key not in measured:
            costs = [permute_once(scorer, group, seed + repeat) for repeat in range(repeats)]
            measured[key] = _summarize(costs)
        entries.append(
            {"name": group.name, "kind": group.kind, "source": group.source, "fields": list(group.fields)}
            | measured[key]
        )
    return entries


def number_of_passes(groups: Sequence[Group], repeats: int) -> int:
    """Return how often ``measure`` scores the rows."""
    return repeats * len({(group.source, group.fields) for group in groups})


def _summarize(costs: Sequence[Cost]) -> dict[str, Any]:
    lost = np.array([cost.auc_lost for cost in costs])
    deviation = float(lost.std(ddof=1)) if len(lost) > 1 else 0.0
    variance = float(np.mean([cost.variance for cost in costs])) + deviation**2 / len(lost)
    return {
        "auc_lost": float(lost.mean()),
        "deviation": deviation,
        "noise": NORMAL_95 * math.sqrt(variance),
        "lost": lost.tolist(),
    }


class WatchedSENet:
    """The weights of one SENet while the rows are scored."""

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.module = module
        self.parts: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect the weights inside the block."""
        handle = self.module.excitation.register_forward_hook(
            lambda _, arguments, output: self.parts.append(output.detach().double().cpu())
        )
        try:
            yield
        finally:
            handle.remove()

    @property
    def weights(self) -> np.ndarray:
        """``(R, F)``."""
        return torch.cat(self.parts).numpy()


def find_senets(model: nn.Module) -> list[WatchedSENet]:
    """Return every SENet of a model, of this library or of FuxiCTR."""
    return [WatchedSENet(name, m) for name, m in model.named_modules() if isinstance(m, SqueezeExcitation)]


def name_fields(count: int, context: list[str], items: list[str]) -> list[str]:
    """Name the F fields: context, target and history, or context and target, or by number.

    Examples
    --------
    >>> name_fields(3, ["hour"], ["item_id"])
    ['context.hour', 'target.item_id', 'history.item_id']
    """
    names = [f"context.{n}" for n in context] + [f"target.{n}" for n in items]
    if count == len(names) + len(items):
        return names + [f"history.{n}" for n in items]
    return names if count == len(names) else [f"field.{number}" for number in range(count)]


def describe(name: str, weights: np.ndarray, fields: list[str]) -> dict[str, Any]:
    """Return mean, standard deviation and quantiles over rows of each field's weight ``(R, F)``."""
    low, median, high = np.quantile(weights, [0.05, 0.5, 0.95], axis=0)
    return {
        "name": name,
        "fields": [
            {
                "field": field,
                "mean": float(weights[:, i].mean()),
                "deviation": float(weights[:, i].std()),
                "low": float(low[i]),
                "median": float(median[i]),
                "high": float(high[i]),
            }
            for i, field in enumerate(fields)
        ],
    }
