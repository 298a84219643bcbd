"""Plots of the report as SVG: intervals, learning curves, diagnosis, speed."""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from fuxictr_mm.report.experiments import Comparisons, Experiment, average, history
from fuxictr_mm.runs import Run, is_falling
from fuxictr_mm.terminal import decimal, grouped, listed, number, plural, printable, signed

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
    """A plot with title and caption.

    Parameters
    ----------
    title : str
        A few words.
    caption : str
        Sentences with the numbers; also its text alternative.
    drawing : str
        SVG in which each ``id`` begins with ``MARK``.
    """

    title: str
    caption: str
    drawing: str

    def svg(self, number: int) -> Markup:
        """Return the SVG with unique ids; the caption's id is ``c`` and the number."""
        from markupsafe import Markup

        described = f'<svg aria-describedby="c{number}"'
        return Markup(self.drawing.replace(MARK, f"p{number}-").replace("<svg", described, 1))


def draw(title: str, caption: str, height: float, paint: Callable[[Figure], Any]) -> Plot:
    """Render a plot.

    Parameters
    ----------
    title, caption : str
        As in ``Plot``.
    height : float
        Inches.
    paint : callable
        Draws on an empty figure.
    """
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
    """A row of a plot.

    Parameters
    ----------
    name : str
        Next to the row.
    value : float
        Position of the dot.
    low, high : float, optional
        Ends of the whisker.
    colour : str
        Of dot and whisker.
    others : sequence of float
        Small rings, for example single seeds.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: str = INK
    others: Sequence[float] = ()


def dots(
    title: str, caption: str, rows: Sequence[Dot], label: str, *, reference: float | None = None, bars: bool = False
) -> Plot:
    """Draw a row for each value, the first at the top.

    Parameters
    ----------
    title, caption : str
        As in ``Plot``.
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
    """A line of a plot.

    Parameters
    ----------
    x, y : sequence of float
        Its points.
    name : str
        In the legend; empty for none.
    colour : str
        Of the line.
    dashed : bool
        Whether it is dashed.
    low, high : sequence of float
        Whiskers at its points, or empty.
    dots : bool
        Whether points are marked.
    mark : (float, float), optional
        A point with a ring.
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
    """Lines with their own axes.

    Parameters
    ----------
    lines : sequence of Line
        The first is at the bottom.
    label : str
        Of the upright axis.
    names : sequence of str
        Tick labels 0, 1, ... of the other axis, or empty.
    limits : (float, float), optional
        Of the upright axis.
    """

    lines: Sequence[Line]
    label: str
    names: Sequence[str] = ()
    limits: tuple[float, float] | None = None


def lines(title: str, caption: str, panels: Sequence[Panel], label: str, *, square: bool = False) -> Plot:
    """Draw panels one above the other on one horizontal axis.

    Parameters
    ----------
    title, caption : str
        As in ``Plot``.
    panels : sequence of Panel
        One or more.
    label : str
        Of the horizontal axis.
    square : bool
        Both axes have the same scale.
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
    """Set the margins, in inches; on the right, space for half of a number."""
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


#: Rows in one plot; further rows are left out.
MOST_DIAGNOSIS_ROWS = 24


def plot_diagnosis(diagnosis: Mapping[str, Any]) -> tuple[list[Plot], list[str]]:
    """Return a plot for each section, and the sections that cannot be read."""
    plots: list[Plot] = []
    notes: list[str] = []
    for section, build in SECTIONS.items():
        if not diagnosis.get(section):
            continue
        try:
            plots += build(diagnosis[section], diagnosis)
        # The file may have another version; unreadable sections are noted on the page.
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            notes.append(f"section {section} cannot be read ({type(error).__name__}: {error})")
    return plots, notes


def _importance(section: Any, _: Mapping[str, Any]) -> Iterator[Plot]:
    for part, title in (
        ("groups", "Importance of feature groups"),
        ("fields", "Importance of fields"),
    ):
        entries = sorted(section.get(part, []), key=lambda e: -e["auc_lost"])[:MOST_DIAGNOSIS_ROWS]
        if not entries:
            continue
        rows = [
            Dot(
                f"{e['name']} (embeddings)" if e.get("kind") == "vectors" else e["name"],
                e["auc_lost"],
                e["auc_lost"] - e["noise"],
                e["auc_lost"] + e["noise"],
                MUTED if e["auc_lost"] <= e["noise"] else SERIES[0],
            )
            for e in entries
        ]
        top, idle = entries[0], [e["name"] for e in entries if e["auc_lost"] <= e["noise"]]
        caption = (
            f"Permuting {top['name']} costs most: {decimal(top['auc_lost'])} AUC (±\u00a0{decimal(top['noise'])}). "
        )
        caption += f"No more than noise: {listed(idle)}." if idle else "All cost more than noise."
        yield dots(title, caption, rows, "AUC drop when permuted, ± 95 % noise", reference=0.0, bars=True)


