"""Makes the layers of this package known to FuxiCTR."""

from __future__ import annotations

import importlib

from torch import nn


def register() -> None:
    """Set each layer of this package as an attribute of ``fuxictr.pytorch.layers``.

    A name that FuxiCTR has already is left alone: its models keep the layer they were written for. Calling it again
    changes nothing.
    """
    fuxictr_layers = importlib.import_module("fuxictr.pytorch.layers")
    ours = importlib.import_module("fuxictr_mm.layers")
    for name in ours.__all__:
        layer = getattr(ours, name)
        if isinstance(layer, type) and issubclass(layer, nn.Module) and not hasattr(fuxictr_layers, name):
            setattr(fuxictr_layers, name, layer)
