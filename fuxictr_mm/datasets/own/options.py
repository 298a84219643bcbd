"""The options of ``fuxictr-mm prepare log``; light to import, since ``--help`` reads them."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fuxictr_mm.errors import ConfigError, nearest

#: What ``--types`` may say of a column; ``none`` leaves it out.
TYPES = ("categorical", "numeric", "sequence", "text", "none")

#: Which items can be negatives: those new to the user, any but the row's own, or for a row whose item is in its history
#: others of the history.
NEGATIVES_FROM = ("new", "any", "matched")

#: Names of the options as ``argparse`` has them.
NAMES = (
    "labels", "interactions", "items", "users", "embeddings", "roles", "types", "split", "split_by", "negatives",
    "negatives_from", "negatives_near", "positive_from", "history_from", "encoding", "header", "impressions",
    "positives", "match_on", "match_within", "like", "all_rows", "extend", "date_order",
)  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A value of a column, as ``--labels`` and ``--impressions`` name it: ``COLUMN=VALUE``."""

    column: str
    text: str

    @classmethod
    def of(cls, word: str) -> Value | None:
        """Return what a word names, None if it is none of this form."""
        column, _, text = word.partition("=")
        return cls(column, text) if column and text else None

    def label(self, columns: Container[str]) -> str:
        """Return the name of its label: the value, after the name of its column where a column is called so."""
        name = re.sub(r"\W+", "_", self.text)
        return f"{self.column}_{name}" if name in columns or not name.strip("_") else name


