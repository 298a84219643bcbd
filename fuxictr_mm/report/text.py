"""Numbers and names as a reader wants them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

#: What neither XML nor UTF-8 can hold, what would break a line or turn its direction, and what no font has.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ue000-\uf8ff\ufffe\uffff]")


#: Shown where there is nothing.
DASH = "\u2013"

#: As typography has it; a hyphen is too short beside digits.
MINUS = "\u2212"


def number(value: Any) -> float | None:
    """Return a finite number of a record, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def decimal(value: Any, digits: int = 4) -> str:
    """Return a number with so many digits, a dash for none.

    Examples
    --------
    >>> decimal(0.81234), decimal(None), decimal(-0.5, 2)
    ('0.8123', '–', '−0.50')
    """
    found = number(value)
    return DASH if found is None else f"{round(found, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def signed(value: Any, digits: int = 4) -> str:
    """Return a number with its sign, a dash for none.

    Examples
    --------
    >>> signed(0.0123), signed(-0.0123), signed(-0.00001)
    ('+0.0123', '−0.0123', '0.0000')
    """
    found = number(value)
    if found is None:
        return DASH
    found = round(found, digits)
    return decimal(found, digits) if found == 0 else f"{found:+.{digits}f}".replace("-", MINUS)


def grouped(value: Any) -> str:
    """Return a whole number with commas, a dash for none.

    Examples
    --------
    >>> grouped(48765.4)
    '48,765'
    """
    found = number(value)
    return DASH if found is None else f"{found:,.0f}"


def printable(value: Any, width: int = 0) -> str:
    """Return a text on one line without what cannot be written; with a width the middle of a longer one is left out.

    Examples
    --------
    >>> printable("DIN_MM_tiny", 7)
    'DIN…iny'
    """
    text = UNPRINTABLE.sub(" ", str(value))
    if not 0 < width < len(text):
        return text
    head = width // 2
    return f"{text[:head]}…{text[len(text) - (width - head - 1) :]}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Join names as a sentence does.

    Examples
    --------
    >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], most=2)
    ('a, b and c', 'a, b and 1 more')
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plural(count: int, what: str) -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> plural(1, "seed"), plural(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
