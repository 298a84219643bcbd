"""Columns of a log that have a role or are its label by their names, where no option names them."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError

logger = logging.getLogger(__name__)

#: By role, the names that columns have in public logs: in lower case, letters and digits alone. Names of a group are
#: taken where no name of an earlier group is there.
NAMES: dict[str, Sequence[Sequence[str]]] = {
    "user": (
        ("userid",),
        ("user", "uid", "visitorid", "visitor", "customerid", "customer", "memberid", "reviewerid", "accountid"),
    ),
    "target": (
        ("itemid",),
        (
            "item", "productid", "product", "sku", "skuid", "asin", "parentasin", "isbn", "articleid", "newsid",
            "movieid", "videoid", "bookid", "trackid", "songid", "goodsid", "businessid", "adid", "adgroupid",
        ),
    ),
    "time": (
        ("time",),
        (
            "timestamp", "ts", "datetime", "eventtime", "eventtimestamp", "createdat", "timems", "timestampms",
            "unixtime", "unixtimestamp", "unixreviewtime",
        ),
        ("date", "tdat"),
    ),
}  # fmt: skip
#: Labels that are taken without a line of the log where none is named, in this order.
DEFAULTS = ("label", "click")
LABELS: Sequence[Sequence[str]] = (
    *((name,) for name in DEFAULTS),
    ("clicked", "isclick", "isclicked", "clk"),
    ("target",),
)
#: Of columns that are no label as they are.
RATINGS = ("rating", "ratings", "stars", "score", "overall", "bookrating")
EVENTS = ("event", "eventtype", "eventname", "behavior", "behaviortype", "behaviour", "action", "actiontype")

#: What RecBole writes after a name.
_TYPE = r":(?:token|float)(?:_seq)?$"


def plain(name: str) -> str:
    """Return a name without case, marks and RecBole's type.

    Examples
    --------
    >>> [plain(name) for name in ("userId", "User-ID", "user_id:token")]
    ['userid', 'userid', 'userid']
    """
    return re.sub(r"[\W_]+", "", re.sub(_TYPE, "", name)).lower()


def with_names(asked: LogOptions, given: Collection[str], table: Table) -> LogOptions:
    """Return the options with the columns of ``table``, the log, for user, target, time and label.

    A column is taken where neither ``given``, the roles of ``--roles``, nor ``--labels`` names one, the default does
    not exist, and one column has a usual name.

    Raises
    ------
    ConfigError
        No column has such a name, or several have.
    """
    fields = {"user": "user", "target": "item", "time": "time"}
    columns = {f"--roles {role}={name}": name for role in given if (name := getattr(asked, fields.get(role, role)))}
    table.check_all(columns)
    is_sought = not (asked.labels or asked.positives or asked.impressions)
    if fields.keys() <= set(given) and not is_sought:  # of JSON lines, finding the columns takes a pass
        return asked
    used = {getattr(asked, role) for role in ("group", "history", "weight")} | set(asked.labels)
    used |= {getattr(asked, fields[role]) for role in given if role in fields}
    used |= {name for name, kind in asked.types.items() if kind == "none"}
    free = [name for name in table.schema if name not in used]
    found, missing, why = dict[str, str](), list[str](), ""
    for role, field in fields.items():
        default = getattr(asked, field)
        if default in table.schema:
            continue
        names = _first(NAMES[role], free)
        if len(names) == 1:
            found[role] = names[0]
            continue
        missing.append(role)
        why += f"; {' and '.join(names)} may be the {role}" if names else ""
    if missing:
        table.check_header(getattr(asked, fields[missing[0]]), f"--roles {missing[0]}")
        option = " ".join(f"{role}=COLUMN" for role in missing)
        defaults = " or ".join(repr(getattr(asked, fields[role])) for role in missing)
        usual = {name for role in missing for group in NAMES[role] for name in group}
        why += table.lists_with(lambda field: plain(field) in usual)
        why += table.of_folders(asked.user) if "user" in missing else ""
        untimed = '; without times, number the rows, in their order or a random one: frame["time"] = range(len(frame))'
        raise ConfigError(
            f"{table.paths[0]}: has no column {defaults} (it has: {', '.join(table.schema)}){why}; name the column of "
            f"the {' and the '.join(missing)}: --roles {option}{untimed if 'time' in missing else ''}"
        )
    labels = _find_label(asked, [n for n in free if n not in found.values()], table) if is_sought else ()
    if found or labels:
        said = [f"{role} is {name}" for role, name in found.items()] + [f"label is {name}" for name in labels]
        logger.info(f"{table.paths[0]}: {', '.join(said)}, found by name; --roles and --labels name others")
    values = {fields[role]: name for role, name in found.items()}
    return replace(asked, labels=labels or asked.labels, **values)  # type: ignore[arg-type]


def _find_label(asked: LogOptions, free: Sequence[str], table: Table) -> tuple[str, ...]:
    """Return the label of a log whose label no option names, where it is not called by a default name."""
    if any(name in table.schema and asked.types.get(name) != "none" for name in DEFAULTS):
        return ()
    file, given = table.paths[0], [name for name in free if name not in asked.types]
    ratings, events = _first([RATINGS], given), _first([EVENTS], given)
    names = ratings if asked.positive_from is not None else []
    names = names or _first(LABELS[:3] if asked.negatives else LABELS, given)
    if len(names) > 1:
        option = " or ".join(f"--labels {name}" for name in names)
        raise ConfigError(f"{file}: {' and '.join(names)} may be the label; name one: {option}")
    if asked.negatives:
        if names:
            raise ConfigError(
                f"--negatives: {file} has the column '{names[0]}', which seems to be a label; leave out --negatives, "
                f"or the column: --types {names[0]}=none"
            )
        return ()
    if names:
        return tuple(names)
    fix = (
        "name the label (1 for a click, 0 for none) with --labels, or its file with --positives click=clicks.csv, or "
        "add --negatives 1 if every row is a click, to sample an item without one for each"
    )
    if ratings:
        fix = f"for ratings, add --labels {ratings[0]} --positive_from 4, or another threshold"
    elif events:
        name = events[0]
        fix = f"name events, such as --impressions {name}=view --labels {name}=purchase, or --labels {name}=VALUE"
    raise ConfigError(f"{file}: has no column label or click (it has: {', '.join(table.schema)}); {fix}")


def _first(groups: Iterable[Sequence[str]], columns: Sequence[str]) -> list[str]:
    """Return the columns that have a name of the first group of which any is there."""
    found = ([name for name in columns if plain(name) in group] for group in groups)
    return next((names for names in found if names), [])
