"""Multimodal click-through rate prediction on FuxiCTR.

What ``__all__`` names is the public interface, stable under semantic versioning. Files of models, layers and readers
import ``MultimodalModel`` and ``DNNModel`` of ``fuxictr_mm.model``, ``fuxictr_mm.data.batch.Batch``,
``fuxictr_mm.jagged``, ``fuxictr_mm.layers``, ``fuxictr_mm.config``, ``fuxictr_mm.errors`` and
``fuxictr_mm.datasets.reader``. These, and what else the API pages of the documentation name, change only with a line in
``CHANGELOG.md``; everything else is private.

Examples
--------
Train an experiment of ``model_config.yaml`` and score a file, or a pandas or Polars frame::

    import fuxictr_mm as fm

    experiment = fm.Experiment.load("DIN_MM_tiny", config=".", embedding_dim=32)
    run = experiment.fit(progress=True)
    run.metrics["valid"]["AUC"]
    scores = run.predict("test.parquet")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fuxictr_mm.runtime import bound_code_cache
from fuxictr_mm.threads import set_wait_policy

if TYPE_CHECKING:
    from fuxictr_mm.errors import UserError as UserError
    from fuxictr_mm.evaluation.compare import compare as compare
    from fuxictr_mm.evaluation.ensemble import ensemble as ensemble
    from fuxictr_mm.experiment import Experiment as Experiment
    from fuxictr_mm.registry import models as models
    from fuxictr_mm.registry import register_model as register_model
    from fuxictr_mm.runs import Run as Run
    from fuxictr_mm.runs import find_runs as find_runs
    from fuxictr_mm.runs import load_run as load_run

__version__ = "0.2.0"

# Before torch is imported.
set_wait_policy()
bound_code_cache()

#: Where the public names are defined; a module is imported when one of its names is first used.
_HOMES = {
    "Experiment": "fuxictr_mm.experiment",
    "Run": "fuxictr_mm.runs",
    "UserError": "fuxictr_mm.errors",
    "compare": "fuxictr_mm.evaluation.compare",
    "ensemble": "fuxictr_mm.evaluation.ensemble",
    "find_runs": "fuxictr_mm.runs",
    "load_run": "fuxictr_mm.runs",
    "models": "fuxictr_mm.registry",
    "register_model": "fuxictr_mm.registry",
}

__all__ = [*_HOMES, "register"]


def register() -> None:
    """Make the layers of this package attributes of ``fuxictr.pytorch.layers``; existing names are kept."""
    from fuxictr_mm import layers

    layers.register()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
