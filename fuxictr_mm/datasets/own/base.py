"""The folder of a log that was prepared before: what a later log is prepared with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.data.numbering import all_items_in, digests_in, earlier_items_in, extended_in, known_items
from fuxictr_mm.data.parquet import metadata_of
from fuxictr_mm.datasets.own.amounts import SAME
from fuxictr_mm.datasets.own.columns import LogColumn
from fuxictr_mm.datasets.own.instants import Unit, as_instants
from fuxictr_mm.datasets.own.missing import words_of_no
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.datasets.reader import SPLITS
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import read_json
from fuxictr_mm_serving.prepared import (
    HISTORIES,
    ITEM_FILE,
    MANIFEST,
    SOURCE_ID,
    SOURCE_ROW,
    SOURCE_TIME,
    SOURCE_USER,
    VOCABULARIES,
)

#: Embeddings read at a time.
CHUNK_ITEMS = 8192


@dataclass(frozen=True)
class Notes:
    """What the manifest keeps of a log for later ones."""

    options: dict[str, Any]  #: Options that are not the default.
    labels: list[str]  #: Columns of labels; none where negatives were sampled.
    newest: float  #: The time of the newest row with a label.
    unit: Unit  #: Of what times are numbers ("number", "us", "ns").
    embeddings: list[str]  #: Columns of embeddings that were written.
    #: Of a later log, the folder that the first one was prepared into, whose configuration has the experiments.
    trained: str | None = None
    #: Of a log that extends another, the folder of the first one.
    extends: str | None = None
    #: Of a log that extends another and has sampled negatives, the folder of the one before it, with clicks that no
    #: negative may be.
    before: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what the manifest holds."""
        return {name: value for name, value in asdict(self).items() if name != "before" or value is not None}


