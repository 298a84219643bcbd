"""Formulas of docstrings as MathML, so that the site needs no script from elsewhere.

As a griffe extension: ``.. math::`` blocks and :math:`..` roles become Markdown's ``$$..$$`` and ``$..$``.
As a MkDocs hook: what ``pymdownx.arithmatex`` makes of those becomes MathML.
"""

from __future__ import annotations

import html
import re
import textwrap
from typing import Any

import griffe

_BLOCK = re.compile(r"^(?P<indent> *)\.\. math::(?P<first>.*)\n(?P<rest>(?:(?P=indent) +.*\n|\s*\n)*)", re.MULTILINE)
_ROLE = re.compile(r":math:`([^`]+)`")
_ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def to_markdown(docstring: str) -> str:
    """Return a docstring with its formulas in dollars."""

    def block(found: re.Match[str]) -> str:
        first, rest = found["first"].strip(), textwrap.dedent(found["rest"]).strip()
        # Paragraphs of a block are formulas of their own.
        formulas = [text for text in [first, *re.split(r"\n\s*\n", rest)] if text] if not first else [f"{first} {rest}"]
        return "".join(f"\n{found['indent']}$${' '.join(text.split())}$$\n" for text in formulas) + "\n"

    return _ROLE.sub(r"$\1$", _BLOCK.sub(block, docstring + "\n"))


class Formulas(griffe.Extension):
    """Rewrites the docstring of every object."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Make MathML of a page's formulas."""
    from latex2mathml.converter import convert

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(html.unescape(found[2]), display=display)

    return _ARITHMATEX.sub(formula, content)
