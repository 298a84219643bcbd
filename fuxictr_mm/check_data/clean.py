"""A cleaned copy of a dataset: what the findings name is mended or dropped, everything else stays as it is.

Schema and order of the rows stay, and so do all rows of test, because a submission needs each of them. The copy is
written beside its place and renamed when it is whole.

Shape letters: R rows of a chunk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.check_data.checks import CHECKS, INFO, LEFT, Finding, Report
from fuxictr_mm.check_data.items import Layout, as_text, is_text, read_chunks, read_schema, split_lists
from fuxictr_mm.check_data.titles import JUDGED, mend
from fuxictr_mm.errors import ConfigError, UserError

ITEM_ROW_CHECKS = ("bad-item-id", "duplicate-item")
SPLIT_ROW_CHECKS = (
    "bad-user-id",
    "bad-context",
    "context-outlier",
    "bad-label",
    "unknown-target",
    "contradictory-row",
    "duplicate-row",
    "shared-row",
)
ENTRY_CHECKS = ("unknown-history", "target-in-history", "future-click")
TITLE_MENDS = tuple(check for check in JUDGED if CHECKS[check].mended != LEFT)
VALUE_CHECKS = ("bad-item-value", "item-value-outlier")
ZERO_CHECKS = ("vector-width", "nonfinite-vector", "padding-row", "null-history")

#: A row group is written when it has so many rows or bytes.
GROUP_ROWS, GROUP_BYTES = 100_000, 128 << 20


@dataclass(frozen=True)
class Action:
    """What was done about one finding.

    Parameters
    ----------
    check, file, column : str
        The finding.
    count : int
        Rows it names.
    done : str
        What was done about them.
    """

    check: str
    file: str
    column: str
    count: int
    done: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass
class _Plan:
    """What to do with one file: rows to drop, and per column what makes a new value of an old one."""

    drop: set[int] = field(default_factory=set)
    change: dict[str, dict[int, Any]] = field(default_factory=lambda: defaultdict(dict))


def clean_folder(layout: Layout, report: Report, target: str | os.PathLike[str]) -> list[Action]:
    """Write a cleaned copy of a checked folder.

    Parameters
    ----------
    layout : Layout
        The files.
    report : Report
        What was found in them; infos are left as they are.
    target : str or Path
        Folder to write; it must not be there, or be empty.

    Returns
    -------
    list of Action
        What was done, a line per finding that is no info.

    Raises
    ------
    ConfigError
        ``target`` is there already, or is the folder itself.
    UserError
        It cannot be written; nothing is left of it.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--clean {target}: is there already; name a folder that is not")
    by_file: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings():
        if finding.severity != INFO:
            by_file[finding.file].append(finding)
    actions = []
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)
        for path in [*layout.splits.values(), *layout.item_paths]:
            faults = by_file.get(path.name, [])
            unreadable = any(f.check == "unreadable" for f in faults)
            is_test = path == layout.splits.get("test")
            if not unreadable:
                _write(
                    path,
                    Path(temporary) / path.name,
                    plan_file(faults, is_test, report.measures.get("median_length", {})),
                )
            actions += [Action(f.check, f.file, f.column, f.count, _done(f, is_test, unreadable)) for f in faults]
        os.chmod(temporary, 0o755)
        if target.is_dir():
            target.rmdir()
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"--clean {target}: could not be written ({error.strerror or error})") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            shutil.rmtree(temporary)
    return actions


def _done(finding: Finding, is_test: bool, unreadable: bool) -> str:
    if unreadable:
        return CHECKS["unreadable"].mended
    if is_test and finding.check in SPLIT_ROW_CHECKS:
        return f"{LEFT}: rows of test are needed"
    return CHECKS[finding.check].mended


