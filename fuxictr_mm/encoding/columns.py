"""Columns of a raw dataset, as FuxiCTR's ``feature_cols`` and ``label_col`` describe them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from fuxictr_mm.config import DatasetConfig, FeatureSpec
from fuxictr_mm.config.columns import listed_twice, split_entries
from fuxictr_mm.encoding.csv_files import plain_numbers, to_numbers
from fuxictr_mm.errors import ConfigError

TYPES = {"str": pl.String, "int": pl.Int64, "float": pl.Float64}

#: What FuxiCTR puts in place of a missing value.
MISSING: dict[str, Any] = {"str": "", "int": 0, "float": 0.0}


@dataclass(frozen=True)
class RawColumn:
    """A column to encode."""

    #: Its entry of ``feature_cols``; of a label, the name, type and ``fill_na`` of its entry of ``label_col``.
    spec: FeatureSpec
    #: The ``dtype`` of a column of numbers that ``copy_from`` copies: texts are then those of the numbers, so that 1
    #: and 1.0 are one value.
    copied: str | None = None
    is_optional: bool = False  #: Whether files may not have it: only those that are trained on need weights.

    @property
    def name(self) -> str:
        """Name of the encoded column."""
        return str(self.spec.name)

    @property
    def type(self) -> str:
        """Kind of feature, or ``label``."""
        return self.spec.type or "label"

    @property
    def dtype(self) -> str:
        """Type of the stored values; sequences are texts."""
        return "str" if self.type == "sequence" else self.spec.dtype or "float"

    @property
    def source(self) -> str:
        """Name of the column of the files."""
        preprocess = self.spec.preprocess
        if not preprocess:
            return self.name
        copied = re.fullmatch(r"copy_from\(([^()]+)\)", preprocess)
        if copied is None:
            raise ConfigError(
                f"feature '{self.name}': preprocess: {preprocess}; only copy_from(COLUMN) is supported, "
                "functions of your own FeatureProcessor are not called; write the column into the files instead"
            )
        return copied[1].strip()

    @property
    def missing(self) -> Any:
        """The value that FuxiCTR's tokenizer takes for a missing one."""
        value = self.spec.fill_na
        return "" if value is None else value

    @property
    def is_number(self) -> bool:
        """Whether the entries of a sequence along a history are numbers."""
        return self.type == "sequence" and bool(self.spec.history) and self.spec.dtype == "float"

    @property
    def has_vocabulary(self) -> bool:
        """Whether values are replaced by ids."""
        if self.type == "meta":
            return self.spec.remap is not False
        return self.type in ("categorical", "sequence") and not self.is_number

    def merges_integers(self, source: pl.DataType) -> bool:
        """Whether identifiers are read as floating-point numbers, of which several large integers are one."""
        is_id = self.type in ("categorical", "meta") or (self.type == "sequence" and bool(self.copied))
        kind = self.copied if source == pl.String and self.copied else self.dtype
        return is_id and kind == "float" and not source.is_float()

    @property
    def splitter(self) -> str:
        """What separates the entries of a sequence."""
        return self.spec.splitter or "^"

    def check(self) -> None:
        """Raise an error for settings that FuxiCTR 2.3.10 does not support or computes wrongly."""
        where = f"feature '{self.name}'"
        if self.spec.category_processor:
            raise ConfigError(
                f"{where}: category_processor: {self.spec.category_processor}; FuxiCTR 2.3.10 fails with it, and it "
                "is not supported here; write the buckets into the files"
            )
        if self.type in ("categorical", "sequence") and self.spec.remap is False:
            raise ConfigError(
                f"{where}: remap: False; FuxiCTR 2.3.10 fails with it; leave it out, or give encoded Parquet files"
            )
        if self.spec.pretrained_emb and self.type not in ("categorical", "sequence"):
            raise ConfigError(f"{where}: pretrained_emb with type: {self.type}, expected categorical or sequence")
        if self.spec.splitter == "":
            raise ConfigError(f"{where}: splitter is empty, expected what separates the entries, such as ^")
        if self.dtype == "list" and self.type != "embedding":
            raise ConfigError(f"{where}: dtype is list, expected int, float or str for type: {self.type}")

    def select(self, schema: Mapping[str, Any]) -> pl.Expr:
        """Return the expression that reads the column, with missing values filled."""
        values = pl.col(self.source)
        if isinstance(schema[self.source], pl.List | pl.Array):
            if self.type == "sequence":
                values = values.cast(pl.List(pl.String)).list.eval(pl.element().fill_null(str(self.missing)))
            return values.alias(self.name)
        if self.type == "embedding":
            raise ConfigError(f"feature '{self.name}': type: embedding needs lists in Parquet files")
        if self.type == "meta" and schema[self.source].is_float():  # a user NaN is none, as in files of integers
            values = values.fill_nan(None)
        if self.merges_integers(schema[self.source]):
            values = values.map_batches(_refuse_merged, schema[self.source], is_elementwise=True)
        if schema[self.source] == pl.String and self.dtype != "str":
            values = to_numbers(values, TYPES[self.dtype])
        elif schema[self.source].is_float() and self.dtype == "int":
            values = values.map_batches(_to_integers, pl.Int64, is_elementwise=True)
        elif schema[self.source] == pl.String and self.copied:
            values = to_numbers(values, TYPES[self.copied]).cast(pl.String)
        else:
            values = values.cast(TYPES[self.dtype])
        fill = self.spec.fill_na
        if fill is None and self.type not in ("label", "meta"):  # a row without a group has none
            fill = MISSING[self.dtype]
        if fill is not None:
            try:
                values = values.fill_null(pl.lit({"str": str, "int": int, "float": float}[self.dtype](fill)))
            except ValueError:
                raise ConfigError(
                    f"'{self.name}': fill_na is {fill!r}, expected a value of dtype {self.dtype}"
                ) from None
        return values.alias(self.name)


