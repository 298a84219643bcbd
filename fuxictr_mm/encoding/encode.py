"""Encode raw columns as integers: FuxiCTR's ``FeatureProcessor``, streamed.

The vocabularies and statistics come from the training split (those of ``meta`` columns from all splits). CSV files are
parsed once, into a temporary Parquet file; counting and encoding then read one column at a time, or stream.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from fuxictr_mm.config import Roles
from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.data.vocabulary import Vocabularies, Vocabulary
from fuxictr_mm.encoding.columns import TYPES, RawColumn
from fuxictr_mm.encoding.files import RawFiles
from fuxictr_mm.encoding.history_check import history_problem
from fuxictr_mm.encoding.vocabulary import TokenVocabulary, as_text
from fuxictr_mm.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

#: Rows of a row group of the files that are written; a shuffle buffer mixes many of them.
ROW_GROUP = 100_000

#: What is put before the names of raw columns in the vocabularies of a run.
RAW = "raw:"


class RawSplit:
    """A raw split, parsed.

    Parameters
    ----------
    raw : RawFiles
        The files.
    columns : sequence of RawColumn
        What is read of them.
    parsed : Path
        Where the parsed columns of CSV files are put.
    needs_label : bool or None
        Whether the label may not be missing; None: it is not read.
    """

    def __init__(
        self, raw: RawFiles, columns: Sequence[RawColumn], parsed: Path, needs_label: bool | None = False
    ) -> None:
        self.raw = raw
        self.frame, self.columns = raw.scan(columns, needs_label)
        if raw.form == "csv":
            raw.warn_of_short_rows()
            with raw.named_errors(columns):
                self.frame.sink_parquet(parsed, compression="lz4", row_group_size=ROW_GROUP)
            self.frame = pl.scan_parquet(parsed)

    def collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """Run a query on the split in bounded memory."""
        with self.raw.named_errors(self.columns):
            return frame.collect(engine="streaming")

    def entries(self, column: RawColumn) -> pl.Expr:
        """Return a sequence as a list of texts."""
        values = pl.col(column.name)
        return values if self.holds_lists(column) else values.str.split(column.splitter)

    def holds_lists(self, column: RawColumn) -> bool:
        """Whether a sequence is stored as lists, and not as texts."""
        return isinstance(self.frame.collect_schema()[column.name], pl.List)

    def counts(self, column: RawColumn) -> pl.DataFrame:
        """Return the columns ``value`` and ``len``: every value or entry with its count."""
        entries = pl.col(column.name) if column.type != "sequence" else self.entries(column).explode(**EMPTY_AS_NULL)
        values = self.frame.select(entries.alias("value"))
        return self.collect(values.group_by("value").len())


class Encoding:
    """What is built from the training split: vocabularies, lengths of sequences, scales of numbers.

    Parameters
    ----------
    vocabularies : mapping of str to TokenVocabulary
        By feature.
    lengths : mapping of str to int
        ``max_len`` of every sequence.
    scales : mapping of str to pair of float
        What is subtracted from a numeric column, and what it is then divided by.
    """

    def __init__(
        self,
        vocabularies: Mapping[str, TokenVocabulary],
        lengths: Mapping[str, int],
        scales: Mapping[str, Sequence[float]],
    ) -> None:
        self.vocabularies = dict(vocabularies)
        self.lengths = dict(lengths)
        self.scales = dict(scales)

    @classmethod
    def fit(
        cls,
        columns: Sequence[RawColumn],
        train: RawSplit,
        others: Sequence[RawSplit],
        min_count: int,
        keys: Mapping[str, pl.Series],
        roles: Roles | None = None,
    ) -> Encoding:
        """Build vocabularies and statistics; warn about histories whose entries do not seem to be items.

        The vocabularies of meta columns cover the ``others``, too. ``min_count`` is the dataset's ``min_categr_count``,
        and ``keys`` are those of the files of embeddings, by feature.
        """
        named = [] if roles is None else [roles.target, roles.history, *roles.histories]
        by_role: dict[str, pl.DataFrame] = {}
        vocabularies: dict[str, TokenVocabulary] = {}
        lengths: dict[str, int] = {}
        scales: dict[str, Sequence[float]] = {}
        for column in columns:
            if column.has_vocabulary:
                counts = train.counts(column)
                if column.name in named and column.type != "meta":
                    texts = counts.select(pl.col("value").cast(pl.String), "len")
                    by_role[column.name] = texts.filter(pl.col("value") != str(column.missing))
                least = column.spec.min_categr_count
                if column.type == "meta":
                    counts = pl.concat([counts, *(s.counts(column) for s in others if column in s.columns)])
                    counts = counts.group_by("value").agg(pl.col("len").sum())
                    own = TokenVocabulary.of_counts(counts, 1, "")
                else:
                    own = TokenVocabulary.of_counts(counts, min_count if least is None else least, column.missing)
                owner = _owner(column, columns)
                if owner is not column:
                    own = vocabularies[owner.name].merged(own)
                vocabularies[owner.name] = own
            if column.type == "sequence":
                lengths[column.name] = column.spec.max_len or _longest(train, column)
            if column.type == "numeric" and column.spec.normalizer:
                scales[column.name] = _scale(train, column)
        owners = {c.name: _owner(c, columns).name for c in columns if c.has_vocabulary}
        for name in [name for name in named[1:] if name in by_role and owners[name] == owners.get(named[0])]:
            column = next(c for c in columns if c.name == name)
            splitter = None if train.holds_lists(column) else column.splitter
            problem = history_problem(by_role[name], by_role[named[0]], splitter)
            if problem:
                logger.warning(f"{train.raw.path}: {column.source}: {problem}")
        for name, series in keys.items():
            vocabularies[owners[name]] = vocabularies[owners[name]].with_keys(series)
        vocabularies = {name: vocabularies[owner] for name, owner in owners.items()}
        return cls(vocabularies, lengths, scales)

    def keep(self, columns: Sequence[RawColumn], vocabularies: Vocabularies) -> None:
        """Add what the weights depend on to the vocabularies of a run, without meta columns, which no model reads."""
        for name in _numbered(columns):
            tokens = self.vocabularies[name].tokens.to_arrow()
            vocabularies[RAW + name] = Vocabulary(tokens.cast(pa.large_string()))
        oov = {name: self.vocabularies[name].oov for name in _numbered(columns)}
        scales = {name: list(scale) for name, scale in self.scales.items()}
        vocabularies.settings = {"oov": oov, "lengths": self.lengths, "scales": scales}
        if copied := [column.name for column in columns if column.copied]:
            vocabularies.settings["copied"] = copied

    def of_run(self, columns: Sequence[RawColumn], vocabularies: Vocabularies, *, of_texts: bool = False) -> Encoding:
        """Return the encoding by which a run was trained; the vocabularies of meta columns are those of this one.

        ``of_texts``: whether the files hold texts, as CSV does, which earlier versions copied as they are.
        """
        found: dict[str, Any] = {part: vocabularies.settings.get(part) for part in ("oov", "lengths", "scales")}
        if not all(isinstance(part, dict) for part in found.values()):
            raise DataError(f"{vocabularies.path}: holds no scales of raw columns; train again")
        words = dict(self.vocabularies)
        shared = {c.spec.share_embedding for c in columns} | {c.name for c in columns if c.spec.share_embedding}
        is_of_texts = of_texts and "copied" not in vocabularies.settings
        copied = {c.name: c for c in columns if is_of_texts and c.copied and c.name not in shared}
        for name in _numbered(columns):
            kept = vocabularies.of(RAW + name, _none, name)
            tokens = pl.Series(kept.values, dtype=pl.String)
            if name in copied:
                column = copied[name]
                numbers = tokens.cast(TYPES[str(column.copied)], strict=False).cast(pl.String)
                filled = ["", str(column.missing)]
                if (wrong := tokens.filter(numbers.ne_missing(tokens) & ~tokens.is_in(filled))).len():
                    raise DataError(
                        f"{vocabularies.path}: numbers '{name}' by texts such as {wrong[0]!r}, expected by the numbers "
                        "that it copies; train again"
                    )
            words[name] = TokenVocabulary(tokens, int(found["oov"][name]))
        for part, own in (("lengths", self.lengths), ("scales", self.scales)):
            if own.keys() != found[part].keys():
                names = ", ".join(sorted(own.keys() ^ found[part].keys()))
                raise DataError(f"{vocabularies.path}: {part} of {names} differ from the dataset's; train again")
        return Encoding(words, found["lengths"], found["scales"])

    def equals(self, other: Encoding) -> bool:
        """Whether another encoding gives the same numbers."""
        if self.vocabularies.keys() != other.vocabularies.keys() or self.lengths != other.lengths:
            return False
        if {n: list(s) for n, s in self.scales.items()} != {n: list(s) for n, s in other.scales.items()}:
            return False
        pairs = [(words, other.vocabularies[name]) for name, words in self.vocabularies.items()]
        return all(a.tokens.equals(b.tokens) and a.oov == b.oov for a, b in pairs)

    def write(self, split: RawSplit, path: Path) -> None:
        """Write the encoded columns of a split."""
        frame = split.frame.select(self._encoded(column, split).alias(column.name) for column in split.columns)
        with split.raw.named_errors(split.columns):
            frame.sink_parquet(path, compression="lz4", row_group_size=ROW_GROUP)

    def _encoded(self, column: RawColumn, split: RawSplit) -> pl.Expr:
        values = pl.col(column.name)
        if column.type == "embedding":
            return values.cast(pl.List(pl.Float32))
        if column.is_number:
            entry = pl.element().cast(pl.String)
            number = pl.when(entry != "").then(entry).cast(pl.Float32).fill_null(0)
            return split.entries(column).list.eval(number)
        if column.type == "sequence":
            entry = pl.element()
            ids = pl.when(entry == str(column.missing)).then(0).otherwise(self.vocabularies[column.name].ids(entry))
            return split.entries(column).list.eval(ids)
        if column.type == "meta" and column.has_vocabulary:
            texts = as_text(values, column.dtype == "float")
            return pl.when(texts != "").then(self.vocabularies[column.name].ids(texts))  # null without a value
        if column.has_vocabulary:
            return self.vocabularies[column.name].ids(as_text(values, column.dtype == "float"))
        if column.type == "meta":
            return values.cast(pl.Int64)
        if column.name in self.scales:
            shift, scale = self.scales[column.name]
            values = (values - shift) / scale
        return values.cast(pl.Float32)


def _none() -> Vocabulary:
    raise AssertionError("the vocabularies of a run are read, not built")


def _numbered(columns: Sequence[RawColumn]) -> list[str]:
    """Return the columns whose ids a model may read."""
    return [column.name for column in columns if column.has_vocabulary and column.type != "meta"]


def _owner(column: RawColumn, columns: Sequence[RawColumn]) -> RawColumn:
    """Return the column whose embedding table a column uses, its own by default."""
    by_name = {c.name: (place, c) for place, c in enumerate(columns)}
    owner = column
    while (name := owner.spec.share_embedding) is not None:
        where = f"feature '{owner.name}': share_embedding: {name}"
        if name not in by_name or by_name[name][0] >= by_name[owner.name][0]:
            raise ConfigError(f"{where}; expected an active feature that is listed before it")
        if by_name[name][1].dtype != owner.dtype:
            raise ConfigError(
                f"{where}; one is read as {by_name[name][1].dtype}, the other as {owner.dtype}, so no value "
                "would be shared; write dtype: str for both"
            )
        owner = by_name[name][1]
    return owner


def _longest(train: RawSplit, column: RawColumn) -> int:
    return max(int(train.collect(train.frame.select(train.entries(column).list.len().max())).item() or 0), 1)


def _scale(train: RawSplit, column: RawColumn) -> tuple[float, float]:
    """Return mean and deviation, or minimum and range, of a numeric column."""
    values = pl.col(column.name)
    if column.spec.normalizer == "StandardScaler":
        mean = values.mean()
        # The mean of many 0.1 is not quite 0.1, and FuxiCTR divides by what is left.
        is_constant = (values.min() == values.max()) & mean.is_finite()
        statistics = pl.when(is_constant).then(values.min()).otherwise(mean), values.std(ddof=0) * ~is_constant
    else:
        statistics = values.min(), values.max() - values.min()
    found = train.collect(train.frame.select(statistics[0].alias("shift"), statistics[1].alias("scale")))
    if len(found) == 0 or found["shift"][0] is None:
        raise DataError(f"{train.raw.path}: no rows, expected at least one")
    shift, scale = float(found["shift"][0]), float(found["scale"][0])
    if not (math.isfinite(shift) and math.isfinite(scale)):
        train.raw.check_finite(column)
        raise DataError(
            f"{train.raw.path}: {column.source}: is scaled by {shift} and {scale}, expected finite numbers; divide the "
            "column, or leave out normalizer"
        )
    return shift, scale or 1.0
