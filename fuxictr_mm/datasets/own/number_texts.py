"""Columns of texts that are numbers in nearly all rows, and what is said of those that may be meant in another way."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import polars as pl

from fuxictr_mm.datasets.own.amounts import (
    NUMBERS,
    PHONE,
    PLAIN,
    SAME,
    Form,
    common_unit,
    decimal_in,
    form_in,
    unit_of,
)
from fuxictr_mm.datasets.own.column_names import FEW_VALUES, is_named_as_id
from fuxictr_mm.datasets.own.missing import is_missing
from fuxictr_mm.datasets.own.number_column import (
    INTEGER,
    NumberColumn,
    as_integers,
    as_numbers,
    example_of,
    is_integer,
)
from fuxictr_mm.datasets.own.other_texts import HALF, MOSTLY, Others

logger = logging.getLogger(__name__)

#: What spreadsheets make of long digits.
ROUNDED = r"^\d[.,]\d+[eE]\+\d+$"

#: Rows in which a unit is looked for.
SAMPLE = 1000


@dataclass(frozen=True)
class NumberTexts:
    """The texts of a table, and what is known of them before they are read."""

    rows: pl.LazyFrame
    path: Path  #: The file that messages name.
    option: str  #: The option that names the table.
    ids: Sequence[str]  #: Columns whose texts stay texts.
    types: Mapping[str, str]  #: What columns are known to become.
    known_forms: Mapping[str, Form] | None  #: How an earlier log writes numbers; None if there is none.
    has_commas: bool  #: Whether a comma may be in a number, since it separates no columns.
    asked: Collection[str] = ()  #: Columns that ``--types`` names as numbers.
    strict: Collection[str] = ()  #: Columns with a role and labels: of these, each text has to be a number.
    only_asked: bool = False  #: Whether texts of other columns stay texts, as of Parquet files.

    def read(self) -> tuple[list[pl.Expr], dict[str, Form]]:
        """Return casts of the columns whose texts are all numbers, and how those with a unit or a mark are written."""
        texts = [name for name, kind in self.rows.collect_schema().items() if kind == pl.String]
        ids = [name for name in texts if name in self.ids]
        names = [name for name in texts if name not in self.ids and self.types.get(name) not in ("sequence", "text")]
        names = [name for name in names if self.types.get(name) == "numeric"] if self.only_asked else names
        forms = self._amounts([name for name in names if self._is_numeric(name)])
        casts = [as_numbers(name, form) for name, form in forms.items()]
        columns = [self._column(name) for name in names if name not in forms]
        tests = [test for column in columns for test in column.tests()]
        tests += [example_of(pl.col(n), pl.col(n).str.contains(ROUNDED)).alias(f"rounded {n}") for n in ids]
        found = self.rows.select(tests).collect(engine="streaming").row(0, named=True) if tests else {}
        self._warn_of_rounded({name: found[f"rounded {name}"] for name in ids})
        for column in columns:
            form = self._form_of(column, found)
            if form is None:
                continue
            is_int = not form.decimal and found[f"integer {column.name}"]
            casts.append(as_integers(column.text) if is_int else as_numbers(column.name, form))
            if form.decimal and not self._known(column.name).unit:  # which these numbers do not have
                forms[column.name] = form
        return casts, forms

    def _column(self, name: str) -> NumberColumn:
        text, is_numeric = pl.col(name).str.strip_chars(), self._is_numeric(name)
        kinds = {"integer": is_integer(text), "digits": text.str.contains(INTEGER)}
        for mark, is_number in self._is_number(name, text, is_numeric).items():
            kinds[mark] = is_number & ~text.str.contains(PHONE)
        grouped = [text.str.contains(NUMBERS["."])] if is_numeric else []  # perhaps: a warning names them
        is_number = pl.any_horizontal(*kinds.values(), *grouped).fill_null(False)
        return NumberColumn(name, text, kinds, is_number, is_numeric, name in self.asked)

    def _form_of(self, column: NumberColumn, found: dict[str, Any]) -> Form | None:
        """Return how the numbers of a column are written, None of texts, and say what they were nearly.

        ``found`` is changed where some texts count as missing.
        """
        name, fraction = column.name, found[f"any {column.name}"]  # None without rows
        others = None
        if fraction is not None and fraction < 1:
            if fraction >= HALF and column.is_numeric:
                others = Others.of(self.rows, column.text, is_missing(column.text), column.is_number)
            if others is None or not self._are_missing(column, others, found):
                self._mention_texts(column, others, found[f"amount {name}"])
                return None
        # Digits alone that are not integers of 64 bits are ids, of which a float would take two for one.
        if found[f"digits {name}"] != found[f"integer {name}"]:
            return None
        decimal = self._decimal_of(column, found)
        if decimal is not None and others is not None:
            self._warn_of_missing(name, others)
        return None if decimal is None else Form("", decimal)

    def _are_missing(self, column: NumberColumn, others: Others, found: dict[str, Any]) -> bool:
        """Whether texts among numbers count as missing; then ``found`` is without them.

        Beside codes, and integers of few values, they are categories.
        """
        name, is_known = column.name, self.types.get(column.name) == "numeric"
        if name in self.strict or (is_named_as_id(name) and not is_known):
            return False
        if not others.are_missing(column.is_asked, self.known_forms is not None):
            return False
        found |= self.rows.select(column.tests(all_count=False)).collect(engine="streaming").row(0, named=True)
        return is_known or not found[f"integer {name}"] or others.distinct > FEW_VALUES

    def _warn_of_missing(self, name: str, others: Others) -> None:
        keep = f"; --types {quote(name)}=categorical keeps the texts" if self._is_mentioned(name) else ""
        logger.warning(f"{self.path}: {name} is read as numbers; {others}, which count as missing{keep}")

    def _mention_texts(self, column: NumberColumn, others: Others | None, is_amount: bool) -> None:
        """Say why a column with numbers is read as texts, unless some are codes such as 007."""
        name = column.name
        if is_amount and column.is_numeric and (others is None or others.numbers < MOSTLY):
            self._warn_of_units(column)
        elif others is None:
            return
        elif others.numbers > HALF and not others.has_codes and self._is_mentioned(name) and name not in self.strict:
            level = logging.WARNING if others.numbers >= MOSTLY else logging.INFO
            logger.log(
                level,
                f"{self.path}: {name} is read as texts, since {others}; write numbers in one form and missing ones as "
                f"empty fields, or add --types {quote(name)}=numeric, which reads the others as missing, or --types "
                f"{quote(name)}=categorical if they are codes",
            )

    def _warn_of_rounded(self, examples: Mapping[str, str | None]) -> None:
        for name, example in examples.items():
            if example is not None:
                logger.warning(
                    f"{self.path}: {name} holds {example!r}: a spreadsheet seems to have rounded "
                    "ids of many digits, so that several are one; export the column as text"
                )

    def _is_numeric(self, name: str) -> bool:
        """Whether a column may become a quantity."""
        return self.types.get(name, "numeric") == "numeric"

    def _decimal_of(self, column: NumberColumn, found: Mapping[str, Any]) -> str | None:
        """Return the decimal mark of numbers, empty without one, None of texts, and log how they are read."""
        name = column.name
        fits = [mark for mark in NUMBERS if found.get(f"{mark} {name}")]
        marks = {mark: example for mark in NUMBERS if (example := found[f"first {mark} {name}"]) is not None}
        is_asked = self.types.get(name) == "numeric"
        decimal = decimal_in(fits, marks, self._known(name).decimal, is_asked)
        is_list = decimal == "." and "," in marks and not is_asked and self._may_be_lists(column.text)
        decimal = None if is_list else decimal
        self._mention_marks(name, decimal, marks, is_list, is_unsure=len(fits) == 2)
        if decimal is not None and self._is_mentioned(name) and (example := found[f"negative {name}"]):
            logger.info(
                f"{self.path}: {name} is read as numbers, negative in parentheses or before -, as in "
                f"{example}; --types {quote(name)}=categorical keeps the texts"
            )
        return decimal

    def _may_be_lists(self, text: pl.Expr) -> bool:
        """Whether 100,200,300 may be three ids: these do not begin with 0, but of many groups of digits some do."""
        return not self.rows.select(text.str.contains(r"\.|,0").any()).collect(engine="streaming").item()

    def _warn_of_units(self, column: NumberColumn) -> None:
        """Warn of amounts of several units, such as kg and g, or with and without one, which stay texts."""
        name, text = column.name, column.text
        unit = unit_of(text.filter(~is_missing(text))).fill_null("").alias("unit")
        units = self.rows.select(unit.unique().sort()).collect(engine="streaming")["unit"].to_list()
        if len(units) > 1 and self._is_mentioned(name):
            logger.warning(
                f"{self.path}: {name} is read as texts, since its amounts have several units "
                f"({', '.join(unit or 'none' for unit in units)}); write all as numbers of one unit, or add "
                f"--types {quote(name)}=categorical"
            )

    def _is_number(self, name: str, text: pl.Expr, is_numeric: bool) -> dict[str, pl.Expr]:
        """Return, by the possible decimal marks of a column, whether a text is a number; of a category, by a point."""
        if not is_numeric:
            return {".": text.str.contains(SAME)}  # 1.10 and 1.1 are two
        is_plain, is_grouped = (
            {mark: text.str.contains(pattern) for mark, pattern in patterns.items()} for patterns in (PLAIN, NUMBERS)
        )
        found = {".": is_plain["."]}
        # Where commas separate columns, 1,234 may be two ids, but not if another row is 1,234.50.
        has_commas = self.has_commas or self._known(name).decimal == "," or self.types.get(name) == "numeric"
        found["."] |= is_grouped["."] & (pl.lit(has_commas) | text.str.contains(r",.*\.").any())
        if has_commas:
            found[","] = is_plain[","] | is_grouped[","]
        else:  # in the same way, 1,5 is a number if another row is 1.234,50
            found[","] = is_grouped[","] & text.str.contains(r"\.\d{3},").any()
        return found

    def _mention_marks(
        self, name: str, decimal: str | None, marks: Mapping[str, str], is_list: bool, is_unsure: bool
    ) -> None:
        """Log how points and commas in the numbers of a column are read; warn if they are not."""
        examples = " and ".join(map(repr, marks.values()))
        if self.known_forms is not None and decimal and is_unsure and not self._known(name).decimal:
            logger.warning(
                f"{self.path}: {name}: {decimal!r} in {examples} is read as the decimal mark, since the earlier "
                "log has none; if it separates thousands, write numbers without such separators"
            )
        if not self._is_mentioned(name) or not marks:
            return
        if is_list:
            lists = f", or --types {quote(name)}=sequence if they are lists" if self.option == "items" else ""
            logger.warning(
                f"{self.path}: {name} is read as texts, since the rows do not tell whether commas separate "
                f"thousands or the values of lists, as in {examples}; add --types {quote(name)}=numeric if they are "
                f"numbers{lists}"
            )
            return
        if decimal is None:
            logger.warning(
                f"{self.path}: {name} is read as texts, since the rows do not tell whether points and commas "
                f"separate thousands or decimals, as in {examples}; write numbers without separators of thousands"
                f"{f', or add --types {quote(name)}=numeric if it separates decimals' if len(marks) == 1 else ''}"
            )
        elif decimal and "," in marks:
            read = "decimal commas" if decimal == "," else "commas between thousands"
            logger.info(
                f"{self.path}: {name} is read as numbers with {read}, such as {marks[',']}; "
                f"--types {quote(name)}=categorical keeps the texts"
            )

    def _known(self, name: str) -> Form:
        return (self.known_forms or {}).get(name, Form())

    def _is_mentioned(self, name: str) -> bool:
        """Whether the log says how a column is read: where ``--types`` can change it."""
        return self.known_forms is None and name not in self.types

    def _amounts(self, names: Sequence[str]) -> dict[str, Form]:
        """Return how the numbers of columns with a unit are written."""
        units = [common_unit(pl.col(name).str.strip_chars()).alias(name) for name in names]
        found = self.rows.head(SAMPLE).select(units).collect(engine="streaming").row(0, named=True) if units else {}
        begins = {name: Form(unit or "") for name, unit in found.items()}
        begins |= {name: form for name, form in (self.known_forms or {}).items() if name in names}
        forms = {}
        for name, begin in begins.items():
            if begin.unit and (form := self._amount(name, begin)) is not None:
                forms[name] = form
        return forms

    def _amount(self, name: str, begin: Form) -> Form | None:
        """Return how the amounts of a column are written, None of texts, and log how they are read."""
        form, example, others = form_in(self.rows, name, begin, name in self.asked)
        if example is not None:
            logger.warning(
                f"{self.path}: {name} is read as texts, since no row tells what the mark in {example!r} "
                "separates, thousands or decimals; write numbers without separators of thousands"
            )
        if others is not None and (
            name in self.strict or not others.are_missing(name in self.asked, self.known_forms is not None)
        ):
            return None
        if form is not None and self._is_mentioned(name):
            logger.info(
                f"{self.path}: {name} is read as numbers without {form.unit!r}; "
                f"--types {quote(name)}=categorical keeps the texts"
            )
        if others is not None:
            self._warn_of_missing(name, others)
        return form