class Base:
    """A log that ``fuxictr-mm prepare log`` has prepared, with ``--like`` or without, read for a later one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / MANIFEST
        if not path.is_file():
            raise ConfigError(
                f"--like {folder}: has no {MANIFEST}; expected a folder written by fuxictr-mm prepare log"
            )
        manifest = read_json(path)
        origin = manifest.get("origin") or {}
        if origin.get("reader") != "log":
            raise ConfigError(f"--like {folder}: was written by the reader {origin.get('reader')}, expected log")
        if "log" not in manifest:
            has_ended = "columns" in manifest
            fix = (
                "an earlier version wrote it; prepare it again with --overwrite from the same files, which gives the "
                "same numbers"
                if has_ended
                else "it is not complete; run its command again"
            )
            raise ConfigError(f"--like {folder}: {fix}")
        self.notes = Notes(**manifest["log"])
        self.asked = LogOptions.of_json(self.notes.options)
        self.max_len = int(origin["max_len"])
        #: Digest of the manifest: a folder that is begun with another state of the base is not continued.
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.columns: dict[str, list[LogColumn]] = {
            option: [LogColumn.of_facts(name, column) for name, column in facts["written"].items()]
            for option, facts in manifest["columns"].items()
        }
        labels = manifest["columns"]["interactions"].get("labels", {})
        #: Labels that are numbers, by their names in the log.
        self.numeric_labels = {facts["column"]: LogColumn.of_facts(name, facts) for name, facts in labels.items()}

    def adapt(self, table: Table) -> Table:
        """Return a table of a later log that is read with the types of this one."""
        # A day without missing values may hold 12.0 where the earlier log had 12, or the reverse.
        columns = self.columns.get(table.option, [])
        codes = [column for column in columns if column.kind == "categorical"]
        has_floats = {column.source: self._has_floats(column.name) for column in codes}
        as_integers = {source: not found for source, found in has_floats.items() if found is not None}
        types = {column.source: column.kind for column in columns if column.kind != "group"}
        numbers = [column for column in columns if column.kind == "numeric"]
        numbers += self.numeric_labels.values() if table.option == "interactions" else []
        forms = {column.source: column.form for column in numbers}
        # On a day on which all are numbers or such as "none", they are the same texts as before.
        texts = [column.source for column in codes if not self._has_numbers(column.name)]
        return table.changed(
            texts=(*table.texts, *texts), types={**table.types, **types}, as_integers=as_integers, known_forms=forms
        )

    def check_numbers(self, table: Table) -> None:
        """Refuse a column of numbers that holds something else in a later log."""
        kinds = table.frame.collect_schema()
        for column in self.columns.get(table.option, []):
            kind, unit = kinds[column.source], column.form.unit
            if column.kind != "numeric" or kind == pl.Null:
                continue
            if kind == pl.String:
                table.refuse_texts(column.source, column.form, f", as in {self.folder}")
            if not kind.is_numeric():
                of = f" with the unit {unit!r}" if unit else ""
                raise DataError(
                    f"{table.paths[0]}: {column.source} holds {kind}, expected numbers{of}, as in {self.folder}"
                )
            if unit and column.source not in table.forms:
                without = pl.col(column.source).is_not_null()
                table.refuse(without, column.source, f"numbers with the unit {unit!r}, as in {self.folder}")

    def vocabulary(self, name: str) -> pl.Series:
        """Return the values of a column, or all users (``user_id``), in the order of their numbers."""
        return pl.read_parquet(self.folder / VOCABULARIES / f"{name}.parquet").sort("code")["value"]

    def _has_floats(self, name: str) -> bool | None:
        """Whether numbers among the categories have decimals, such as 12.0; None if none is a number."""
        numbers = self.vocabulary(name).cast(pl.String).str.extract(r"^-?\d+(\.\d+)?$", 0).drop_nulls()
        return bool(numbers.str.contains(".", literal=True).any()) if len(numbers) else None

    def _has_numbers(self, name: str) -> bool:
        """Whether all categories are numbers, and not texts of which some are."""
        return bool(self.vocabulary(name).cast(pl.String).str.contains(SAME).all())

    @cached_property
    def types_of_ids(self) -> dict[str, pl.DataType]:
        """The types of the ids of users and of items, by role."""
        users = pl.read_parquet_schema(self.folder / VOCABULARIES / "user_id.parquet")
        return {"user": users["value"], "target": pl.read_parquet_schema(self.folder / ITEM_FILE)[SOURCE_ID]}

    @cached_property
    def _item_file(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / ITEM_FILE).sort("item_id")

    @property
    def item_ids(self) -> pl.Series:
        """The items in the order of their numbers."""
        return self._item_file[SOURCE_ID].alias("item_id")

    def words_of_no(self, role: str) -> tuple[str, ...]:
        """Return the texts that stand for no id of a role; in folders of earlier versions, some of them are ids."""
        words = words_of_no(role)
        known = self.vocabulary("user_id") if role == "user" else self.item_ids
        held = set(known.filter(known.is_in(words))) if known.dtype == pl.String else set()
        return tuple(word for word in words if word not in held)

    @cached_property
    def known_items(self) -> int:
        """How many items weights may have parameters of: those of the first folder, where this is of a later log."""
        known = known_items(metadata_of(self.folder / ITEM_FILE))
        return len(self._item_file) if known is None else known

    @property
    def earlier_items(self) -> list[str]:
        """Digests of all items of the later logs up to this one, whose numbers those of a log after it continue."""
        return [*earlier_items_in(self.folder), *all_items_in(self.folder).values()]

    @property
    def is_to_score(self) -> bool:
        """Whether this is a later log, of which nothing is trained."""
        return self.notes.trained is not None

    @cached_property
    def numberings(self) -> dict[str, dict[str, int]]:
        """By column, the digests and sizes of its numbering and of those that this one begins with."""
        found: dict[str, dict[str, int]] = {}
        rows = next(path for split in SPLITS for path in sorted((self.folder / split).glob("*.parquet")))
        for metadata in map(metadata_of, (self.folder / ITEM_FILE, rows)):
            before = extended_in(metadata)
            for name, digest in digests_in(metadata).items():
                size = len(self._item_file) if name == "item_id" else len(self.vocabulary(name))
                found[name] = {**before.get(name, {}), digest: size}
        return found

    @cached_property
    def num_training_rows(self) -> int:
        """Rows of train."""
        return pl.scan_parquet(self.folder / "train" / "*.parquet").select(pl.len()).collect().item()

    @cached_property
    def items(self) -> pl.DataFrame:
        """The items with ids and categories as the source had them, and numbers as they are written."""
        return self._item_file.select(
            pl.col(SOURCE_ID).alias("item_id"),
            *(self._decoded(column) for column in self.columns.get("items", [])),
        )

    def _decoded(self, column: LogColumn) -> pl.Expr:
        code = pl.col(column.name)
        if column.kind not in ("categorical", "sequence"):
            return code
        words = self.vocabulary(column.name).cast(pl.String)
        values = pl.Series([None, *words], dtype=pl.String)
        codes = range(len(values))
        if column.kind == "categorical":
            return code.replace_strict(codes, values, return_dtype=pl.String)
        return code.list.eval(pl.element().replace_strict(codes, values, return_dtype=pl.String))

    def embeddings(self, name: str) -> Iterator[tuple[pl.Series, np.ndarray]]:
        """Yield item ids and their embeddings."""
        ids = self.item_ids
        for batch in pq.ParquetFile(self.folder / f"{name}.parquet").iter_batches(CHUNK_ITEMS):
            numbers, values = batch.column("item_id").to_numpy(), batch.column(name)
            yield ids.gather(numbers - 1), values.flatten().to_numpy().reshape(len(batch), -1)

    def rows_at(self, time: float) -> int:
        """Return how many rows have a time, which is a number as in ``Notes``."""
        rows = self._rows.select(is_at=pl.col(SOURCE_TIME) == as_instants(pl.lit(time), self.notes.unit))
        return int(rows.select(pl.col("is_at").sum()).collect(engine="streaming").item())

    @property
    def _rows(self) -> pl.LazyFrame:
        paths = [self.folder / split / "*.parquet" for split in SPLITS if (self.folder / split).is_dir()]
        return pl.scan_parquet(paths)

    @cached_property
    def num_rows(self) -> int:
        """Rows of all splits, and of the logs before."""
        return self._rows.select(pl.len()).collect().item() + sum(log.num_rows for log in self._before)

    @cached_property
    def _before(self) -> list[Base]:
        """The log that this one extends, whose clicks are read as well; none unless negatives are sampled."""
        if self.notes.before is None:
            return []
        folder = Path(self.notes.before)
        if not (folder / MANIFEST).is_file():
            raise ConfigError(
                f"--like {self.folder}: extends {folder}, which is not there, and whose clicks must be no negatives; "
                "put the folder back (a relative path is of the working directory), or prepare all days at once"
            )
        return [Base(folder)]

    @property
    def depth(self) -> int:
        """The number of logs up to this one, each extended by the next; 1 where no negatives are sampled."""
        return 1 + sum(log.depth for log in self._before)

    @property
    def names(self) -> dict[str, str]:
        """The labels that were named, ``COLUMN=VALUE`` of some, with the names that they have."""
        return dict(zip(self.asked.labels, self.notes.labels, strict=False))

    def events(self, is_wanted: pl.Expr, unit: Unit) -> pl.DataFrame:
        """Return ``:user``, ``:item`` and ``:time`` of all clicks of some users, in the order of time.

        Of a log with sampled negatives that extends another, also those of the other.
        """
        classes = [name for name in self.notes.labels if name not in self.numeric_labels]
        given = self.asked.history_from or ""
        label = self.names.get(given, given) or next(iter(classes), None)
        if not self.notes.labels:
            label = "label"  # of sampled negatives
        is_click = pl.lit(True) if label is None else pl.col(label) == 1
        time = pl.col(SOURCE_TIME) if unit == "number" else pl.col(SOURCE_TIME).dt.timestamp(unit)
        rows = self._rows.filter(is_click).sort(SOURCE_TIME, SOURCE_ROW)
        named = rows.select(pl.col(SOURCE_USER).alias(":user"), "item_id", time.alias(":time"))
        clicks = named.filter(is_wanted & pl.col(":user").is_not_null()).collect(engine="streaming")
        clicks = clicks.select(":user", self.item_ids.gather(clicks["item_id"] - 1).alias(":item"), ":time")
        return pl.concat([*(log.events(is_wanted, unit) for log in self._before), clicks])

    @property
    def trained(self) -> Path:
        """The folder of the first log, whose configuration has the experiments."""
        return Path(self.notes.trained or self.folder)

    @cached_property
    def num_users(self) -> int:
        """Users that have a history."""
        return pl.scan_parquet(self.folder / HISTORIES / "*.parquet").select(pl.len()).collect().item()

    def clicks(self, is_wanted: pl.Expr) -> pl.DataFrame:
        """Return ``:user`` and ``:item`` of the newest clicks of some users, in the order of time."""
        histories = pl.scan_parquet(self.folder / HISTORIES / "*.parquet").rename({SOURCE_USER: ":user"})
        # Not exploded in the scan: of lists, only those of the users wanted are kept in memory.
        clicks = (
            histories.filter(is_wanted)
            .collect(engine="streaming")
            .explode("item_seq", **EMPTY_AS_NULL)
            .drop_nulls("item_seq")
        )
        return clicks.select(":user", self.item_ids.gather(clicks["item_seq"] - 1).alias(":item"))