def _attention(section: Any, _: Mapping[str, Any]) -> Iterator[Plot]:
    panel_lines, sentences, names = [], [], []
    for entry in section:
        for bucket in entry["by_length"]:
            if bucket["name"] not in names:
                names.append(bucket["name"])
    names.sort(key=_first_number)
    for entry, colour in zip(section, SERIES, strict=False):
        known = [b for b in entry["by_length"] if number(b["entropy_ratio"]) is not None]
        if not known:
            continue
        x = [float(names.index(b["name"])) for b in known]
        panel_lines.append(Line(x, [b["entropy_ratio"] for b in known], entry["name"], colour))
        first, last = known[0], known[-1]
        by_length = [f"{decimal(b['entropy_ratio'], 3)} for {b['name']}" for b in (first, last)]
        sentences.append(
            f"{entry['name']}: {decimal(entry['entropy_ratio'], 3)} over all rows, {' and '.join(by_length)} items of "
            f"history; with uniform weights the AUC drops by {decimal(entry['uniform_auc_lost'])} "
            f"(±\u00a0{decimal(entry['uniform_noise'])})."
        )
    if panel_lines:
        even = Line([0.0, float(max(len(names) - 1, 1))], [1.0, 1.0], "uniform", MUTED, dashed=True, dots=False)
        yield lines(
            "Attention entropy by length of history",
            f"Entropy of the weights relative to uniform weights. {' '.join(sentences)} At 1, attention does not "
            "select.",
            [Panel([even, *panel_lines], "entropy / uniform", names)],
            "items of history",
        )


def _heads(section: Any, _: Mapping[str, Any]) -> Iterator[Plot]:
    for entry in section:
        heads = entry["heads"]
        rows = [
            Dot(
                f"head {h['head']} ({h['output_share']:.0%} of output)",
                h["removed_auc_lost"],
                h["removed_auc_lost"] - h["removed_noise"],
                h["removed_auc_lost"] + h["removed_noise"],
                MUTED if h["removed_auc_lost"] <= h["removed_noise"] else SERIES[2],
            )
            for h in heads[:MOST_DIAGNOSIS_ROWS]
        ]
        if not rows:
            continue
        top = max(heads, key=lambda h: h["removed_auc_lost"])
        idle = [str(h["head"]) for h in heads if h["removed_auc_lost"] <= h["removed_noise"]]
        caption = (
            f"Of {plural(len(heads), 'head')} of {entry['attention']}, head {top['head']} contributes most: without it "
            f"the AUC drops by {decimal(top['removed_auc_lost'])}, without all heads by "
            f"{decimal(entry['all_removed_auc_lost'])}. "
        )
        caption += f"Inactive: head {listed(idle)}." if idle else "Each contributes more than noise."
        label = "AUC drop without the head, ± 95 % noise"
        yield dots(f"Heads of {entry['attention']}", caption, rows, label, reference=0.0, bars=True)


def _senet(section: Any, _: Mapping[str, Any]) -> Iterator[Plot]:
    for entry in section:
        fields = sorted(entry["fields"], key=lambda f: -f["mean"])
        rows = [Dot(f["field"], f["mean"], f["low"], f["high"], SERIES[3]) for f in fields[:MOST_DIAGNOSIS_ROWS]]
        if rows:
            caption = (
                f"{fields[0]['field']} has the largest weight, {decimal(fields[0]['mean'], 3)} on average, "
                f"{fields[-1]['field']} the smallest, {decimal(fields[-1]['mean'], 3)}. "
                "Whiskers: 5 % to 95 % of the rows."
            )
            yield dots(f"Field weights of {entry['name']}", caption, rows, "weight")


