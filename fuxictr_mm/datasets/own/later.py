"""A log that continues a prepared one: ``fuxictr-mm prepare log --like``.

Rows later than the newest labelled row of the earlier folder are written, as ``test``, with or without a label.
Options, columns, vocabularies and scales are those of the folder, and histories begin with those of its users. So rows
are those that both logs together would have given; earlier rows, which a source may hold again, are left out.
``--all_rows`` writes them as well, each with the clicks of the folder before it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fuxictr_mm.datasets.log import Log
from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.columns import LogColumn
from fuxictr_mm.datasets.own.options import parse_positives
from fuxictr_mm.datasets.own.source import Continued
from fuxictr_mm.datasets.reader import Embeddings
from fuxictr_mm.errors import ConfigError

logger = logging.getLogger(__name__)

#: Options that a later log may have of its own: the names of its files, their encoding, and
#: the order of their dates.
FILES = ("interactions", "items", "users", "embeddings", "encoding", "positives", "date_order")

#: Rows with values that the earlier log does not have are warned of from this fraction on.
MANY_UNKNOWN = 0.5


class LaterLog(Log):
    """A log that continues a prepared one."""

    continued: Continued

    def configure(self, given: Mapping[str, Any]) -> None:
        """Take the folder of the earlier log and the names of files."""
        self.base = base = Base(Path(given["like"]))
        for name in given:
            if name not in ("like", "all_rows", *FILES):
                raise ConfigError(f"--{name}: with --like it is that of {base.folder}; leave it out")
        all_rows = bool(given.get("all_rows"))
        if all_rows and (first := base.notes.trained or base.notes.extends) is not None:
            raise ConfigError(
                f"--all_rows: {base.folder} is itself of a later log and has not all clicks; give --like {first}"
            )
        if all_rows and base.asked.impressions:
            raise ConfigError(f"--all_rows: {base.folder} is of a log of events (--impressions); leave it out")
        files = {name: given[name] for name in FILES if name in given}
        if "positives" in files:
            files["positives"] = self._positives_of(parse_positives(files["positives"]))
        if "embeddings" in files:
            files["embeddings"] = tuple(files["embeddings"])
        self.continued = Continued(base, files, all_rows)
        positives = {**base.asked.positives, **files.get("positives", {})}
        self.asked = replace(base.asked, negatives=0, weight=None, **{**files, "positives": positives})
        self.max_len = base.max_len
        self.known_items, self.earlier_items = base.known_items, base.earlier_items
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in files.items()}
        self.options = {"like": base.digest, **listed, **({"all_rows": True} if all_rows else {})}

    def _positives_of(self, files: dict[str, str]) -> dict[str, str]:
        """Return files of positive rows, which are of labels that have such files in the earlier log."""
        known = self.base.asked.positives
        other = next((label for label in files if label not in known), None)
        if other is not None:
            raise ConfigError(
                f"--positives {other}={files[other]}: {self.base.folder} has no label of a file with this name (it "
                f"has: {', '.join(known) or 'none'}); leave it out"
            )
        return files

    def numbering(self, name: str) -> pl.Series:
        """Return the values of a column in the order of the numbers of the earlier log."""
        return self.base.vocabulary(name)

    @cached_property
    def _context_columns(self) -> tuple[list[LogColumn], list[LogColumn]]:
        columns = super()._context_columns
        if not self.continued.is_trained:
            self._warn_of_unknown(columns[0])
        return columns

    def _warn_of_unknown(self, columns: list[LogColumn]) -> None:
        for column in columns:
            if column.kind != "categorical":
                continue
            counts = self._scan().select(column.values().alias("value")).drop_nulls().collect(engine="streaming")
            unknown = counts.filter(~pl.col("value").is_in(self.numbering(column.name).cast(pl.String).implode()))
            if len(unknown) > MANY_UNKNOWN * len(counts):
                logger.warning(
                    f"{self._source.log.paths[0]}: {len(unknown)} of {len(counts)} rows hold a {column.source} that "
                    f"{self.base.folder} does not have, such as {unknown['value'][0]!r}; it becomes 0"
                )

    def embeddings(self) -> dict[str, Embeddings]:
        """Return the embeddings of the new files, and of the earlier log for items that these do not have."""
        found = super().embeddings()
        for name in found:
            if name not in self.base.notes.embeddings:
                raise ConfigError(
                    f"--embeddings: {self.base.folder} has no '{name}' (it has: "
                    f"{', '.join(self.base.notes.embeddings) or 'none'}); leave the file out"
                )

        def both(name: str) -> Iterator[tuple[pl.Series, np.ndarray]]:
            new = found[name].chunks() if name in found else iter(())
            return chain(new, self.base.embeddings(name))

        return {name: Embeddings(partial(both, name)) for name in self.base.notes.embeddings}

    # What is written beside the rows

    def notes(self) -> dict[str, Any]:
        """Return what a log after this one is prepared with."""
        newest = self._scan().filter(self._source.is_labelled).select(pl.col(":time").max()).collect().item()
        assert self._source.new_rows is not None
        since = self._source.new_rows.since
        notes = replace(
            self.base.notes,
            newest=max(since, since if newest is None else newest),
            unit=self._source.time_unit,
            trained=str(self.base.trained),
        )
        return {"log": notes.as_json()}
