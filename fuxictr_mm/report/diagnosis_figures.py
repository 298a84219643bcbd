"""Content of the page from a diagnosis: a figure for each section, findings, neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fuxictr_mm.report.drawing import ACCENT, INK, MUTED, SERIES, Dot, Line, Panel, Plot, dots, lines
from fuxictr_mm.runs import cost_name, is_falling
from fuxictr_mm.terminal import decimal, listed, number, plural, signed

#: Rows in one plot; further rows are left out.
MOST_DIAGNOSIS_ROWS = 24


def plot_diagnosis(diagnosis: Mapping[str, Any]) -> tuple[list[Plot], list[str]]:
    """Return a plot for each section, and the sections that cannot be read."""
    plots: list[Plot] = []
    notes: list[str] = []
    for section, build in SECTIONS.items():
        if not diagnosis.get(section):
            continue
        try:
            plots += build(diagnosis[section], diagnosis)
        # The file may have another version; unreadable sections are noted on the page.
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            notes.append(f"section {section} cannot be read ({type(error).__name__}: {error})")
    return plots, notes


def _drop(name: str, drop: float, noise: float, colour: str) -> Dot:
    return Dot(name, drop, drop - noise, drop + noise, MUTED if abs(drop) <= noise else colour)


def _metric(diagnosis: Mapping[str, Any]) -> str:
    return str(diagnosis.get("metric", "AUC"))


def _falls(diagnosis: Mapping[str, Any]) -> str:
    """Return what the metric does without a part."""
    return f"the {_metric(diagnosis)} {'rises' if is_falling(_metric(diagnosis)) else 'drops'}"


def _without_gain(
    drops: Sequence[tuple[str, float, float]], harmful: Sequence[str], diagnosis: Mapping[str, Any]
) -> str:
    """Return a sentence on parts without an effect, and on harmful ones, given the AUC drop and noise of each."""
    idle = [name for name, drop, noise in drops if abs(drop) <= noise]
    found = [f"No more than noise: {listed(idle)}."] if idle else []
    better = f"the {_metric(diagnosis)} {'drops' if is_falling(_metric(diagnosis)) else 'rises'}"
    found += [f"Harmful, {better}: {listed(harmful)}."] if harmful else []
    return " ".join(found) or ("Each has an effect above noise." if all(drop > 0 for _, drop, _ in drops) else "")


def _harmful(diagnosis: Mapping[str, Any], section: str, subjects: Mapping[str, str]) -> list[str]:
    """Return the values of the subjects of a section that a finding calls harmful."""
    warned = {
        f.get("subject") for f in _findings(diagnosis) if (f.get("section"), f.get("code")) == (section, "harmful")
    }
    return [name for subject, name in subjects.items() if subject in warned]


def _importance(section: Any, diagnosis: Mapping[str, Any]) -> Iterator[Plot]:
    for part, title in (
        ("groups", "Importance of feature groups"),
        ("fields", "Importance of fields"),
    ):
        entries = sorted(section.get(part, []), key=lambda e: -e["auc_lost"])
        if not entries:
            continue
        drops = [(e["name"], e["auc_lost"], e["noise"]) for e in entries]
        kinds = [" (embeddings)" if e.get("kind") == "vectors" else "" for e in entries]
        rows = [
            _drop(f"{name}{kind}", drop, noise, SERIES[0])
            for (name, drop, noise), kind in zip(drops[:MOST_DIAGNOSIS_ROWS], kinds, strict=False)
        ]
        name, drop, noise = drops[0]
        harmful = _harmful(diagnosis, "importance", {name: name for name, _, _ in drops})
        costs_most = f"Permuting {name} costs most: {decimal(drop)} {_metric(diagnosis)} (±\u00a0{decimal(noise)})."
        caption = f"{costs_most} {_without_gain(drops, harmful, diagnosis)}".strip()
        yield dots(
            title,
            caption,
            rows,
            f"{cost_name(_metric(diagnosis))} when permuted, ± 95 % noise",
            reference=0.0,
            bars=True,
        )


def _attention(section: Any, diagnosis: Mapping[str, Any]) -> Iterator[Plot]:
    panel_lines, sentences, names = [], [], []
    for entry in section:
        for bucket in entry["by_length"]:
            if bucket["name"] not in names:
                names.append(bucket["name"])
    names.sort(key=_first_number)
    for entry, colour in zip(section, SERIES, strict=False):
        known = [b for b in entry["by_length"] if number(b["entropy_ratio"]) is not None]
        if not known:
            continue
        x = [float(names.index(b["name"])) for b in known]
        panel_lines.append(Line(x, [b["entropy_ratio"] for b in known], entry["name"], colour))
        first, last = known[0], known[-1]
        by_length = [f"{decimal(b['entropy_ratio'], 3)} for {b['name']}" for b in (first, last)]
        sentences.append(
            f"{entry['name']}: {decimal(entry['entropy_ratio'], 3)} over all rows, {' and '.join(by_length)} items of "
            f"history; with uniform weights {_falls(diagnosis)} by {decimal(entry['uniform_auc_lost'])} "
            f"(±\u00a0{decimal(entry['uniform_noise'])})."
        )
    if panel_lines:
        even = Line([0.0, float(max(len(names) - 1, 1))], [1.0, 1.0], "uniform", MUTED, dashed=True, dots=False)
        yield lines(
            "Attention entropy by length of history",
            f"Entropy of the weights relative to uniform weights. {' '.join(sentences)} At 1, attention does not "
            "select.",
            [Panel([even, *panel_lines], "entropy / uniform", names)],
            "items of history",
        )


def _heads(section: Any, diagnosis: Mapping[str, Any]) -> Iterator[Plot]:
    for entry in section:
        heads = entry["heads"]
        drops = [(f"head {h['head']}", h["removed_auc_lost"], h["removed_noise"]) for h in heads]
        rows = [
            _drop(f"{name} ({h['output_share']:.0%} of output)", drop, noise, SERIES[2])
            for (name, drop, noise), h in zip(drops[:MOST_DIAGNOSIS_ROWS], heads, strict=False)
        ]
        if not rows:
            continue
        top = max(heads, key=lambda h: h["removed_auc_lost"])
        subjects = {f"{entry['attention']} head {h['head']}": f"head {h['head']}" for h in heads}
        subjects[entry["attention"]] = "all of it"
        harmful = _harmful(diagnosis, "heads", subjects)
        caption = (
            f"Of {plural(len(heads), 'head')} of {entry['attention']}, head {top['head']} contributes most: without it "
            f"{_falls(diagnosis)} by {decimal(top['removed_auc_lost'])}, without all heads by "
            f"{decimal(entry['all_removed_auc_lost'])}. {_without_gain(drops, harmful, diagnosis)}"
        ).strip()
        label = f"{cost_name(_metric(diagnosis))} without the head, ± 95 % noise"
        yield dots(f"Heads of {entry['attention']}", caption, rows, label, reference=0.0, bars=True)


def _senet(section: Any, _: Mapping[str, Any]) -> Iterator[Plot]:
    for entry in section:
        fields = sorted(entry["fields"], key=lambda f: -f["mean"])
        rows = [Dot(f["field"], f["mean"], f["low"], f["high"], SERIES[3]) for f in fields[:MOST_DIAGNOSIS_ROWS]]
        if rows:
            caption = (
                f"{fields[0]['field']} has the largest weight, {decimal(fields[0]['mean'], 3)} on average, "
                f"{fields[-1]['field']} the smallest, {decimal(fields[-1]['mean'], 3)}. "
                "Whiskers: 5 % to 95 % of the rows."
            )
            yield dots(f"Field weights of {entry['name']}", caption, rows, "weight")


def _calibration(section: Any, _: Mapping[str, Any]) -> Iterator[Plot]:
    curve = section["curve"]
    x, y = [b["mean_prediction"] for b in curve], [b["rate"] for b in curve]
    if not curve:
        return
    top = min(1.0, 1.08 * max([*x, *(b["high"] for b in curve)]))
    ideal = Line([0.0, top], [0.0, top], "as predicted", MUTED, dashed=True, dots=False)
    observed = Line(x, y, "observed", SERIES[0], low=[b["low"] for b in curve], high=[b["high"] for b in curve])
    error, noise = section["expected_calibration_error"], section["noise"]
    met = "within the noise of true probabilities" if error <= noise else "more than the noise of true probabilities"
    slope = "" if number(section.get("slope")) is None else f" Slope of the logits {decimal(section['slope'], 2)}."
    caption = (
        f"Expected calibration error {decimal(error)}, {met} (95 % quantile of the noise: {decimal(noise)}). Mean "
        f"prediction {decimal(section['mean_prediction'], 3)}, rate of clicks {decimal(section['rate'], 3)}.{slope}"
    )
    yield lines("Reliability", caption, [Panel([ideal, observed], "rate of clicks")], "mean prediction", square=True)


def _slices(title: str, what: str) -> Callable[[Any, Mapping[str, Any]], Iterator[Plot]]:
    def build(section: Any, diagnosis: Mapping[str, Any]) -> Iterator[Plot]:
        key = _metric(diagnosis).lower()
        counted, named = (text if key == "auc" else text.replace("clicks", "rows") for text in (what, title))
        known = [e for e in section if number(e[key]) is not None]
        if not known:
            return
        overall = number(diagnosis.get("metrics", {}).get(key))
        rows = [
            Dot(f"{e['name']} ({e['rows']:,} rows)", e[key], e["low"], e["high"], ACCENT if e.get("cold") else INK)
            for e in known[:MOST_DIAGNOSIS_ROWS]
        ]
        low, high = (choose(known, key=lambda e: e[key]) for choose in (min, max))
        caption = (
            f"Lowest on rows with {low['name']} {counted}, {decimal(low[key], 3)} ({decimal(low['low'], 3)} to "
            f"{decimal(low['high'], 3)}), highest on {high['name']}, {decimal(high[key], 3)}."
        )
        caption += "" if overall is None else f" Dashed: all rows, {decimal(overall, 3)}."
        metric = _metric(diagnosis)
        yield dots(f"{metric} {named}", caption, rows, f"{metric}, 95 % interval", reference=overall)

    return build


def _vectors(section: Any, _: Mapping[str, Any]) -> Iterator[Plot]:
    curves, sentences = [], []
    for entry, colour in zip(section, SERIES, strict=False):
        x, y = [p["components"] / entry["width"] for p in entry["kept"]], [p["kept"] for p in entry["kept"]]
        curves.append(Line(x, y, entry["column"], colour, dots=entry["width"] < 32))
        reduction = entry.get("reduction")
        kept = f", its reduction kept {reduction['kept']:.1%}" if reduction else ""
        sentences.append(
            f"{entry['column']}: {entry['components_90']} of {entry['width']} directions hold 90 % of the variance, "
            f"effective rank {decimal(entry['effective_rank'], 1)}{kept}."
        )
    if curves:
        ninety = Line([0.0, 1.0], [0.9, 0.9], "", MUTED, dashed=True, dots=False)
        panel = Panel([ninety, *curves], "fraction of variance")
        yield lines("Spectrum of the embeddings", " ".join(sentences), [panel], "fraction of directions, largest first")


def _first_number(name: str) -> int:
    digits = re.match(r"\d+", name)
    return int(digits[0]) if digits else 0


#: Section of diagnosis.json, and the function that plots it.
SECTIONS: dict[str, Callable[[Any, Mapping[str, Any]], Iterator[Plot]]] = {
    "importance": _importance,
    "attention": _attention,
    "heads": _heads,
    "senet": _senet,
    "calibration": _calibration,
    "popularity": _slices("by clicks of the item in training", "clicks in training"),
    "history_length": _slices("by length of history", "items of history"),
    "vectors": _vectors,
}


def findings_of(diagnosis: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return severity, text and advice of the findings, as texts."""
    return [{key: str(f.get(key, "")) for key in ("severity", "text", "advice")} for f in _findings(diagnosis)]


