"""Section on fields: what permuting fields costs, singly and in groups, and the weights by SENet.

Shape letters: I items, R examples, F fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fuxictr_mm.config import Roles
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ, ITEM_SOURCE
from fuxictr_mm.diagnosis.findings import NOTE, PROBLEM, WARNING, Finding, Scale
from fuxictr_mm.diagnosis.scorer import Cost, Scorer, with_context, with_history
from fuxictr_mm.evaluation.intervals import NORMAL_95
from fuxictr_mm.fuxictr_imports import SqueezeExcitation
from fuxictr_mm.runs import cost_name
from fuxictr_mm.terminal import format_table

#: Parts of a column's name, between underscores, that name its modality.
MODALITIES = {
    "text": frozenset({"text", "txt", "title", "bert", "caption"}),
    "image": frozenset({"image", "img", "clip", "visual", "cover", "picture"}),
}

#: A modality whose AUC drop is this many times smaller than another's is dominated by it.
IMBALANCE = 10.0

#: SENet weights whose standard deviation over examples and fields is below this fraction of their mean are constant.
CONSTANT_GATE = 0.01

#: A field whose weight is below this fraction of the largest field's is excluded.
CLOSED_GATE = 0.05


@dataclass(frozen=True)
class Group:
    """Fields that are permuted together."""

    name: str  #: Name in the results.
    kind: str  #: ``field``, ``modality``, ``vectors``, ``ids``, ``context`` or ``history``.
    #: Context columns or item fields, never both. Of the history: the sequences along it; of a further history: its
    #: column and the sequences along it.
    fields: tuple[str, ...]
    source: str  #: What the fields belong to: ``context``, ``item`` or ``history``.


def modality_of(name: str, kind: str) -> str | None:
    """Return ``text`` or ``image`` by the column's name, else the name of an embedding, None for an id.

    Examples
    --------
    >>> modality_of("txt_emb_BERT", "embedding"), modality_of("codes_rq_image", "sequence")
    ('text', 'image')
    >>> modality_of("item_emb_d128", "embedding"), modality_of("item_tags", "sequence")
    ('item_emb_d128', None)
    """
    for part in name.lower().split("_"):
        for modality, words in MODALITIES.items():
            if part in words:
                return modality
    return name if kind == "embedding" else None


def context_fields(features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the context columns among the features of a feature map, without computed features."""
    return [
        name
        for name, spec in features.items()
        if spec["type"] != "meta" and spec.get("source") != ITEM_SOURCE and name != ITEM_SEQ and "computed" not in spec
    ]


def item_fields(features: Mapping[str, Mapping[str, Any]], stored: Sequence[str]) -> list[str]:
    """Return the item fields among the features of a feature map: ``item_id`` and ``stored`` columns of the items."""
    return [
        name
        for name, spec in features.items()
        if spec["type"] != "meta" and spec.get("source") == ITEM_SOURCE and name in (ITEM_ID, *stored)
    ]


def all_groups(
    features: Mapping[str, Mapping[str, Any]], stored: Sequence[str], along: Mapping[str, Sequence[str]]
) -> list[Group]:
    """Return every field, then modalities, all modalities, all ids, the whole context and the histories.

    ``stored`` are columns of the item table; ``along`` has the sequences along each history, the history of every model
    first.
    """
    context, items = context_fields(features), item_fields(features, stored)
    modalities: dict[str, list[str]] = {}
    ids = []
    for name in items:
        modality = modality_of(name, features[name]["type"])
        if modality is None:
            ids.append(name)
        else:
            modalities.setdefault(modality, []).append(name)
    groups = [Group(name, "field", (name,), "context") for name in context]
    groups += [Group(name, "field", (name,), "item") for name in items]
    groups += [Group(name, "modality", tuple(fields), "item") for name, fields in modalities.items()]
    if len(modalities) > 1:
        groups.append(Group("all modalities", "vectors", tuple(f for m in modalities.values() for f in m), "item"))
    if ids:
        groups.append(Group("all ids", "ids", tuple(ids), "item"))
    if context:
        groups.append(Group("whole context", "context", tuple(context), "context"))
    first, *further = along
    groups.append(Group("history", "history", tuple(along[first]), "history"))
    return groups + [Group(f"history {name}", "history", (name, *along[name]), "context") for name in further]


