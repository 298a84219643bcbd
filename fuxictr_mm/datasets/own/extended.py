"""A log that continues a prepared one and is trained on: ``fuxictr-mm prepare log --like DIR --extend``.

As of ``own.later``, but the rows are split into train, valid and test as in the first preparation. Numbers are those of
the folder, which new users, items and values of training rows follow, so that weights that were trained there have the
first rows of each embedding table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.datasets.own.later import LaterLog
from fuxictr_mm.errors import ConfigError, DataError

#: Options that an extension may have of its own besides the names of its files.
SPLIT = ("split", "split_by")


class ExtendedLog(LaterLog):
    """A log that continues a prepared one and is trained on."""

    def configure(self, given: Mapping[str, Any]) -> None:
        """Take the folder of the earlier log, the names of files, and the split."""
        if given.get("all_rows"):
            raise ConfigError("--all_rows: is for rows to score, not for --extend; leave out one")
        super().configure({name: value for name, value in given.items() if name not in (*SPLIT, "extend")})
        base = self.base
        if base.is_to_score:
            raise ConfigError(
                f"--like {base.folder}: its rows are to score, and were not trained on; give --like {base.trained}, "
                "with a log of all days since"
            )
        split = {name: given[name] for name in SPLIT if name in given}
        if "split" in split:
            split["split"] = tuple(split["split"])
        self.asked = replace(self.asked, negatives=base.asked.negatives, weight=base.asked.weight, **split)
        self._kept = replace(base.asked, **split)  # for the log after this one, with the names of the first one's files
        self._set_weight()
        self.continued = replace(self.continued, is_trained=True)
        self.options |= {"extend": True, **{name: getattr(self.asked, name) for name in split}}
        self.options = {n: list(v) if isinstance(v, tuple) else v for n, v in self.options.items()}
        self.known_items, self.earlier_items = None, ()
        self.extends = base.numberings

    def files(self) -> list[Path]:
        """Return the files of the log, which must have all labels."""
        missing = next((name for name in self.base.notes.labels if name not in self._source.labels.found), None)
        if missing is not None:
            raise DataError(
                f"{self._source.log.paths[0]}: no column '{missing}', a label of {self.base.folder}; leave out "
                "--extend to score rows without it"
            )
        return super().files()

    def numbering(self, name: str) -> pl.Series:
        """Return the values of a column in the order of their numbers: those of the earlier log, then new ones."""
        before = super().numbering(name)
        new = self.items()[name] if name in self.item_columns else self.values(name)
        new = new.explode(**EMPTY_AS_NULL) if isinstance(new.dtype, pl.List) else new
        return pl.concat([before, new.drop_nulls().cast(before.dtype)]).unique(maintain_order=True)

    def notes(self) -> dict[str, Any]:
        """Return what a log after this one is prepared with."""
        base = self.base
        notes = {**super().notes()["log"], "trained": None, "extends": str(base.notes.extends or base.folder)}
        before = {"before": str(base.folder)} if self.asked.negatives else {}
        return {"log": {**notes, **before, "options": self._kept.changed()}}
