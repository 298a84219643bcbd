"""What a check is, and the report that collects the findings.

A check is a function that yields the faults of one *subject*: an item file, a column, a chunk of a split, two splits.
The decorator holds everything else there is to say about it, so that a check is added in one place::

    @check(Chunk, "bad-label", ERROR, "labels that are neither 0 nor 1", "0 or 1", Action.DROP_ROW)
    def bad_label(chunk: Chunk) -> Iterator[Fault]:
        yield chunk.fault(LABEL, pl.col("label").is_null())

``Report.examine(subject)`` runs the checks of a subject. A fault that a reader meets by itself is declared by
``declare`` and handed to ``Report.add``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import polars as pl

from fuxictr_mm.errors import DataError

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)


class Action(enum.Enum):
    """What ``--clean`` does about a fault; the value is how it says so, unless the check has a text of its own."""

    NOTHING = "left as it is"
    SKIP_FILE = "not copied"
    DROP_ROW = "the row is dropped (never from test)"
    DROP_ENTRY = "the id is removed from the history"
    SET_ZERO = "the embedding is set to zero"
    RESCALE = "scaled to the median norm"
    FIX_TITLE = "the title is fixed"


class Check(NamedTuple):
    """One kind of data-quality issue.

    Parameters
    ----------
    name : str
        As in ``--only``.
    severity : {"error", "warning", "info"}
        An error stops or falsifies training, a warning may harm it, an info is good to know. A fault may be milder.
    found, expected : str
        What is wrong, and what was expected instead.
    action : Action
        What cleaning does about it.
    done : str
        How cleaning says so.
    """

    name: str
    severity: str
    found: str
    expected: str
    action: Action
    done: str


@dataclass(frozen=True)
class Fault:
    """What a check found in one column.

    Parameters
    ----------
    column : str
        Empty where the file as a whole is meant.
    rows : polars.DataFrame, optional
        ``row`` (number in the file, from 0), ``id`` (of the item or user) and ``value`` of every row with the fault; no
        rows, no fault. None: the column as a whole has it.
    found, expected, severity : str
        Replace those of the check.
    file : str
        Replaces that of the subject.
    """

    column: str = ""
    rows: pl.DataFrame | None = None
    found: str = ""
    expected: str = ""
    severity: str = ""
    file: str = ""


class Measure(NamedTuple):
    """A number for the JSON report, whether there is a fault or not: nested keys, and the value."""

    keys: tuple[str, ...]
    value: Any


class Subject(Protocol):
    """What checks look at: something in a file, with rows that belong to items or users."""

    @property
    def file(self) -> str:
        """Name of the file."""

    @property
    def id_name(self) -> str:
        """``"item_id"`` or ``"user_id"``."""


#: All checks by name.
CHECKS: dict[str, Check] = {}
_FUNCTIONS: dict[type, dict[str, Callable[[Any], Any]]] = {}

Function = TypeVar("Function", bound=Callable[[Any], Any])


def declare(
    name: str, severity: str, found: str, expected: str, action: Action = Action.NOTHING, done: str = ""
) -> Check:
    """Register a check that has no function of its own; the parameters are those of ``Check``."""
    CHECKS[name] = Check(name, severity, found, expected, action, done or action.value)
    return CHECKS[name]


def check(
    subject: type,
    name: str,
    severity: str,
    found: str,
    expected: str,
    action: Action = Action.NOTHING,
    done: str = "",
) -> Callable[[Function], Function]:
    """Register the decorated function, which yields ``Fault`` and ``Measure`` of a subject of this type."""

    def register(function: Function) -> Function:
        declare(name, severity, found, expected, action, done)
        _FUNCTIONS.setdefault(subject, {})[name] = function
        return function

    return register


def functions_of(subject: type) -> dict[str, Callable[[Any], Any]]:
    """Return the functions that check a type of subject, by the names of the checks."""
    return _FUNCTIONS.get(subject, {})


@dataclass(frozen=True)
class Finding:
    """One data-quality issue in one column of one file, with every row that has it.

    Parameters
    ----------
    check, severity : str
        Name of the check; "error", "warning" or "info".
    file, column : str
        Where; ``column`` is empty where the file as a whole is meant.
    found, expected : str
        What was found and what was expected.
    id_name : str
        Whose id ``rows`` holds: ``"item_id"`` or ``"user_id"``.
    rows : polars.DataFrame
        ``row`` (number in the file, from 0), ``id`` and ``value``; null where an item has no row, or a row no id. Empty
        for an issue of the whole column.
    """

    check: str
    severity: str
    file: str
    column: str
    found: str
    expected: str
    id_name: str
    rows: pl.DataFrame

    @property
    def count(self) -> int:
        """Number of rows, or 1 for an issue of the whole column."""
        return max(self.rows.height, 1)

    def examples(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return the first rows (all by default) with id and value."""
        rows = self.rows if most is None else self.rows.head(most)
        return [{"row": row, self.id_name: key, "value": _plain(value)} for row, key, value in rows.iter_rows()]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        names = ("check", "severity", "file", "column", "found", "expected", "count")
        return {**{name: getattr(self, name) for name in names}, "rows": self.examples()}


