"""What the figures of a diagnosis say, in plain sentences.

Each threshold is a constant here and is explained in ``docs/diagnosis.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Severities, the worst first.
PROBLEM, WARNING, NOTE = SEVERITIES = ("problem", "warning", "note")

#: Attention whose entropy is above this share of that of uniform weights, and ...
UNIFORM_RATIO = 0.98

#: ... a loss of AUC below this or below its noise: nothing.
NEGLIGIBLE_AUC = 0.001

#: A head that adds less than this share of what the loudest head adds is silent.
SILENT_HEAD = 0.01

#: Heads whose weights differ by less than this many bits attend alike.
ALIKE_BITS = 0.001

#: A modality that costs this many times less than another is drowned by it.
IMBALANCE = 10.0

#: SENet weights whose deviation over all rows and fields is below this share of their mean weigh nothing.
CONSTANT_GATE = 0.01

#: A field whose weight is below this share of the largest field's is shut out.
CLOSED_GATE = 0.05

#: Share of items without a vector that is worth a word.
MISSING_VECTORS = 0.05

#: Vectors with fewer directions than this vary along a line, more or less.
COLLAPSED_RANK = 2.0

#: An expected calibration error above this, and above its noise, is a fault.
CALIBRATION_ERROR = 0.05

#: A slope further from 1 than this says that the model is too sure of itself, or not sure enough.
SLOPE_TOLERANCE = 0.2

#: A bucket of rows whose whole interval is this far below the AUC of all rows is weak.
WEAK_BUCKET = 0.02


#: Findings that something does nothing: without meaning where the model as a whole does nothing.
DOES_NOTHING = frozenset(
    {
        "uniform_attention",
        "silent_head",
        "attention_does_nothing",
        "modality_does_nothing",
        "ids_do_nothing",
        "context_does_nothing",
        "history_does_nothing",
        "field_does_nothing",
    }
)


def find(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a diagnosis says, the worst first.

    Returns
    -------
    list of dict
        ``severity`` ("problem", "warning" or "note"), ``section`` (key of the diagnosis), ``code`` (stable name of the
        kind of finding), ``subject`` (what it is about), ``text`` and ``advice``.
    """
    found: list[dict[str, Any]] = []
    for part in (_attention, _heads, _senet, _importance, _vectors, _calibration, _buckets):
        found += part(result)
    if at_chance := list(_chance(result)):
        found = at_chance + [finding for finding in found if finding["code"] not in DOES_NOTHING]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding["severity"]))


def is_unread(entry: Mapping[str, Any]) -> bool:
    """Whether no permutation changed the order of any two rows: neither the loss nor its noise is more than 0."""
    return entry["auc_lost"] == 0 and entry["deviation"] == 0 and entry["noise"] == 0


def is_nothing(auc_lost: float, noise: float) -> bool:
    """Whether a loss of AUC is within its noise or negligible.

    Examples
    --------
    >>> is_nothing(0.0, 0.0), is_nothing(0.004, 0.005), is_nothing(0.02, 0.005)
    (True, True, False)
    """
    return auc_lost <= max(noise, NEGLIGIBLE_AUC)


def _finding(severity: str, section: str, code: str, subject: str, text: str, advice: str) -> dict[str, Any]:
    return {
        "severity": severity,
        "section": section,
        "code": code,
        "subject": subject,
        "text": text,
        "advice": advice,
    }


