"""Scores from an exported model, with ONNX Runtime: no torch, no FuxiCTR.

``fuxictr-mm export`` writes the folder that ``Export`` reads, ``fuxictr-mm-serve`` answers HTTP requests from it.
"""

from __future__ import annotations

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.export import Export

__version__ = "0.1.0"
__all__ = ["Export", "ServingError"]
