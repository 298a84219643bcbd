"""Warnings about histories whose entries are not items: another separator, or ids written in another form."""

from __future__ import annotations

import json

import polars as pl

#: What separates the entries of a history in most files.
SEPARATORS = (" ", ",", ";", "|", "^", "\t")

#: Fraction of the entries of histories that must be among the targets, or may hold a separator that no target does.
FEW = 0.1


def history_problem(history: pl.DataFrame, targets: pl.DataFrame, splitter: str | None) -> str:
    """Return the problem of the entries of a history with its fix, or an empty text.

    Entries of the training split, and targets, are texts ``value`` with their count ``len``. ``splitter`` separates
    entries; it is None where the files hold lists.

    Examples
    --------
    >>> targets = pl.DataFrame({"value": ["7", "12"], "len": [1, 1]})
    >>> history_problem(pl.DataFrame({"value": ["12", "9"], "len": [1, 1]}), targets, "^")
    ''
    >>> "splitter" in history_problem(pl.DataFrame({"value": ["12 7", "7 9"], "len": [1, 1]}), targets, "^")
    True
    """
    if history.is_empty() or targets.is_empty():
        return ""
    for separator in SEPARATORS if splitter is not None else ():
        holds = pl.col("value").str.contains(separator, literal=True)
        fraction = _fraction(history, holds)
        if fraction > FEW and _fraction(targets, holds) < FEW * fraction:
            example = history.filter(holds)["value"].min()
            return (
                f"{fraction:.0%} of its entries, such as {example!r}, hold {separator!r}, which targets do not; write "
                f"splitter: {json.dumps(separator)} for the column, or write only ids, with {splitter!r} between them"
            )
    known = _fraction(history, pl.col("value").is_in(targets["value"].implode()))
    if known < FEW:
        examples = f"{history['value'].min()!r} and {targets['value'].min()!r}"
        return (
            f"{known:.1%} of its entries are targets of the split ({examples}); write the ids of both in the same form"
        )
    return ""


def _fraction(counts: pl.DataFrame, condition: pl.Expr) -> float:
    return float(counts.filter(condition)["len"].sum() / counts["len"].sum())
