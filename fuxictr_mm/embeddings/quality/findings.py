"""What the checks found: collected part by part, then a table or JSON.

Shape letters: R rows of a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm.embeddings.quality.checks import CHECKS, ERROR, INFO, SEVERITIES
from fuxictr_mm.errors import DataError


@dataclass(frozen=True)
class Finding:
    """One fault in one column of one file, with every row that has it.

    Parameters
    ----------
    check, severity : str
        Name of the check; "error", "warning" or "info".
    file, column : str
        Where; ``column`` is empty where the whole file is meant.
    found, expected : str
        What was found and what was expected.
    id_name : str
        What ``ids`` are: ``"item_id"`` or ``"user_id"``.
    rows : ndarray of int64, (R,)
        Numbers of the rows in the file, from 0; -1 where an item has no row. Empty for a fault of the whole column.
    ids : ndarray of int64, (R,)
        The ids of these rows; -1 where they have none.
    values : ndarray, (R,)
        What stands there.
    """

    check: str
    severity: str
    file: str
    column: str
    found: str
    expected: str
    id_name: str
    rows: np.ndarray
    ids: np.ndarray
    values: np.ndarray

    @property
    def count(self) -> int:
        """Number of rows, or 1 for a fault of the whole column."""
        return max(len(self.rows), 1)

    def examples(self, most: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the first rows with id and value."""
        for row, key, value in zip(self.rows[:most], self.ids[:most], self.values[:most], strict=True):
            example: dict[str, Any] = {"row": int(row) if row >= 0 else None}
            example[self.id_name] = int(key) if key >= 0 else None
            example["value"] = _plain(value)
            yield example

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        names = ("check", "severity", "file", "column", "found", "expected", "count")
        return {**{name: getattr(self, name) for name in names}, "rows": list(self.examples())}


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, list):
        return [_plain(v) for v in value]
    # JSON has no NaN and no infinity.
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


class Report:
    """Findings and measures of one folder.

    Parameters
    ----------
    checks : iterable of str
        The checks that are wanted; findings of others are not kept.
    """

    def __init__(self, checks: Iterable[str] = tuple(CHECKS)) -> None:
        self.checks = set(checks)
        self.measures: dict[str, Any] = {}
        self._parts: dict[tuple[str, ...], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}

    def wants(self, *checks: str) -> bool:
        """Whether at least one of the checks is wanted."""
        return not self.checks.isdisjoint(checks)

    def add(
        self,
        check: str,
        file: str,
        column: str = "",
        rows: Sequence[int] | np.ndarray | None = None,
        ids: Sequence[int] | np.ndarray | None = None,
        values: Sequence[Any] | np.ndarray | None = None,
        *,
        found: str = "",
        expected: str = "",
        severity: str = "",
        id_name: str = "item_id",
    ) -> None:
        """Add rows ``(R,)`` of a fault with their ids and values; without rows, a fault of the whole column.

        Rows that come in several calls are joined. Nothing happens where ``rows`` is empty.
        """
        if not self.wants(check) or (rows is not None and len(rows) == 0):
            return
        known = CHECKS[check]
        texts = (found or known.found, expected or known.expected)
        parts = self._parts.setdefault((check, severity or known.severity, file, column, *texts, id_name), [])
        if rows is not None:
            unknown = np.full(len(rows), -1, dtype=np.int64)
            kept = np.asarray(values) if isinstance(values, np.ndarray) else _objects(values or [None] * len(rows))
            parts.append(
                (np.asarray(rows, dtype=np.int64), unknown if ids is None else np.asarray(ids, dtype=np.int64), kept)
            )

    @contextmanager
    def reading(self, file: Path) -> Iterator[None]:
        """Turn a file that cannot be read any further into a finding."""
        try:
            yield
        except DataError as error:
            self.add("unreadable", file.name, found=" ".join(str(error).replace(f"{file}: ", "").split()))

    def findings(self) -> list[Finding]:
        """Return all findings, errors first, in the order of the checks."""
        order = list(CHECKS)
        found = []
        for (check, severity, file, column, what, expected, id_name), parts in self._parts.items():
            empty = np.empty(0, dtype=np.int64)
            rows, ids, values = (np.concatenate(p) for p in zip(*parts, strict=True)) if parts else (empty,) * 3
            found.append(Finding(check, severity, file, column, what, expected, id_name, rows, ids, values))
        return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), order.index(f.check), f.file, f.column))

    @property
    def is_clean(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(severity == INFO for _, severity, *_ in self._parts)

    @property
    def has_errors(self) -> bool:
        """Whether there is an error."""
        return any(severity == ERROR for _, severity, *_ in self._parts)


def _objects(values: Sequence[Any]) -> np.ndarray:
    kept = np.empty(len(values), dtype=object)
    kept[:] = values
    return kept


def format_table(findings: Sequence[Finding], most: int) -> str:
    """Return findings as text: a line each, then the first ``most`` rows of it."""
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
            value = "" if example["value"] is None else f": {_short(example['value'])}"
            lines.append(f"{'':<41}  {row}, {finding.id_name} {'?' if key is None else key}{value}")
        if len(finding.rows) > most:
            lines.append(f"{'':<41}  and {len(finding.rows) - most:,} more")
    counts = {s: sum(f.severity == s for f in findings) for s in SEVERITIES}
    lines.append(", ".join(f"{n} {s}{'s' if n != 1 and s != INFO else ''}" for s, n in counts.items()))
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
