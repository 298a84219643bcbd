"""A page as its elements and its text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fuxictr_mm.report.report import report

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text inside; complains of what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.children: dict[int, list[str]] = {}
        self._open: list[tuple[str, int]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self._add(tag, attrs)
        if tag not in VOID:
            self._open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag, (opened, tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] not in ("style", "script"):
            self.words.append(data)

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._open:
            self.children.setdefault(self._open[-1][1], []).append(tag)
        self.elements.append((tag, dict(attrs)))

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def named(self, tag: str) -> list[tuple[int, dict[str, str | None]]]:
        return [(i, attributes) for i, (t, attributes) in enumerate(self.elements) if t == tag]


def write(root: Path, out: Path, *names: str, **options: Any) -> tuple[Page, str]:
    report(names, root, out, **options)
    text = out.read_text(encoding="utf-8")
    return Page(text), text


def three_name(seed: int) -> str:
    return f"20260102-030405-seed{seed}"