def histories(roles: Roles, context: Iterable[str], specs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the sequences along each history that a table has, the history of every model first.

    ``context`` are the columns of the table, ``specs`` is ``along_history`` of the model's feature map.
    """
    names = [roles.history, *(name for name in roles.histories if name in context)]
    return {name: [column for column, spec in specs.items() if spec["history"] == name] for name in names}


def permute_items(items: ItemTable, seed: int) -> Tensor:
    """Return the item that each item takes its features from ``(I,)``: known items are permuted, others stay."""
    known = items.known.nonzero().squeeze(1)[1:].cpu()
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    permutation = torch.arange(items.num_items)
    permutation[known] = known[order]
    return permutation.to(items.known.device)


@contextmanager
def permuted_items(model: Any, names: Sequence[str], permutation: Tensor) -> Iterator[Callable[[Any], Any] | None]:
    """Give items the named features of other items, by a ``permutation`` ``(I,)``, as target and in every history.

    Yields a callable to apply to each batch as well, for batch formats with item ids besides the item fields, or None.
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

    # Trainable embeddings are the model's own, looked up by id.
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
    """Return the AUC drop of one permutation of a group.

    Context columns and histories are permuted among the examples, item fields among the items, so that an item has the
    same features as target and in every history. A seed means one permutation of examples and of items for all groups.
    """
    if group.source == "item":
        permutation = permute_items(scorer.model.feature_map.items, seed)
        with permuted_items(scorer.model, group.fields, permutation) as change:
            return scorer.cost(scorer.score(change=change))
    table = scorer.table
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).to(table.target.device)
    changed = with_context(table, group.fields, rows)
    return scorer.cost(scorer.score(with_history(changed, rows) if group.source == "history" else changed))


def number_of_passes(groups: Sequence[Group], repeats: int) -> int:
    """Return how often ``measure`` scores the examples."""
    return repeats * len({(group.source, group.fields) for group in groups})


def measure(scorer: Scorer, groups: Sequence[Group], repeats: int, seed: int) -> dict[str, Any]:
    """Permute each group ``repeats`` times.

    An entry of ``fields`` and ``groups`` has ``auc_lost``, the mean AUC drop; its ``deviation`` over repeats;
    ``noise``, the half width of its 95 % interval, from the repeats and from DeLong's variance; ``lost``, the AUC drop
    of each repeat.
    """
    measured: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    found: dict[str, list[dict[str, Any]]] = {"fields": [], "groups": []}
    for group in groups:
        key = (group.source, group.fields)
        if key not in measured:
            measured[key] = _summarize([permute_once(scorer, group, seed + repeat) for repeat in range(repeats)])
        entry = {"name": group.name, "kind": group.kind, "source": group.source, "fields": list(group.fields)}
        found["fields" if group.kind == "field" else "groups"].append(entry | measured[key])
    return found


def _summarize(drops: Sequence[Cost]) -> dict[str, Any]:
    values = np.array([drop.value for drop in drops])
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    variance = float(np.mean([drop.variance for drop in drops])) + deviation**2 / len(values)
    return {
        "auc_lost": float(values.mean()),
        "deviation": deviation,
        "noise": NORMAL_95 * math.sqrt(variance),
        "lost": values.tolist(),
    }


class RecordedSENet:
    """The weights of one SENet, recorded while examples are scored."""

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.module = module
        self.parts: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record inside the block."""

        def record(_: nn.Module, __: Any, output: Tensor) -> None:
            self.parts.append(output.detach().double().cpu())

        with self.module.excitation.register_forward_hook(record):
            yield


def find_senets(model: nn.Module) -> list[RecordedSENet]:
    """Return every SENet of a model, of this library or of FuxiCTR."""
    return [RecordedSENet(name, m) for name, m in model.named_modules() if isinstance(m, SqueezeExcitation)]


def describe_senets(senets: Sequence[RecordedSENet], context: list[str], items: list[str]) -> dict[str, Any]:
    """Return the section ``senet``: statistics over examples of each field's weight; none without SENet."""
    found = []
    for senet in senets:
        if not senet.parts:
            continue
        weights = torch.cat(senet.parts).numpy()
        low, median, high = np.quantile(weights, [0.05, 0.5, 0.95], axis=0)
        fields = [
            {
                "field": field,
                "mean": float(weights[:, i].mean()),
                "deviation": float(weights[:, i].std()),
                "low": float(low[i]),
                "median": float(median[i]),
                "high": float(high[i]),
            }
            for i, field in enumerate(name_fields(weights.shape[1], context, items))
        ]
        found.append({"name": senet.name, "fields": fields})
    return {"senet": found} if found else {}


def name_fields(count: int, context: list[str], items: list[str]) -> list[str]:
    """Name the F fields of a SENet: context, target and history, or context and target, else by number.

    Examples
    --------
    >>> name_fields(3, ["hour"], ["item_id"])
    ['context.hour', 'target.item_id', 'history.item_id']
    """
    names = [f"context.{n}" for n in context] + [f"target.{n}" for n in items]
    if count == len(names) + len(items):
        return names + [f"history.{n}" for n in items]
    return names if count == len(names) else [f"field.{number}" for number in range(count)]


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return a table for each SENet, and one of permuted fields and groups."""
    found = [
        format_table(
            [f"{entry['name']}: field", "mean weight", "std"],
            [[f["field"], f"{f['mean']:.3f}", f"{f['deviation']:.3f}"] for f in entry["fields"]],
        )
        for entry in result.get("senet", [])
    ]
    entries = [*result["importance"]["fields"], *result["importance"]["groups"]]
    rows = [
        [
            e["name"],
            e["kind"],
            f"{e['auc_lost']:+.4f} ± {e['noise']:.4f}",
            f"{e['deviation']:.4f}",
            ", ".join(e["fields"]),
        ]
        for e in sorted(entries, key=lambda e: (e["kind"] == "field", -e["auc_lost"]))
    ]
    return [*found, format_table(["permuted", "kind", cost_name(Scale.of(result).metric), "std", "fields"], rows)]


def findings(result: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings on SENets, fields and groups."""
    scale = Scale.of(result)
    yield from _findings_of_senets(result.get("senet", []), cost_name(scale.metric))
    groups, fields = result["importance"]["groups"], result["importance"]["fields"]
    covered: set[str] = set()
    for group in groups:
        for finding in _findings_of(group, scale) if group["kind"] != "vectors" else ():
            covered |= set(group["fields"])
            yield finding
    useful = [g for g in groups if g["kind"] == "modality" and g["auc_lost"] > max(g["noise"], scale.negligible)]
    if useful:
        yield from _imbalance(useful, scale.metric)
    for field in fields:
        if field["name"] not in covered:
            yield from _findings_of(field, scale)


