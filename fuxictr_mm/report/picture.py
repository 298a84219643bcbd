"""Drawings by matplotlib as SVG that takes its colours from the page, so that one drawing fits light and dark.

Texts stay texts: they are drawn in the page's font, can be read out and searched for.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from fuxictr_mm.report.text import printable

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

INK, MUTED, RULE, ACCENT, PALE = "#010101", "#020202", "#030303", "#040404", "#050505"

#: Told apart also by those who see few colours (after Okabe and Ito, https://jfly.uni-koeln.de/color/).
SERIES = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")

#: Colour of the drawing, CSS variable of the page.
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    ACCENT: "--accent",
    PALE: "--pale",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
}

#: Begins each id of a drawing until the page numbers it; ``printable`` takes it out of texts.
MARK = "\ue000"

#: Inches that a letter of a name takes, about: its font is the reader's. Matplotlib's own layout is slow and knows no
#: better.
LETTER = 0.083

#: Inches, of 72 units of the drawing each.
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
class Picture:
    """A drawing and what it shows.

    Parameters
    ----------
    title : str
        A few words.
    caption : str
        What is seen, in sentences with figures: the text alternative, shown to all.
    drawing : str
        SVG in which each ``id`` begins with ``MARK``.
    """

    title: str
    caption: str
    drawing: str

    def svg(self, number: int) -> Markup:
        """Return the drawing with ids of its own; the caption's id is ``c`` and the number."""
        from markupsafe import Markup

        described = f'<svg aria-describedby="c{number}"'
        return Markup(self.drawing.replace(MARK, f"p{number}-").replace("<svg", described, 1))


def draw(title: str, caption: str, height: float, paint: Callable[[Figure], Any]) -> Picture:
    """Draw a picture.

    Parameters
    ----------
    title, caption : str
        As in ``Picture``.
    height : float
        Inches.
    paint : callable
        Draws on an empty figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Widths are guessed in a font that lacks letters of some names; the page's font has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH, height))
        paint(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return Picture(title, caption, _for_page(buffer.getvalue(), title))


def _for_page(svg: bytes, label: str) -> str:
    """Return an SVG element without namespaces, fixed size, fonts and colours of its own."""
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
    if key in ("d", "x", "y"):  # hundredths of a pixel are not seen, and six digits make a page large
        return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
    return value.replace("#", f"#{MARK}") if key in ("clip-path", "href") else value


def _style(name: str, value: str) -> str:
    if name == "font":  # the size is kept, the family is the page's
        size = re.search(r"[\d.]+px", value)
        return f"{size[0] if size else '9px'} var(--font)"
    return f"var({VARIABLES[value]})" if value in VARIABLES else value
