"""Bold and red, on a terminal only."""

from __future__ import annotations

import os
import shutil
from typing import TextIO

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