def _plain(value: Any) -> Any:
    """Return a value with text for NaN and infinity, which JSON does not have."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Report:
    """Findings and measures of one folder.

    Parameters
    ----------
    checks : iterable of str, optional
        Names of the wanted checks, all by default; findings of others are not kept.

    Attributes
    ----------
    measures : dict
        What was measured, for the JSON report.
    """

    def __init__(self, checks: Iterable[str] | None = None) -> None:
        self.checks = set(CHECKS if checks is None else checks)
        self.measures: dict[str, Any] = {}
        self._parts: dict[tuple[str, ...], list[pl.DataFrame]] = {}

    def wants(self, *subjects: type | str) -> bool:
        """Whether a check is wanted, by its name or by what it looks at."""
        names = [[s] if isinstance(s, str) else functions_of(s) for s in subjects]
        return any(name in self.checks for some in names for name in some)

    def examine(self, subject: Subject) -> None:
        """Run the wanted checks of a subject."""
        for name, function in functions_of(type(subject)).items():
            if name not in self.checks:
                continue
            for result in function(subject):
                if isinstance(result, Measure):
                    self.measure(result)
                else:
                    self.add(CHECKS[name], subject.file, result, subject.id_name)

    def add(self, check: Check, file: str, fault: Fault, id_name: str = "item_id") -> None:
        """Add a fault; rows that come in several calls, chunk by chunk, are joined."""
        if check.name not in self.checks or (fault.rows is not None and fault.rows.is_empty()):
            return
        texts = (fault.found or check.found, fault.expected or check.expected)
        where = (fault.file or file, fault.column)
        parts = self._parts.setdefault((check.name, fault.severity or check.severity, *where, *texts, id_name), [])
        if fault.rows is not None:
            parts.append(fault.rows.select(pl.col("row", "id").cast(pl.Int64), "value"))

    def measure(self, measure: Measure) -> None:
        """Add a measure."""
        inner = self.measures
        for key in measure.keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[measure.keys[-1]] = measure.value

    @contextmanager
    def reading(self, file: Path) -> Iterator[None]:
        """Turn a file that cannot be read any further into a finding."""
        try:
            yield
        except DataError as error:
            reason = " ".join(str(error).replace(f"{file}: ", "").split())
            self.add(UNREADABLE, file.name, Fault(found=reason))

    def findings(self) -> list[Finding]:
        """Return all findings: errors first, then by file, column and check."""
        empty = pl.DataFrame(schema={"row": pl.Int64, "id": pl.Int64, "value": pl.Null})
        found = [
            Finding(*key, pl.concat(parts, how="vertical_relaxed") if parts else empty)
            for key, parts in self._parts.items()
        ]
        return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), f.file, f.column, f.check))

    @property
    def is_clean(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(severity == INFO for _, severity, *_ in self._parts)


UNREADABLE = declare("unreadable", ERROR, "cannot be read", "a complete Parquet file", Action.SKIP_FILE)


def format_findings(findings: Sequence[Finding], most: int) -> str:
    """Return findings as text: two lines each, then the first ``most`` rows of it."""
    if not findings:
        return "nothing found"
    lines = []
    for finding in findings:
        where = finding.file + (f": {finding.column}" if finding.column else "")
        lines.append(f"{finding.severity:<8}{finding.check:<22}{finding.count:>9,}  {where}")
        lines.append(f"{'':<41}{finding.found}; expected {finding.expected}")
        for example in finding.examples(most):
            row = "no row" if example["row"] is None else f"row {example['row']}"
            key = example[finding.id_name]
            value = "" if example["value"] is None else f": {_shorten(example['value'])}"
            lines.append(f"{'':<41}  {row}, {finding.id_name} {'?' if key is None else key}{value}")
        if finding.rows.height > most:
            lines.append(f"{'':<41}  and {finding.rows.height - most:,} more")
    counts = {s: sum(f.severity == s for f in findings) for s in SEVERITIES}
    lines.append(", ".join(f"{n} {s}{'s' if n != 1 and s != INFO else ''}" for s, n in counts.items()))
    return "\n".join(lines)


def _shorten(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
