"""The checks there are: name, severity, what a finding means, what was expected, what cleaning does about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fuxictr_mm.checking import nearest
from fuxictr_mm.errors import ConfigError

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)

#: What cleaning does with a fault that only a person can mend.
LEFT = "left as it is"


class Check(NamedTuple):
    """One kind of fault.

    Parameters
    ----------
    severity : {"error", "warning", "info"}
        An error stops or falsifies training, a warning harms it, an info is good to know. Findings may be milder.
    found : str
        What is wrong, for the table.
    expected : str
        What was expected instead.
    mended : str
        What ``--clean`` does about it.
    """

    severity: str
    found: str
    expected: str
    mended: str = LEFT


ZEROED = "the vector is set to zero"
ROW_DROPPED = "the row is dropped (never from test)"
ENTRY_DROPPED = "the id is taken out of the history"
VALUE_DROPPED = "taken out of a list, else set to 0"

CHECKS: dict[str, Check] = {
    # Files
    "unreadable": Check(ERROR, "cannot be read", "a whole Parquet file", "not copied"),
    "missing-column": Check(ERROR, "no such column", "the columns of the challenge's layout"),
    "column-type": Check(ERROR, "a column of a type that cannot be read", "whole numbers, or lists of numbers"),
    "empty-file": Check(ERROR, "no rows", "at least one row"),
    # Item ids
    "bad-item-id": Check(
        ERROR, "null, negative, fractional or too large item ids", "whole numbers from 0 to 2^31 - 1", ROW_DROPPED
    ),
    "far-item-id": Check(
        WARNING, "item ids far beyond the others: tables reach to the largest", "ids numbered without wide gaps"
    ),
    "duplicate-item": Check(ERROR, "items that have a row already", "one row per item", "later rows are dropped"),
    "padding-row": Check(ERROR, "row of item 0 that is not all zero", "zeros: id 0 is padding", "set to zero"),
    "partial-item": Check(WARNING, "items of other files without a row here", "a row for every item"),
    "unused-item": Check(INFO, "items that no interaction shows", "items that are shown or remembered"),
    # Numbers of items: tags, levels
    "bad-item-value": Check(
        ERROR, "null, infinite or negative numbers, or ids above 2^31 - 1", "whole numbers from 0", VALUE_DROPPED
    ),
    "item-value-outlier": Check(
        WARNING, "numbers far beyond the others of the column", "numbers in the range of the others", VALUE_DROPPED
    ),
    # Titles
    "empty-title": Check(WARNING, "empty titles or placeholders", "a title", "placeholders become empty"),
    "mojibake": Check(WARNING, "text decoded by the wrong encoding", "readable text", "decoded anew by ftfy"),
    "json-title": Check(
        WARNING, "JSON or code fences left by a translating model", "the bare title", "the text inside is taken out"
    ),
    "assistant-title": Check(
        WARNING, "sentences of a translating model", "the bare title", "the lead-in is cut off, a refusal emptied"
    ),
    "markup-title": Check(
        WARNING, "HTML tags or entities", "the bare title", "tags are taken out, entities become characters"
    ),
    "escape-title": Check(WARNING, "backslash escapes such as \\n or \\u00e9", "the characters meant", "decoded"),
    "url-title": Check(WARNING, "web addresses", "the bare title", "the address is cut out"),
    "repeated-word-title": Check(
        WARNING, "one word over and over", "a title", "equal words that follow each other become one"
    ),
    "lost-character": Check(WARNING, "characters that a wrong decoding lost (U+FFFD)", "readable text"),
    "foreign-title": Check(WARNING, "titles in another language", "the language of the majority (or --language)"),
    "duplicate-title": Check(WARNING, "items that share a title", "a title per item"),
    # Vectors
    "vector-width": Check(ERROR, "vectors of another width", "one width per column", ZEROED),
    "nonfinite-vector": Check(ERROR, "NaN, infinite or null numbers in vectors", "finite numbers", ZEROED),
    "zero-vector": Check(WARNING, "zero vectors", "a vector per item"),
    "norm-outlier": Check(
        WARNING, "vectors far longer or shorter than the others", "lengths near the median", "scaled to median length"
    ),
    "constant-column": Check(WARNING, "a number that is the same in all vectors", "numbers that vary"),
    "duplicate-vector": Check(WARNING, "vectors equal to an earlier one", "a vector of its own per item"),
    "near-duplicate-vector": Check(
        WARNING, "vectors within 1 % of another's direction", "a vector of its own per item"
    ),
    "modalities-disagree": Check(
        WARNING, "image vectors far from what the text tells", "distances near the median of the cross-modal fit"
    ),
    # Interactions
    "bad-user-id": Check(ERROR, "null, negative or fractional user ids", "whole numbers from 0", ROW_DROPPED),
    "bad-context": Check(ERROR, "null, infinite or negative context values", "numbers from 0", ROW_DROPPED),
    "context-outlier": Check(
        WARNING, "context values far beyond the others", "values in the range of the others", ROW_DROPPED
    ),
    "bad-label": Check(ERROR, "labels that are neither 0 nor 1", "0 or 1", ROW_DROPPED),
    "one-class": Check(ERROR, "all labels are the same", "both 0 and 1"),
    "unknown-target": Check(ERROR, "targets that no item file has", "ids of the item files", ROW_DROPPED),
    "unknown-history": Check(ERROR, "history ids that no item file has", "ids of the item files", ENTRY_DROPPED),
    "null-history": Check(WARNING, "histories that are null", "a list, empty or of padding", "set to padding"),
    "repeated-history": Check(INFO, "an item more than once in a history", "every item once, or a rewatch"),
    "inner-padding": Check(
        WARNING, "padding between real ids of a history", "padding at one end", "the ids are moved together"
    ),
    "target-in-history": Check(
        WARNING, "targets that stand in their own history", "a history before the click", ENTRY_DROPPED
    ),
    "future-click": Check(
        WARNING, "clicks of a later split in the user's history", "histories older than the clicks", ENTRY_DROPPED
    ),
    "contradictory-row": Check(
        WARNING, "equal rows with both labels", "one label per row", "all of them are dropped (never from test)"
    ),
    "duplicate-row": Check(
        WARNING, "rows equal to an earlier one", "every row once", "the later row is dropped (never from test)"
    ),
    "shared-row": Check(
        WARNING, "rows that stand in a later split as well", "splits apart", "dropped from the earlier split"
    ),
    # Drift
    "label-drift": Check(WARNING, "another share of positives than in train", "PSI of at most 0.1"),
    "context-drift": Check(WARNING, "another distribution of categories", "PSI of at most 0.25"),
    "history-drift": Check(WARNING, "another distribution of history lengths", "PSI of at most 0.25"),
    "popularity-drift": Check(WARNING, "another popularity of the targets", "PSI of at most 0.25"),
    "cold-targets": Check(WARNING, "targets without a training row", "a share of at most 0.5, as large in test"),
}


def choose_checks(only: Sequence[str] | None, skip: Sequence[str] | None) -> set[str]:
    """Return the names of the checks to run.

    Raises
    ------
    ConfigError
        An unknown name, with the nearest; or nothing is left to do.

    Examples
    --------
    >>> sorted(choose_checks(["mojibake", "zero-vector"], ["mojibake"]))
    ['unreadable', 'zero-vector']
    """
    for flag, names in (("--only", only), ("--skip", skip)):
        for name in names or ():
            if name not in CHECKS:
                raise ConfigError(f"{flag}: there is no check '{name}'{nearest(name, CHECKS)} ({', '.join(CHECKS)})")
    # A file that cannot be read is no clean file, whatever else is asked.
    chosen = {*(only or CHECKS), "unreadable"} - set(skip or ())
    if not chosen:
        raise ConfigError("--only and --skip leave no check to run")
    return chosen
