"""Text for terminals and reports: progress bars, tables, numbers, colours."""

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

#: Seconds between two lines of progress if the output is not a terminal.
LINE_SECONDS = 30.0

#: ANSI codes of ``paint``.
BOLD, RED = "1", "31"

#: Missing value, and sign of a number: a hyphen is too short next to digits.
DASH, MINUS = "\u2013", "\u2212"

#: Characters that XML or UTF-8 cannot hold, that break a line or reverse its direction, or that no font has.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ue000-\uf8ff\ufffe\uffff]")


def progress_bar(batches: Iterable[Any], what: str, verbose: int = 1, done: int = 0, total: int | None = None) -> tqdm:
    """Return a progress bar over ``batches``, of which ``done`` are finished.

    With ``verbose=1`` and without a terminal it is a line every ``LINE_SECONDS``, none of what takes less. Nothing is
    printed with ``verbose=0``, or in a process other than the main one.
    """
    quiet = verbose == 0 or not is_main()
    options: dict[str, Any] = {}
    if verbose == 1 and not sys.stderr.isatty():
        options = dict.fromkeys(("delay", "mininterval", "maxinterval"), LINE_SECONDS)
        options |= {
            "file": _Lines(sys.stderr),
            "bar_format": "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        }
    return tqdm(batches, desc=what, unit="batch", disable=quiet, leave=False, initial=done, total=total, **options)


class _Lines:
    """Stream of a progress bar that is to write lines, not one line again and again: a file, or a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip()  # of a bar within another, which moves the cursor
        if line:
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


def item_bar(items: int, what: str, verbose: int, done: int = 0) -> tqdm:
    """Return a progress bar over a number of items, advanced by ``update``; ``done`` are finished already."""
    bar = progress_bar([], what, verbose, done, items)
    bar.unit, bar.unit_scale = " items", True
    return bar


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> str:
    """Return a table with two spaces between columns; columns named in ``right`` are right-aligned, None is ``-``.

    Examples
    --------
    >>> print(format_table(["run", "AUC"], [["a", 0.5], ["other", None]], right=["AUC"]))
    run    AUC
    a      0.5
    other    -
    """
    lines = [list(header), *(["-" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    columns = [f"{'>' if name in right else '<'}{width}" for name, width in zip(header, widths, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{column}}" for cell, column in zip(line, columns, strict=True)).rstrip() for line in lines
    )


def number(value: Any) -> float | None:
    """Return a finite number as float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def decimal(value: Any, digits: int = 4) -> str:
    """Return a number with ``digits`` decimals, a dash for anything else.

    Examples
    --------
    >>> decimal(0.81234), decimal(None), decimal(-0.5, 2)
    ('0.8123', '–', '−0.50')
    """
    found = number(value)
    return DASH if found is None else f"{round(found, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def signed(value: Any, digits: int = 4) -> str:
    """Return a number with its sign and ``digits`` decimals, a dash for anything else.

    Examples
    --------
    >>> signed(0.0123), signed(-0.0123), signed(-0.00001)
    ('+0.0123', '−0.0123', '0.0000')
    """
    text = decimal(value, digits)
    return f"+{text}" if round(number(value) or 0, digits) > 0 else text


def grouped(value: Any) -> str:
    """Return a number as an integer with thousands separators, a dash for anything else.

    Examples
    --------
    >>> grouped(48765.4)
    '48,765'
    """
    found = number(value)
    return DASH if found is None else f"{found:,.0f}"


def printable(value: Any, width: int = 0) -> str:
    """Return a text on one line, without unprintable characters; above ``width`` its middle is left out.

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
    """Join names with commas and "and"; above ``most`` the rest is counted.

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


def paint(text: str, code: str, stream: TextIO) -> str:
    """Return a text in ``BOLD`` or ``RED`` if the stream is a terminal and ``NO_COLOR`` is not set (no-color.org).

    Examples
    --------
    >>> import io
    >>> paint("error:", RED, io.StringIO())
    'error:'
    """
    shown = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{code}m{text}\033[0m" if shown else text


def fit_width(line: str, stream: TextIO) -> str:
    """Cut a line to the width of the terminal; on any other stream it is not cut.

    Examples
    --------
    >>> import io
    >>> fit_width("a" * 500, io.StringIO()) == "a" * 500
    True
    """
    width = shutil.get_terminal_size().columns if stream.isatty() else len(line)
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"
