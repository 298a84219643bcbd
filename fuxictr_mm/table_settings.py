"""Which settings go with which kinds of embedding tables (``table: touched`` and ``sharded``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuxictr_mm.config import FeatureConfig, ModelSettings
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.tables.sharded import optimizer_group
from fuxictr_mm.training.optim import touched_rule


def sharded_group(
    shardings: Mapping[str, str], settings: ModelSettings, compile: bool, own_step: str | None
) -> dict[str, Any]:
    """Return the settings of the optimizer of tables, by the setting ``sharding`` of each feature with a sharded one.

    ``own_step`` is that of ``MultimodalModel.own_step``.

    Raises
    ------
    ConfigError
        Tables cannot be sharded with a setting.
    """
    obstacle = None
    if own_step is not None:
        obstacle = f"{own_step}; set table: dense"
    elif compile:
        obstacle = "compile is True; set compile: False"
    return optimizer_group(shardings, settings, touched_rule(settings.optimizer, settings.table_optimizer), obstacle)


def touched_obstacle(settings: ModelSettings, compile: bool) -> str | None:
    """Return the setting with which no table can be ``touched``, None if all can."""
    if touched_rule(settings.optimizer, settings.table_optimizer) is None:
        return f"optimizer: {settings.optimizer} updates all rows and table_optimizer is not set"
    return "compile is True" if compile else None


def table_problems(
    columns: Mapping[str, FeatureConfig], settings: ModelSettings, compile: bool, own_step: str | None
) -> dict[str, str]:
    """Return the kinds of tables that cannot be those of columns; other parameters as of ``sharded_group``."""
    found = {}
    if sharded := {n: c.sharding or "row" for n, c in columns.items() if c.table == "sharded"}:
        try:
            sharded_group(sharded, settings, compile, own_step)
        except ConfigError as error:
            found["sharded"] = str(error)
    obstacle = touched_obstacle(settings, compile)
    for name in [n for n, c in columns.items() if c.table == "touched" and obstacle is not None]:
        found[f"touched {name}"] = f"feature '{name}': table is touched, but {obstacle}; set table: dense"
    return found
