"""Statistics of all rows of a split, from one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from fuxictr_mm.data.groups import NO_GROUP
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.numbers import Moments
from fuxictr_mm.errors import DataError
from fuxictr_mm.jagged import Jagged


@dataclass(frozen=True)
class Summary:
    """Statistics of all rows of a split."""

    num_rows: int
    num_history_items: int  #: Items of all histories, without padding.
    largest: dict[str, int]  #: Largest id of every categorical context column and sequence.
    #: The smallest and the largest value of each label, empty for one that is missing in all rows; empty for a file
    #: without labels.
    labels: tuple[frozenset[float], ...] = ()
    #: Length of the longest row of every sequence, and dim of every embedding of the context.
    longest: dict[str, int] = field(default_factory=dict)
    without_group: int = 0  #: Rows whose group is missing.
    #: Statistics of every numeric column of the context, as models read it.
    numbers: dict[str, Moments] = field(default_factory=dict)


def summarize(
    files: InteractionFiles,
    chunks: Iterable[InteractionTable] | None = None,
    exchange: Callable[[Any], Sequence[Any]] = lambda value: [value],
) -> Summary:
    """Return statistics of all rows, or of the chunks that hold them, and check the labels.

    Parameters
    ----------
    files : InteractionFiles
        The split.
    chunks : iterable of InteractionTable, optional
        Hold the rows; read by default.
    exchange : callable
        Returns what each of several processes passes, of which each has a part of the rows; see
        ``fuxictr_mm.data.shards``.

    Raises
    ------
    DataError
        All values of a label are equal or missing although ``needs_label``, or an error of ``chunks``.
    """
    rows = items = without_group = 0
    is_trained = files.weight is None
    largest: dict[str, int] = {}
    longest: dict[str, int] = {}
    labels: list[set[float]] = []
    moments: dict[str, Moments] = {}
    for chunk in files.chunks() if chunks is None else chunks:
        rows += len(chunk)
        items += chunk.history_values.numel()
        is_trained = is_trained or (chunk.weight is not None and bool(chunk.weight.any()))
        without_group += 0 if chunk.group is None else int((chunk.group == NO_GROUP).sum())
        for name, column in chunk.context.items():
            values = column.values if isinstance(column, Jagged) else column
            if not values.is_floating_point() and len(values) and name not in files.conversion.vocabularies:
                largest[name] = max(largest.get(name, 0), int(values.max()))
            if values.is_floating_point() and values.dim() == 1 and not isinstance(column, Jagged):
                moments.setdefault(name, Moments()).add(Moments.of(values.numpy()))
            if isinstance(column, Jagged):
                longest[name] = max(longest.get(name, 0), int(column.lengths.max()))
            elif column.dim() > 1:
                longest[name] = column.shape[1]
        if chunk.label is not None:
            labels = labels or [set() for _ in files.labels]
            for found, values in zip(labels, chunk.label.view(len(chunk), -1).unbind(dim=1), strict=True):
                values = values[~values.isnan()]
                found |= {float(bound) for bound in values.aminmax()} if len(values) else set()
    own = {name: astuple(found) for name, found in moments.items()}
    parts = exchange(
        [rows, items, without_group, largest, longest, [sorted(found) for found in labels], own, is_trained]
    )
    rows, items, without_group = (sum(part[index] for part in parts) for index in (0, 1, 2))
    largest, longest = (_maxima(part[index] for part in parts) for index in (3, 4))
    labels = [set().union(*found) for found in zip(*(part[5] for part in parts if part[5]), strict=True)]
    moments = {}
    for name, values in [pair for part in parts for pair in part[6].items()]:
        moments.setdefault(name, Moments()).add(Moments(*values))
    for name, found in zip(files.labels, labels, strict=False):
        both = files.both_classes and name not in files.numeric_labels
        if files.needs_label and len(found) < (2 if both else 1):
            that = " that have it" if len(files.labels) > 1 else ""
            what = f"{min(found):g} in all {rows} rows{that}" if found else f"missing in all {rows} rows"
            expected = "both 0 and 1" if both else "numbers"
            raise DataError(
                f"{files.path}: {name} is {what}, expected {expected}; a constant label cannot be learned or ranked"
            )
    if not any(part[7] for part in parts):
        raise DataError(f"{files.path}: {files.weight} is 0 in all {rows} rows, so nothing would be trained")
    return Summary(rows, items, largest, tuple(map(frozenset, labels)), longest, without_group, moments)


def _maxima(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the largest value of every key."""
    found: dict[str, int] = {}
    for part in parts:
        found.update({key: max(value, found.get(key, value)) for key, value in part.items()})
    return found
