"""A cleaned copy of a dataset: values with findings are fixed or dropped, everything else is unchanged.

Schema and order of the rows are kept, and all rows of test, because a submission needs each of them. The folder is
written under another name and renamed when it is complete.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.check_data.arrays import as_text, is_text
from fuxictr_mm.check_data.checks import CHECKS, INFO, UNREADABLE, Action, Finding, Report
from fuxictr_mm.check_data.files import DataFile
from fuxictr_mm.check_data.layout import Layout
from fuxictr_mm.check_data.title_faults import fix_title
from fuxictr_mm.data.arrow_types import is_bytes, is_list, plain_type
from fuxictr_mm.data.parquet import part_files, schema_of
from fuxictr_mm.data.vocabulary import as_text as plain_id
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import StrPath, write_folder

#: A row group is written when it has so many rows or bytes.
GROUP_ROWS, GROUP_BYTES = 100_000, 128 << 20

#: Makes a new value of an old one.
Change = Callable[[Any], Any]


@dataclass
class Plan:
    """What to do with one file: rows to drop, and per column and row the changes of its value, in order."""

    drop: set[int] = field(default_factory=set)
    change: dict[str, dict[int, list[Change]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))


def clean_folder(layout: Layout, report: Report, target: StrPath) -> list[dict[str, Any]]:
    """Write a cleaned copy of a checked folder into a folder that does not exist or is empty.

    Returns ``check``, ``file``, ``column`` and ``count`` of every finding above info, and what was ``done`` about it.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--clean {target}: already exists; give a folder that does not exist")
    items = layout.translation.items
    if items is not None and items.has_zero:
        raise ConfigError("--clean: pads histories with 0, but 0 is an item here; number the items from 1 on")
    by_file: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings():
        if finding.severity != INFO:
            by_file[finding.file].append(finding)
    actions: list[dict[str, Any]] = []

    def write(folder: Path) -> None:
        for checked in [*layout.splits.values(), *layout.item_files]:
            file = DataFile(checked.path)  # findings are by the names and ids of the file
            findings = by_file[file.file]
            keep_rows = file.name == "test"
            unreadable = any(f.check == UNREADABLE.name for f in findings)
            if not unreadable:
                _write(file, folder / file.file, plan_cleaning(file, findings, keep_rows, report))
            untyped = set() if unreadable else {f.name for f in file.schema if pa.types.is_null(f.type)}
            for f in findings:
                action = {"check": f.check, "file": f.file, "column": f.column, "count": f.count}
                done = Action.NOTHING.value if f.column in untyped else _say(f, keep_rows, unreadable)
                actions.append({**action, "done": done})

    write_folder(target, write)
    return actions


def _say(finding: Finding, keep_rows: bool, unreadable: bool) -> str:
    if unreadable:
        return UNREADABLE.done
    check = CHECKS[finding.check]
    if keep_rows and check.action is Action.DROP_ROW:
        return f"{Action.NOTHING.value}: all rows of test are needed"
    return check.done


def plan_cleaning(file: DataFile, findings: Iterable[Finding], keep_rows: bool, report: Report) -> Plan:
    """Return the changes of a file for these findings; with ``keep_rows`` no row may be dropped."""
    plan = Plan()
    for finding in findings:
        action = CHECKS[finding.check].action
        if action in (Action.NOTHING, Action.SKIP_FILE) or finding.rows.is_empty():
            continue
        rows = finding.rows["row"].to_list()
        if action is Action.DROP_ROW:
            plan.drop.update(() if keep_rows else rows)
            continue
        for row, change in zip(rows, _changes(file, finding, report), strict=True):
            plan.change[finding.column][row].append(change)
    return plan


def _changes(file: DataFile, finding: Finding, report: Report) -> list[Change]:
    """Return what is to be done with each row of a finding."""
    action = CHECKS[finding.check].action
    kind = file.schema.field(finding.column).type
    in_lists = is_list(kind)
    change: Change
    if pa.types.is_null(kind):  # it holds no other value than null
        change = lambda old: old  # noqa: E731
    elif action is Action.DROP_ENTRY:
        padded = in_lists and len(file.list_lengths(finding.column)) == 1
        right = padded and _pads_right(file, finding.column)
        values = finding.rows["value"].to_list()
        return [partial(_without, dropped=value, padded=padded, right=right) for value in values]
    elif action is Action.SET_ZERO:
        of_text = in_lists and (is_text(kind.value_type) or is_bytes(kind.value_type))
        is_ragged = finding.check == "null-history" and len(file.list_lengths(finding.column)) != 1
        zero = [] if of_text or is_ragged else [0] * file.common_length(finding.column) if in_lists else 0
        change = lambda _: zero  # noqa: E731
    elif action is Action.RESCALE:
        change = partial(_scaled, norm=report.measures["median_norm"][f"{finding.file}: {finding.column}"])
    else:
        change = partial(fix_title, checks=report.checks)
    return [change] * finding.rows.height