def columns_of(dataset: DatasetConfig) -> list[RawColumn]:
    """Return the active features in their order, the labels, and the weights of rows."""
    entries = split_entries(dataset.feature_cols or ())
    if twice := listed_twice(entries):
        raise ConfigError("; ".join(twice.values()))
    # Also of those that are not active, where it is given.
    dtypes = {entry.name: entry.dtype or ("float" if entry.active else "str") for entry in entries}
    features = [RawColumn(entry) for entry in entries if entry.active]
    labels = [FeatureSpec.model_construct(**label.model_dump(exclude_unset=True)) for label in dataset.labels]
    columns = [*features, *map(RawColumn, labels)]
    if (name := dataset.sample_weight) is not None:
        columns = [column for column in columns if column.name != name]
        columns.append(RawColumn(FeatureSpec.model_construct(name=name, dtype="float"), is_optional=True))
    for place, column in enumerate(columns):
        kind = dtypes.get(column.source)
        if column.source != column.name and column.dtype == "str" and kind in ("int", "float"):
            columns[place] = replace(column, copied=kind)
    for column in columns:
        column.check()
    return columns


def refused(column: RawColumn, source: pl.DataType) -> Iterator[tuple[pl.Expr, str]]:
    """Yield which values of a column that ``RawColumn.select`` refuses, and what is expected instead."""
    value = pl.col(column.source)
    kind = pl.Float64 if column.is_number else TYPES.get(column.copied or column.dtype, pl.String)
    if column.merges_integers(source):
        expected = (
            "expected integers below 2^53 (dtype: float), above which different integers become "
            "equal; write dtype: str for the column"
        )
        yield _merged(value, source), expected
    if source.is_float() and column.dtype == "int":
        is_bad = value.cast(kind, strict=False).cast(source).ne_missing(value)
    elif source == pl.String and kind != pl.String:
        number = plain_numbers(value)
        is_bad = number.is_not_null() & number.cast(kind, strict=False).is_null()
        if column.type == "sequence":
            entry = pl.element()
            entries = value.str.split(column.splitter)
            is_bad = entries.list.eval((entry != "") & entry.cast(kind, strict=False).is_null()).list.any()
    else:
        return
    dtype = column.copied or column.spec.dtype or "float"
    what, other = ("a number", "str") if source == pl.String else ("an integer", "float")
    is_fixed = column.type == "label" and source == pl.String  # no label is a text
    advice = "" if is_fixed else f", or write dtype: {other} for the column"
    yield is_bad, f"expected {what} (dtype: {dtype}); correct the file{advice}"


def _to_integers(values: pl.Series) -> pl.Series:
    """Return floating-point numbers as integers; fractions, which a cast would cut off, are an error."""
    if (values != values.floor()).any():
        raise pl.exceptions.InvalidOperationError("fractions in a column of integers")
    return values.cast(pl.Int64)


def _merged(values: pl.Expr, source: pl.DataType) -> pl.Expr:
    """Whether values are integers beyond 2^53, to which a cast to Float64 gives the number of others."""
    if source != pl.String:
        return values.cast(pl.Float64, strict=False).abs() >= 2**53
    texts = values.str.strip_chars(" \t")
    return texts.str.contains(r"^[+-]?\d{16,}$") & (texts.cast(pl.Float64, strict=False).abs() >= 2**53)


def _refuse_merged(values: pl.Series) -> pl.Series:
    """Return identifiers as they are; those that would be one number with others are an error."""
    if pl.select(_merged(pl.lit(values), values.dtype)).to_series().any():
        raise pl.exceptions.InvalidOperationError("integers beyond 2^53 in a column of floating-point numbers")
    return values
