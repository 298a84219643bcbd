"""Definition of a check, and the report that collects the findings.

A check is a function that yields the faults of one *subject*: an item file, a column, a chunk of a split, two splits.
Its name is that of the check, its docstring says what is wrong, and the decorator holds the rest::

    @check(Chunk, ERROR, "0 or 1", Action.DROP_ROW)
    def bad_label(chunk: Chunk) -> Iterator[Fault]:
        \"\"\"Labels that are neither 0 nor 1.\"\"\"
        yield from chunk.faults(LABEL, pl.col("click").is_null())

``Report.examine(subject)`` runs the checks of a subject. A fault that is found while reading is declared by
``declare`` and passed to ``Report.add``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl

from fuxictr_mm.errors import DataError, MissingFileError

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)


class Action(enum.Enum):
    """What ``--clean`` does about a fault; the value is its text, unless the check has its own."""

    NOTHING = "left unchanged"
    SKIP_FILE = "not copied"
    DROP_ROW = "the row is dropped (never from test)"
    DROP_ENTRY = "the id is removed from the history"
    SET_ZERO = "the embedding is set to zero"
    RESCALE = "scaled to the median norm"
    FIX_TITLE = "the title is fixed"


class Check(NamedTuple):
    """One kind of data-quality issue.

    An error stops or falsifies training, a warning may make the model worse, an info occurs in clean data as well. A
    fault may be milder than its check. ``found`` is what is wrong, ``expected`` what was expected instead, ``done`` the
    action of cleaning.
    """

    name: str
    severity: str
    found: str
    expected: str
    action: Action
    done: str


@dataclass(frozen=True)
class Fault:
    """What a check found in a column, or in the whole file, where ``column`` is empty.

    ``rows`` has the columns ``row`` (number in the file, from 0), ``item_id`` or ``user_id`` (null or -1 if the
    row has none) and ``value``. Without rows it is not a fault; None stands for the whole column. Texts and severity
    replace those of the check.
    """

    file: str
    column: str = ""
    rows: pl.DataFrame | None = None
    found: str = ""
    expected: str = ""
    severity: str = ""


class Measure(NamedTuple):
    """A value for the JSON report, whether there is a fault or not, under nested keys."""

    keys: tuple[str, ...]
    value: Any


#: All checks by name, and the functions of each type of subject by the names of their checks.
CHECKS: dict[str, Check] = {}
_FUNCTIONS: dict[type, dict[str, Callable[[Any], Any]]] = {}

Function = TypeVar("Function", bound=Callable[[Any], Any])


def declare(
    name: str, severity: str, found: str, expected: str, action: Action = Action.NOTHING, done: str = ""
) -> Check:
    """Register a check that has no function; the parameters are those of ``Check``."""
    CHECKS[name] = Check(name, severity, found, expected, action, done or action.value)
    return CHECKS[name]


def check(
    subject: type, severity: str, expected: str, action: Action = Action.NOTHING, done: str = ""
) -> Callable[[Function], Function]:
    """Register the decorated function, which yields ``Fault`` and ``Measure`` of a subject of this type."""

    def register(function: Function) -> Function:
        name = function.__name__.replace("_", "-")
        text = (function.__doc__ or name).split("\n")[0].rstrip(".")
        found = text if text[1:2].isupper() else text[:1].lower() + text[1:]
        declare(name, severity, found, expected, action, done)
        functions_of(subject)[name] = function
        return function

    return register


def functions_of(subject: type) -> dict[str, Callable[[Any], Any]]:
    """Return the functions that check a type of subject, by the names of the checks."""
    return _FUNCTIONS.setdefault(subject, {})


@dataclass(frozen=True)
class Finding:
    """One data-quality issue in one column of one file, with every row that has it; see ``Check`` and ``Fault``."""

    check: str
    severity: str
    file: str
    column: str
    found: str
    expected: str
    rows: pl.DataFrame

    @property
    def count(self) -> int:
        """Number of rows, or 1 for an issue of the whole column."""
        return max(self.rows.height, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        names = ("check", "severity", "file", "column", "found", "expected", "count")
        rows = [{**row, "value": _plain(row["value"])} for row in self.rows.to_dicts()]
        return {**{name: getattr(self, name) for name in names}, "rows": rows}

    def format(self, most: int) -> list[str]:
        """Return two lines of text, and the first ``most`` rows."""
        where = self.file + (f": {self.column}" if self.column else "")
        indent = " " * 41
        lines = [f"{self.severity:<8}{self.check:<22}{self.count:>9,}  {where}"]
        lines.append(f"{indent}{self.found}; expected {self.expected}")
        for row, key, value in self.rows.head(most).iter_rows():
            number = "no row" if row is None else f"row {row}"
            shown = "" if value is None else f": {_shorten(_plain(value))}"
            lines.append(f"{indent}  {number}, {self.rows.columns[1]} {'?' if key is None else key}{shown}")
        if self.rows.height > most:
            lines.append(f"{indent}  and {self.rows.height - most:,} more")
        return lines


def _plain(value: Any) -> Any:
    """Return a value with text for NaN and infinity, which JSON does not have."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shorten(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def format_findings(findings: Sequence[Finding], most: int) -> str:
    """Return findings as text, with the first ``most`` rows of each, and how many there are."""
    if not findings:
        return "nothing found"
    lines = [line for finding in findings for line in finding.format(most)]
    counts = {s: sum(f.severity == s for f in findings) for s in SEVERITIES}
    lines.append(", ".join(f"{n} {s}{'s' if n != 1 and s != INFO else ''}" for s, n in counts.items()))
    return "\n".join(lines)


