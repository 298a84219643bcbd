"""Variance that the strategies of a reducer keep, and modalities that dominate others."""

from __future__ import annotations

from typing import Any

from fuxictr_mm.reduction.reducer import APART, JOINT, Reducer, Strategy

#: A modality is dominated if it has less than this fraction of an equal part of the joint components, ...
SMALL_FRACTION = 0.2


#: ... or if they keep less than this fraction of what its own PCA keeps in an equal part of the dim.
SMALL_PART = 0.5


def summarize(reducer: Reducer, prefix: str) -> dict[str, Any]:
    """Return the report as plain values.

    Keys: ``scaling``, ``whiten``, ``balance``; ``modalities`` with ``items`` (of the fit), ``missing`` and
    ``variance``; ``strategies`` with ``kept`` (fraction of all variance), ``kept_of`` (of each modality's) and, for the
    joint one, ``made_of`` (fraction of its components' variance from each modality); ``warnings``.
    """
    names = [m.name for m in reducer.modalities]
    modalities = [
        {"name": m.name, "column": m.column, "width": m.dim}
        | {"items": m.pca.count, "missing": m.missing, "variance": m.pca.total}
        for m in reducer.modalities
    ]
    strategies = [
        {"column": f"{prefix}_{s.name}", "strategy": s.describe(names), "width": s.dim, "widths": s.dims}
        | _fractions(reducer, s)
        for s in reducer.strategies
    ]
    warnings = [sentence for s in reducer.strategies if s.kind == JOINT for sentence in _dominated(reducer, s)]
    settings = {"scaling": reducer.scaling, "whiten": reducer.whiten, "balance": reducer.balance}
    return {**settings, "modalities": modalities, "strategies": strategies, "warnings": warnings}


def _fractions(reducer: Reducer, strategy: Strategy) -> dict[str, Any]:
    if strategy.kind == JOINT:
        assert reducer.joint is not None
        pca = reducer.joint.keep(strategy.dim)
        weighted = pca.variances @ pca.components**2
        amounts = {name: float(weighted[columns].sum()) for name, columns in reducer.columns.items()}
        totals = reducer.joint_totals
    else:
        used = [m for m in reducer.modalities if m.name in strategy.dims]
        amounts = {m.name: float(m.pca.variances[: strategy.dims[m.name]].sum()) for m in used}
        totals = {m.name: m.pca.total for m in used}
    kept = sum(amounts.values())
    fractions = {
        "kept": kept / sum(totals.values()),
        "kept_of": {name: amount / totals[name] for name, amount in amounts.items()},
    }
    made_of = {"made_of": {name: amount / kept for name, amount in amounts.items()}}
    return fractions | made_of if strategy.kind == JOINT else fractions


def _dominated(reducer: Reducer, strategy: Strategy) -> list[str]:
    """Return a warning for each modality that the joint PCA hardly keeps."""
    fractions = _fractions(reducer, strategy)
    made_of, kept_of = fractions["made_of"], fractions["kept_of"]
    equal_part = max(strategy.dim // len(reducer.modalities), 1)
    largest = max(made_of, key=made_of.__getitem__)
    separate = next((s.name for s in reducer.strategies if s.kind == APART), APART)
    fix = f"use {separate}" if reducer.scaling != "none" else f"use {separate}, or --scaling standard or l2"
    sentences = []
    for modality in reducer.modalities:
        alone = float(modality.pca.variances[:equal_part].sum()) / modality.pca.total
        small = made_of[modality.name] < SMALL_FRACTION / len(reducer.modalities)
        if modality.name != largest and (small or kept_of[modality.name] < SMALL_PART * alone):
            sentences.append(
                f"{largest} dominates {strategy.name}: its components are {made_of[largest]:.1%} {largest} and "
                f"{made_of[modality.name]:.1%} {modality.name}; they keep {kept_of[modality.name]:.1%} of "
                f"{modality.name}'s variance, its own PCA keeps {alone:.1%} in {equal_part} components; {fix}"
            )
    return sentences
