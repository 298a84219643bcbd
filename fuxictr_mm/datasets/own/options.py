"""The options of ``fuxictr-mm prepare log``; light to import, since ``--help`` reads them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fuxictr_mm.errors import ConfigError, nearest

#: What ``--types`` may say of a column; ``none`` leaves it out.
TYPES = ("categorical", "numeric", "sequence", "text", "none")

#: Which items can be negatives: those new to the user, any but the row's own, or for a row whose item is in its history
#: others of the history.
NEGATIVES_FROM = ("new", "any", "matched")

#: Names of the options as ``argparse`` has them.
NAMES = (
    "labels", "interactions", "items", "users", "embeddings", "roles", "types", "split", "split_by", "negatives",
    "negatives_from", "positive_from", "history_from", "like", "all_rows", "extend",
)  # fmt: skip


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
    labels: tuple[str, ...] = ()  #: Columns of labels; by default ``label`` or ``click``.
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)  #: Fractions of train, valid and test.
    #: Whether they are fractions of all rows or of the rows of each user, the last ones for test ("time", "user").
    split_by: str = "time"
    negatives: int = 0  #: Items sampled for each row of a log that has no label.
    negatives_from: str = "new"  #: Which items these can be, of ``NEGATIVES_FROM``.
    #: Labels are 1 from this number on and 0 below, as of ratings; by default they hold 0 and 1.
    positive_from: float | None = None
    #: The label whose positive events enter histories; by default the first one that is not a number.
    history_from: str | None = None

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
        for name in ("labels", "embeddings", "split"):
            if name in values:
                values[name] = tuple(values[name])
        options = cls(**values)
        if options.negatives < 0:
            raise ConfigError(f"--negatives is {options.negatives}, expected 1 or more")
        if options.negatives_from != cls.negatives_from and not options.negatives:
            raise ConfigError(f"--negatives_from {options.negatives_from}: is of --negatives, which is missing; add it")
        if options.negatives_from == "matched" and options.history is not None:
            raise ConfigError(
                f"--negatives_from matched: takes computed histories, not the column {options.history} (--roles "
                "history); leave out one"
            )
        if options.history_from is not None and options.history is not None:
            raise ConfigError(
                f"--history_from {options.history_from}: histories are those of the column {options.history} (--roles "
                "history); leave out one"
            )
        others = [name for name in ("labels", "positive_from", "history_from") if values.get(name) is not None]
        if options.negatives and others:
            raise ConfigError(
                f"--negatives: is for a log of only positive events; remove --{others[0]}, or --negatives"
            )
        return options

    @classmethod
    def of_json(cls, changed: Mapping[str, Any]) -> LogOptions:
        """Return the options of what ``changed`` returned."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in changed.items()}
        return cls(**values)

    def changed(self) -> dict[str, Any]:
        """Return the options that are not the default, in the types of JSON."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        default = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(LogOptions()).items()}
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
    group.add_argument("--interactions", metavar="FILE", help="log: file or pattern (default: interactions.*)")
    group.add_argument("--items", metavar="FILE", help="log: one row per item (default: items.*, if it exists)")
    group.add_argument("--users", metavar="FILE", help="log: one row per user (default: users.*, if it exists)")
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
        help="log: columns with a role: user, target, time (default: user_id, item_id, time), group, history, weight",
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
