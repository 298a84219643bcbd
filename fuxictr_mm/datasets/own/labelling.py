"""Which labels a log has, and which of its rows are labelled and enter histories."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from fuxictr_mm.datasets.own.events import EventLog, text_of
from fuxictr_mm.datasets.own.files import LogFiles
from fuxictr_mm.datasets.own.labels import Label, MatchedLabel, NumberLabel, ThresholdLabel, TruthLabel, ValueLabel
from fuxictr_mm.datasets.own.options import LogOptions, Value
from fuxictr_mm.datasets.own.positives import Positives
from fuxictr_mm.datasets.own.roles import DEFAULTS
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, nearest
from fuxictr_mm_serving.prepared import SCALED


@dataclass(frozen=True)
class Labels:
    """The labels of a log."""

    found: Mapping[str, Label]  #: Those that its files have; none where negatives are sampled.
    known: Sequence[str]  #: All, also those that only an earlier log has.
    words: Mapping[str, str]  #: The names of labels that are given as ``COLUMN=VALUE``.
    values: Mapping[str, Value]  #: Labels that are values of a column.
    numeric: Sequence[str]  #: Labels that are numbers to predict; the others hold 0 and 1.
    history: str | None  #: The label whose positive events enter histories; None: all events that have a label.
    events: EventLog | None  #: What the events are, of a log of events.
    is_sampled: bool  #: Whether all rows are positive, of which negatives are sampled.

    def written(self, word: str) -> str:
        """Return the name that a label of ``--labels`` is written with: numbers are standardised."""
        name = self.words.get(word, word)
        return name + SCALED if name in self.numeric else name

    @property
    def classes(self) -> list[str]:
        """Labels of 0 and 1."""
        return [name for name in self.found if name not in self.numeric]

    @property
    def is_labelled(self) -> pl.Expr:
        """Whether a row of the log has a label, or is a click of a log of only clicks."""
        if self.events is not None:
            return self.events.is_impression(pl.col(":kind"))
        if self.is_sampled:
            return pl.lit(True)
        return pl.any_horizontal(pl.col(name).is_not_null() for name in self.found) if self.found else pl.lit(False)

    @property
    def is_positive(self) -> pl.Expr:
        """Whether a row of the log enters histories."""
        if self.history is None or self.is_sampled:
            return self.is_labelled
        return self.found[self.history].is_positive if self.history in self.found else pl.lit(False)


def find_labels(asked: LogOptions, files: LogFiles, log: Table, others: Sequence[Table]) -> Labels:
    """Return the labels of a log, of a later log those of the earlier one; ``others`` are tables of items and users."""
    base = files.base
    words = _names_of_values(asked, log) if base is None else base.names
    named = {name: Value.of(word) for word, name in words.items() if word != name}
    values = {name: value for name, value in named.items() if value is not None and value.column in log.schema}
    rows = {name: files.positives(name, log) for name in asked.positives}
    positives = {name: found for name, found in rows.items() if found is not None}
    if base is None:
        known = names = _choose(asked, log, words, [*values, *positives])
        numeric = _choose_numeric(asked, names, others)
    else:
        known, numeric = base.notes.labels, list(base.numeric_labels)
        names = [name for name in known if name in {*log.schema, *values, *positives}]
    history = _history_label(asked, words, known, numeric)
    events = _events_of(asked, log, names, values, positives)
    is_row = None if events is None else events.is_impression(text_of(events.column))
    on = asked.match_on or (asked.user, asked.item)

    def make(name: str) -> Label:
        of = (name, log, base is not None)
        if events is not None and name in values:
            event = Positives(name, log, on, asked.time, asked.match_within, values[name], files.missing)
            return MatchedLabel(*of, event, asked.time, is_row)
        if name in positives:
            return MatchedLabel(*of, positives[name], asked.time, is_row)
        if name in values:
            return ValueLabel(*of, values[name])
        if name in numeric:
            return NumberLabel(*of)
        return TruthLabel(*of) if asked.positive_from is None else ThresholdLabel(*of, asked.positive_from)

    found = {name: make(name) for name in names}
    return Labels(found, known or ["label"], words, values, numeric, history, events, is_sampled=not known)


def _names_of_values(asked: LogOptions, log: Table) -> dict[str, str]:
    """Return the names of the labels that are given as ``COLUMN=VALUE``."""
    names: dict[str, str] = {}
    for word in asked.labels:
        value = None if word in log.schema else Value.of(word)
        if value is not None:
            log.check(value.column, f"--labels {word}")
            names[word] = value.label([*log.schema, *names.values()])
    return names


def _choose(asked: LogOptions, log: Table, words: Mapping[str, str], others: Collection[str]) -> list[str]:
    """Return the names of the labels, of which ``others`` are no columns; none where negatives are sampled."""
    file = log.paths[0]
    names = [words.get(word, word) for word in asked.labels] or list(asked.positives)
    for name in names:
        if name not in others:
            log.check(name, f"--labels {name}")
    names = names or [name for name in DEFAULTS if name in log.schema and asked.types.get(name) != "none"][:1]
    if asked.positive_from is not None and names and set(names) <= set(asked.positives):
        raise ConfigError("--positive_from: all labels are of --positives, which are 0 and 1; leave it out")
    if names and asked.negatives:
        raise ConfigError(
            f"--negatives: {file} has the label '{names[0]}'; leave out --negatives, or the column: --types "
            f"{names[0]}=none"
        )
    if not names and not asked.negatives and asked.impressions:
        column = asked.impressions[0].partition("=")[0]
        raise ConfigError(
            f"{file}: no event labels the impressions; name those that do, such as --labels {column}=purchase, or "
            "add --negatives 1 if every impression is a click"
        )
    if asked.weight in (names or ["label"]):
        raise ConfigError(f"--roles weight={asked.weight}: is a label; name another column")
    return names


def _choose_numeric(asked: LogOptions, names: Sequence[str], others: Sequence[Table]) -> list[str]:
    """Return the labels that ``--types`` declares to be numbers."""
    types = {name: asked.types[name] for name in names if name in asked.types}
    for name, kind in types.items():
        if kind != "numeric" and not any(name in table.schema for table in others):
            raise ConfigError(f"--types {name}={kind}: is a label, expected numeric, or no type for 0 and 1")
    numeric = [name for name, kind in types.items() if kind == "numeric"]
    if asked.positive_from is not None and names and numeric == names:
        given = " ".join(f"{name}=numeric" for name in numeric)
        raise ConfigError(f"--positive_from: all labels are numbers (--types {given}); leave out one of both")
    return numeric


def _history_label(
    asked: LogOptions, words: Mapping[str, str], known: Sequence[str], numeric: Collection[str]
) -> str | None:
    name = words.get(asked.history_from or "", asked.history_from)
    if name is None:
        classes = [name for name in known if name not in numeric]
        return None if asked.impressions else next(iter(classes), None)
    if name not in known:
        raise ConfigError(f"--history_from {name}: no label{nearest(name, known)} (there are: {', '.join(known)})")
    if name in numeric:
        raise ConfigError(f"--history_from {name}: is a number (--types {name}=numeric), expected a label of 0 and 1")
    return name


def _events_of(
    asked: LogOptions, log: Table, names: Sequence[str], values: Mapping[str, Value], positives: Collection[str]
) -> EventLog | None:
    """Return what the events of ``--impressions`` are."""
    impressions = [value for word in asked.impressions if (value := Value.of(word)) is not None]
    if not impressions:
        return None
    column, given = impressions[0].column, " ".join(asked.impressions)
    log.check(column, f"--impressions {given}")
    for name in names:
        if values.get(name) in impressions:
            raise ConfigError(
                f"--labels {column}={values[name].text}: these events are the rows themselves (--impressions "
                f"{given}); name events that follow them, such as --labels {column}=purchase"
            )
        if name not in positives and (name not in values or values[name].column != column):
            raise ConfigError(
                f"--labels {name}: is no event of the column {column} of --impressions {given}; name events, such as "
                f"--labels {column}=purchase"
            )
    return EventLog(column, [v.text for v in impressions], {name: v.text for name, v in values.items()})
