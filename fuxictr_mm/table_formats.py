"""Tables for papers, spreadsheets and pages: CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

Format = Literal["csv", "markdown", "latex"]
FORMATS: tuple[Format, ...] = ("csv", "markdown", "latex")

#: Numbers below this are written with a power of ten, others with four decimals.
SMALL = 5e-5

_LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def in_format(form: Format, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    r"""Return a table as CSV with all digits of numbers, or as Markdown or LaTeX (booktabs) with four decimals.

    None and numbers that are not finite are empty.

    Examples
    --------
    >>> print(in_format("latex", ["run", "AUC"], [["DIN_tiny", 0.71234]]))
    \begin{tabular}{lr}
    \toprule
    run & AUC \\
    \midrule
    DIN\_tiny & 0.7123 \\
    \bottomrule
    \end{tabular}
    """
    cells = [[_cell(value, form) for value in row] for row in rows]
    if form == "csv":
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([header, *cells])
        return stream.getvalue().rstrip("\n")
    cells = [[" ".join(cell.splitlines()) for cell in line] for line in cells]  # a row is one line
    is_number = [
        all(value is None or isinstance(value, int | float) for value in column) for column in zip(*rows, strict=True)
    ]
    is_number = is_number or [False] * len(header)
    if form == "markdown":
        marks = ["---:" if number else "---" for number in is_number]
        lines = [[cell.replace("|", r"\|") for cell in line] for line in [header, *cells]]
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], marks, *lines[1:]))
    names, *lines = ([_in_latex(cell) for cell in line] for line in [header, *cells])
    columns = "".join("r" if number else "l" for number in is_number)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{' & '.join(names)} \\",
            r"\midrule",
            *(rf"{' & '.join(line)} \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _cell(value: Any, form: Format) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if not isinstance(value, float) or form == "csv":
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < SMALL else f"{value:.4f}"


def _in_latex(text: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in text)
    # After the end of a line, a bracket begins an option of it, and a star changes it.
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", text)
