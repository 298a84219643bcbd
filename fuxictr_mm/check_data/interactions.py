"""Checks of all splits together, in the order of time, and of the items in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fuxictr_mm.check_data.arrays import to_series
from fuxictr_mm.check_data.checks import INFO, WARNING, Fault, Measure, Report, check
from fuxictr_mm.check_data.chunks import Chunk, Histories, KnownItems
from fuxictr_mm.check_data.columns import COLUMN_TYPE, MISSING_COLUMN, compare_types
from fuxictr_mm.check_data.drift import Comparison
from fuxictr_mm.check_data.layout import EMPTY_FILE, ItemFile, Layout
from fuxictr_mm.check_data.number_columns import ContextColumn
from fuxictr_mm.check_data.split_reading import read_split
from fuxictr_mm.check_data.splits import Split, SplitInTime, SplitPair
from fuxictr_mm.data.schema import ITEM_ID

#: Fraction of cold targets that is too much, and difference between valid and test that is.
COLD_MOST, COLD_DIFFERENCE = 0.5, 0.1


@dataclass(frozen=True)
class Interactions:
    """All splits that could be read, in the order of time.

    ``items`` are the item files; none where a split could not be read, as it may show items. ``shown`` says which of
    them the splits show.
    """

    splits: Mapping[str, Split]
    items: Sequence[ItemFile]
    shown: KnownItems

    def measures(self) -> dict[str, dict[str, float]]:
        """Return the fractions of targets without a training row, and of examples without history, by split."""
        measures: dict[str, dict[str, float]] = {"cold_fraction": {}, "without_history": {}}
        for name, split in self.splits.items():
            if name != "train" and "train" in self.splits:
                cold = self.splits["train"].popularity_of(split) == 0
                measures["cold_fraction"][name] = float(cold.mean())
            if split.has_history:
                measures["without_history"][name] = float((split.rows["length"].to_numpy() == 0).mean())
        return measures


@check(Interactions, INFO, "items that are targets or in a history")
def unused_item(interactions: Interactions) -> Iterator[Fault]:
    """Items without an interaction."""
    for item in interactions.items[:1]:
        yield item.fault(ITEM_ID, np.flatnonzero(np.isin(item.ids, interactions.shown.never_shown())))


@check(Interactions, WARNING, f"a fraction of at most {COLD_MOST}, as large in test")
def cold_targets(interactions: Interactions) -> Iterator[Fault]:
    """Targets without a training row."""
    fractions = interactions.measures()["cold_fraction"]
    for name, fraction in fractions.items():
        text = f"{fraction:.1%} of the targets are in no row of train"
        if fraction > COLD_MOST:
            fix = "their ids are not trained: add embeddings (fuxictr-mm embed encode), see docs/choosing_settings.md"
            yield Fault(interactions.splits[name].file, ITEM_ID, found=f"{text}; {fix}")
        if name == "test" and abs(fraction - fractions.get("valid", fraction)) > COLD_DIFFERENCE:
            yield Fault(interactions.splits[name].file, ITEM_ID, found=f"{text}, in valid {fractions['valid']:.1%}")


@check(Interactions, WARNING, "the columns of train that a model reads")
def missing_context(interactions: Interactions) -> Iterator[Fault]:
    """Columns of train that are missing in a later split."""
    splits = interactions.splits
    expected = splits["train"].others if "train" in splits else []
    for split in splits.values():
        for name in [name for name in expected if name not in split.others]:
            # What is known after a click only, such as other feedback, is often missing with the label.
            severity = WARNING if split.has_label else INFO
            yield Fault(split.file, name, found="the column is missing, but train has it", severity=severity)


def check_interactions(layout: Layout, report: Report, verbose: int = 0) -> None:
    """Check all splits, each by itself and against the others, and measure cold targets and empty histories."""
    subjects = (Chunk, Histories, Split, SplitInTime, ContextColumn, SplitPair, Comparison, Interactions)
    if not report.wants(*subjects, MISSING_COLUMN.name, COLUMN_TYPE.name, EMPTY_FILE.name):
        _measure_cold_targets(layout, report)
        return
    known = KnownItems(layout.items[0].known if layout.items else np.empty(0, np.int64))
    splits: list[Split] = []
    compare_types(layout.splits.values(), report)
    # Later splits first: a click of theirs must not be in an earlier history.
    for file in reversed(layout.splits.values()):
        with report.reading(file.path):
            split = read_split(file, known, splits, layout, report, verbose)
            if split is not None:
                splits.insert(0, split)
    for index, split in enumerate(splits):
        report.examine(SplitInTime(splits, index))
        for later in splits[index + 1 :]:
            report.examine(SplitPair(split, later))
            if index == 0:
                report.examine(Comparison(split, later))
    items = layout.items if splits and len(splits) == len(layout.splits) else []
    interactions = Interactions({split.name: split for split in splits}, items, known)
    report.examine(interactions)
    for key, fractions in interactions.measures().items():
        report.measure(Measure((key,), {name: round(fraction, 4) for name, fraction in fractions.items()}))


def _measure_cold_targets(layout: Layout, report: Report) -> None:
    """Measure the fraction of targets without a training row, from the column of targets alone."""
    targets: dict[str, np.ndarray] = {}
    for name, file in layout.splits.items() if "train" in layout.splits else ():
        with report.reading(file.path):
            if ITEM_ID in file.schema.names and pa.types.is_integer(file.schema.field(ITEM_ID).type):
                parts = [to_series(batch.column(0)).to_numpy() for _, batch in file.chunks([ITEM_ID])]
                targets[name] = np.concatenate(parts) if parts else np.empty(0)
    for name, ids in targets.items():
        if name != "train" and "train" in targets and len(ids):
            train = targets["train"]
            report.measure(Measure(("cold_fraction", name), round(float(1 - np.isin(ids, train).mean()), 4)))
