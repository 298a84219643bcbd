"""The kind of every embedding table: ``dense``, or ``touched``, of which a step changes only the rows of its batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fuxictr_mm.errors import ConfigError

logger = logging.getLogger(__name__)

#: ``table: auto`` is ``touched`` from this number of rows on; ``docs/scale.md`` has the measurement.
AUTO_ROWS = 1_000_000


def choose_kinds(
    tables: Iterable[tuple[str, nn.Module]],
    features: Mapping[str, Mapping[str, Any]],
    obstacle: str | None = None,
    doubt: str | None = None,
) -> None:
    """Give every table its kind: gradients of ``touched`` ones are sparse from here on. Names and weights stay.

    Parameters
    ----------
    tables : iterable of (str, Module)
        Features and the modules that hold their tables. A shared table is of the kind of the first one.
    features : mapping
        Settings by feature; ``table`` is ``dense``, ``touched`` or ``auto``, the default.
    obstacle : str, optional
        A setting with which tables cannot be ``touched``.
    doubt : str, optional
        What may not work with them: ``auto`` is ``dense``.

    Raises
    ------
    ConfigError
        ``table: touched`` with such a setting.
    """
    decided: set[int] = set()
    for name, module in tables:
        kind = features[name].get("table", "auto")
        for table in [m for m in module.modules() if isinstance(m, nn.Embedding)]:
            if id(table) in decided or not table.weight.requires_grad:
                continue
            decided.add(id(table))
            large = kind == "auto" and len(table.weight) >= AUTO_ROWS
            if obstacle is not None and kind == "touched":
                raise ConfigError(f"feature '{name}': table is touched, but {obstacle}; set table: dense")
            if kind == "touched" or (large and obstacle is None and doubt is None):
                table.sparse = True
                why = f", from {AUTO_ROWS:,} rows on by table: auto" if large else ""
                logger.info(f"feature '{name}': table of {len(table.weight):,} rows, touched ones are updated{why}")
            elif large:
                logger.info(
                    f"feature '{name}': table of {len(table.weight):,} rows, all are updated, as {obstacle or doubt}"
                )
