"""Kinds of pictures: dots with whiskers, and lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.report.picture import ACCENT, INK, LETTER, MUTED, PALE, SERIES, Picture, draw
from fuxictr_mm.report.text import printable

#: Characters of a name beside a picture.
NAME_WIDTH = 26


@dataclass(frozen=True)
class Dot:
    """A row of a picture.

    Parameters
    ----------
    name : str
        Beside the row.
    value : float
        Where the dot is.
    low, high : float, optional
        Ends of the whisker.
    colour : str
        Of dot and whisker.
    others : sequence of float
        Small rings, such as single seeds.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: str = INK
    others: Sequence[float] = ()


def dots(
    title: str, caption: str, rows: Sequence[Dot], label: str, *, reference: float | None = None, bars: bool = False
) -> Picture:
    """Draw a row for each value, the first at the top.

    Parameters
    ----------
    title, caption : str
        As in ``Picture``.
    rows : sequence of Dot
        One or more.
    label : str
        Of the axis.
    reference : float, optional
        A line across all rows.
    bars : bool
        Fill from 0 to the value.
    """
    names = [printable(row.name, NAME_WIDTH) for row in rows]

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        left = 0.12 + LETTER * max(len(name) for name in names)
        _place(figure, left, 0.5, 0.04)
        if reference is not None:
            axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for place, row in enumerate(rows):
            if bars:
                axes.barh(place, row.value, height=0.56, color=row.colour, alpha=0.3, linewidth=0)
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=row.colour, solid_capstyle="butt", linewidth=1.8)
            axes.plot(row.others, [place] * len(row.others), "o", mfc="none", mec=row.colour, mew=0.9, ms=4.5)
            axes.plot(row.value, place, "o", color=row.colour, ms=6.5)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        if max(abs(row.value) for row in rows) >= 1000:
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(printable(label))

    return draw(title, caption, 0.62 + 0.28 * len(rows), paint)


@dataclass(frozen=True)
class Line:
    """A line of a picture.

    Parameters
    ----------
    x, y : sequence of float
        Its points.
    name : str
        In the legend; empty for none.
    colour : str
        Of the line.
    dashed : bool
        Not drawn through.
    low, high : sequence of float
        Whiskers at its points, or empty.
    dots : bool
        Whether points are marked.
    mark : (float, float), optional
        A point that is marked more.
    """

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    colour: str = SERIES[0]
    dashed: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = True
    mark: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """Lines with axes of their own.

    Parameters
    ----------
    lines : sequence of Line
        The first is at the bottom.
    label : str
        Of the upright axis.
    names : sequence of str
        Of the places 0, 1, ... of the other axis, or empty.
    limits : (float, float), optional
        Of the upright axis.
    """

    lines: Sequence[Line]
    label: str
    names: Sequence[str] = ()
    limits: tuple[float, float] | None = None


def lines(title: str, caption: str, panels: Sequence[Panel], label: str, *, square: bool = False) -> Picture:
    """Draw panels one above the other on one horizontal axis.

    Parameters
    ----------
    title, caption : str
        As in ``Picture``.
    panels : sequence of Panel
        One or more.
    label : str
        Of the horizontal axis.
    square : bool
        Both axes from 0 to 1 or as far as lines go, of one scale.
    """

    def paint(figure: Any) -> None:
        _place(figure, 0.72, 0.5, 0.08)
        for axes, panel in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
            for line in panel.lines:
                _line(axes, line)
            axes.set_ylabel(printable(panel.label, NAME_WIDTH))
            axes.tick_params(axis="both", length=0, labelcolor=MUTED)
            axes.locator_params(axis="y", nbins=5)
            if panel.names:
                axes.set_xticks(range(len(panel.names)), [printable(name, 12) for name in panel.names])
            else:
                axes.locator_params(axis="x", nbins=6)
            if panel.limits:
                axes.set_ylim(*panel.limits)
            if square:
                axes.set_aspect("equal", adjustable="box")
            if any(line.name for line in panel.lines):
                axes.legend(loc="best", handlelength=1.4, labelspacing=0.3)
        axes.set_xlabel(printable(label))

    return draw(title, caption, 4.0 if square else 1.0 + 1.75 * len(panels), paint)


def _place(figure: Any, left: float, bottom: float, top: float) -> None:
    """Set the margins, in inches; at the right room for half of a number."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - 0.2 / width, 1 - top / height, hspace=0.12)


def _line(axes: Any, line: Line) -> None:
    for x, low, high in zip(line.x, line.low, line.high, strict=False):
        axes.plot([x, x], [low, high], color=line.colour, linewidth=1.4, alpha=0.55, solid_capstyle="butt")
    axes.plot(
        line.x,
        line.y,
        marker="o" if line.dots else "",
        label=printable(line.name, NAME_WIDTH) if line.name else "_",
        color=line.colour,
        ms=3.6,
        linestyle=(0, (4, 3)) if line.dashed else "-",
        linewidth=1 if line.colour in (PALE, MUTED) else 1.6,
    )
    if line.mark is not None:
        axes.plot(*line.mark, "o", ms=9, mfc="none", mec=ACCENT, mew=1.6)


def limits(values: Sequence[float]) -> tuple[float, float] | None:
    """Return limits that hold all but the wildest values, with some air; None of fewer than two.

    Examples
    --------
    >>> limits([0.0, 1.0])
    (-0.06, 1.06)
    """
    kept = sorted(value for value in values if math.isfinite(value))
    if len(kept) < 2:
        return None
    # One run that went wild would flatten the others: where the outer 2 % take more room than all others, they leave
    # the picture.
    cut = len(kept) // 50
    low, high = kept[cut], kept[-1 - cut]
    low = kept[0] if low - kept[0] <= high - low else low
    high = kept[-1] if kept[-1] - high <= high - low else high
    air = 0.06 * (high - low) or 0.01
    return low - air, high + air