class Report:
    """Findings and measures of one folder.

    Parameters
    ----------
    checks : iterable of str, optional
        Names of the wanted checks, all by default; findings of others are not kept.
    """

    def __init__(self, checks: Iterable[str] | None = None) -> None:
        self.checks = set(CHECKS if checks is None else checks)
        self.measures: dict[str, Any] = {}
        self._parts: dict[tuple[str, ...], list[pl.DataFrame]] = {}

    def wants(self, *subjects: type | str) -> bool:
        """Whether a check is wanted, by its name or by what it looks at."""
        return any(not self.checks.isdisjoint([s] if isinstance(s, str) else functions_of(s)) for s in subjects)

    def examine(self, subject: object) -> None:
        """Run the wanted checks of a subject."""
        for name, function in functions_of(type(subject)).items():
            for result in function(subject) if name in self.checks else ():
                if isinstance(result, Measure):
                    self.measure(result)
                else:
                    self.add(CHECKS[name], result)

    def add(self, check: Check, fault: Fault) -> None:
        """Add a fault; rows that come in several calls, chunk by chunk, are joined."""
        if check.name not in self.checks or (fault.rows is not None and fault.rows.is_empty()):
            return
        texts = (fault.found or check.found, fault.expected or check.expected)
        key = (check.name, fault.severity or check.severity, fault.file, fault.column, *texts)
        parts = self._parts.setdefault(key, [])
        if fault.rows is not None:
            keys = [pl.col(name).cast(pl.Int64) for name in fault.rows.columns if name != "value"]
            parts.append(fault.rows.select(*(pl.when(key >= 0).then(key) for key in keys), "value"))

    def translate(self, back: Callable[[str, pl.DataFrame], tuple[str, pl.DataFrame]]) -> None:
        """Replace column and rows of all faults by what ``back`` returns for them."""
        parts: dict[tuple[str, ...], list[pl.DataFrame]] = {}
        for (name, severity, file, column, *texts), frames in self._parts.items():
            renamed = back(column, pl.DataFrame())[0]
            parts.setdefault((name, severity, file, renamed, *texts), []).extend(back(column, f)[1] for f in frames)
        self._parts = parts

    def measure(self, measure: Measure) -> None:
        """Add a measure."""
        inner = self.measures
        for key in measure.keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[measure.keys[-1]] = measure.value

    @contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Turn a file that cannot be read any further into a finding."""
        try:
            yield
        except (DataError, MissingFileError) as error:
            reason = " ".join(str(error).replace(f"{path}: ", "").split())
            self.add(UNREADABLE, Fault(path.name, found=reason))

    def findings(self) -> list[Finding]:
        """Return all findings: errors first, then by file, column and check."""
        found = []
        for (name, severity, file, column, what, expected), parts in self._parts.items():
            rows = pl.concat(parts, how="vertical_relaxed") if parts else pl.DataFrame()
            found.append(Finding(name, severity, file, column, what, expected, rows))
        return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), f.file, f.column, f.check))

    @property
    def is_clean(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(severity == INFO for _, severity, *_ in self._parts)


UNREADABLE = declare("unreadable", ERROR, "cannot be read", "a complete Parquet file", Action.SKIP_FILE)
