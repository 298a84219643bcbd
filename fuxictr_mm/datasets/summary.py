"""What was written of a dataset, in numbers: for the output of the command, and the configuration beside the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fuxictr_mm.data.norms import Norms


@dataclass
class SplitSummary:
    """What was written of a split."""

    #: Rows, those that have the first label of 0 and 1, and those whose label is above 0.
    rows: int = 0
    labelled: int = 0
    positives: int = 0
    #: Rows with an empty history, and items of all histories.
    without_history: int = 0
    history_items: int = 0
    left_out: int = 0  #: Rows whose target is in no item file; they are not written.
    unknown_items: int = 0  #: History items that are in no item file; they are dropped.
    cold: int = 0  #: Rows whose target is not a target of a training row.

    def add(self, other: SplitSummary) -> None:
        """Add the counts of another part."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass
class Summary:
    """What was written of a dataset: items, users, splits, coverage of embeddings, and what became of columns."""

    items: int
    users: int
    splits: dict[str, SplitSummary]
    coverage: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    norms: dict[str, Norms] = field(default_factory=dict)  #: Of embeddings without a scale of their own.
    vocab_sizes: dict[str, int] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    trained_items: int = 0  #: Items that are the target of a training row.
    dims: dict[str, int] = field(default_factory=dict)  #: Of the embeddings.

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Summary:
        """Return a summary by what ``asdict`` gives."""
        splits = {split: SplitSummary(**counts) for split, counts in found["splits"].items()}
        norms = {name: Norms(**values) for name, values in found["norms"].items()}
        return cls(**{**found, "splits": splits, "norms": norms})