def plan_file(findings: Iterable[Finding], is_test: bool, median_length: Mapping[str, float]) -> _Plan:
    """Return what to do with a file of these findings; ``median_length`` is that of each column with outliers."""
    plan = _Plan()
    entries: dict[str, dict[int, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for finding in findings:
        rows, change = finding.rows.tolist(), plan.change[finding.column]
        if finding.check in ITEM_ROW_CHECKS or (finding.check in SPLIT_ROW_CHECKS and not is_test):
            plan.drop.update(rows)
        elif finding.check in TITLE_MENDS:
            change.update(dict.fromkeys(rows, mend))
        elif finding.check in ZERO_CHECKS:
            change.update(dict.fromkeys(rows, _zero))
        elif finding.check == "norm-outlier":
            scale = _Scale(median_length[f"{finding.file}: {finding.column}"])
            change.update(dict.fromkeys(rows, scale))
        elif finding.check in (*ENTRY_CHECKS, *VALUE_CHECKS):
            for row, value in zip(rows, finding.values.tolist(), strict=True):
                entries[finding.column][row].add(value)
        elif finding.check == "inner-padding":
            for row in rows:
                entries[finding.column][row].add(0)
    for column, by_row in entries.items():
        plan.change[column].update({row: _Without(values) for row, values in by_row.items()})
    return plan


class _Scale:
    """Give a vector another length."""

    def __init__(self, length: float) -> None:
        self.length = length

    def __call__(self, vector: list[float]) -> list[float]:
        values = np.asarray(vector, dtype=np.float64)
        return (values * (self.length / np.linalg.norm(values))).tolist()


class _Without:
    """Take ids and padding out of a list, and pad it to its old width at the end where it was padded; a number is 0."""

    def __init__(self, values: set[Any]) -> None:
        self.values = values

    def __call__(self, old: Any) -> Any:
        if not isinstance(old, list):
            return 0
        kept = [v for v in old if v and v == v and v not in self.values]  # NaN is no set's member
        padding = [0] * (len(old) - len(kept))
        pads_right = bool(old[0]) and not old[-1]
        return kept + padding if pads_right else padding + kept


def _zero(value: Any) -> Any:
    return 0


def _write(path: Path, target: Path, plan: _Plan) -> None:
    changes = {name: rows for name, rows in plan.change.items() if rows}
    if not changes and not plan.drop:
        shutil.copyfile(path, target)
        return
    schema = read_schema(path)
    dropped = np.array(sorted(plan.drop), dtype=np.int64)
    widths = {name: _width_of(path, name) for name, rows in changes.items() if _zero in rows.values()}
    pending: list[pa.RecordBatch] = []
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for start, columns in read_chunks(path, schema.names):
            size = len(next(iter(columns.values())))
            for name, rows in changes.items():
                columns[name] = _replace(columns[name], start, rows, widths.get(name))
            batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
            gone = dropped[(dropped >= start) & (dropped < start + size)] - start
            if gone.size:
                batch = batch.take(pa.array(np.delete(np.arange(size), gone)))
            pending.append(batch)
            if sum(b.num_rows for b in pending) >= GROUP_ROWS or sum(b.nbytes for b in pending) >= GROUP_BYTES:
                _flush(writer, pending, schema)
        _flush(writer, pending, schema)


def _flush(writer: pq.ParquetWriter, pending: list[pa.RecordBatch], schema: pa.Schema) -> None:
    rows = sum(b.num_rows for b in pending)
    if rows:
        writer.write_table(pa.Table.from_batches(pending, schema=schema), row_group_size=rows)
    pending.clear()


def _width_of(path: Path, column: str) -> int | None:
    """Return the width of most lists of a column, or None where it holds no lists."""
    kind = read_schema(path).field(column).type
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    counts: Counter[int] = Counter()
    for _, columns in read_chunks(path, [column]):
        counts.update(np.diff(split_lists(columns[column])[1]).tolist())
    del counts[0]
    return counts.most_common(1)[0][0] if counts else None


def _replace(array: pa.Array, start: int, changes: Mapping[int, Any], width: int | None) -> pa.Array:
    """Return the column with new values at some rows; ``changes`` holds functions of the old value."""
    rows = [row for row in changes if start <= row < start + len(array)]
    if not rows:
        return array
    places = np.array(rows) - start
    old = array.take(pa.array(places))
    values: list[Any] = as_text(old) if is_text(array.type) else old.to_pylist()
    new: list[Any] = []
    for row, value in zip(rows, values, strict=True):
        change = changes[row]
        if change is _zero:
            new.append(0 if width is None else [0] * width)
        else:
            new.append(change(value))
    fresh = pa.array(new, type=array.type)
    order = np.arange(len(array))
    order[places] = len(array) + np.arange(len(new))
    return pa.concat_arrays([array, fresh]).take(pa.array(order))


def format_actions(actions: Sequence[Action]) -> str:
    """Return what was done as text, a line each."""
    return "\n".join(
        f"{a.check:<22}{a.count:>9,}  {a.file}{': ' + a.column if a.column else ''}: {a.done}" for a in actions
    )