def _pads_right(file: DataFile, column: str) -> bool:
    """Whether more lists of a column end with padding than begin with it, in its first chunk."""
    array = file.first_chunk(column)
    rows = [row for row in (array.to_pylist() if array is not None else ()) if row]
    return sum(not row[-1] for row in rows) > sum(not row[0] for row in rows)


def _without(old: Any, dropped: Any, padded: bool, right: bool = False) -> Any:
    """Remove an id and padding from a list; a number is 0.

    Where lists are ``padded``, it is padded to its old length, at the end that was; a full one as most others are, at
    the ``right`` or at the left.
    """
    if not isinstance(old, list):
        return 0
    kept = [v for v in old if v and v == v and plain_id(v) != dropped]  # nulls and NaN go, too
    if not padded:
        return kept
    padding: list[Any] = [_padding_like(old)] * (len(old) - len(kept))
    if bool(old[0]) != bool(old[-1]):
        right = not old[-1]
    return kept + padding if right else padding + kept


def _padding_like(ids: list[Any]) -> Any:
    if any(isinstance(v, bytes) for v in ids):
        return None  # they may be of a fixed length
    return "" if any(isinstance(v, str) for v in ids) else 0


def _scaled(old: list[float], norm: float) -> list[float]:
    values = np.asarray(old, dtype=np.float64)
    return (values * (norm / np.linalg.norm(values))).tolist()


def _write(file: DataFile, target: Path, plan: Plan) -> None:
    if not plan.change and not plan.drop:
        (shutil.copytree if file.path.is_dir() else shutil.copyfile)(file.path, target)
        return
    schema = _schema_to_write(file.path)
    if target.suffix != ".parquet":  # a folder of part files becomes one file
        target = target.with_name(f"{target.name}.parquet")
    pending: list[pa.RecordBatch] = []
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in _cleaned(file, schema, plan):
            pending.append(batch)
            if sum(b.num_rows for b in pending) >= GROUP_ROWS or sum(b.nbytes for b in pending) >= GROUP_BYTES:
                _flush(writer, pending, schema)
        _flush(writer, pending, schema)


def _schema_to_write(path: Path) -> pa.Schema:
    """Return the columns of the first part file, in types that hold the values of all, views as plain ones."""
    first, *others = [schema_of(file) for file in part_files(path)]
    fields = []
    for column in first:
        kinds = [column, *(other.field(column.name) for other in others if column.name in other.names)]
        with suppress(pa.ArrowException):  # a cast fails where a value does not fit
            column = pa.unify_schemas([pa.schema([kind]) for kind in kinds], promote_options="permissive").field(0)
        kind = column.type
        views = (pa.types.is_list_view, pa.types.is_large_list_view, pa.types.is_string_view, pa.types.is_binary_view)
        is_view = any(is_kind(kind) for is_kind in views)
        fields.append(column.with_type(plain_type(kind)) if is_view else column)
    return pa.schema(fields, first.metadata)


def _cleaned(file: DataFile, schema: pa.Schema, plan: Plan) -> Iterator[pa.RecordBatch]:
    dropped = np.array(sorted(plan.drop), dtype=np.int64)
    for start, batch in file.chunks(schema.names):
        columns = []
        for column, array in zip(schema, batch.columns, strict=True):
            changed = _changed(array, start, plan.change[column.name]) if column.name in plan.change else array
            is_stored = isinstance(column.type, pa.BaseExtensionType)
            stored = pa.ExtensionArray.from_storage(column.type, changed) if is_stored else changed
            columns.append(stored if stored.type == column.type else stored.cast(column.type))
        rows = np.setdiff1d(np.arange(start, start + len(batch)), dropped, assume_unique=True) - start
        cleaned = pa.RecordBatch.from_arrays(columns, schema=schema)
        yield cleaned if len(rows) == len(batch) else cleaned.take(pa.array(rows))


def _flush(writer: pq.ParquetWriter, pending: list[pa.RecordBatch], schema: pa.Schema) -> None:
    rows = sum(b.num_rows for b in pending)
    if rows:
        writer.write_table(pa.Table.from_batches(pending, schema=schema), row_group_size=rows)
    pending.clear()


def _changed(array: pa.Array, start: int, changes: Mapping[int, Sequence[Change]]) -> pa.Array:
    """Return a column, whose first row is ``start``, with new values in some rows."""
    rows = [row for row in changes if start <= row < start + len(array)]
    if not rows:
        return array
    positions = np.array(rows) - start
    old = array.take(pa.array(positions))
    new = as_text(old) if is_text(array.type) or is_bytes(array.type) else old.to_pylist()
    for index, row in enumerate(rows):
        for change in changes[row]:
            new[index] = change(new[index])
    order = np.arange(len(array))
    order[positions] = len(array) + np.arange(len(new))
    return pa.concat_arrays([array, pa.array(new, type=array.type)]).take(pa.array(order))


def format_actions(actions: Sequence[Mapping[str, Any]]) -> str:
    """Return what was done as text, a line each."""
    return "\n".join(
        f"{a['check']:<22}{a['count']:>9,}  {a['file']}{': ' + a['column'] if a['column'] else ''}: {a['done']}"
        for a in actions
    )
