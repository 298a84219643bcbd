"""What a reduction keeps: of each modality, in each strategy, and which modality the joint PCA is made of.

With the joint components w_j of variance l_j, and w_j,m the part of w_j in the columns of modality m,
a_m = sum_j l_j |w_j,m|^2 is the variance of m that the joint PCA keeps; a_m / sum_j l_j is the share of the joint
components that m makes, and a_m / (variance of m) the share of m that they keep.
"""

from __future__ import annotations

from typing import Any

from fuxictr_mm.embeddings.reduction.reducer import APART, JOINT, Reducer, Strategy, blocks

#: A modality is drowned if it makes less than this part of an equal share of the joint components, ...
SMALL_SHARE = 0.2

#: ... or if they keep less than this part of what its own PCA in an equal share of the width keeps.
SMALL_PART = 0.5


def summarize(reducer: Reducer, prefix: str) -> dict[str, Any]:
    """Return the report as plain values.

    Keys: ``scaling``, ``whiten``, ``balance``; ``modalities`` with ``items`` (of the fit), ``missing`` and
    ``variance``; ``strategies`` with ``kept`` (share of all variance), ``kept_of`` (of each modality's) and, for the
    joint one, ``made_of`` (share of its components' variance that each modality makes); ``warnings``.
    """
    return {
        "scaling": reducer.scaling,
        "whiten": reducer.whiten,
        "balance": reducer.balance,
        "modalities": [
            {
                "name": m.name,
                "column": m.column,
                "width": m.width,
                "items": m.pca.count,
                "missing": m.missing,
                "variance": m.pca.total,
            }
            for m in reducer.modalities
        ],
        "strategies": [
            {
                "column": f"{prefix}_{s.name}",
                "strategy": s.describe(reducer.names),
                "width": s.width,
                "widths": s.widths,
                **_shares(reducer, s),
            }
            for s in reducer.strategies
        ],
        "warnings": [sentence for s in reducer.strategies if s.kind == JOINT for sentence in _drowned(reducer, s)],
    }


def _shares(reducer: Reducer, strategy: Strategy) -> dict[str, Any]:
    if strategy.kind == JOINT:
        amounts = _joint_amounts(reducer, strategy)
        kept = sum(amounts.values())
        return {
            "kept": kept / sum(reducer.joint_totals.values()),
            "kept_of": {name: amount / reducer.joint_totals[name] for name, amount in amounts.items()},
            "made_of": {name: amount / kept for name, amount in amounts.items()},
        }
    used = [m for m in reducer.modalities if m.name in strategy.widths]
    amounts = {m.name: float(m.pca.variances[: strategy.widths[m.name]].sum()) for m in used}
    return {
        "kept": sum(amounts.values()) / sum(m.pca.total for m in used),
        "kept_of": {m.name: amounts[m.name] / m.pca.total for m in used},
    }


def _joint_amounts(reducer: Reducer, strategy: Strategy) -> dict[str, float]:
    assert reducer.joint is not None
    pca = reducer.joint.keep(strategy.width)
    weighted = pca.variances @ pca.components**2
    columns = blocks(reducer.widths.values())
    return {name: float(weighted[c].sum()) for name, c in zip(reducer.names, columns, strict=True)}


def _drowned(reducer: Reducer, strategy: Strategy) -> list[str]:
    """Say which modalities the joint PCA hardly sees."""
    shares = _shares(reducer, strategy)
    made_of, kept_of = shares["made_of"], shares["kept_of"]
    equal_part = max(strategy.width // len(reducer.modalities), 1)
    loudest = max(made_of, key=made_of.__getitem__)
    apart = next((s.name for s in reducer.strategies if s.kind == APART), APART)
    remedy = f"use {apart}" if reducer.scaling != "none" else f"use {apart}, or scale the vectors (standard or l2)"
    sentences = []
    for modality in reducer.modalities:
        alone = float(modality.pca.variances[:equal_part].sum()) / modality.pca.total
        quiet = made_of[modality.name] < SMALL_SHARE / len(reducer.modalities)
        if modality.name != loudest and (quiet or kept_of[modality.name] < SMALL_PART * alone):
            sentences.append(
                f"{loudest} drowns {modality.name} in {strategy.name}: its components are "
                f"{percent(made_of[loudest])} {loudest} and {percent(made_of[modality.name])} {modality.name}, and "
                f"keep {percent(kept_of[modality.name])} of {modality.name}'s variance, of which a PCA of its own in "
                f"{equal_part} components keeps {percent(alone)}; {remedy}"
            )
    return sentences


def percent(share: float) -> str:
    """Return a share with one digit.

    Examples
    --------
    >>> percent(0.98765)
    '98.8%'
    """
    return f"{100 * share:.1f}%"


def format_report(report: dict[str, Any]) -> str:
    """Return the tables and the warnings."""
    names = [m["name"] for m in report["modalities"]]
    lines = _table(
        ["modality", "column", "width", "items", "without", "variance"],
        [
            [m["name"], m["column"], str(m["width"]), str(m["items"]), str(m["missing"]), f"{m['variance']:.6g}"]
            for m in report["modalities"]
        ],
    )
    rows = []
    for s in report["strategies"]:
        kept = [percent(s["kept_of"][name]) if name in s["kept_of"] else "-" for name in names]
        width = " + ".join(str(width) for width in s["widths"].values())
        rows.append([s["column"], s["strategy"], width, percent(s["kept"]), *kept])
    lines += ["", *_table(["column", "strategy", "width", "variance kept", *(f"of {n}" for n in names)], rows)]
    for s in report["strategies"]:
        if "made_of" in s:
            parts = ", ".join(f"{percent(share)} {name}" for name, share in s["made_of"].items())
            lines += ["", f"The components of {s['column']} are {parts}."]
    lines += [f"warning: {sentence}" for sentence in report["warnings"]]
    return "\n".join(lines)


def format_applied(report: dict[str, Any]) -> str:
    """Return what a saved reducer was applied to; what it kept is said of its own fit."""
    fit = report["fit"]
    lines = [f"{report['items']} items reduced by {report['applied']}"]
    lines += [f"  {count} without a vector of {name}" for name, count in report["missing"].items() if count]
    rows = [[s["column"], s["strategy"], str(s["width"]), percent(s["kept"])] for s in fit["strategies"]]
    items = max(m["items"] for m in fit["modalities"])
    head = ["column", "strategy", "width", f"variance kept of the {items} items of the fit"]
    return "\n".join([*lines, "", *_table(head, rows)])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]


def yaml_lines(report: dict[str, Any]) -> str:
    """Return the lines of ``feature_cols`` in dataset_config.yaml."""
    return "\n".join(
        f"- {{name: {s['column']}, active: False, dtype: float, type: embedding, source: item, "
        f"pretrain_dim: {s['width']}}}"
        for s in report["strategies"]
    )
