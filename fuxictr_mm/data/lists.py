"""Lists of polars, in all versions that are supported."""

from __future__ import annotations

import inspect
from typing import Any

import polars as pl

#: For ``explode``, whose empty lists become null: newer versions of polars want it said, older ones cannot take it.
EMPTY_AS_NULL: dict[str, Any] = (
    {"empty_as_null": True} if "empty_as_null" in inspect.signature(pl.DataFrame.explode).parameters else {}
)
