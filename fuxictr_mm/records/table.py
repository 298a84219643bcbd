"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


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
