"""Which columns of a table become features, and of which type."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from shlex import quote
from typing import Any

import numpy as np
import polars as pl

from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.data.numbers import Moments
from fuxictr_mm.data.schema import why_no_layers
from fuxictr_mm.datasets.own.amounts import Form
from fuxictr_mm.datasets.own.column_names import FEW_VALUES, is_named_as_id, is_named_as_quantity
from fuxictr_mm.datasets.own.dates import NATIONAL
from fuxictr_mm.datasets.own.missing import NO_CATEGORY, without
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.datasets.reader import Kind
from fuxictr_mm.errors import ConfigError
from fuxictr_mm_serving.prepared import SCALED

logger = logging.getLogger(__name__)

#: Integers from this one on are ids or hashes, which floats do not tell apart.
HUGE = 2**53

#: Integers that all have the same number of digits, at least so many, are ids: accounts, telephones. Times since 1970
#: in seconds, milliseconds and microseconds are none, and neither are round numbers, as of prices.
ID_DIGITS = 7
TIMES = tuple((10**digits, 2 * 10**digits) for digits in (9, 12, 15))

#: Texts with more distinct values than this fraction of the rows name the row, and are not categories.
OWN_VALUE = 0.5

#: Dates, with or without a time; new ones come with time, so that a category of them is unknown later.
DATE = rf"{NATIONAL}|" r"^\s*\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}[\d:.]*\s?(?:Z|z|UTC|[+-]\d{2}:?(?:\d{2})?)?)?\s*$"
#: A day as an integer, such as 20240531, or with a time: 202405310830; most integers of as many digits are none.
DAY = r"^(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:(?:[01]\d|2[0-3])(?:[0-5]\d){0,2})?$"
DATES = "it holds dates; convert them to numbers, such as hours of the day or days of age"

#: A column of texts is one of lists if so many hold the separator.
LISTS = 0.1
LIST_SEPARATOR = "|"

#: What may separate them where --types asks for a sequence.
LIST_SEPARATORS = "|>;, "

#: Texts are named as possible lists where fewer than this fraction of the parts between separators are distinct.
DISTINCT_PARTS = 0.5

#: The separator of lists in brackets, such as [6285, 194] or ['red', 'blue'].
BRACKETS = "[,]"
#: Their entries, which may hold commas between quotes, and lists in which many entries are no categories.
ENTRIES = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,'"][^,]*"""
VECTORS = r"^\s*\[[\d\s.,eE+-]*\.[\d\s.,eE+-]*\]\s*$"


