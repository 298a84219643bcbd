"""A diagnosis as text for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from fuxictr_mm.evaluation.diagnosis.findings import SEVERITIES

WIDTH = 110


def format_summary(result: Mapping[str, Any]) -> str:
    """Return the figures section by section, then the findings."""
    parts = [_head(result)]
    for section in (_attention, _heads, _senet, _importance, _vectors, _calibration, _slices, _neighbours):
        parts += section(result)
    parts += [f"no {name}: {reason}" for name, reason in result["absent"].items()]
    return "\n\n".join([*parts, format_findings(result["findings"])])


def format_findings(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return the findings with advice, wrapped."""
    if not findings:
        return "findings: none"
    counts = [(severity, sum(f["severity"] == severity for f in findings)) for severity in SEVERITIES]
    lines = ["findings: " + ", ".join(f"{n} {s}{'s' if n > 1 else ''}" for s, n in counts if n)]
    for finding in findings:
        lines += textwrap.wrap(
            f"{finding['severity']}: {finding['text']}. Advice: {finding['advice']}.",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    return "\n".join(lines)


def _head(result: Mapping[str, Any]) -> str:
    metrics = result["metrics"]
    of = "" if result["rows"] == result["rows_in_split"] else f" of {result['rows_in_split']}"
    named = " ".join(str(result[key]) for key in ("expid", "run", "split") if result.get(key))
    return (
        f"{named or 'diagnosis'}: AUC {metrics['auc']:.4f} ({metrics['low']:.4f} to {metrics['high']:.4f}), logloss "
        f"{metrics['logloss']:.4f}, {result['rows']}{of} rows; {result['passes']} passes in {result['seconds']:.1f} s"
    )


def _attention(result: Mapping[str, Any]) -> list[str]:
    if "attention" not in result:
        return []
    rows = [
        [
            e["name"],
            e["kind"],
            _number(e["entropy_ratio"], 3),
            " ".join(f"{b['name']}: {_number(b['entropy_ratio'], 3)}" for b in e["by_length"]),
            _loss(e["uniform_auc_lost"], e["uniform_noise"]),
        ]
        for e in result["attention"]
    ]
    return [_table(["attention", "kind", "entropy / uniform", "by items of history", "AUC lost if uniform"], rows)]


def _heads(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for entry in result.get("heads", []):
        for head in entry["heads"]:
            rows.append(
                [
                    f"{entry['attention']} {head['head']}",
                    f"{head['output_share']:.1%}",
                    _loss(head["removed_auc_lost"], head["removed_noise"]),
                    _loss(head["alone_auc_lost"], head["alone_noise"]),
                ]
            )
        if entry["num_heads"] > 1:
            everything = _loss(entry["all_removed_auc_lost"], entry["all_removed_noise"])
            rows.append([f"{entry['attention']} all", "100.0%", everything, "-"])
    return [_table(["head", "of output", "AUC lost without it", "AUC lost with it alone"], rows)] if rows else []


def _senet(result: Mapping[str, Any]) -> list[str]:
    return [
        _table(
            [f"{entry['name']}: field", "mean weight", "deviation"],
            [[f["field"], f"{f['mean']:.3f}", f"{f['deviation']:.3f}"] for f in entry["fields"]],
        )
        for entry in result.get("senet", [])
    ]


def _importance(result: Mapping[str, Any]) -> list[str]:
    entries = [*result["importance"]["fields"], *result["importance"]["groups"]]
    rows = [
        [e["name"], e["kind"], _loss(e["auc_lost"], e["noise"]), f"{e['deviation']:.4f}", ", ".join(e["fields"])]
        for e in sorted(entries, key=lambda e: (e["kind"] == "field", -e["auc_lost"]))
    ]
    return [_table(["permuted", "kind", "AUC lost", "deviation", "fields"], rows)]


def _vectors(result: Mapping[str, Any]) -> list[str]:
    if "vectors" not in result:
        return []
    rows = [
        [
            e["column"],
            str(e["width"]),
            f"{e['effective_rank']:.1f}",
            f"{e['participation_ratio']:.1f}",
            str(e["components_90"]),
            f"{e['zero_share']:.1%}",
            f"{e['norm_mean']:.3g}",
            f"{e['reduction']['kept']:.1%}" if e["reduction"] else "-",
        ]
        for e in result["vectors"]
    ]
    head = ["vectors", "width", "effective rank", "participation", "for 90 %", "missing", "length", "reduction kept"]
    return [_table(head, rows)]


def _calibration(result: Mapping[str, Any]) -> list[str]:
    entry = result["calibration"]
    slope = "" if entry["slope"] is None else f", slope {entry['slope']:.2f}, intercept {entry['intercept']:+.2f}"
    return [
        f"calibration: expected error {entry['expected_calibration_error']:.4f} (noise {entry['noise']:.4f}), mean "
        f"prediction {entry['mean_prediction']:.4f}, rate {entry['rate']:.4f}{slope}"
    ]


def _slices(result: Mapping[str, Any]) -> list[str]:
    tables = []
    for section, what in (("popularity", "clicks in training"), ("history_length", "items of history")):
        rows = [
            [
                e["name"],
                str(e["rows"]),
                str(e["positives"]),
                _number(e["auc"], 4),
                "-" if e["low"] is None else f"{e['low']:.3f} to {e['high']:.3f}",
            ]
            for e in result.get(section, [])
        ]
        if rows:
            tables.append(_table([what, "rows", "clicks", "AUC", "interval"], rows))
    return tables


def _neighbours(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for item in result.get("neighbours", [])[:2]:
        lines.append(f"nearest to {_item(item)}, {item['clicks']} clicks:")
        for column in item["columns"]:
            near = "; ".join(f"{_item(n)} ({n['cosine']:.2f})" for n in column["neighbours"][:3])
            lines.append(f"  {column['column']}: {near or 'it has no vector'}")
    return ["\n".join(lines)] if lines else []


def _item(item: Mapping[str, Any]) -> str:
    return f"{item['item_id']} {textwrap.shorten(item['title'], 40)!r}" if item["title"] else str(item["item_id"])


def _loss(lost: float, noise: float) -> str:
    return f"{lost:+.4f} ± {noise:.4f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    )
