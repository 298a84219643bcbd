"""Runs code of ours when FuxiCTR's layers are imported.

``import fuxictr_mm`` has to make our layers attributes of ``fuxictr.pytorch.layers``, and has to stay light: importing
torch takes seconds, which ``fuxictr-mm --help`` should not. So the layers are registered at the moment that somebody
imports FuxiCTR's, or at once if somebody has.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

FUXICTR_LAYERS = "fuxictr.pytorch.layers"
OUR_LAYERS = "fuxictr_mm.layers"


class _RegisteringLoader(importlib.abc.Loader):
    """Loads FuxiCTR's layers as its own loader does, then imports ours, which register themselves."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module is as if we had not been there: tools ask its loader for sources and resources.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        importlib.import_module(OUR_LAYERS)


class _LayersFinder(importlib.abc.MetaPathFinder):
    """Waits for the import of FuxiCTR's layers, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != FUXICTR_LAYERS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def install() -> None:
    """Register our layers in FuxiCTR's now if those are imported, else when they are."""
    if FUXICTR_LAYERS in sys.modules:
        importlib.import_module(OUR_LAYERS)
    elif not any(isinstance(finder, _LayersFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LayersFinder())
