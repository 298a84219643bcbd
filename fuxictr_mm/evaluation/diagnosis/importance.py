"""The AUC that is lost when a field, a modality or the history says nothing any more, because it is permuted.

Breiman: Random Forests, Machine Learning 45, 2001, https://doi.org/10.1023/A:1010933404324
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fuxictr_mm.evaluation.diagnosis.delong import NORMAL_95
from fuxictr_mm.evaluation.diagnosis.field_groups import Group
from fuxictr_mm.evaluation.diagnosis.item_permutation import draw, swapped
from fuxictr_mm.evaluation.diagnosis.scoring import Cost, Scorer, with_context, with_history


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
