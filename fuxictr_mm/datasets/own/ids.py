"""Ids of users and items in the tables of a log, of one type in all of them."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, DataError

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

        A row of the log without a user is anonymous: its id is null.
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
        ids = ids.str.strip_chars() if kind == pl.String else ids  # as of columns of a fixed width
        is_missing = ids.is_null() | (ids.cast(pl.String) == "")
        if table is self.log and role == "user":
            ids = pl.when(~is_missing).then(ids)
        else:
            table.refuse(is_missing, column, "an id; correct or drop the row")
        return ids.cast(common)

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
            lists = lists.list.eval(pl.element().str.strip_chars())
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
        again = ~frame[column].is_first_distinct()
        if again.any():
            row = int(again.arg_true()[0])
            raise DataError(f"{table.where(row)}: {column} is {frame[column][row]!r} again, expected once; drop a row")
        return frame
