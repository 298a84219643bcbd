"""Scores from an exported model, with ONNX Runtime: no torch, no FuxiCTR.

``fuxictr-mm export`` writes the folder that ``Export`` reads, ``fuxictr-mm-serve`` answers HTTP requests from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fuxictr_mm_serving.errors import ServingError

if TYPE_CHECKING:
    from fuxictr_mm_serving.export import Export

__version__ = "0.2.0"
__all__ = ["Export", "ServingError"]


def __getattr__(name: str) -> Any:
    # ONNX Runtime is imported when it is needed: every --help must answer at once.
    if name == "Export":
        from fuxictr_mm_serving.export import Export

        return Export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
