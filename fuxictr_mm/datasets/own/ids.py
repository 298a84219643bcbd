"""Ids of users and items in the tables of a log, of one type in all of them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.missing import MISSING, without, words_of_no
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

#: Ids in a text of several, however they are separated.
IDS = r"""[^\s,;|\[\]()'"]+"""


@dataclass(frozen=True)
class Ids:
    """The ids of users and of targets, by role; of a later log, of the types that they have in the earlier one."""

    asked: LogOptions
    log: Table
    users: Table | None
    items: Table | None
    base: Base | None

    def column(self, role: str) -> str:
        """Return the column of the ids."""
        return self.asked.user if role == "user" else self.asked.item

    def of(self, table: Table, role: str) -> pl.Expr:
        """Return the ids of a table: integers if they are in all tables, else texts.

        A row of the log without a user is anonymous: its id is null. ``NULL`` and other words for a missing value
        (``own.missing``) are no ids.
        """
        column = self.column(role)
        kind, ids, common = table.frame.collect_schema()[column], pl.col(column), self.type_of(role)
        if self.base is not None and common != pl.String:
            wrong = ids.is_not_null() & ids.cast(common, strict=False).is_null()
            table.refuse(wrong, column, f"an integer, as in {self.base.folder}")
        if not (kind == pl.String or kind.is_integer()):
            raise ConfigError(
                f"--roles {role}={column}: {table.paths[0]} holds {kind} there, expected texts or integers"
            )
        if kind == pl.String:
            ids = without(ids, self._words_of_no(role))
        if not (table is self.log and role == "user"):
            is_missing = ids.is_null()
            table.refuse(is_missing, column, "an id", lambda: self._remedy(table, is_missing))
        if table is self.log and kind == pl.String:
            self._warn_of_words(role)
        return ids.cast(common)

    def _words_of_no(self, role: str) -> Collection[str]:
        return words_of_no(role) if self.base is None else self.base.words_of_no(role)

    @staticmethod
    def _remedy(table: Table, is_missing: pl.Expr) -> str:
        """Return what to do about rows without an id."""
        rows = table.frame.select(is_missing.sum()).collect(engine="streaming").item()
        return f"correct or drop such rows ({rows} of this table)"

    def _warn_of_words(self, role: str) -> None:
        """Warn of ids of the log that may stand for a missing one, such as ``NA``."""
        words = [word for word in MISSING if word not in words_of_no(role)]
        for word, rows in self._count_words(role, words).items():
            logger.warning(
                f"{self.log.paths[0]}: {self.column(role)} is {word!r} in {rows} rows, which is read as an id; where "
                "it stands for a missing one, write an empty field or drop the rows"
            )

    def missing_users(self) -> list[str]:
        """Return the words of the log that stand for no user."""
        if self.log.frame.collect_schema()[self.asked.user] != pl.String:
            return []
        return [word for word in self._count_words("user", self._words_of_no("user")) if word]

    def _count_words(self, role: str, words: Collection[str]) -> dict[str, int]:
        """Return which of some words are in the column of the ids of the log, in how many rows."""
        text = pl.col(self.column(role)).str.strip_chars().alias("word")
        found = (
            self.log.frame.select(text).filter(pl.col("word").is_in(list(words))).group_by("word").len().sort("word")
        )
        return dict(found.collect(engine="streaming").iter_rows())

    def histories(self, column: str) -> pl.Expr:
        """Return lists of items as lists of ids, also of texts such as ``N1 N2``, ``1|2`` or ``['a', 'b']``."""
        kind, lists = self.log.frame.collect_schema()[column], pl.col(column)
        inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
        if not (inner == pl.String or (inner != kind and inner is not None and inner.is_integer())):
            raise ConfigError(
                f"--roles history={column}: {self.log.paths[0]} holds {kind} there, expected lists of item ids, or "
                "texts such as 'N1 N2'"
            )
        if kind == pl.String:
            lists = lists.str.extract_all(IDS)
        elif isinstance(kind, pl.Array):
            lists = lists.arr.to_list()
        if inner == pl.String:
            lists = lists.list.eval(without(pl.element(), self._words_of_no("target")))
        return lists.list.drop_nulls().cast(pl.List(self.type_of("target")), strict=False)

    def type_of(self, role: str) -> pl.DataType:
        """Return the common type of the ids."""
        if self.base is not None:
            return self.base.types_of_ids[role]
        other = self.users if role == "user" else self.items
        kinds = [table.frame.collect_schema()[self.column(role)] for table in (self.log, other) if table is not None]
        if all(kind.is_integer() and kind != pl.UInt64 for kind in kinds):
            return pl.Int64()
        return pl.UInt64() if all(kind.is_unsigned_integer() for kind in kinds) else pl.String()

    def rows(self, table: Table, role: str) -> pl.DataFrame:
        """Return a table of items or users, a row each."""
        if self.base is not None:
            self.base.check_numbers(table)
        column = self.column(role)
        frame = table.frame.with_columns(self.of(table, role)).collect(engine="streaming")
        again = frame[column].is_duplicated()
        if not again.any():
            return frame
        is_copy = ~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series()
        kept = frame.filter(~is_copy)
        row = int((~frame[column].is_first_distinct()).arg_true()[0])
        found = f"{table.where(row)}: {column} is {frame[column][row]!r} again"
        others = kept.filter(kept[column].is_duplicated())
        if len(others):
            row = int((again & ~is_copy & (frame[column] == others[column][0])).arg_true()[1])
            raise DataError(
                f"{table.where(row)}: {column} is {frame[column][row]!r} again with other values, as are rows of "
                f"{others[column].n_unique()} ids, expected a row for each; keep one, such as the last: "
                f"frame.unique('{column}', keep='last')"
            )
        logger.warning(f"{found}, as in {is_copy.sum()} rows that are equal to an earlier one; one of each is used")
        return kept
