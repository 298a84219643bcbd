"""The files of a log of one's own: their roles, labels and columns, and the log as Parquet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from shlex import quote

import numpy as np
import polars as pl

from fuxictr_mm.datasets.own.columns import LogColumn, choose_columns, free_name
from fuxictr_mm.datasets.own.events import LISTED, EventLog, check_value, is_held, text_of
from fuxictr_mm.datasets.own.instants import Unit, read_times, unit_of
from fuxictr_mm.datasets.own.options import LogOptions, Value
from fuxictr_mm.datasets.own.positives import Positives
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.encoding.text_files import Encoding, form_of, unpacked_name
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, nearest
from fuxictr_mm_serving.prepared import ROW_SOURCES, SCALED

logger = logging.getLogger(__name__)

#: Labels that are looked for where none is named.
LABELS = ("label", "click")

#: What spreadsheets and databases write for 1 and 0, in lower case.
TRUTH = {"true": "1", "t": "1", "yes": "1", "y": "1", "false": "0", "f": "0", "no": "0", "n": "0"}

#: Ids in a text of several, however they are separated.
IDS = r"""[^\s,;|\[\]()'"]+"""

#: Names that the written files have.
WRITTEN = ("user_id", "item_id", "item_seq", "source_id", *ROW_SOURCES, "split", "label")


def find_files(source: Path, option: str, pattern: str | None) -> list[Path]:
    """Return the files of an option: of a name, a pattern or a folder within the source, or by default ``OPTION.*``.

    By default there may be none. A folder stands for all files below it, such as those of Hive partitions. Files of
    several forms are refused: they would be the same rows twice.
    """
    name = pattern or f"{option}.*"
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"--{option} {name}: expected a name within --source {source}, without that folder")
    paths = sorted({file for path in source.glob(name) for file in _files_of(path)})
    if not paths and pattern is not None:
        present = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
        listing = ", ".join(present[:8]) or "no file"
        within = "; names are within the folder of --source" if next(iter(Path().glob(name)), None) else ""
        raise MissingFileError(
            f"{source}: no file {name}{nearest(name, present)} for --{option} (it holds: {listing}){within}"
        )
    seen: dict[Path, Path] = {}
    for path in paths:
        # Of one name, a file and its archive are the same rows twice; other parts may be packed in any way.
        other = seen.setdefault(unpacked_name(path), path)
        other = paths[0] if other == path and form_of(path) != form_of(paths[0]) else other
        if other != path:
            raise ConfigError(f"--{option}: {source} holds {other.name} and {path.name}; name one of them")
    return paths


def _files_of(path: Path) -> list[Path]:
    """Return a file, or the files below a folder; names such as ``_SUCCESS`` and ``.part-0.crc`` are no data."""
    files = path.rglob("*") if path.is_dir() else [path]
    hidden = (file for file in files if all(name[0] not in "._" for name in file.relative_to(path.parent).parts))
    return [file for file in hidden if file.is_file()]


