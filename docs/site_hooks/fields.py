"""Comments ``#:`` beside or above the fields of a class, as their docstrings on the API pages; a griffe extension."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import griffe

MARK = "#:"


@lru_cache
def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def comment_of(lines: list[str], first: int, last: int) -> str:
    """Return the comment of a field on the lines ``first`` to ``last``, counted from 1; empty without one.

    Examples
    --------
    >>> comment_of(["#: Of a batch,", "#: at most.", "rows: int", "size: int = 1  #: In bytes."], 3, 3)
    'Of a batch, at most.'
    >>> comment_of(["rows: int", "size: int = 1  #: In bytes."], 2, 2)
    'In bytes.'
    """
    _, mark, text = lines[last - 1].partition(f"  {MARK}")
    if mark:
        return text.strip()
    above = []
    while first > 1 and lines[first - 2].strip().startswith(MARK):
        first -= 1
        above.append(lines[first - 1].strip().removeprefix(MARK).strip())
    return " ".join(reversed(above))


class Fields(griffe.Extension):
    """Takes comments of fields for their docstrings."""

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Give one field its docstring."""
        is_field = attr.parent is not None and attr.parent.is_class
        if not is_field or attr.docstring is not None or attr.lineno is None or not isinstance(attr.filepath, Path):
            return
        if text := comment_of(_lines(attr.filepath), attr.lineno, attr.endlineno or attr.lineno):
            attr.docstring = griffe.Docstring(text, parent=attr, parser="numpy")
