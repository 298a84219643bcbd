"""Numbers for ids and values: 1 to N in a given order, 0 for what is unknown."""

from __future__ import annotations

import numpy as np
import polars as pl


class Numbering:
    """Numbers 1 to N for N distinct values.

    Parameters
    ----------
    values : polars.Series
        Values of any type in the order of their numbers; nulls and repetitions are left out.

    Examples
    --------
    >>> import polars as pl
    >>> Numbering(pl.Series(["b", "a"])).encode(pl.Series(["a", "b", "c", None])).tolist()
    [2, 1, 0, 0]
    """

    def __init__(self, values: pl.Series) -> None:
        self.values = values.drop_nulls().unique(maintain_order=True)
        # Integers are found by bisection, which needs no hash table of all values.
        self._sorted: np.ndarray | None = None
        if self.values.dtype.is_integer():
            numbers = self.values.to_numpy()
            self._order = np.argsort(numbers, kind="stable")
            self._sorted = numbers[self._order]
        else:
            self._table = pl.DataFrame(
                {"value": self.values, "number": np.arange(1, len(self.values) + 1, dtype=np.int32)}
            )

    def __len__(self) -> int:
        return len(self.values)

    def encode(self, values: pl.Series) -> np.ndarray:
        """Return the number of each value, int32; 0 for a null and for one that is unknown."""
        if self._sorted is None:
            frame = pl.DataFrame({"value": values.cast(self.values.dtype)})
            joined = frame.join(self._table, on="value", how="left", maintain_order="left")
            return joined["number"].fill_null(0).to_numpy()
        if not len(self):
            return np.zeros(len(values), dtype=np.int32)
        known = values.is_not_null().to_numpy()
        found = values.fill_null(self.values[0]).to_numpy()
        place = np.minimum(np.searchsorted(self._sorted, found), len(self) - 1)
        known = known & (self._sorted[place] == found)
        return np.where(known, self._order[place] + 1, 0).astype(np.int32)