def _chance(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    metrics = result["metrics"]
    if metrics["low"] <= 0.5 <= metrics["high"]:
        yield _finding(
            PROBLEM,
            "metrics",
            "model_at_chance",
            "model",
            f"the model ranks the rows as chance would: AUC {metrics['auc']:.4f}, and its interval "
            f"({metrics['low']:.4f} to {metrics['high']:.4f}) holds 0.5",
            "nothing can be said of its parts: see whether the training loss falls, run fuxictr-mm check-data, and "
            "look at more rows if the interval is wide",
        )


def _attention(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in result.get("attention", []):
        ratio, lost, noise = entry["entropy_ratio"], entry["uniform_auc_lost"], entry["uniform_noise"]
        if ratio is None or ratio <= UNIFORM_RATIO or not is_nothing(lost, noise):
            continue
        yield _finding(
            PROBLEM,
            "attention",
            "uniform_attention",
            entry["name"],
            f"{entry['name']} attends uniformly: its weights have {ratio:.1%} of the entropy of uniform ones, and "
            f"making them uniform costs {lost:.4f} AUC (noise {noise:.4f})",
            "it does what a mean would do: train longer or with a higher learning rate, use fewer heads or a larger "
            "attention_dim, or take interest: mean",
        )


def _heads(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in result.get("heads", []):
        name, loudest = entry["attention"], max(head["output_norm"] for head in entry["heads"])
        for head in entry["heads"]:
            if head["output_norm"] > SILENT_HEAD * loudest or not is_nothing(
                head["removed_auc_lost"], head["removed_noise"]
            ):
                continue
            what = "zero" if head["output_norm"] == 0 else f"{head['output_share']:.2%} of that of all heads"
            yield _finding(
                PROBLEM,
                "heads",
                "silent_head",
                f"{name} head {head['head']}",
                f"head {head['head']} of {name} does nothing: removing it costs {head['removed_auc_lost']:.4f} AUC; "
                f"its output is {what}",
                "if it was not set to zero by hand, use fewer heads or less weight decay on the attention",
            )
        if entry["divergence"] is not None and entry["divergence"] < ALIKE_BITS and not _is_uniform(result, name):
            yield _finding(
                NOTE,
                "heads",
                "heads_alike",
                name,
                f"the heads of {name} attend alike: their weights differ by {entry['divergence']:.5f} of 1 bit",
                "fewer heads, or one, may do as well",
            )
        if is_nothing(entry["all_removed_auc_lost"], entry["all_removed_noise"]):
            yield _finding(
                WARNING,
                "heads",
                "attention_does_nothing",
                name,
                f"the model makes no use of {name} that shows: without its output it loses "
                f"{entry['all_removed_auc_lost']:.4f} AUC (noise {entry['all_removed_noise']:.4f})",
                "see what permuting the history costs; another way from the history to the logit may do the work",
            )


def _is_uniform(result: Mapping[str, Any], name: str) -> bool:
    return any(f["subject"] == name for f in _attention(result))


def _senet(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in result.get("senet", []):
        fields = entry["fields"]
        means = [field["mean"] for field in fields]
        mean = sum(means) / len(means)
        spread = (sum(f["deviation"] ** 2 + (f["mean"] - mean) ** 2 for f in fields) / len(fields)) ** 0.5
        if mean > 0 and spread < CONSTANT_GATE * mean:
            yield _finding(
                WARNING,
                "senet",
                "senet_constant",
                entry["name"],
                f"{entry['name']} gives every field the same weight ({mean:.3f}, deviation {spread:.4f})",
                "it weighs nothing: train longer, or leave it out (senet: False)",
            )
        for field in fields:
            if field["high"] <= CLOSED_GATE * max(means):
                yield _finding(
                    NOTE,
                    "senet",
                    "senet_closed",
                    field["field"],
                    f"{entry['name']} shuts {field['field']} out: its weight is {field['mean']:.4f} on average, that "
                    f"of the strongest field {max(means):.3f}",
                    "see what permuting the field costs",
                )


def _importance(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    groups = result["importance"]["groups"]
    told: set[str] = set()
    for group in groups:
        if group["kind"] == "vectors" or not is_nothing(group["auc_lost"], group["noise"]):
            continue
        told |= set(group["fields"])
        yield _unread(group) if is_unread(group) else _useless_group(group)
    useful = [g for g in groups if g["kind"] == "modality" and not is_nothing(g["auc_lost"], g["noise"])]
    if len(useful) > 1:
        weakest, strongest = (choose(useful, key=lambda g: g["auc_lost"]) for choose in (min, max))
        if strongest["auc_lost"] > IMBALANCE * weakest["auc_lost"]:
            yield _finding(
                WARNING,
                "importance",
                "modality_imbalance",
                weakest["name"],
                f"the {strongest['name']} drowns the {weakest['name']}: permuting it costs {strongest['auc_lost']:.4f} "
                f"AUC against {weakest['auc_lost']:.4f}",
                "reduce each modality on its own (strategy V4) and scale them alike; train each alone to see what it "
                "could give",
            )
    for field in result["importance"]["fields"]:
        if field["name"] in told or not is_nothing(field["auc_lost"], field["noise"]):
            continue
        if is_unread(field):
            yield _unread(field)
        else:
            yield _finding(
                NOTE,
                "importance",
                "field_does_nothing",
                field["name"],
                f"{field['name']} does nothing that shows: permuting it costs {_cost(field)}",
                "train without it and compare",
            )


def _unread(entry: Mapping[str, Any]) -> dict[str, Any]:
    whole = {"modality": f"the modality {entry['name']}", "ids": "the ids of items", "context": "the context"}
    who = {**whole, "history": "the history"}.get(entry["kind"], entry["name"])
    fields = f" ({', '.join(entry['fields'])})" if entry["kind"] in whole and entry["fields"] else ""
    return _finding(
        NOTE,
        "importance",
        "not_read",
        entry["name"],
        f"the model does not read {who}{fields}: permuting changes no prediction's place",
        "if it should, take a model that uses it; else leave it out",
    )


def _useless_group(group: Mapping[str, Any]) -> dict[str, Any]:
    fields = f" ({', '.join(group['fields'])})" if group["fields"] else ""
    if group["kind"] == "modality":
        return _finding(
            PROBLEM,
            "importance",
            "modality_does_nothing",
            group["name"],
            f"the modality {group['name']} does nothing that shows{fields}: permuting it costs {_cost(group)}",
            "its vectors may be noise, those of other items, or drowned by another field: run fuxictr-mm check-data, "
            "look at the neighbours of items, train without it",
        )
    codes = {
        "ids": ("ids_do_nothing", "the ids of items do"),
        "context": ("context_does_nothing", "the context does"),
        "history": ("history_does_nothing", "the history does"),
    }
    code, who = codes[group["kind"]]
    text = f"{who} nothing that shows{fields}: permuting costs {_cost(group)}"
    return _finding(WARNING, "importance", code, group["name"], text, "train without and compare")


def _cost(entry: Mapping[str, Any]) -> str:
    return f"{entry['auc_lost']:.4f} AUC (noise {entry['noise']:.4f})"


def _vectors(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in result.get("vectors", []):
        if entry["zero_share"] > MISSING_VECTORS:
            yield _finding(
                WARNING,
                "vectors",
                "vectors_missing",
                entry["column"],
                f"{entry['zero_share']:.1%} of {entry['items']} items have no {entry['column']} (all zeros)",
                "encode the missing titles or images; until then the model tells these items by their ids",
            )
        if entry["width"] > COLLAPSED_RANK and 0 < entry["effective_rank"] < COLLAPSED_RANK:
            yield _finding(
                WARNING,
                "vectors",
                "vectors_collapsed",
                entry["column"],
                f"{entry['column']} varies in {entry['effective_rank']:.1f} of {entry['width']} directions",
                "the vectors hardly tell items apart: encode them anew, or scale them before the reduction",
            )


def _calibration(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    entry = result["calibration"]
    error = entry["expected_calibration_error"]
    if error > max(CALIBRATION_ERROR, entry["noise"]):
        yield _finding(
            PROBLEM,
            "calibration",
            "miscalibrated",
            "predictions",
            f"predictions are off by {error:.3f} on average (noise {entry['noise']:.3f}): they say "
            f"{entry['mean_prediction']:.3f} where the rate of clicks is {entry['rate']:.3f}",
            "ranking is not touched; before using them as probabilities, fit intercept and slope on held-out rows",
        )
    slope = entry["slope"]
    if slope is not None and abs(slope - 1) > SLOPE_TOLERANCE:
        yield _finding(
            NOTE,
            "calibration",
            "overconfident" if slope < 1 else "underconfident",
            "predictions",
            f"the model is {'too' if slope < 1 else 'not'} sure {'of itself' if slope < 1 else 'enough'}: logits fit "
            f"the clicks best when multiplied by {slope:.2f}",
            "more regularization or fewer epochs" if slope < 1 else "train longer, or with less regularization",
        )


def _buckets(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    overall = result["metrics"]["auc"]
    for section, what in (("popularity", "clicks in training"), ("history_length", "items of history")):
        weak = [e for e in result.get(section, []) if e["auc"] is not None and e["high"] < overall - WEAK_BUCKET]
        for entry in weak:
            if entry.get("cold"):
                yield _finding(
                    WARNING,
                    section,
                    "weak_on_cold_items",
                    entry["name"],
                    _weak(entry, "items that training never shows", overall),
                    "their vectors should carry them: see what the modalities cost when permuted, and try vectors "
                    "without ids",
                )
        others = [e for e in weak if not e.get("cold")]
        if others:
            entry = min(others, key=lambda e: e["auc"])
            more = f"; {len(others) - 1} more such groups" if len(others) > 1 else ""
            yield _finding(
                NOTE,
                section,
                f"weak_by_{section}",
                entry["name"],
                _weak(entry, f"rows with {entry['name']} {what}", overall) + more,
                "compare with another model on these rows: they may be hard for any",
            )


def _weak(entry: Mapping[str, Any], rows: str, overall: float) -> str:
    interval = f"{entry['low']:.3f} to {entry['high']:.3f}"
    return f"AUC is {entry['auc']:.3f} ({interval}) on {entry['rows']} {rows}, and {overall:.3f} on all rows"