@dataclass(frozen=True)
class LogColumn:
    """A column that is written."""

    #: Its name in the file, and as it is written.
    source: str
    name: str
    kind: Kind  #: What it becomes.
    #: Of a number: what it is standardised by.
    mean: float = 0.0
    std: float = 1.0
    #: Of a sequence in texts: what separates its entries.
    separator: str = LIST_SEPARATOR
    #: Of a number in texts: its unit and decimal mark.
    form: Form = field(default_factory=Form)
    #: Of a category and a sequence: whether texts such as NULL are missing; they were values in earlier versions.
    is_clean: bool = True

    def values(self) -> pl.Expr:
        """Return the column of the file as it is written, numbers standardised; what is missing is null."""
        column = pl.col(self.source)
        if self.kind == "numeric":
            number = column.cast(pl.Float64)
            number = pl.when(number.is_finite()).then(number)
            return ((number - self.mean) / self.std).cast(pl.Float32).alias(self.name)
        if self.kind == "sequence":
            return column.cast(pl.List(pl.String)).alias(self.name)
        text = column.cast(pl.String)
        return (without(text, NO_CATEGORY) if self.is_clean and self.kind == "categorical" else text).alias(self.name)

    def scaled(self, moments: Moments) -> LogColumn:
        """Return the column with a mean and deviation of six digits: then the order of sums changes nothing."""
        return replace(self, mean=float(f"{moments.mean:.6g}"), std=float(f"{moments.deviation:.6g}") or 1.0)

    @classmethod
    def of_facts(cls, name: str, facts: Mapping[str, Any]) -> LogColumn:
        """Return a column by what the manifest says of it."""
        known = {key: facts[key] for key in ("mean", "std", "separator") if key in facts}
        form = Form(facts.get("unit", ""), facts.get("decimal", ""))
        return cls(facts["column"], name, facts["type"], form=form, is_clean=facts.get("clean", False), **known)

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the column."""
        statistics = {"mean": self.mean, "std": self.std} if self.kind == "numeric" else {}
        separated = {"separator": self.separator} if self.separator != LIST_SEPARATOR else {}
        form = {key: value for key, value in asdict(self.form).items() if value} if self.kind == "numeric" else {}
        clean = {"clean": self.is_clean} if self.kind in ("categorical", "sequence") else {}
        return {"column": self.source, "type": self.kind, **statistics, **separated, **form, **clean}


def moments_of(values: pl.Series) -> Moments:
    """Return the moments of the finite values."""
    numbers = values.cast(pl.Float64).to_numpy()
    return Moments.of(numbers[np.isfinite(numbers)])


def choose_columns(
    table: Table, without: Collection[str], types: Mapping[str, str], taken: set[str], prefix: str
) -> tuple[list[LogColumn], dict[str, str]]:
    """Return the columns of a table that are written, and why each of the others is not.

    Those in ``without`` have a role or are labels. ``types`` are kinds that were asked for. Names are added to
    ``taken``; one that is taken gets a prefix, of which ``item_`` also tells a table of items.
    """
    schema = {name: kind for name, kind in table.frame.collect_schema().items() if name not in without}
    facts = _count(table.frame, schema)
    columns, left_out = [], {}
    for source, dtype in schema.items():
        kind, reason, found = types.get(source, ""), "set by --types", facts[source]
        if not kind:
            kind, reason = _kind_of(source, dtype, found, table.option)
            _mention_kind(source, kind, found, table)
        elif not _is_possible(kind, dtype, prefix == "item_"):
            if kind == "numeric" and dtype == pl.String:
                table.refuse_texts(source, Form(), f" (--types {source}={kind})")
            raise ConfigError(f"--types {source}={kind}: {table.paths[0]} holds {dtype} there, expected another type")
        elif kind == "sequence" and dtype == pl.String and not found.mark:
            one_of = " or ".join(map(repr, LIST_SEPARATORS))
            raise ConfigError(
                f"--types {source}={kind}: no text of {table.paths[0]} holds {one_of}, which separate the entries; "
                f'replace the separator: frame["{source}"].str.replace("/", "{LIST_SEPARATOR}")'
            )
        if kind == "none":
            left_out[source] = reason
            continue
        name = free_name((source + SCALED if kind == "numeric" else source).replace(".", "_"), taken, prefix)
        separator = (kind == "sequence" and found.mark) or LIST_SEPARATOR
        form = table.forms.get(source, Form())
        columns.append(LogColumn(source, name, kind, separator=separator, form=form))  # type: ignore[arg-type]
    return columns, left_out


def free_name(name: str, taken: set[str], prefix: str) -> str:
    """Return a name with as many prefixes as make it one that a feature can have, and add it to those taken."""
    while name in taken or why_no_layers([name]):
        name = prefix + name
    taken.add(name)
    return name


def split_lists(frame: pl.DataFrame, columns: Sequence[LogColumn]) -> pl.DataFrame:
    """Return a table in which texts such as ``a|b|c`` of sequences are lists, and lists of lists are flat."""
    kinds = frame.schema
    nested = [column.source for column in columns if column.kind == "sequence" and _is_nested(kinds[column.source])]
    flat = pl.element().explode(**EMPTY_AS_NULL).drop_nulls().unique(maintain_order=True)
    frame = frame.with_columns(pl.col(nested).list.eval(flat)) if nested else frame
    texts = [column for column in columns if column.kind == "sequence" and kinds[column.source] == pl.String]
    return frame.with_columns(_split(column) for column in texts)


def _split(column: LogColumn) -> pl.Expr:
    text, separator = pl.col(column.source), column.separator
    lists, entry = text.str.split(separator), pl.element().str.strip_chars()
    if separator == BRACKETS:
        inner = text.str.strip_chars().str.strip_chars("[]")
        is_array = inner.str.contains(r"^[\d\s]+$")  # of NumPy: [6285 194]
        inner = pl.when(is_array).then(inner.str.replace_all(r"\s+", ",")).otherwise(inner)
        lists, entry = inner.str.extract_all(ENTRIES), entry.str.strip_chars("'\"")
    entry = without(entry, NO_CATEGORY if column.is_clean else [""])
    return lists.list.eval(entry.drop_nulls())


def _is_nested(kind: pl.DataType) -> bool:
    """Whether a column holds lists of lists, such as paths of categories."""
    return isinstance(kind, pl.List) and isinstance(kind.inner, pl.List)


@dataclass(frozen=True)
class _Facts:
    """What the values of a column are: how many, about how many distinct ones, and how many of some form."""

    values: int
    distinct: int
    dates: int
    lists: int  #: Texts that a bar separates, or all of them if all are lists in brackets.
    vectors: int  #: Texts that are lists of numbers with decimals.
    is_huge: bool  #: Whether an integer is too large for a number.
    is_id: bool  #: Whether all integers have the same large number of digits, and are no times.
    span: int  #: From the least to the largest integer.
    #: What may separate the entries of lists, and how many texts hold it.
    mark: str
    marked: int


def _mention_kind(name: str, kind: str, found: _Facts, table: Table) -> None:
    """Log that a category may be lists, or an id a number: ``red, blue`` are two values, ``Oslo, Norway`` is one."""
    is_marked = table.option == "items" and found.mark not in " " and found.marked > LISTS * found.values
    if is_marked and (kind == "categorical" or (kind == "text" and _recur(table.frame, name, found.mark))):
        read = "a category" if kind == "categorical" else "a text, which models do not read"
        logger.info(
            f"{table.paths[0]}: {name} is read as {read}; if {found.mark!r} separates several values in its texts, "
            f"--types {quote(name)}=sequence reads lists"
        )
    elif kind == "categorical" and found.is_id and found.distinct > FEW_VALUES and not is_named_as_id(name):
        logger.info(
            f"{table.paths[0]}: {name} is read as ids, since all its integers have as many digits; "
            f"--types {quote(name)}=numeric reads numbers"
        )


def _recur(frame: pl.LazyFrame, name: str, mark: str) -> bool:
    """Whether parts of different texts are equal, as those of lists of tags; parts of titles seldom are."""
    parts = frame.select(pl.col(name).drop_nulls().str.split(mark).explode(**EMPTY_AS_NULL).str.strip_chars())
    found = parts.select(pl.len(), distinct=pl.col(name).approx_n_unique()).collect(engine="streaming")
    return found["distinct"][0] < DISTINCT_PARTS * found["len"][0]


def _count(frame: pl.LazyFrame, schema: Mapping[str, pl.DataType]) -> dict[str, _Facts]:
    """Return the facts of each column."""
    counts = []
    for name, kind in schema.items():
        is_text = kind == pl.String
        value = without(pl.col(name), NO_CATEGORY) if is_text else pl.col(name)
        of_kind = {
            "values": value.count(),
            "distinct": value.approx_n_unique() if is_text or kind.is_integer() else pl.lit(0),
            "dates": pl.lit(0),
        }
        if is_text or kind.is_integer():
            of_kind["dates"] = value.cast(pl.String).str.contains(rf"{DATE}|{DAY}" if is_text else DAY).sum()
        if is_text:
            of_kind |= {mark: value.str.contains(mark, literal=True).sum() for mark in LIST_SEPARATORS}
            of_kind[VECTORS] = value.str.contains(VECTORS).sum()
            of_kind[BRACKETS] = value.str.contains(r"^\s*\[[^\[\]{}]*\]\s*$").sum()
        if kind.is_integer():
            of_kind |= {"least": value.min(), "most": value.max(), "round": (value % 10 == 0).sum()}
        counts += [expression.alias(f"{what} {name}") for what, expression in of_kind.items()]
    row = frame.select(counts).collect(engine="streaming").row(0, named=True) if counts else {}
    return {name: _facts_of({what: row.get(f"{what} {name}", 0) for what in _COUNTED}) for name in schema}


#: What ``_count`` counts.
_COUNTED = ("values", "distinct", "dates", *LIST_SEPARATORS, BRACKETS, VECTORS, "least", "most", "round")


def _facts_of(row: Mapping[str, Any]) -> _Facts:
    """Return the facts of a column by what was counted."""
    mark = _mark_of({mark: row[mark] for mark in LIST_SEPARATORS if row[mark]}, row["values"])
    count = row[mark] if mark else 0
    lists, is_bracketed = row[LIST_SEPARATOR], row[BRACKETS] == row["values"] > 0
    if is_bracketed:
        mark, lists = BRACKETS, row["values"]
        count = lists
    least, most = row["least"] or 0, row["most"] or 0
    is_time = any(start <= least and most < end for start, end in TIMES)
    is_round = row["round"] == row["values"]
    is_id = ID_DIGITS <= len(str(least)) == len(str(most)) and least > 0 and not is_time and not is_round
    huge = max(abs(least), abs(most)) >= HUGE
    return _Facts(
        row["values"], row["distinct"], row["dates"], lists, row[VECTORS], huge, is_id, most - least, mark,
        count,
    )  # fmt: skip


def _mark_of(held: Mapping[str, int], values: int) -> str:
    """Return what may separate the entries of lists by how many texts hold it.

    The first of ``LIST_SEPARATORS`` that is no exception: ``;`` separates ``Doe, Jane; Roe, Ann``. ``>`` is the mark of
    paths if no fewer texts hold it than another; a space separates only where nothing else may.
    """
    others = {mark: count for mark, count in held.items() if mark != " "} or dict(held)
    common = {mark: count for mark, count in others.items() if count > LISTS * values} or others
    if common.get(">", values) < max(common.values(), default=0):
        common.pop(">")
    return next(iter(common), "")


def _kind_of(name: str, kind: pl.DataType, found: _Facts, table: str) -> tuple[str, str]:
    """Return the type of a column, and why it is none."""
    is_item, count, distinct = table == "items", found.values, found.distinct
    is_id = found.is_huge or is_named_as_id(name) or (found.is_id and not is_named_as_quantity(name))
    if not count:
        return "none", "it is empty"
    if kind.is_float():
        return "numeric", ""
    if isinstance(kind, pl.Datetime | pl.Date) or found.dates == count:
        return "none", DATES
    if kind.is_integer():
        if distinct < 2:
            return "none", "it has one value"
        is_own = distinct > FEW_VALUES and distinct > 0.9 * count
        is_counted = found.span < 2 * distinct  # as customers are numbered
        if is_own and (table == "interactions" or (table == "users" and (is_id or is_counted))):
            return "none", "nearly every row has a different value"
        return ("categorical" if distinct <= FEW_VALUES or is_id else "numeric"), ""
    if kind == pl.String:
        if is_item and found.mark == BRACKETS and 2 * found.vectors > count:
            return "none", "it holds lists of numbers; of embeddings, write files for --embeddings"
        if found.lists > LISTS * count and is_item:
            return "sequence", ""
        if distinct < 2:
            return "none", "it has one value"
        if distinct > FEW_VALUES // 5 and distinct > OWN_VALUE * count:
            return ("text", "") if is_item else ("none", "most rows have different values")
        return "categorical", ""
    if is_item and isinstance(kind, pl.List):
        inner = kind.inner.inner if isinstance(kind.inner, pl.List) else kind.inner
        if inner == pl.String or (inner is not None and inner.is_integer()):
            return "sequence", ""
    return "none", f"it holds {kind}"


def _is_possible(kind: str, dtype: pl.DataType, is_item: bool) -> bool:
    if kind == "none":
        return True
    if kind == "numeric":
        return dtype.is_numeric()
    if kind == "sequence":
        return is_item and (isinstance(dtype, pl.List) or dtype == pl.String)
    return not dtype.is_nested() and (is_item or kind != "text")
