"""A progress bar that counts items."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from fuxictr_mm.runtime import is_main


def progress_bar(batches: Iterable[Any], what: str, verbose: int = 1, done: int = 0, total: int | None = None) -> tqdm:
    """Return a bar over ``batches``, of which ``done`` lie behind.

    ``verbose=0``, no terminal, or a process that is not the main one: nothing is printed.
    """
    quiet = verbose == 0 or not sys.stderr.isatty() or not is_main()
    return tqdm(batches, desc=what, unit="batch", disable=quiet, leave=False, initial=done, total=total)


def item_bar(items: int, what: str, verbose: int, done: int = 0) -> tqdm:
    """Return a bar of so many items, of which ``done`` lie behind, to be told of more by ``update``."""
    bar = progress_bar([], what, verbose, done, items)
    bar.unit, bar.unit_scale = " items", True
    return bar


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Return columns two spaces apart; those named in ``right`` are aligned to the right.

    Examples
    --------
    >>> print(format_table(["run", "AUC"], [["a", "0.5"], ["other", "0.75"]], right=["AUC"]))
    run     AUC
    a       0.5
    other  0.75
    """
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = []
    for line in (header, *rows):
        cells = zip(header, line, widths, strict=True)
        lines.append("  ".join(f"{c:>{w}}" if name in right else f"{c:<{w}}" for name, c, w in cells).rstrip())
    return "\n".join(lines)


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


BOLD, RED = "1", "31"


def paint(text: str, code: str, stream: TextIO) -> str:
    """Return a text in a colour if the stream shows colours: on a terminal, without ``NO_COLOR`` (no-color.org).

    Parameters
    ----------
    text : str
        What is written.
    code : str
        ``BOLD`` or ``RED``.
    stream : file
        Where it is written to.

    Examples
    --------
    >>> import io
    >>> paint("error:", RED, io.StringIO())
    'error:'
    """
    shown = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{code}m{text}\033[0m" if shown else text


def fit_width(line: str, stream: TextIO) -> str:
    """Cut a line to the width of the terminal; anywhere else it stays whole.

    Examples
    --------
    >>> import io
    >>> fit_width("a" * 500, io.StringIO()) == "a" * 500
    True
    """
    width = shutil.get_terminal_size().columns if stream.isatty() else len(line)
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"