class LogSource:
    """The tables of interactions, items and users, with their roles, labels and types."""

    def __init__(self, asked: LogOptions, source: Path, scratch: Path) -> None:
        self.asked, self.source, self.scratch = asked, source, scratch
        log = self._table(
            "interactions", asked.interactions or "interactions.*", {"user": asked.user, "target": asked.item}
        )
        assert log is not None
        for role in ("time", "group", "history", "weight"):
            if (column := getattr(asked, role)) is not None:
                log.check(column, f"--roles {role}={column}")
        self.log = log
        for column in asked.match_on:
            log.check(column, f"--match_on {column}")
        self.items = self._table("items", asked.items, {"target": asked.item})
        self.users = self._table("users", asked.users, {"user": asked.user})
        #: Labels that are values of a column.
        self.values = self._find_values()
        #: Positive rows of labels: of files, and events of a log of events.
        self.positives = {name: found for name in asked.positives if (found := self._find_positives(name)) is not None}
        self._flags: dict[str, np.ndarray] = {}
        self.labels = self._find_labels()
        if asked.weight in self.labels:
            raise ConfigError(f"--roles weight={asked.weight}: is a label; name another column")
        #: Labels that are numbers to predict; the others hold 0 and 1.
        self.numeric_labels = self._find_numeric()
        #: The label whose positive events enter histories; None: all events that have a label.
        self.history_label = self._find_history_label(self.labels)
        #: What the events are, of a log of events.
        self.events = self._find_events()
        if self.events is not None:
            on = asked.match_on or (asked.user, asked.item)
            self.positives |= {
                name: Positives(name, log, on, asked.time, asked.match_within, value)
                for name, value in self.values.items()
            }

    @property
    def encoding(self) -> Encoding:
        """How files of text are encoded."""
        return Encoding(self.asked.encoding, "--encoding")

    def _table(self, option: str, pattern: str | None, ids: dict[str, str]) -> Table | None:
        paths = find_files(self.source, option, pattern)
        if not paths:
            return None
        history = () if self.asked.history is None else (self.asked.history,)
        group = {} if self.asked.group is None else {self.asked.group: "categorical"}
        types = {**self.asked.types, **group}
        texts = (*ids.values(), *history, *self.asked.match_on)
        header = self._header_of(option, paths)
        table = Table(
            paths, self.scratch, option, texts, types, encoding=self.encoding, header=header,
            date_order=self.asked.date_order,
        )  # fmt: skip
        for role, column in ids.items():
            table.check(column, f"--roles {role}={column}")
        return table

    def _header_of(self, table: str, paths: Sequence[Path]) -> Sequence[str]:
        """Return the names of the columns of files without a header."""
        return self.asked.header.get(table, ())

    def _find_values(self) -> dict[str, Value]:
        """Return the labels that are named as ``COLUMN=VALUE``, by their names."""
        found: dict[str, Value] = {}
        for word in self.asked.labels:
            value = None if word in self.log.schema else Value.of(word)
            if value is None:
                continue
            self.log.check(value.column, f"--labels {word}")
            found[value.label([*self.log.schema, *found])] = value
        return found

    def _find_events(self) -> EventLog | None:
        """Return what the events of ``--impressions`` are."""
        impressions = [value for word in self.asked.impressions if (value := Value.of(word)) is not None]
        if not impressions:
            return None
        column, given = impressions[0].column, " ".join(self.asked.impressions)
        self.log.check(column, f"--impressions {given}")
        for name in self.labels if not self.asked.negatives else []:
            if self.values.get(name) in impressions:
                raise ConfigError(
                    f"--labels {column}={self.values[name].text}: these events are the rows themselves (--impressions "
                    f"{given}); name events that follow them, such as --labels {column}=purchase"
                )
            if name in self.positives or (name in self.values and self.values[name].column == column):
                continue
            raise ConfigError(
                f"--labels {name}: is no event of the column {column} of --impressions {given}; name events, such as "
                f"--labels {column}=purchase"
            )
        return EventLog(column, [v.text for v in impressions], {name: v.text for name, v in self.values.items()})

    def _find_positives(self, label: str) -> Positives | None:
        """Return the file of positive rows of a label."""
        asked, what = self.asked, f"--positives {label}={self.asked.positives[label]}"
        file, _, time = asked.positives[label].partition(":")
        if label in self.log.schema or label in set(WRITTEN) - {"label"}:
            raise ConfigError(f"{what}: {self.log.paths[0]} has the column '{label}' as well; name the label otherwise")
        paths, on = find_files(self.source, "positives", file), asked.match_on or (asked.user, asked.item)
        header = self._header_of(label, paths)
        scratch = self.scratch / f"positives-{label}"
        table = Table(
            paths, scratch, "positives", on, encoding=self.encoding, header=header, date_order=asked.date_order
        )
        if not time and asked.time in table.schema and (not asked.match_on or asked.match_within is not None):
            time = asked.time
        if not time and asked.match_within is not None:
            raise ConfigError(
                f"--match_within: {paths[0]} has no column '{asked.time}' (it has: {', '.join(table.schema)}); "
                f"name that of its times: --positives {label}={file}:TIME"
            )
        positives = Positives(label, table, on, time or None, asked.match_within)
        positives.check()
        return positives

    def _find_labels(self) -> list[str]:
        """Return the labels' columns; where ``--negatives`` makes it, ``label``."""
        file = self.log.paths[0]
        labels = [self._names.get(word, word) for word in self.asked.labels] or list(self.positives)
        for name in labels:
            if name not in self.values and name not in self.positives:
                self.log.check(name, f"--labels {name}")
        labels = labels or [name for name in LABELS if name in self.log.schema][:1]
        if self.asked.positive_from is not None and labels and set(labels) <= set(self.positives):
            raise ConfigError("--positive_from: all labels are of --positives, which are 0 and 1; leave it out")
        if labels and self.asked.negatives:
            raise ConfigError(f"--negatives: {file} has the label '{labels[0]}'; leave out --negatives")
        if not labels and not self.asked.negatives and self.asked.impressions:
            column = self.asked.impressions[0].partition("=")[0]
            raise ConfigError(
                f"{file}: no event labels the impressions; name those that do, such as --labels {column}=purchase, or "
                "add --negatives 1 if every impression is a click"
            )
        return labels or ["label"]

    @property
    def _names(self) -> dict[str, str]:
        """The names of labels that are named as ``COLUMN=VALUE``."""
        return {f"{value.column}={value.text}": name for name, value in self.values.items()}

    def _check_value(self, value: Value, option: str) -> None:
        check_value(self.log, value, option)

    def _find_numeric(self) -> list[str]:
        """Return the labels that ``--types`` declares to be numbers."""
        if self.asked.negatives:
            return []
        types = {name: self.asked.types[name] for name in self.labels if name in self.asked.types}
        others = [table for table in (self.items, self.users) if table is not None]
        for name, kind in types.items():
            if kind != "numeric" and not any(name in table.schema for table in others):
                raise ConfigError(f"--types {name}={kind}: is a label, expected numeric, or no type for 0 and 1")
        numeric = [name for name, kind in types.items() if kind == "numeric"]
        if self.asked.positive_from is not None and numeric == self.labels:
            given = " ".join(f"{name}=numeric" for name in numeric)
            raise ConfigError(f"--positive_from: all labels are numbers (--types {given}); leave out one of both")
        return numeric

    def _find_history_label(self, labels: Sequence[str]) -> str | None:
        name = self._names.get(self.asked.history_from or "", self.asked.history_from)
        if name is None and self.asked.impressions:
            return None
        if name is None:
            return next(iter(self._classes_of(labels)), None)
        if name not in labels:
            known = ", ".join(labels)
            raise ConfigError(f"--history_from {name}: no label{nearest(name, labels)} (there are: {known})")
        if name in self.numeric_labels:
            raise ConfigError(
                f"--history_from {name}: is a number (--types {name}=numeric), expected a label of 0 and 1"
            )
        return name

    def _classes_of(self, labels: Sequence[str]) -> list[str]:
        return [label for label in labels if label not in self.numeric_labels]

    @property
    def class_labels(self) -> list[str]:
        """Labels of 0 and 1."""
        return self._classes_of(self.labels)

    def written_label(self, name: str) -> str:
        """Return the name that a label of ``--labels`` is written with: numbers are standardised."""
        name = self._names.get(name, name)
        return name + SCALED if name in self.numeric_labels else name

    @property
    def tables(self) -> list[Table]:
        """The tables that exist."""
        return [table for table in (self.log, self.items, self.users) if table is not None]

    @property
    def is_labelled(self) -> pl.Expr:
        """Whether a row of the log has a label."""
        if self.events is not None:
            return self.events.is_impression(pl.col(":kind"))
        if self.asked.negatives:
            return pl.lit(True)
        return pl.any_horizontal(pl.col(name).is_not_null() for name in self.labels)

    @property
    def is_positive(self) -> pl.Expr:
        """Whether a row of the log enters histories."""
        if self.history_label is None:
            return self.is_labelled
        if self.events is not None and self.history_label in self.events.labels:
            return pl.col(":kind") == self.events.labels[self.history_label]
        return pl.lit(True) if self.asked.negatives else (pl.col(self.history_label) == 1).fill_null(False)

    # Columns: names that two tables have go to the log, then to the users.

    @cached_property
    def columns(self) -> dict[str, tuple[list[LogColumn], dict[str, str]]]:
        """Columns of each table that are written, and why each of the others is not."""
        taken = {*WRITTEN, *self.labels, *map(self.written_label, self.labels)}
        roles = {self.asked.user, self.asked.item, self.asked.time, *self.labels}
        roles |= {column for column in (self.asked.group, self.asked.history, self.asked.weight) if column}
        roles |= {value.column for value in self.values.values()} | ({self.events.column} if self.events else set())
        types, found = self.asked.types, {}
        for table, without, prefix in (
            (self.log, roles, "context_"),
            (self.users, {self.asked.user}, "user_"),
            (self.items, {self.asked.item}, "item_"),
        ):
            if table is not None:
                found[table.option] = choose_columns(table, without, types, taken, prefix)
        if self.asked.group is not None:
            found["interactions"][0].append(self._group_column(self.asked.group, taken))
        for name in types:
            if not any(name in table.schema for table in self.tables):
                raise ConfigError(f"--types {name}={types[name]}: no file has the column '{name}'")
        return found

    def _group_column(self, source: str, taken: set[str]) -> LogColumn:
        kind = self.log.frame.collect_schema()[source]
        if not (kind == pl.String or kind.is_integer()) or source in self.labels:
            found = "is a label" if source in self.labels else f"holds {kind}"
            raise ConfigError(
                f"--roles group={source}: {self.log.paths[0]}: the column {found}, expected texts or integers"
            )
        return LogColumn(source, free_name(source.replace(".", "_"), taken, "context_"), "group")

    def written(self, option: str) -> list[LogColumn]:
        """Return the columns of a table that are written."""
        return self.columns[option][0] if option in self.columns else []

    # Rows

    @cached_property
    def path(self) -> Path:
        """The log as Parquet: ``:user``, ``:item``, ``:time``, labels, and columns of context as in the file.

        ``:history`` and ``:weight`` are there if the log has columns of histories and of weights.

        ``:source_row`` is the number of the row in all files of the log.
        """
        path = self.scratch / "log.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._events().sink_parquet(path.with_suffix(".partial"))
            self._check_events(path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
        return path

    def _events(self) -> pl.LazyFrame:
        events = self.events
        for option, value in [] if events is None else events.values:
            self._check_value(value, option)
        labels = [] if self.asked.negatives else [self._read_label(name) for name in self.labels]
        if events is not None:
            kind = text_of(events.column)
            labels = [pl.when(events.is_impression(kind)).then(label) for label in labels] + [kind.alias(":kind")]
        rows = self.log.frame.with_row_index(":source_row").select(
            pl.col(":source_row").cast(pl.Int64),
            self.ids(self.log, "user").alias(":user"),
            self.ids(self.log, "target").alias(":item"),
            read_times(self.log, self.asked.time).alias(":time"),
            *([] if self.asked.history is None else [self._histories(self.asked.history).alias(":history")]),
            *labels,
            *([] if self.asked.weight is None else [self._read_weight(self.asked.weight).alias(":weight")]),
            *(column.source for column in self.written("interactions")),
        )
        return rows if events is None else rows.filter(events.is_read(pl.col(":kind")))

    def _check_events(self, path: Path) -> None:
        rows = pl.scan_parquet(path).select((~self.is_labelled).sum()).collect().item()
        if rows and self.events is None:
            later = " (to score a file of such rows, prepare it after the others, with --like)"
            logger.warning(
                f"{self.log.paths[0]}: {rows} rows have no label; they are dropped"
                f"{later if len(self.log.paths) > 1 else ''}"
            )
        self._check_users(path)

    def _check_users(self, path: Path) -> None:
        """Warn of rows without a user; refuse a log of which all are."""
        is_anonymous = pl.col(":user").is_null()
        first = pl.col(":source_row").filter(is_anonymous).first()
        counts = pl.scan_parquet(path).select(pl.len(), count=is_anonymous.sum(), first=first)
        rows, anonymous, row = counts.collect(engine="streaming").row(0)
        if not anonymous:
            return
        if anonymous == rows:
            raise DataError(f"{self.log.paths[0]}: {self.asked.user} has no value in all {rows} rows, expected users")
        logger.warning(
            f"{self.log.where(row)}: {self.asked.user} has no value, as in {anonymous} of {rows} rows; these have the "
            "user 0 and no history, and are in no history"
        )

    @cached_property
    def time_unit(self) -> Unit:
        """Of what the times are numbers."""
        return unit_of(self.log, self.asked.time)

    def ids(self, table: Table, role: str) -> pl.Expr:
        """Return the ids of users or of the target of a table: integers if they are in all tables, else texts.

        A row of the log without a user is anonymous: its id is null.
        """
        column = self.asked.user if role == "user" else self.asked.item
        kind, ids = table.frame.collect_schema()[column], pl.col(column)
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
        return ids.cast(self._type_of_ids(role, column))

    def _histories(self, column: str) -> pl.Expr:
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
        return lists.list.drop_nulls().cast(pl.List(self._type_of_ids("target", self.asked.item)), strict=False)

    def _type_of_ids(self, role: str, column: str) -> pl.DataType:
        other = self.users if role == "user" else self.items
        kinds = [each.frame.collect_schema()[column] for each in (self.log, other) if each is not None]
        if all(kind.is_integer() and kind != pl.UInt64 for kind in kinds):
            return pl.Int64()
        return pl.UInt64() if all(kind.is_unsigned_integer() for kind in kinds) else pl.String()

    def rows_by_id(self, table: Table, role: str) -> pl.DataFrame:
        """Return a table of items or users, a row each."""
        column = self.asked.user if role == "user" else self.asked.item
        frame = table.frame.with_columns(self.ids(table, role)).collect(engine="streaming")
        again = ~frame[column].is_first_distinct()
        if again.any():
            row = int(again.arg_true()[0])
            raise DataError(f"{table.where(row)}: {column} is {frame[column][row]!r} again, expected once; drop a row")
        return frame

    def _read_positives(self, label: str) -> pl.Expr:
        """Return 1 for each row of the log that a row of the file of the label belongs to, and otherwise 0."""
        if label not in self._flags:
            is_row = None if self.events is None else self.events.is_impression(text_of(self.events.column))
            self._flags[label] = self.positives[label].find(self.log, self.asked.time, is_row)
            self._check_flags(label, self._flags[label])
        flags = self._flags[label].astype(np.float32)
        rows = pl.col(":source_row")
        return rows.map_batches(
            lambda numbers: pl.Series(flags[numbers.to_numpy()]), return_dtype=pl.Float32, is_elementwise=True
        ).alias(label)

    def _check_flags(self, label: str, flags: np.ndarray) -> None:
        """Refuse a label of ``--positives`` that is the same in all rows."""
        if (flags.all() and self.events is None) or not flags.any():
            path, log = self.positives[label].table.paths[0], self.log.paths[0]
            found = f"all rows of {log} have a positive" if flags.all() else f"no row belongs to one of {log}"
            raise DataError(
                f"{path}: {found}, expected some as {label}; check that both files have the same ids and times, and "
                "--match_on"
            )

    def _read_label(self, column: str) -> pl.Expr:
        if column in self.positives:
            return self._read_positives(column)
        if column in self.values:
            self._check_value(self.values[column], "labels")
            number = is_held(self.values[column]).cast(pl.Float32)
            self._check_both(column, number)
            return number.alias(column)
        table, label, bound = self.log, pl.col(column), self.asked.positive_from
        is_class = column not in self.numeric_labels
        if table.frame.collect_schema()[column] == pl.String:
            # Of numbers, n may be none; a column of truth values is of these two words.
            words = TRUTH if is_class and bound is None else {word: TRUTH[word] for word in ("true", "false")}
            label = label.str.strip_chars().str.to_lowercase().replace({**words, "": None})
        number = label.cast(pl.Float64, strict=False).fill_nan(None)
        is_known, expected = number.is_finite(), "a number or null"
        if is_class and bound is None:
            is_known = number.is_in([0.0, 1.0])
            expected = "0, 1, yes, no, true, false or null"
        wrong = label.is_not_null() & ~is_known.fill_null(False) & (label.cast(pl.String) != "NaN")
        remedy = partial(self._remedy_of_label, column, number) if is_class and bound is None else None
        table.refuse(wrong, column, expected, remedy)
        if is_class:
            number = (number if bound is None else number >= bound).cast(pl.Float32)
        self._check_both(column, number)
        return number.alias(column)

    def _remedy_of_label(self, column: str, number: pl.Expr) -> str:
        """Return what to do about a label that is not 0 and 1: of words and of numbers."""
        counts = self.log.frame.select(pl.col(column).filter(number.is_null()).value_counts(sort=True)).unnest(column)
        words = [
            str(word).strip() for word in counts.drop_nulls(column).head(LISTED).collect(engine="streaming")[column]
        ]
        if words:
            named = " or ".join(f"--labels {quote(f'{column}={word}')}" for word in reversed(words[:2]))
            return f"name the value that is 1 (there are: {', '.join(words)}): {named}"
        return (
            f"for one of its values, name it: --labels {column}=VALUE; for ratings, add --positive_from 4 or another "
            f"threshold; to predict the number itself, add --types {column}=numeric"
        )

    def _read_weight(self, column: str) -> pl.Expr:
        table, weight = self.log, pl.col(column)
        kind = table.frame.collect_schema()[column]
        if kind == pl.String:
            weight = weight.str.strip_chars()
        elif not kind.is_numeric():
            raise ConfigError(f"--roles weight={column}: {table.paths[0]} holds {kind} there, expected numbers")
        number = weight.cast(pl.Float32, strict=False)
        is_weight = (number.is_finite() & (number >= 0)).fill_null(False)
        table.refuse(~is_weight, column, "a weight of 0 or more; correct or drop the row")
        return number

    def _check_both(self, column: str, number: pl.Expr) -> None:
        """Refuse a label that is the same in all rows."""
        table, bound = self.log, self.asked.positive_from
        least, most = table.frame.select(least=number.min(), most=number.max()).collect(engine="streaming").row(0)
        held = "no value" if least is None else f"{least:g} in all rows"
        if column in self.numeric_labels:
            if least == most:
                raise DataError(f"{table.paths[0]}: {column} holds {held}, expected different numbers")
        elif (least, most) != (0, 1):
            hint = "; if every row is a click, rename the column and add --negatives 1" if least == 1 else ""
            hint = hint if bound is None else "; change --positive_from"
            raise DataError(f"{table.paths[0]}: {column} holds {held}, expected 0 in some rows and 1 in others{hint}")
