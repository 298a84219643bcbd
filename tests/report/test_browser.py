"""The page in headless Chromium: it opens without a complaint, sorts, fits, and is not blank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fuxictr_mm.report.report import report

NAMES = "[...document.querySelector('table.sortable').tBodies[0].rows].map(r => r.cells[0].innerText.split('\\n')[0])"
STATES = "[...document.querySelector('table.sortable').tHead.rows[0].cells].map(h => h.getAttribute('aria-sort'))"


@pytest.fixture(scope="module")
def page(written: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of four experiments, one of which is hard to fit on a phone."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(written.root, folder / "checkpoints")
    long = folder / "checkpoints" / "tiny" / "A_LONG_NAME_OF_AN_EXPERIMENT_THAT_IS_HARD_TO_FIT_ON_A_PHONE"
    run = shutil.copytree(next((folder / "checkpoints" / "tiny" / "NEXT").iterdir()), long / "20260102-030405-seed4")
    config = (run / "config.yaml").read_text().replace("model_id: NEXT", f"model_id: {long.name}\npath: {'x' * 300}")
    (run / "config.yaml").write_text(config)
    report([], folder / "checkpoints", folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_opens_without_a_complaint_fits_and_is_not_blank(
    width: int, dark: bool, page: Path, browser: Any, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    browser.open(page, width, 800, dark)
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.screenshot(tmp_path / "shot.png", height=1600)
    shot = image.open(tmp_path / "shot.png").convert("RGB")
    colours = shot.getcolors(maxcolors=2**24)
    assert len(colours) > 100
    background = max(colours)[1]
    assert (sum(background) < 150) == dark


def test_the_last_column_shows_where_test_has_labels(written: Any, browser: Any, tmp_path: Path) -> None:
    shutil.copytree(written.root, tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints").rglob("result.json"):
        result = json.loads(path.read_text())
        result["valid"] = result["test"] = {**result["valid"], "gAUC": 0.7}
        path.write_text(json.dumps(result))
    report([], tmp_path / "checkpoints", tmp_path / "report.html")
    browser.open(tmp_path / "report.html", 1200, 800)
    assert browser.run("document.querySelector('.leaderboard thead tr').cells.length") >= 14
    # Of the box that scrolls, since the page itself is never wider than the window.
    box = "document.querySelector('.leaderboard').closest('.scroll')"
    assert browser.run(f"{box}.scrollWidth - {box}.clientWidth") == 0


def test_sorts_by_click_and_by_keyboard(page: Path, browser: Any) -> None:
    browser.open(page)
    start = browser.run(NAMES)
    assert start[0] == "BEST"
    assert start[-1] == "WORST"
    box = browser.run(
        "(() => { const b = document.querySelector('table.sortable thead button').getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    browser.click(*box)
    assert browser.run(NAMES) == sorted(start)
    assert browser.run(STATES)[0] == "ascending"
    browser.run("document.querySelectorAll('table.sortable thead button')[1].focus()")
    browser.press("Tab")  # to the AUC
    assert browser.run("document.activeElement.textContent") == "AUC"
    browser.press("Enter")
    assert browser.run(NAMES) == start
    assert browser.run(STATES)[:3] == [None, None, "descending"]
    browser.press(" ")
    assert browser.run(NAMES) == start[::-1]
    assert browser.run(STATES)[2] == "ascending"
    assert browser.run("document.getElementById('said').textContent") == "Sorted by AUC, ascending"
    assert browser.complaints() == []


def test_theme_is_chosen_and_kept(page: Path, browser: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(page)
    light = browser.run(paper)
    for _ in range(2):
        browser.run("document.getElementById('theme').click()")
    assert browser.run("document.getElementById('theme').textContent") == "Theme: dark"
    assert browser.run(paper) != light
    browser.open(page)
    assert browser.run(paper) != light
    browser.run("document.getElementById('theme').click()")
    assert browser.run(paper) == light


def test_texts_are_told_from_the_background(page: Path, browser: Any) -> None:
    """Contrast by the Web Content Accessibility Guidelines, AA: 4.5 for texts, 3 for lines of plots."""
    for dark in (False, True):
        browser.open(page, dark=dark)
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        ratio = (
            "const lit = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)"
            ".map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);"
            "return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };"
            "const ratio = (a, b) => (Math.max(lit(a), lit(b)) + .05) / (Math.min(lit(a), lit(b)) + .05);"
            "const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;"
            "if (c !== 'rgba(0, 0, 0, 0)') return c; } };"
        )
        texts = (
            "Math.min(...[...document.querySelectorAll('main *, header *, nav *, footer *')]"
            ".filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))"
            ".map(e => ratio(e.closest('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color, behind(e))))"
        )
        assert browser.run(f"(() => {{ {ratio} return {texts}; }})()") >= 4.5
        lines = (
            "const paper = behind(document.body), probe = document.body.appendChild(document.createElement('i'));"
            "const names = ['ink', 'muted', 'accent', ...[1, 2, 3, 4, 5, 6].map(n => `series-${n}`)];"
            "return Math.min(...names.map(n => { probe.style.color = `var(--${n})`;"
            "return ratio(getComputedStyle(probe).color, paper); }));"
        )
        assert browser.run(f"(() => {{ {ratio} {lines} }})()") >= 3


def test_page_is_whole_without_its_script(page: Path, browser: Any, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.rpartition("<script>")
    bare = tmp_path / "bare.html"
    bare.write_text(before + rest.partition("</script>")[2], encoding="utf-8")
    browser.open(bare)
    assert browser.run("document.querySelectorAll('main button').length") == 0
    assert browser.run("document.getElementById('theme').hidden")
    assert browser.run(NAMES)[0] == "BEST"


def test_a_table_that_goes_on_shows_it_at_its_edge(page: Path, browser: Any, tmp_path: Path) -> None:
    """The right edge of a table that is cut is shaded, and no more so when it has been scrolled to its end."""
    image = pytest.importorskip("PIL.Image")
    browser.open(page, 390, 800)
    shades = []
    for left in (0, 10_000):
        box = browser.run(
            f"(() => {{ const s = document.querySelector('.scroll'); s.scrollLeft = {left};"
            "const b = s.querySelector('caption').getBoundingClientRect(), r = s.getBoundingClientRect();"
            "return [r.right - 2, b.bottom - 4, s.scrollWidth - s.clientWidth]; })()"
        )
        assert box[2] > 20
        browser.screenshot(tmp_path / "shot.png", height=1600)
        shot = image.open(tmp_path / "shot.png").convert("RGB")
        shades.append(sum(shot.getpixel((int(2 * box[0]), int(2 * box[1])))))
    assert shades[0] < shades[1] - 60