def _calibration(section: Any, _: Mapping[str, Any]) -> Iterator[Plot]:
    curve = section["curve"]
    x, y = [b["mean_prediction"] for b in curve], [b["rate"] for b in curve]
    if not curve:
        return
    top = min(1.0, 1.08 * max([*x, *(b["high"] for b in curve)]))
    ideal = Line([0.0, top], [0.0, top], "as predicted", MUTED, dashed=True, dots=False)
    observed = Line(x, y, "observed", SERIES[0], low=[b["low"] for b in curve], high=[b["high"] for b in curve])
    error, noise = section["expected_calibration_error"], section["noise"]
    met = "within the noise of true probabilities" if error <= noise else "more than the noise of true probabilities"
    slope = "" if number(section.get("slope")) is None else f" Slope of the logits {decimal(section['slope'], 2)}."
    caption = (
        f"Expected calibration error {decimal(error)}, {met} (95 % quantile of the noise: {decimal(noise)}). Mean "
        f"prediction {decimal(section['mean_prediction'], 3)}, rate of clicks {decimal(section['rate'], 3)}.{slope}"
    )
    yield lines("Reliability", caption, [Panel([ideal, observed], "rate of clicks")], "mean prediction", square=True)


def _slices(title: str, what: str) -> Callable[[Any, Mapping[str, Any]], Iterator[Plot]]:
    def build(section: Any, diagnosis: Mapping[str, Any]) -> Iterator[Plot]:
        known = [e for e in section if number(e["auc"]) is not None]
        if not known:
            return
        overall = number(diagnosis.get("metrics", {}).get("auc"))
        rows = [
            Dot(f"{e['name']} ({e['rows']:,} rows)", e["auc"], e["low"], e["high"], ACCENT if e.get("cold") else INK)
            for e in known[:MOST_DIAGNOSIS_ROWS]
        ]
        low, high = (choose(known, key=lambda e: e["auc"]) for choose in (min, max))
        caption = (
            f"Lowest on rows with {low['name']} {what}, {decimal(low['auc'], 3)} ({decimal(low['low'], 3)} to "
            f"{decimal(low['high'], 3)}), highest on {high['name']}, {decimal(high['auc'], 3)}."
        )
        caption += "" if overall is None else f" Dashed: all rows, {decimal(overall, 3)}."
        yield dots(title, caption, rows, "AUC, 95 % interval", reference=overall)

    return build


def _vectors(section: Any, _: Mapping[str, Any]) -> Iterator[Plot]:
    curves, sentences = [], []
    for entry, colour in zip(section, SERIES, strict=False):
        x, y = [p["components"] / entry["width"] for p in entry["kept"]], [p["kept"] for p in entry["kept"]]
        curves.append(Line(x, y, entry["column"], colour, dots=entry["width"] < 32))
        reduction = entry.get("reduction")
        kept = f", its reduction kept {reduction['kept']:.1%}" if reduction else ""
        sentences.append(
            f"{entry['column']}: {entry['components_90']} of {entry['width']} directions hold 90 % of the variance, "
            f"effective rank {decimal(entry['effective_rank'], 1)}{kept}."
        )
    if curves:
        ninety = Line([0.0, 1.0], [0.9, 0.9], "", MUTED, dashed=True, dots=False)
        panel = Panel([ninety, *curves], "fraction of variance")
        yield lines("Spectrum of the embeddings", " ".join(sentences), [panel], "fraction of directions, largest first")


def _first_number(name: str) -> int:
    digits = re.match(r"\d+", name)
    return int(digits[0]) if digits else 0


#: Section of diagnosis.json, and the function that plots it.
SECTIONS: dict[str, Callable[[Any, Mapping[str, Any]], Iterator[Plot]]] = {
    "importance": _importance,
    "attention": _attention,
    "heads": _heads,
    "senet": _senet,
    "calibration": _calibration,
    "popularity": _slices("AUC by clicks of the item in training", "clicks in training"),
    "history_length": _slices("AUC by length of history", "items of history"),
    "vectors": _vectors,
}


