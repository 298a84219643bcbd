"""Findings of a diagnosis: their type and their order. Every section has its own findings, next to their thresholds."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fuxictr_mm.terminal import plural

#: Severities, the worst first.
PROBLEM, WARNING, NOTE = SEVERITIES = ("problem", "warning", "note")

#: An AUC drop below this is negligible, whatever its noise.
NEGLIGIBLE_AUC = 0.001

MODEL_AT_CHANCE = "model_at_chance"

#: Findings that a part of the model has no effect, or a bad one: meaningless where the whole model ranks at random.
NO_EFFECT = frozenset(
    {
        "uniform_attention",
        "silent_head",
        "attention_does_nothing",
        "modality_does_nothing",
        "ids_do_nothing",
        "context_does_nothing",
        "history_does_nothing",
        "field_does_nothing",
        "harmful",
    }
)

WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """A conclusion from the figures of one section.

    Parameters
    ----------
    severity : {"problem", "warning", "note"}
        How much it matters.
    section : str
        Key of the section in the diagnosis.
    code : str
        Stable name of the kind of finding.
    subject : str
        The part of the model or of the data.
    text, advice : str
        What was found, and what to do.
    """

    severity: str
    section: str
    code: str
    subject: str
    text: str
    advice: str


def is_negligible(auc_drop: float, noise: float) -> bool:
    """Whether an AUC drop, or rise, is within its noise or below ``NEGLIGIBLE_AUC``.

    Examples
    --------
    >>> is_negligible(0.0, 0.0), is_negligible(0.004, 0.005), is_negligible(0.02, 0.005), is_negligible(-0.02, 0.005)
    (True, True, False, False)
    """
    return abs(auc_drop) <= max(noise, NEGLIGIBLE_AUC)


def find_harmful(section: str, subject: str, change: str, auc_drop: float, noise: float) -> Iterator[Finding]:
    """Yield a warning if a change of the model or of its input raises the AUC."""
    if auc_drop < -max(2 * noise, NEGLIGIBLE_AUC):  # twice: many parts are looked at
        text = f"{subject} is harmful: {change} raises the AUC by {-auc_drop:.4f} (noise {noise:.4f})"
        advice = "it may overfit the training examples: train without it, or with more regularization, and compare"
        yield Finding(WARNING, section, "harmful", subject, text, advice)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings, the worst first; of a model that ranks at random without those in ``NO_EFFECT``."""
    found = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    if any(finding.code == MODEL_AT_CHANCE for finding in found):
        found = [finding for finding in found if finding.code not in NO_EFFECT]
    return found


def format_findings(findings: Sequence[Mapping[str, str]]) -> str:
    """Return the findings of a diagnosis for a terminal, wrapped."""
    if not findings:
        return "findings: none"
    counts = [(sum(f["severity"] == severity for f in findings), severity) for severity in SEVERITIES]
    lines = ["findings: " + ", ".join(plural(count, severity) for count, severity in counts if count)]
    for finding in findings:
        text = f"{finding['severity']}: {finding['text']}. Advice: {finding['advice']}."
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)
