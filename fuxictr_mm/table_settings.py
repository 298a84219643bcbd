"""Which settings go with which kinds of embedding tables (``table: touched`` and ``sharded``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuxictr_mm.config import FeatureConfig, ModelSettings
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.training.optimizers import touched_rule

#: Rules of ``TouchedOptimizer`` that fbgemm has on the CPU as well.
SHARDED_RULES = ("adagrad", "rowwise_adagrad", "sgd")

#: As in torch, and in ``TouchedOptimizer``.
EPSILON = 1e-10


def sharded_group(
    shardings: Mapping[str, str],
    settings: ModelSettings,
    compile: bool,
    own_step: str | None,
    factor_table_regularizer: float = 0.0,
) -> dict[str, Any]:
    """Return the settings of the optimizer of tables, by the setting ``sharding`` of each feature with a sharded one.

    ``own_step`` is that of ``MultimodalModel.own_step``; ``factor_table_regularizer`` is 0 without factors.

    Raises
    ------
    ConfigError
        Settings cannot be combined with an update in the backward pass; one line lists all of them.
    """
    rule = touched_rule(settings.optimizer, settings.table_optimizer)
    obstacles = []
    if own_step is not None:
        obstacles.append(f"{own_step}; set table: dense")
    elif compile:
        obstacles.append("compile is True; set compile: False")
    if rule not in SHARDED_RULES:
        obstacles.append(f"its rows are updated by {rule or settings.optimizer}; set table_optimizer: rowwise_adagrad")
    for key, off in (("embedding_regularizer", 0), ("embedding_weight_decay", 0), ("ema", None), ("swa_start", None)):
        if getattr(settings, key) not in (None, off):
            obstacles.append(f"{key} is {getattr(settings, key)}; set {key}: {'null' if off is None else off}")
    if factor_table_regularizer:
        obstacles.append(f"factor_table_regularizer is {factor_table_regularizer}; set factor_table_regularizer: 0")
    if settings.accumulation_steps > 1:
        obstacles.append(f"accumulation_steps is {settings.accumulation_steps}; set accumulation_steps: 1")
    name = next((n for n, sharding in shardings.items() if sharding == "column"), next(iter(shardings)))
    if shardings[name] == "column" and rule == "rowwise_adagrad":
        obstacles.append(
            "sharded by columns, for which rowwise_adagrad would keep a separate sum in each process; set sharding: row"
        )
    if obstacles:
        raise ConfigError(f"feature '{name}': table is sharded, but {', and '.join(obstacles)}; or set table: touched")
    rate = settings.embedding_learning_rate or settings.learning_rate
    # The keys of a TouchedOptimizer's group, which resumes its state in one process.
    return {"lr": rate, "rule": rule, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": EPSILON}


def check_widths(widths: Mapping[str, int], factor_dim: int = 0) -> None:
    """Refuse tables for several processes whose rows fbgemm cannot hold; ``widths`` are the dims by feature.

    ``factor_dim`` is the part of each dim that the setting of this name adds.

    Raises
    ------
    ConfigError
        A dim is no multiple of 4.
    """
    for name, width in widths.items():
        if rest := -width % 4:
            setting, value = ("factor_dim", factor_dim) if factor_dim else ("embedding_dim", width)
            parts = f" (embedding_dim {width - factor_dim} + factor_dim {factor_dim})" if factor_dim else ""
            raise ConfigError(
                f"feature '{name}': table is sharded, but its dim is {width}{parts}, expected a multiple of 4 for "
                f"several processes; set {setting}: {value + rest}, or table: touched"
            )


def touched_obstacle(settings: ModelSettings, compile: bool) -> str | None:
    """Return the setting with which no table can be ``touched``, None if all can."""
    if touched_rule(settings.optimizer, settings.table_optimizer) is None:
        return f"optimizer: {settings.optimizer} updates all rows and table_optimizer is not set"
    return "compile is True" if compile else None


def table_problems(
    columns: Mapping[str, FeatureConfig],
    settings: ModelSettings,
    compile: bool,
    own_step: str | None,
    factor_table_regularizer: float = 0.0,
) -> dict[str, str]:
    """Return the kinds of tables that cannot be those of columns; other parameters as of ``sharded_group``."""
    found = {}
    if sharded := {n: c.sharding or "row" for n, c in columns.items() if c.table == "sharded"}:
        try:
            sharded_group(sharded, settings, compile, own_step, factor_table_regularizer)
        except ConfigError as error:
            found["sharded"] = str(error)
    obstacle = touched_obstacle(settings, compile)
    for name in [n for n, c in columns.items() if c.table == "touched" and obstacle is not None]:
        found[f"touched {name}"] = f"feature '{name}': table is touched, but {obstacle}; set table: dense"
    return found
