"""The settings of an experiment in its log: those that differ from their defaults."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from fuxictr_mm.config import DatasetConfig, ExperimentConfig

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment


def describe_settings(experiment: Experiment) -> str:
    """Return a line for each setting that differs from its default, except the features."""
    settings = experiment.config.to_dict()
    defaults = default_settings(experiment.model_class)
    differing = [key for key, value in settings.items() if key not in defaults or value != defaults[key]]
    first = ("model", "dataset_id", "description")
    hidden = (*first, "model_id", "feature_cols", "label_col")
    names = [*(key for key in first if settings.get(key)), *(key for key in differing if key not in hidden)]
    shown = {name: _as_text(settings[name]) for name in names}
    width = max(map(len, shown))
    lines = [f"  {name:{width}}  {text}" for name, text in shown.items()]
    return "\n".join([f"{experiment.config.expid}, settings that differ from the defaults:", *lines])


def _as_text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value, default=str)


def default_settings(model_class: type) -> dict[str, Any]:
    """Return the default of every setting that has one, those of the model by its constructors."""
    defaults: dict[str, Any] = {}
    for cls in reversed(model_class.__mro__):
        init = vars(cls).get("__init__")
        if init is not None and not cls.__module__.startswith(("torch.", "builtins")):
            parameters = inspect.signature(init).parameters.values()
            defaults |= {p.name: p.default for p in parameters if p.default is not p.empty}
    fields = {**DatasetConfig.model_fields, **ExperimentConfig.model_fields}
    defaults |= {name: field.default for name, field in fields.items() if not field.is_required()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
