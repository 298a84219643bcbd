"""Checks of settings against the class of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fuxictr_mm.compat import is_third_party, params_problems
from fuxictr_mm.config import ModelSettings, label_names, per_label
from fuxictr_mm.config.columns import ITEM_SOURCE, Columns, is_embedded
from fuxictr_mm.config.model import check_loss
from fuxictr_mm.embedding_model import check_names
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.metric_names import check_metrics
from fuxictr_mm.runs.evaluations import is_falling
from fuxictr_mm.table_settings import table_problems


def settings_problems(model_class: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the problems of settings with the class of the model or with its metrics, one sentence per key.

    Settings that are wrong by themselves have been left out.
    """
    name = model_class.__name__
    if not issubclass(model_class, torch.nn.Module):
        return {"model": f"model: {name} is not a model, expected a subclass of MultimodalModel or BaseModel"}
    problems: dict[str, str] = {}
    third_party = is_third_party(model_class)
    labels = label_names(settings)
    monitor = settings.get("monitor", ())
    # A group that is not given is null; one that is left out is wrong, which is another problem.
    group, tasks = settings.get("group_id", ""), labels if len(labels) > 1 else ()
    kinds = per_label(settings.get("task", "binary_classification"), len(tasks))
    for metric in [*settings.get("metrics", ()), *([monitor] if isinstance(monitor, str) else monitor)]:
        try:
            check_metrics([metric], group, tasks, kinds)
        except ConfigError as error:
            problems[f"metrics.{metric}"] = str(error)
    if isinstance(monitor, str) and is_falling(monitor) and settings.get("monitor_mode") == "max":
        problems["monitor_mode"] = (
            f"monitor_mode is max, but a smaller {monitor} is better, so the worst epoch would be kept; set "
            "monitor_mode: min"
        )
    view = settings.get("batch_view")
    is_flat = (view or getattr(model_class, "batch_view", "flat")) == "flat"
    roles = settings.get("roles") or {}
    if settings.get("item_info") is None and not is_flat and not {"target", "history"} <= roles.keys():
        problems["item_info"] = (
            f"dataset {settings.get('dataset_id')}: item_info is missing; {name} needs items: set their "
            f"files, or the columns of target and history, roles: {{target: COLUMN, history: COLUMN}}"
        )
    if view is not None and (view == "jagged") == third_party:
        takes = "challenge or flat" if third_party else "jagged"
        problems["batch_view"] = f"batch_view is {view}, but {name} takes {takes}"
    problems |= _field_problems(settings, third_party, is_flat)
    if third_party:
        problems |= params_problems(model_class, settings)
        return problems
    if {"task", "loss"} <= settings.keys():
        try:
            check_loss(settings["task"], settings["loss"])
        except ConfigError as error:
            problems["loss"] = str(error)
    if "optimizer" in settings:
        common = {key: value for key, value in settings.items() if key in ModelSettings.model_fields}
        compiled = bool(settings.get("compile"))
        columns, own_step = Columns.of(settings).used, model_class.own_step()
        of_factors = settings.get("factor_table_regularizer", 0.0) if settings.get("factor_dim") else 0.0
        problems |= table_problems(columns, ModelSettings.model_construct(**common), compiled, own_step, of_factors)
    return problems


def _field_problems(settings: Mapping[str, Any], third_party: bool, is_flat: bool) -> dict[str, str]:
    """Return what the model's embedding layers would refuse of the fields."""
    problems: dict[str, str] = {}
    columns = Columns.of(settings).used
    fields = {n: c for n, c in columns.items() if c.type != "meta" and is_embedded(c, not is_flat)}
    roles = settings.get("roles") or {}
    try:  # models call target and history item_id and item_seq
        check_names([name for name in fields if name not in (roles.get("target"), roles.get("history"))])
    except ConfigError as error:
        problems["names"] = str(error)
    of_items = [column for column in fields.values() if column.source == ITEM_SOURCE]
    if fields and not of_items and not third_party and settings.get("item_info"):
        problems["fields"] = "no feature with source: item, expected at least one for the target and its history"
    return problems
