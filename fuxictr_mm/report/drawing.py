"""Plots as SVG: rows of dots, and panels of lines."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from fuxictr_mm.terminal import printable

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


INK, MUTED, RULE, ACCENT, PALE = "#010101", "#020202", "#030303", "#040404", "#050505"

#: Distinguishable with colour blindness (after Okabe and Ito, https://jfly.uni-koeln.de/color/).
SERIES = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")

#: CSS variable of the page for each colour of a plot.
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    ACCENT: "--accent",
    PALE: "--pale",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
}

#: Prefix of each id in an SVG until the page numbers it; ``printable`` removes it from texts.
MARK = "\ue000"

#: Approximate size of a letter in inches; the font is the reader's, so Matplotlib's slow layout is not used.
LETTER = 0.083

#: Size in inches; one inch is 72 units of the SVG.
WIDTH = 4.8
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fuxictr-mm",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.size": 10.5,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10.5,
    "lines.linewidth": 1.6,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Plot:
    """A plot with title and caption."""

    title: str  #: A few words.
    caption: str  #: Sentences with the numbers; also its text alternative.
    drawing: str  #: SVG in which each ``id`` begins with ``MARK``.

    def svg(self, number: int) -> Markup:
        """Return the SVG with unique ids; the caption's id is ``c`` and the number."""
        from markupsafe import Markup

        described = f'<svg aria-describedby="c{number}"'
        return Markup(self.drawing.replace(MARK, f"p{number}-").replace("<svg", described, 1))


def draw(title: str, caption: str, height: float, paint: Callable[[Figure], Any]) -> Plot:
    """Render a plot of a height in inches, which ``paint`` draws on an empty figure."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Matplotlib's font for measuring does not have all letters; that of the page has.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH, height))
        paint(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return Plot(title, caption, _for_page(buffer.getvalue(), title))


def _for_page(svg: bytes, label: str) -> str:
    """Return an SVG element without namespaces, and without its own size, fonts and colours."""
    root = ElementTree.fromstring(svg)
    for child in [c for c in root if c.tag.endswith("}metadata") or c.find("{*}style") is not None]:
        root.remove(child)
    used = set(re.findall(rb'(?:url\(#|href="#)([^)"]+)', svg))
    for element in root.iter():
        element.tag = element.tag.partition("}")[2] or element.tag
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if attributes.get("id", "").encode() not in used:
            attributes.pop("id", None)
        element.attrib = {key: _attribute(key, value) for key, value in attributes.items()}
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", printable(label))
    for element in itertools.chain.from_iterable(root.iter(tag) for tag in ("g", "svg", "defs")):
        element.text = None
        for child in element:
            child.tail = None
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(key: str, value: str) -> str:
    if key == "style":
        rules = [rule.partition(":")[::2] for rule in value.split(";") if rule.strip()]
        return "; ".join(f"{name.strip()}: {_style(name.strip(), text.strip())}" for name, text in rules)
    if key == "id":
        return f"{MARK}{value}"
    if key in ("d", "x", "y"):  # more digits are not visible and make the page large
        return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
    return value.replace("#", f"#{MARK}") if key in ("clip-path", "href") else value


def _style(name: str, value: str) -> str:
    if name == "font":  # the size of the figure, the family of the page
        size = re.search(r"[\d.]+px", value)
        return f"{size[0] if size else '9px'} var(--font)"
    return f"var({VARIABLES[value]})" if value in VARIABLES else value


#: Longest name at the axis of a plot, in characters.
NAME_WIDTH = 26


@dataclass(frozen=True)
class Dot:
    """A row of a plot."""

    name: str  #: Next to the row.
    value: float  #: Position of the dot.
    #: Ends of the whisker.
    low: float | None = None
    high: float | None = None
    colour: str = INK  #: Of dot and whisker.
    others: Sequence[float] = ()  #: Small rings, for example single seeds.


def dots(
    title: str, caption: str, rows: Sequence[Dot], label: str, *, reference: float | None = None, bars: bool = False
) -> Plot:
    """Draw a row for each value, the first at the top, with a line across all at ``reference``; ``bars`` begin at 0."""
    names = [printable(row.name, NAME_WIDTH) for row in rows]

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        left = 0.12 + LETTER * max(len(name) for name in names)
        _place(figure, left, 0.04)
        if reference is not None:
            axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for index, row in enumerate(rows):
            if bars:
                axes.barh(index, row.value, height=0.56, color=row.colour, alpha=0.3, linewidth=0)
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [index, index], color=row.colour, solid_capstyle="butt", linewidth=1.8)
            axes.plot(row.others, [index] * len(row.others), "o", mfc="none", mec=row.colour, mew=0.9, ms=4.5)
            axes.plot(row.value, index, "o", color=row.colour, ms=6.5)
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
    """A line of a plot."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""  #: In the legend; empty for none.
    colour: str = SERIES[0]
    dashed: bool = False
    #: Whiskers at its points, or empty.
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = True  #: Whether points are marked.
    mark: tuple[float, float] | None = None  #: A point with a ring.


@dataclass(frozen=True)
class Panel:
    """Lines with their own axes."""

    lines: Sequence[Line]  #: The first is at the bottom.
    label: str  #: Of the upright axis.
    names: Sequence[str] = ()  #: Tick labels 0, 1, ... of the other axis, or empty.
    limits: tuple[float, float] | None = None  #: Of the upright axis.


def lines(title: str, caption: str, panels: Sequence[Panel], label: str, *, square: bool = False) -> Plot:
    """Draw panels one above the other on one horizontal axis; ``square``: both axes have the same scale."""

    def paint(figure: Any) -> None:
        _place(figure, 0.72, 0.08)
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


def _place(figure: Any, left: float, top: float) -> None:
    """Set the margins, in inches; on the right, space for half of a number."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, 0.5 / height, 1 - 0.2 / width, 1 - top / height, hspace=0.12)


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
    """Return limits that contain all but outliers, with a margin; None for fewer than two values.

    Examples
    --------
    >>> limits([0.0, 1.0])
    (-0.06, 1.06)
    """
    kept = sorted(value for value in values if math.isfinite(value))
    if len(kept) < 2:
        return None
    # A diverged run would flatten the others: if the outer 2 % span more than all others, they are left out.
    cut = len(kept) // 50
    low, high = kept[cut], kept[-1 - cut]
    low = kept[0] if low - kept[0] <= high - low else low
    high = kept[-1] if kept[-1] - high <= high - low else high
    air = 0.06 * (high - low) or 0.01
    return low - air, high + air
