"""The checks there are: name, severity, what a finding means, what was expected, what cleaning does about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fuxictr_mm.config import nearest
from fuxictr_mm.errors import ConfigError, DataError

ERROR, WARNING, INFO = "error", "warning", "info"


SEVERITIES = (ERROR, WARNING, INFO)


#: What cleaning does with a fault that only a person can mend.
LEFT = "left as it is"


class Check(NamedTuple):
    """One kind of fault.

    Parameters
    ----------
    severity : {"error", "warning", "info"}
        An error stops or falsifies training, a warning harms it, an info is good to know. Findings may be milder.
    found : str
        What is wrong, for the table.
    expected : str
        What was expected instead.
    mended : str
        What ``--clean`` does about it.
    """

    severity: str
    found: str
    expected: str
    mended: str = LEFT


ZEROED = "the vector is set to zero"


ROW_DROPPED = "the row is dropped (never from test)"


ENTRY_DROPPED = "the id is taken out of the history"


VALUE_DROPPED = "taken out of a list, else set to 0"


CHECKS: dict[str, Check] = {
    # Files
    "unreadable": Check(ERROR, "cannot be read", "a whole Parquet file", "not copied"),
    "missing-column": Check(ERROR, "no such column", "the columns of the challenge's layout"),
    "column-type": Check(ERROR, "a column of a type that cannot be read", "whole numbers, or lists of numbers"),
    "empty-file": Check(ERROR, "no rows", "at least one row"),
    # Item ids
    "bad-item-id": Check(
        ERROR, "null, negative, fractional or too large item ids", "whole numbers from 0 to 2^31 - 1", ROW_DROPPED
    ),
    "far-item-id": Check(
        WARNING, "item ids far beyond the others: tables reach to the largest", "ids numbered without wide gaps"
    ),
    "duplicate-item": Check(ERROR, "items that have a row already", "one row per item", "later rows are dropped"),
    "padding-row": Check(ERROR, "row of item 0 that is not all zero", "zeros: id 0 is padding", "set to zero"),
    "partial-item": Check(WARNING, "items of other files without a row here", "a row for every item"),
    "unused-item": Check(INFO, "items that no interaction shows", "items that are shown or remembered"),
    # Numbers of items: tags, levels
    "bad-item-value": Check(
        ERROR, "null, infinite or negative numbers, or ids above 2^31 - 1", "whole numbers from 0", VALUE_DROPPED
    ),
    "item-value-outlier": Check(
        WARNING, "numbers far beyond the others of the column", "numbers in the range of the others", VALUE_DROPPED
    ),
    # Titles
    "empty-title": Check(WARNING, "empty titles or placeholders", "a title", "placeholders become empty"),
    "mojibake": Check(WARNING, "text decoded by the wrong encoding", "readable text", "decoded anew by ftfy"),
    "json-title": Check(
        WARNING, "JSON or code fences left by a translating model", "the bare title", "the text inside is taken out"
    ),
    "assistant-title": Check(
        WARNING, "sentences of a translating model", "the bare title", "the lead-in is cut off, a refusal emptied"
    ),
    "markup-title": Check(
        WARNING, "HTML tags or entities", "the bare title", "tags are taken out, entities become characters"
    ),
    "escape-title": Check(WARNING, "backslash escapes such as \\n or \\u00e9", "the characters meant", "decoded"),
    "url-title": Check(WARNING, "web addresses", "the bare title", "the address is cut out"),
    "repeated-word-title": Check(
        WARNING, "one word over and over", "a title", "equal words that follow each other become one"
    ),
    "lost-character": Check(WARNING, "characters that a wrong decoding lost (U+FFFD)", "readable text"),
    "foreign-title": Check(WARNING, "titles in another language", "the language of the majority (or --language)"),
    "duplicate-title": Check(WARNING, "items that share a title", "a title per item"),
    # Vectors
    "vector-width": Check(ERROR, "vectors of another width", "one width per column", ZEROED),
    "nonfinite-vector": Check(ERROR, "NaN, infinite or null numbers in vectors", "finite numbers", ZEROED),
    "zero-vector": Check(WARNING, "zero vectors", "a vector per item"),
    "norm-outlier": Check(
        WARNING, "vectors far longer or shorter than the others", "lengths near the median", "scaled to median length"
    ),
    "constant-column": Check(WARNING, "a number that is the same in all vectors", "numbers that vary"),
    "duplicate-vector": Check(WARNING, "vectors equal to an earlier one", "a vector of its own per item"),
    "near-duplicate-vector": Check(
        WARNING, "vectors within 1 % of another's direction", "a vector of its own per item"
    ),
    "modalities-disagree": Check(
        WARNING, "image vectors far from what the text tells", "distances near the median of the cross-modal fit"
    ),
    # Interactions
    "bad-user-id": Check(ERROR, "null, negative or fractional user ids", "whole numbers from 0", ROW_DROPPED),
    "bad-context": Check(ERROR, "null, infinite or negative context values", "numbers from 0", ROW_DROPPED),
    "context-outlier": Check(
        WARNING, "context values far beyond the others", "values in the range of the others", ROW_DROPPED
    ),
    "bad-label": Check(ERROR, "labels that are neither 0 nor 1", "0 or 1", ROW_DROPPED),
    "one-class": Check(ERROR, "all labels are the same", "both 0 and 1"),
    "unknown-target": Check(ERROR, "targets that no item file has", "ids of the item files", ROW_DROPPED),
    "unknown-history": Check(ERROR, "history ids that no item file has", "ids of the item files", ENTRY_DROPPED),
    "null-history": Check(WARNING, "histories that are null", "a list, empty or of padding", "set to padding"),
    "repeated-history": Check(INFO, "an item more than once in a history", "every item once, or a rewatch"),
    "inner-padding": Check(
        WARNING, "padding between real ids of a history", "padding at one end", "the ids are moved together"
    ),
    "target-in-history": Check(
        WARNING, "targets that stand in their own history", "a history before the click", ENTRY_DROPPED
    ),
    "future-click": Check(
        WARNING, "clicks of a later split in the user's history", "histories older than the clicks", ENTRY_DROPPED
    ),
    "contradictory-row": Check(
        WARNING, "equal rows with both labels", "one label per row", "all of them are dropped (never from test)"
    ),
    "duplicate-row": Check(
        WARNING, "rows equal to an earlier one", "every row once", "the later row is dropped (never from test)"
    ),
    "shared-row": Check(
        WARNING, "rows that stand in a later split as well", "splits apart", "dropped from the earlier split"
    ),
    # Drift
    "label-drift": Check(WARNING, "another share of positives than in train", "PSI of at most 0.1"),
    "context-drift": Check(WARNING, "another distribution of categories", "PSI of at most 0.25"),
    "history-drift": Check(WARNING, "another distribution of history lengths", "PSI of at most 0.25"),
    "popularity-drift": Check(WARNING, "another popularity of the targets", "PSI of at most 0.25"),
    "cold-targets": Check(WARNING, "targets without a training row", "a share of at most 0.5, as large in test"),
}


def choose_checks(only: Sequence[str] | None, skip: Sequence[str] | None) -> set[str]:
    """Return the names of the checks to run.

    Raises
    ------
    ConfigError
        An unknown name, with the nearest; or nothing is left to do.

    Examples
    --------
    >>> sorted(choose_checks(["mojibake", "zero-vector"], ["mojibake"]))
    ['unreadable', 'zero-vector']
    """
    for flag, names in (("--only", only), ("--skip", skip)):
        for name in names or ():
            if name not in CHECKS:
                raise ConfigError(f"{flag}: there is no check '{name}'{nearest(name, CHECKS)} ({', '.join(CHECKS)})")
    # A file that cannot be read is no clean file, whatever else is asked.
    chosen = {*(only or CHECKS), "unreadable"} - set(skip or ())
    if not chosen:
        raise ConfigError("--only and --skip leave no check to run")
    return chosen


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