def findings_of(diagnosis: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return severity, text and advice of the findings, as texts."""
    found = diagnosis.get("findings")
    entries = [f for f in found if isinstance(f, Mapping)] if isinstance(found, list) else []
    return [{key: str(f.get(key, "")) for key in ("severity", "text", "advice")} for f in entries]


def neighbours_of(diagnosis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a few items with their nearest neighbours by each embedding, as texts."""
    found: list[dict[str, Any]] = []
    sections: Any = diagnosis.get("neighbours")
    for item in sections if isinstance(sections, list) else []:
        try:
            columns = [
                {
                    "column": str(c["column"]),
                    "neighbours": [f"{_item(n)} ({decimal(n['cosine'], 2)})" for n in c["neighbours"][:3]],
                }
                for c in item["columns"]
            ]
            found.append({"item": _item(item), "clicks": signed(item.get("clicks"), 0).lstrip("+"), "columns": columns})
        except (KeyError, TypeError, AttributeError):
            continue  # an entry of another version; the others are shown
    return found


def severities(findings: Sequence[Mapping[str, str]]) -> str:
    """Count findings by severity.

    Examples
    --------
    >>> severities([{"severity": "note"}, {"severity": "note"}, {"severity": "problem"}])
    '1 problem, 2 notes'
    """
    counts = [(s, sum(f["severity"] == s for f in findings)) for s in ("problem", "warning", "note")]
    return ", ".join(plural(n, s) for s, n in counts if n) or "no findings"


def _item(item: Mapping[str, Any]) -> str:
    title = item.get("title")
    return f"{item['item_id']} {title}" if title else str(item["item_id"])


#: Experiments in one plot; the table has all.
MOST_ROWS = 30


#: Largest number of points of a curve that are marked.
MOST_DOTS = 20


#: Seeds per plot of learning curves, each in its own colour.
MOST_SEEDS = len(SERIES)


def plot_intervals(comparisons: Comparisons, order: Sequence[Experiment]) -> Plot | None:
    """Plot each experiment's AUC with its interval over resampled users."""
    rows: list[Dot] = []
    for experiment in [e for e in order if e.name in comparisons.sides][:MOST_ROWS]:
        side, interval = comparisons.sides[experiment.name], comparisons.interval(experiment.name)
        low, high = interval if interval else (None, None)
        seeds = side.aucs.tolist() if len(side.runs) > 1 else []
        rows.append(Dot(experiment.name, side.mean, low, high, INK if rows else ACCENT, seeds))
    if not rows:
        return None
    best = rows[0]
    sentences = [f"{best.name} is first with {decimal(best.value)} ({decimal(best.low)} to {decimal(best.high)})"]
    if len(rows) > 1:
        last = rows[-1]
        sentences.append(f"{last.name} last with {decimal(last.value)} ({decimal(last.low)} to {decimal(last.high)})")
    caption = (
        f"{listed(sentences)}. Whiskers: 95 % interval over resampled users, for these weights"
        f"{'; rings: single seeds' if any(row.others for row in rows) else ''}. All experiments share the rows, so "
        "whiskers may overlap although a difference is significant: see the differences."
    )
    return dots("Validation AUC", caption, rows, "AUC on the validation rows")


def plot_differences(comparisons: Comparisons, order: Sequence[Experiment]) -> Plot | None:
    """Plot each experiment's difference to the best with its interval."""
    named = [e.name for e in order if e.name in comparisons.sides]
    rows, shown, alone = [], [], False
    for name in named[1 : MOST_ROWS + 1]:
        against = comparisons.against(name, named[0])
        if against is not None:
            rows.append(Dot(name, against.value, against.low, against.high, MUTED if against.shown else INK))
            alone = alone or not against.seeds_known
            if against.shown:
                shown.append(name)
    if not rows:
        return None
    lost = listed([f"{row.name} {signed(row.value)} ({signed(row.low)} to {signed(row.high)})" for row in rows], 3)
    result = f"Significantly worse: {listed(shown)}" if shown else "None is significantly worse"
    caption = (
        f"Against {named[0]}: {lost}. {result}. Whiskers: 95 % interval of the difference, over users and, where there "
        "are several, seeds; one that crosses the dashed line at 0 may be noise."
    )
    caption += " With one seed per experiment, other seeds may differ as much: run three of each." if alone else ""
    return dots(f"Difference to {named[0]}", caption, rows, "difference in AUC", reference=0.0)


def plot_curves(experiments: Sequence[Experiment], metric: str) -> list[Plot]:
    """Plot training loss and validation metric of each experiment's seeds, the others in the background."""
    curves = {e.name: [(run, history(run)) for run in e.runs] for e in experiments}
    everything = [entries for runs in curves.values() for _, entries in runs]
    scales = {key: limits([y for entries in everything for y in _points(entries, key)[1]]) for key in ("loss", metric)}
    plots = []
    for experiment in experiments:
        runs = [(run, entries) for run, entries in curves[experiment.name] if _points(entries, metric)[0]]
        runs.sort(key=lambda pair: (pair[0].seed is None, pair[0].seed or 0))
        if not runs:
            continue
        others = [entries for name, of in curves.items() if name != experiment.name for _, entries in of]
        panels = []
        for key, label in (("loss", "training loss"), (metric, f"validation {metric}")):
            behind = [_behind(others, key)]
            own = [
                _curve(entries, key, colour, f"seed {run.seed}" if key == "loss" and len(runs) > 1 else "", metric)
                for (run, entries), colour in zip(runs, SERIES, strict=False)
            ]
            panels.append(Panel([line for line in (*behind, *own) if line.x], label, limits=scales[key]))
        panels = [panel for panel in panels if panel.lines]
        plots.append(lines(experiment.name, _describe_curves(runs, metric, bool(others)), panels, "training step"))
    return plots


def _behind(others: Sequence[Sequence[Mapping[str, Any]]], key: str) -> Line:
    """Return the curves of other experiments as one line with gaps, which keeps the page small."""
    x: list[float] = []
    y: list[float] = []
    for entries in others:
        for along, values in zip((x, y), _points(entries, key), strict=True):
            along += [*values, math.nan] if values else []
    return Line(x, y, colour=PALE, dots=False)


def _points(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    pairs = [(number(e.get("step")), number(e.get(key))) for e in entries]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in known], [y for _, y in known]


def _curve(entries: Sequence[Mapping[str, Any]], key: str, colour: str, name: str = "", metric: str = "") -> Line:
    x, y = _points(entries, key)
    best = _best(entries, metric) if metric and key == metric else None
    mark = None if best is None else (float(best["step"]), float(best[key]))
    return Line(x, y, name, colour, dots=len(x) <= MOST_DOTS, mark=mark)


def _best(entries: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    having = [e for e in entries if number(e.get(metric)) is not None]
    choose = min if is_falling(metric) else max
    return choose(having, key=lambda e: e[metric]) if having else None


def _describe_curves(runs: Sequence[tuple[Run, list[dict[str, Any]]]], metric: str, others: bool) -> str:
    sentences = []
    for run, entries in runs[:MOST_SEEDS]:
        best, losses = _best(entries, metric), _points(entries, "loss")[1]
        assert best is not None
        loss = f"; training loss {decimal(losses[0], 3)} to {decimal(losses[-1], 3)}" if losses else ""
        epoch = number(best.get("epoch"))
        where = f"step {best['step']:.0f}" if epoch is None else f"epoch {epoch:.0f} of {_epochs(entries)}"
        sentences.append(f"Seed {run.seed}: best {metric} {decimal(best[metric])} at {where}{loss}.")
    if len(runs) > MOST_SEEDS:
        sentences.append(f"{plural(len(runs) - MOST_SEEDS, 'more seed')} not shown.")
    return " ".join(sentences) + " The ring marks the best." + (" Pale: the other experiments." if others else "")


def _epochs(entries: Sequence[Mapping[str, Any]]) -> str:
    known = [epoch for e in entries if (epoch := number(e.get("epoch"))) is not None]
    return f"{max(known):.0f}" if known else "?"


def rows_per_second(run: Run) -> float | None:
    """Return the median speed over the evaluations of a run."""
    known = [v for e in history(run) if (v := number(e.get("rows_per_second"))) is not None]
    return statistics.median(known) if known else None


def seconds_per_epoch(run: Run) -> float | None:
    """Return the wall time of a run until its last evaluation by the epochs until then."""
    ends = [(number(e.get("seconds")), number(e.get("epoch"))) for e in history(run)]
    known = [(seconds, epoch) for seconds, epoch in ends if seconds is not None and epoch]
    return known[-1][0] / known[-1][1] if known else None


def speed_of(experiment: Experiment) -> list[float]:
    """Return the speed of each run that has one."""
    return [speed for run in experiment.runs if (speed := rows_per_second(run)) is not None]


def plot_speed(experiments: Sequence[Experiment]) -> Plot | None:
    """Plot rows per second of each experiment, with a ring for each run."""
    rows = []
    for experiment in experiments[:MOST_ROWS]:
        speeds = speed_of(experiment)
        mean = average(speeds)
        if mean is not None:
            rows.append(Dot(experiment.name, mean, colour=SERIES[0], others=speeds if len(speeds) > 1 else ()))
    if not rows:
        return None
    rows.sort(key=lambda row: -row.value)
    fast, slow = rows[0], rows[-1]
    caption = f"{fast.name} trains at {grouped(fast.value)} rows per second"
    caption += f", {slow.name} at {grouped(slow.value)}." if len(rows) > 1 else "."
    if any(row.others for row in rows):
        caption += " Rings: single runs."
    return dots("Training speed", caption, rows, "training rows per second", bars=True)