def _findings(diagnosis: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = diagnosis.get("findings")
    return [f for f in found if isinstance(f, Mapping)] if isinstance(found, list) else []


def neighbours_of(diagnosis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a few items with their nearest neighbours by each embedding, as texts."""
    found: list[dict[str, Any]] = []
    sections: Any = diagnosis.get("neighbours")
    for item in sections if isinstance(sections, list) else []:
        try:
            columns = [
                {
                    "column": str(c["column"]),
                    "neighbours": [f"{_item(n)} ({decimal(n['cosine'], 2)})" for n in c["neighbours"][:3]],
                }
                for c in item["columns"]
            ]
            found.append({"item": _item(item), "clicks": signed(item.get("clicks"), 0).lstrip("+"), "columns": columns})
        except (KeyError, TypeError, AttributeError):
            continue  # an entry of another version; the others are shown
    return found


def severities(findings: Sequence[Mapping[str, str]]) -> str:
    """Count findings by severity.

    Examples
    --------
    >>> severities([{"severity": "note"}, {"severity": "note"}, {"severity": "problem"}])
    '1 problem, 2 notes'
    """
    counts = [(s, sum(f["severity"] == s for f in findings)) for s in ("problem", "warning", "note")]
    return ", ".join(plural(n, s) for s, n in counts if n) or "no findings"


def _item(item: Mapping[str, Any]) -> str:
    title = item.get("title")
    return f"{item['item_id']} {title}" if title else str(item["item_id"])
