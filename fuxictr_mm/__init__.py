"""Multimodal click-through rate prediction on FuxiCTR.

Importing the package makes its layers attributes of ``fuxictr.pytorch.layers``.
"""

from fuxictr_mm import _hook

__version__ = "0.1.0"

_hook.install()
