"""What this package imports of FuxiCTR, without what that imports and seldom uses.

All modules of this package import them from here, so that whichever is imported first loads as little.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from fuxictr_mm.errors import ConfigError

#: Modules of FuxiCTR of which its layers and models only call functions, and seldom: one reads embedding files, one is
#: its own evaluation. They import ray, polars and scikit-learn, which takes longer than importing torch.
DEFERRED = ("fuxictr.preprocess.tokenizer", "fuxictr.metrics")


@contextmanager
def deferred_imports(*names: str) -> Iterator[None]:
    """Defer the import of the named modules until one of their functions is called.

    Inside the block, ``from MODULE import FUNCTION`` gives a function that imports the module when it is called.
    """
    placeholders = {name: _Deferred(name) for name in names if name not in sys.modules}
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name in placeholders:
            del sys.modules[name]


class _Deferred(ModuleType):
    """Placeholder of a module; its attributes are functions that import the module and call its own."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **named)

        return call


try:
    with deferred_imports(*DEFERRED):
        from fuxictr.features import FeatureMap
        from fuxictr.pytorch import layers as fuxictr_layers
        from fuxictr.pytorch.layers import (
            CrossNet,
            CrossNetV2,
            FeatureEmbedding,
            FeatureEmbeddingDict,
            MaskedAveragePooling,
            MaskedSumPooling,
            MLP_Block,
            PretrainedEmbedding,
            SqueezeExcitation,
        )
        from fuxictr.pytorch.models import BaseModel, MultiTaskModel
        from fuxictr.pytorch.torch_utils import seed_everything
except ImportError as error:
    if not str(error.name).startswith("fuxictr"):  # what FuxiCTR itself requires
        raise
    found = "this version of FuxiCTR is not supported" if "fuxictr" in sys.modules else "FuxiCTR is not installed"
    raise ConfigError(f"{error}: {found}; pip install fuxictr~=2.3.10") from error

__all__ = [
    "BaseModel",
    "CrossNet",
    "CrossNetV2",
    "FeatureEmbedding",
    "FeatureEmbeddingDict",
    "FeatureMap",
    "MLP_Block",
    "MaskedAveragePooling",
    "MaskedSumPooling",
    "MultiTaskModel",
    "PretrainedEmbedding",
    "SqueezeExcitation",
    "deferred_imports",
    "fuxictr_layers",
    "seed_everything",
]
