"""Rank the guides above the API reference and the tables of measurements in the site's search."""

from __future__ import annotations

from typing import Any

#: Factors on the score of a page, by the end of its name or its folder.
BOOST = {
    "api/": 0.3,
    "_measured.md": 0.3,
    "settings_measured/": 0.3,
    "command_line.md": 0.7,
    "settings.md": 0.7,
    "your_data.md": 1.5,
    "quick_start.md": 1.5,
}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Set the page's boost, which the search plugin of the theme reads."""
    name = page.file.src_uri
    for part, boost in BOOST.items():
        if name.startswith(part) or name.endswith(part):
            page.meta["search"] = {"boost": boost}
    return markdown
