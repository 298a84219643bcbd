"""The kind of every embedding table: ``dense``; or ``touched`` and ``sharded``, of which a step changes few rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fuxictr_mm.errors import ConfigError

logger = logging.getLogger(__name__)

#: ``table: auto`` is ``touched`` from this number of rows on; ``docs/scale_measured.md`` has the measurement.
AUTO_ROWS = 1_000_000


def choose_kinds(
    tables: Iterable[tuple[str, nn.Module]],
    features: Mapping[str, Mapping[str, Any]],
    obstacle: str | None = None,
    doubt: str | None = None,
) -> None:
    """Give every table its kind: gradients of the others are sparse from here on. Names and weights stay.

    A shared table is of the kind of the first feature with it. ``features`` has ``table`` by feature: ``dense``,
    ``touched``, ``sharded`` or ``auto``, the default. ``obstacle`` is a setting with which tables cannot be
    ``touched``, ``doubt`` what may not work with them: then ``auto`` is ``dense``.

    Raises
    ------
    ConfigError
        ``table: touched`` with such a setting, or a ``sharded`` feature with several tables.
    """
    decided: set[int] = set()
    sharded: set[str] = set()
    for name, module in tables:
        kind = features[name].get("table", "auto")
        if kind == "sharded" and name in sharded:
            raise ConfigError(
                f"feature '{name}': table is sharded, but the model has a second table of the feature; set "
                "table: touched"
            )
        if kind == "sharded":
            sharded.add(name)
        for table in [m for m in module.modules() if isinstance(m, nn.Embedding)]:
            if id(table) in decided or not table.weight.requires_grad:
                continue
            decided.add(id(table))
            if kind == "sharded":
                table.sparse = table.is_sharded = True  # type: ignore[assignment]
                logger.info(f"feature '{name}': table of {len(table.weight):,} rows, all in this process")
                continue
            large = kind == "auto" and len(table.weight) >= AUTO_ROWS
            if obstacle is not None and kind == "touched":
                raise ConfigError(f"feature '{name}': table is touched, but {obstacle}; set table: dense")
            if kind == "touched" or (large and obstacle is None and doubt is None):
                table.sparse = True
                why = f", from {AUTO_ROWS:,} rows on by table: auto" if large else ""
                logger.info(
                    f"feature '{name}': table of {len(table.weight):,} rows, only touched rows are updated{why}"
                )
            elif large:
                logger.info(
                    f"feature '{name}': table of {len(table.weight):,} rows, all rows are updated, because "
                    f"{obstacle or doubt}"
                )