def _findings_of(entry: Mapping[str, Any], scale: Scale) -> Iterator[Finding]:
    """Yield at most one finding of a field or group."""
    drop, noise = entry["auc_lost"], entry["noise"]
    if scale.is_negligible(drop, noise):
        yield _not_read(entry, scale.metric) if is_not_read(entry) else _no_effect(entry, scale.metric)
    yield from scale.find_harmful("importance", entry["name"], "permuting it", drop, noise)


def _findings_of_senets(senets: Sequence[Mapping[str, Any]], cost: str) -> Iterator[Finding]:
    for entry in senets:
        means = np.array([field["mean"] for field in entry["fields"]])
        mean, largest = means.mean(), means.max()
        deviations = np.array([field["deviation"] for field in entry["fields"]])
        deviation = math.sqrt(np.mean(deviations**2 + (means - mean) ** 2))
        if mean > 0 and deviation < CONSTANT_GATE * mean:
            yield Finding(
                WARNING,
                "senet",
                "senet_constant",
                entry["name"],
                f"{entry['name']} gives every field the same weight ({mean:.3f}, standard deviation {deviation:.4f})",
                "it has no effect: train longer, or remove it (senet: False)",
            )
        for field in entry["fields"]:
            if field["high"] <= CLOSED_GATE * largest:
                yield Finding(
                    NOTE,
                    "senet",
                    "senet_closed",
                    field["field"],
                    f"{entry['name']} excludes {field['field']}: its mean weight is {field['mean']:.4f}, that of the "
                    f"strongest field {largest:.3f}",
                    f"see the {cost} when the field is permuted",
                )


def is_not_read(entry: Mapping[str, Any]) -> bool:
    """Whether no permutation changed the order of any two examples: the AUC drop and its noise are exactly 0."""
    return entry["auc_lost"] == 0 and entry["deviation"] == 0 and entry["noise"] == 0


def _imbalance(modalities: Sequence[Mapping[str, Any]], metric: str) -> Iterator[Finding]:
    weakest, strongest = (choose(modalities, key=lambda g: g["auc_lost"]) for choose in (min, max))
    if strongest["auc_lost"] > IMBALANCE * weakest["auc_lost"]:
        yield Finding(
            WARNING,
            "importance",
            "modality_imbalance",
            weakest["name"],
            f"the {strongest['name']} dominates the {weakest['name']}: permuting it costs {strongest['auc_lost']:.4f} "
            f"{metric} against {weakest['auc_lost']:.4f}",
            "reduce each modality separately (strategy V4) and scale them alike; train with each alone to "
            "measure its contribution",
        )


def _who(entry: Mapping[str, Any]) -> str:
    """Return what an entry is, with its fields."""
    if entry["kind"] == "field":
        return entry["name"]
    names = {"modality": f"the modality {entry['name']}", "ids": "the ids of items", "context": "the context"}
    who = names.get(entry["kind"], f"the {entry['name']}")
    return f"{who} ({', '.join(entry['fields'])})" if entry["fields"] else who


def _not_read(entry: Mapping[str, Any], metric: str) -> Finding:
    what = "the ranking" if metric == "AUC" else "its predictions"
    return Finding(
        NOTE,
        "importance",
        "not_read",
        entry["name"],
        f"the model does not read {_who(entry)}: permuting does not change {what}",
        "if it should, use a model that reads it; otherwise remove it",
    )


def _no_effect(entry: Mapping[str, Any], metric: str) -> Finding:
    kind = entry["kind"]
    severity = {"modality": PROBLEM, "field": NOTE}.get(kind, WARNING)
    advice = "train without it and compare"
    if kind == "modality":
        advice = (
            "its embeddings may be noise, assigned to the wrong items, or dominated by another field: "
            "run fuxictr-mm check-data, inspect the neighbours of items, train without it"
        )
    text = f"no measurable effect of {_who(entry)}: permuting costs {entry['auc_lost']:.4f} {metric}"
    text += f" (noise {entry['noise']:.4f})"
    code = f"{kind}_do_nothing" if kind == "ids" else f"{kind}_does_nothing"
    return Finding(severity, "importance", code, entry["name"], text, advice)