@dataclass(frozen=True)
class LogOptions:
    """What ``fuxictr-mm prepare log`` is asked for."""

    #: Files of the source by name, pattern or folder; by default ``interactions.*``, and ``items.*`` and ``users.*`` if
    #: they exist.
    interactions: str | None = None
    items: str | None = None
    users: str | None = None
    #: Parquet files with the items' ids and a list column of numbers, or ``ARRAY.npy:IDS``.
    embeddings: tuple[str, ...] = ()
    #: Columns of these roles.
    user: str = "user_id"
    item: str = "item_id"
    time: str = "time"
    group: str | None = None  #: Column of impressions, sessions or requests that metrics group by, instead of the user.
    #: Column of lists of items that is the history of its row; by default histories are computed of the log.
    history: str | None = None
    weight: str | None = None  #: Column of the weights of rows.
    #: The type of columns by name, of ``TYPES``. A label that is ``numeric`` is a number to predict.
    types: Mapping[str, str] = field(default_factory=dict)
    #: Columns of labels, or ``COLUMN=VALUE``, a label of whether the column has the value; by default ``label`` or
    #: ``click``.
    labels: tuple[str, ...] = ()
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)  #: Fractions of train, valid and test.
    #: Whether they are fractions of all rows or of the rows of each user, the last ones for test ("time", "user").
    split_by: str = "time"
    negatives: int = 0  #: Items sampled for each row of a log that has no label.
    negatives_from: str = "new"  #: Which items these can be, of ``NEGATIVES_FROM``.
    #: They are of rows of the split that are at most this fraction of all rows before or after; by default of all.
    negatives_near: float | None = None
    #: Labels are 1 from this number on and 0 below, as of ratings; by default they hold 0 and 1.
    positive_from: float | None = None
    #: The label whose positive events enter histories; by default the first one that is not a number, of a log of
    #: events the impressions.
    history_from: str | None = None
    #: Names of the columns of CSV files without a header, by ``interactions``, ``items``, ``users`` or a label of
    #: ``positives``.
    header: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encoding: str | None = None  #: Of files of text; by default UTF-8, or what a byte order mark says.
    impressions: tuple[str, ...] = ()  #: ``COLUMN=VALUE``: the events that are the rows, of a log of events.
    #: Files with the positive rows of labels, each with the column of its times if it is named (``FILE:TIME``).
    positives: Mapping[str, str] = field(default_factory=dict)
    #: Columns by which positive rows or events belong to rows of the log; by default user and item.
    match_on: tuple[str, ...] = ()
    #: Order of day, month and year of times such as 05/03/2024; by default the one that all rows agree with.
    date_order: Literal["dmy", "mdy", "ymd"] | None = None
    match_within: str | None = None  #: Longest time from a row to the positive row or event that labels it.

    def __post_init__(self) -> None:
        train, valid, test = self.split
        if not (train > 0 and valid > 0 and test >= 0 and abs(train + valid + test - 1) < 1e-6):
            raise ConfigError(
                f"--split {train:g} {valid:g} {test:g}: expected fractions that add up to 1, train and valid above 0"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LogOptions:
        """Return the options of a command line, those that were not given left out."""
        from fuxictr_mm.config import Roles

        if given.get("all_rows"):
            raise ConfigError(
                "--all_rows: is of --like, which is missing; without --like all labelled rows are written"
            )
        if given.get("extend"):
            raise ConfigError("--extend: is of --like, which is missing; add --like with the folder of an earlier log")
        values = {n: value for n, value in given.items() if n not in ("roles", "types", "all_rows", "extend")}
        words = list(given.get("roles") or ())
        groups = [word for word in words if word.startswith("group=") and word != "group="]
        weights = [word for word in words if word.startswith("weight=") and word != "weight="]
        roles = Roles.parse([word for word in words if word not in (*groups, *weights)])
        for word in words:
            if word.partition("=")[0] not in ("user", "target", "time", "group", "history", "weight"):
                raise ConfigError(f"--roles {word}: expected user, target, time, group, history and weight")
        values |= {"user": roles.user, "item": roles.target, "time": roles.time or cls.time}
        values["group"] = _parse_column(groups, values, "groups are taken")
        values["weight"] = _parse_column(weights, values, "weights are read")
        values["history"] = roles.history if any(word.startswith("history=") for word in words) else None
        if values["history"] is not None and values["history"] == values["group"]:
            raise ConfigError(f"--roles history={values['history']}: is the column of the group as well; name another")
        values["types"] = _parse_types(given.get("types") or ())
        for name in ("labels", "embeddings", "split", "impressions", "match_on"):
            if name in values:
                values[name] = tuple(values[name])
        values["header"] = _parse_header(given.get("header") or (), values.get("positives") or ())
        if "positives" in values:
            values["positives"] = parse_positives(values["positives"])
        _check_positives(values)
        options = cls(**values)
        options._check([name for name in ("labels", "positive_from", "history_from") if values.get(name) is not None])
        return options

    def _check(self, of_labels: Sequence[str]) -> None:
        """Refuse options that do not go together; ``of_labels`` are the given ones that need labels."""
        if self.negatives < 0:
            raise ConfigError(f"--negatives is {self.negatives}, expected 1 or more")
        if self.negatives_from != LogOptions.negatives_from and not self.negatives:
            raise ConfigError(f"--negatives_from {self.negatives_from}: is of --negatives, which is missing; add it")
        if self.negatives_near is not None and not (self.negatives and 0 < self.negatives_near <= 1):
            fix = "expected above 0, at most 1" if self.negatives else "is of --negatives, which is missing; add it"
            raise ConfigError(f"--negatives_near {self.negatives_near:g}: {fix}")
        if self.negatives_from == "matched" and self.history is not None:
            raise ConfigError(
                f"--negatives_from matched: takes computed histories, not the column {self.history} (--roles "
                "history); leave out one"
            )
        if self.history_from is not None and self.history is not None:
            raise ConfigError(
                f"--history_from {self.history_from}: histories are those of the column {self.history} (--roles "
                "history); leave out one"
            )
        if self.negatives and of_labels:
            raise ConfigError(
                f"--negatives: is for a log of only positive events; remove --{of_labels[0]}, or --negatives"
            )
        columns = set()
        for word in self.impressions:
            if (value := Value.of(word)) is None:
                raise ConfigError(f"--impressions {word}: expected COLUMN=VALUE, such as event=view")
            columns.add(value.column)
        if len(columns) > 1:
            raise ConfigError(f"--impressions: names the columns {' and '.join(sorted(columns))}, expected one column")

    @classmethod
    def of_json(cls, changed: Mapping[str, Any]) -> LogOptions:
        """Return the options of what ``changed`` returned."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in changed.items()}
        values["header"] = {table: tuple(names) for table, names in values.get("header", {}).items()}
        return cls(**values)

    def changed(self) -> dict[str, Any]:
        """Return the options that are not the default, in the types of JSON."""
        plain, default = (json.loads(json.dumps(asdict(options))) for options in (self, LogOptions()))
        return {name: value for name, value in plain.items() if value != default[name]}


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, all without a default, so that other readers can refuse them."""
    group = parser.add_argument_group("options of log, for your own log")
    group.add_argument(
        "--like",
        metavar="DIR",
        help="log: an earlier log's folder; rows later than its newest, with its options, numbers, scales, histories",
    )
    group.add_argument(
        "--all_rows",
        action="store_true",
        default=None,
        help="for --like: also rows that are not later, such as a test file of random rows; histories end before each",
    )
    group.add_argument(
        "--extend",
        action="store_true",
        default=None,
        help="for --like: rows to continue training with, split by time; new users, items and values get new numbers",
    )
    group.add_argument(
        "--interactions", metavar="FILE", help="log: file, pattern or folder within --source (default: interactions.*)"
    )
    group.add_argument(
        "--items", metavar="FILE", help="log: the same, one row per item (default: items.*, if it exists)"
    )
    group.add_argument(
        "--users", metavar="FILE", help="log: the same, one row per user (default: users.*, if it exists)"
    )
    group.add_argument(
        "--positives",
        nargs="+",
        metavar="LABEL=FILE",
        help="log: files of the clicks or purchases of the rows, each a label; LABEL=FILE:TIME names its times",
    )
    group.add_argument(
        "--impressions",
        nargs="+",
        metavar="COLUMN=VALUE",
        help="log: of a log of events, those that are the rows, such as event=view; --labels event=purchase then "
        "labels a row by what follows it",
    )
    group.add_argument(
        "--match_on",
        nargs="+",
        metavar="COLUMN",
        help="log: columns by which positives and events belong to rows, such as an impression id (default: user and "
        "target)",
    )
    group.add_argument(
        "--match_within",
        metavar="TIME",
        help="log: longest time from a row to the positive or event that labels it, such as 30m or 7d",
    )
    group.add_argument(
        "--header",
        nargs="+",
        metavar="TABLE=NAMES",
        help="log: names of the columns of CSV files without a header, such as interactions=user,item,rating,time",
    )
    group.add_argument(
        "--encoding",
        metavar="NAME",
        help="log: encoding of CSV files and JSON lines, such as cp1252 or gb18030 (default: utf-8, or that of a byte "
        "order mark)",
    )
    group.add_argument(
        "--date_order",
        choices=("dmy", "mdy", "ymd"),
        help="log: order of day, month and year in times such as 05/03/2024 (default: the one that all rows fit)",
    )
    group.add_argument(
        "--embeddings",
        nargs="+",
        metavar="FILE",
        help="log: Parquet files with the item ids and a column of lists of numbers, or ARRAY.npy:IDS.csv",
    )
    group.add_argument(
        "--roles",
        nargs="+",
        metavar="ROLE=COLUMN",
        help="log: columns with a role: user, target, time (default: user_id, item_id, time, or a usual name such as "
        "timestamp), group, history, weight",
    )
    group.add_argument(
        "--types",
        nargs="+",
        metavar="COLUMN=TYPE",
        help=f"log: types of columns that override the detected ones: {', '.join(TYPES)}; of a label that is a number: "
        "numeric",
    )
    group.add_argument(
        "--split", nargs=3, type=float, metavar=("TRAIN", "VALID", "TEST"), help="log: fractions (default: 0.8 0.1 0.1)"
    )
    group.add_argument(
        "--split_by", choices=("time", "user"), help="log: of all rows by time (default), or of each user's rows"
    )
    group.add_argument(
        "--negatives", type=int, metavar="N", help="log: items sampled for each row, if all rows are positive"
    )
    group.add_argument(
        "--negatives_from",
        choices=NEGATIVES_FROM,
        help="log: items new to the user (default), any but the row's own, or matched: where the row's item is in its "
        "history, others of the history",
    )
    group.add_argument(
        "--negatives_near",
        type=float,
        metavar="FRACTION",
        help="log: sample items of rows near in time, such as 0.01: at most 1%% of the rows before or after (default: "
        "of the whole split); for items that come and go, such as news",
    )
    group.add_argument(
        "--positive_from",
        type=float,
        metavar="X",
        help="log: labels are 1 from X on, otherwise 0, for example for ratings from 4 on",
    )
    group.add_argument(
        "--history_from", metavar="LABEL", help="log: the label whose positives are the histories (default: the first)"
    )


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of ``add_log_options`` that were given."""
    return {name: getattr(args, name) for name in NAMES if getattr(args, name, None) is not None}


def _parse_column(words: Sequence[str], taken: Mapping[str, Any], what: str) -> str | None:
    if len(words) > 1:
        raise ConfigError(f"--roles {words[1]}: {words[0]} is given as well; {what} from one column")
    column = words[0].partition("=")[2] if words else None
    of = ("user", "item", "time", "group")
    role = next((role for role in of if column is not None and taken.get(role) == column), None)
    if role is not None:
        is_default = role == "user" and words[0].startswith("group=")
        default = ", which metrics group by without it; leave it out" if is_default else "; name another column"
        raise ConfigError(f"--roles {words[0]}: is the column of the {role}{default}")
    return column


def _parse_header(words: Sequence[str], positives: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the names of columns by table."""
    tables = ("interactions", "items", "users", *parse_positives(positives))
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        table, _, names = word.partition("=")
        listed = tuple(name.strip() for name in names.split(","))
        if table not in tables or table in found or not all(listed):
            raise ConfigError(
                f"--header {word}: expected TABLE=NAME,NAME,... once per table (tables are: {', '.join(tables)})"
            )
        if twice := next((name for name in listed if listed.count(name) > 1), None):
            raise ConfigError(f"--header {word}: has {twice} twice; name each column once")
        found[table] = listed
    return found


def parse_positives(words: Sequence[str]) -> dict[str, str]:
    """Return the file of each label, with the column of its times if it is named."""
    files: dict[str, str] = {}
    for word in words:
        label, _, file = word.partition("=")
        if not label or not file.partition(":")[0]:
            raise ConfigError(f"--positives {word}: expected LABEL=FILE or LABEL=FILE:TIME, such as click=clicks.csv")
        if label in files:
            raise ConfigError(f"--positives {word}: {label} has the file {files[label]} as well; name one")
        files[label] = file
    return files


def _check_positives(values: Mapping[str, Any]) -> None:
    """Refuse options that do not go together with files of positive rows."""
    files = values.get("positives")
    if not files:
        given = next((name for name in ("match_on", "match_within") if values.get(name)), None)
        if given is not None and not values.get("impressions"):
            raise ConfigError(f"--{given}: is of --positives or --impressions, which are missing; add one")
        if given is not None and values.get("negatives"):
            raise ConfigError(f"--{given}: is of events that label impressions, not of --negatives; leave out one")
        return
    if values.get("negatives"):
        raise ConfigError("--negatives: the rows without a positive are the negatives (--positives); leave out one")
    labels = values.get("labels")
    unused = next((name for name in files if labels and name not in labels), None)
    if unused is not None:
        raise ConfigError(
            f"--positives {unused}={files[unused]}: is not one of --labels; add it there, or leave it out"
        )
    typed = next((name for name in files if name in values["types"]), None)
    if typed is not None:
        raise ConfigError(f"--types {typed}: is a label of 0 and 1 (--positives); leave it out")


def _parse_types(words: Sequence[str]) -> dict[str, str]:
    types = {}
    for word in words:
        column, _, kind = word.rpartition("=")
        if not column or kind not in TYPES:
            raise ConfigError(
                f"--types {word}: expected COLUMN=TYPE{nearest(kind, TYPES)} (types are: {', '.join(TYPES)})"
            )
        types[column] = kind
    return types
