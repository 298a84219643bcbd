"""The rows that runs were evaluated on: whether they are the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a split, from the files of a run.

    Parameters
    ----------
    count : int
        n.
    label : ndarray or None
        ``(n,)``
    group : ndarray or None
        ``(n,)``, see ``Run.predictions``.
    """

    count: int
    label: np.ndarray | None
    group: np.ndarray | None

    @cached_property
    def keys(self) -> np.ndarray | None:
        """The groups as ``group_keys`` returns them."""
        from fuxictr_mm.data.groups import group_keys

        return None if self.group is None else group_keys(self.group)

    @cached_property
    def partition(self) -> np.ndarray | None:
        """The groups, numbered by their first rows."""
        from fuxictr_mm.data.groups import partition_of

        return None if self.keys is None else partition_of(self.keys)

    def difference(self, other: Rows) -> str:
        """Return how these rows differ from others; an empty text if nothing known of both differs."""
        if self.count != other.count:
            return f"{self.count} against {other.count}"
        if self.label is not None and other.label is not None and not np.array_equal(self.label, other.label):
            return f"labels differ, first in row {int(np.argmax(self.label != other.label))}"
        if self.partition is None or other.partition is None or np.array_equal(self.partition, other.partition):
            return ""
        return f"groups differ, first in row {int(np.argmax(self.partition != other.partition))}"
