"""Statistics of all rows of a split, from one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
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
    own, counts = _Counts(), _Counts()
    for chunk in files.chunks() if chunks is None else chunks:
        own.add(_Counts.of(files, chunk))
    for part in exchange(asdict(own)):
        numbers = {name: Moments(**values) for name, values in part["numbers"].items()}
        counts.add(_Counts(**{**part, "numbers": numbers}))
    rows = counts.rows
    for name, found in zip(files.labels, counts.labels, strict=False):
        both = files.both_classes and name not in files.numeric_labels
        if files.needs_label and len(found) < (2 if both else 1):
            that = " that have it" if len(files.labels) > 1 else ""
            what = f"{found[0]:g} in all {rows} rows{that}" if found else f"missing in all {rows} rows"
            expected = "both 0 and 1" if both else "numbers"
            raise DataError(
                f"{files.path}: {name} is {what}, expected {expected}; a constant label cannot be learned or ranked"
            )
    if files.weight is not None and not counts.has_weight:
        raise DataError(f"{files.path}: {files.weight} is 0 in all {rows} rows, so nothing would be trained")
    labels = tuple(map(frozenset, counts.labels))
    return Summary(rows, counts.items, counts.largest, labels, counts.longest, counts.without_group, counts.numbers)


@dataclass
class _Counts:
    """The statistics of a ``Summary`` of some rows, as they are added up, over chunks and over processes."""

    rows: int = 0
    items: int = 0
    without_group: int = 0
    has_weight: bool = False  #: Whether a row has a weight above 0.
    largest: dict[str, int] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    labels: list[list[float]] = field(default_factory=list)  #: Bounds, ascending.
    numbers: dict[str, Moments] = field(default_factory=dict)

    @classmethod
    def of(cls, files: InteractionFiles, chunk: InteractionTable) -> _Counts:
        """Return those of a chunk of the rows of a split."""
        found = cls(len(chunk), chunk.history_values.numel())
        found.has_weight = chunk.weight is not None and bool(chunk.weight.any())
        found.without_group = 0 if chunk.group is None else int((chunk.group == NO_GROUP).sum())
        for name, column in chunk.context.items():
            values = column.values if isinstance(column, Jagged) else column
            if not values.is_floating_point() and len(values) and name not in files.conversion.vocabularies:
                found.largest[name] = max(0, int(values.max()))
            if isinstance(column, Jagged):
                found.longest[name] = max(0, int(column.lengths.max()))
            elif column.dim() > 1:
                found.longest[name] = column.shape[1]
            elif values.is_floating_point():
                found.numbers[name] = Moments.of(values.numpy())
        if chunk.label is not None:
            known = [label[~label.isnan()] for label in chunk.label.view(len(chunk), -1).unbind(dim=1)]
            bounds = [label.aminmax() if len(label) else () for label in known]
            found.labels = [sorted({float(bound) for bound in pair}) for pair in bounds]
        return found

    def add(self, other: _Counts) -> None:
        """Add those of further rows."""
        self.rows += other.rows
        self.items += other.items
        self.without_group += other.without_group
        self.has_weight |= other.has_weight
        for own, found in ((self.largest, other.largest), (self.longest, other.longest)):
            own.update({name: max(value, own.get(name, value)) for name, value in found.items()})
        self.labels = [sorted({*own, *new}) for own, new in zip_longest(self.labels, other.labels, fillvalue=())]
        for name, moments in other.numbers.items():
            self.numbers.setdefault(name, Moments()).add(moments)
