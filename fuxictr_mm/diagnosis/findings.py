"""Findings of a diagnosis: their type and their order. Every section has its own findings, next to their thresholds."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.runs import is_falling
from fuxictr_mm.terminal import plural

#: Severities, the worst first.
PROBLEM, WARNING, NOTE = SEVERITIES = ("problem", "warning", "note")

#: An AUC drop below this is negligible, whatever its noise.
NEGLIGIBLE_AUC = 0.001

#: The same of an RMSE or MAE, as a fraction of that of the model.
NEGLIGIBLE_ERROR = 0.001

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
    """A conclusion from the figures of one section."""

    severity: str  #: ``problem``, ``warning`` or ``note``.
    section: str  #: Key of the section in the diagnosis.
    code: str  #: Stable name of the kind of finding.
    subject: str  #: The part of the model or of the data.
    #: What was found, and what to do.
    text: str
    advice: str


@dataclass(frozen=True)
class Scale:
    """The metric that parts of a model are measured by, and which of its changes count."""

    metric: str = "AUC"  #: ``AUC``; of a regression ``RMSE`` or ``MAE``.
    negligible: float = NEGLIGIBLE_AUC  #: A change below this is negligible, whatever its noise.

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Scale:
        """Return that of a diagnosis."""
        metric = result.get("metric", "AUC")
        return cls() if metric == "AUC" else cls(metric, NEGLIGIBLE_ERROR * result["metrics"][metric.lower()])

    def is_negligible(self, cost: float, noise: float) -> bool:
        """Whether a cost, or a gain, is within its noise or negligible.

        Examples
        --------
        >>> [Scale().is_negligible(*pair) for pair in ((0.0, 0.0), (0.004, 0.005), (0.02, 0.005), (-0.02, 0.005))]
        [True, True, False, False]
        """
        return abs(cost) <= max(noise, self.negligible)

    def find_harmful(self, section: str, subject: str, change: str, cost: float, noise: float) -> Iterator[Finding]:
        """Yield a warning if a change of the model or of its input makes the metric better."""
        if cost < -max(2 * noise, self.negligible):  # twice: many parts are looked at
            better = f"{'lowers' if is_falling(self.metric) else 'raises'} the {self.metric}"
            text = f"{subject} is harmful: {change} {better} by {-cost:.4f} (noise {noise:.4f})"
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
