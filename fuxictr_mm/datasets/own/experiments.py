"""The experiments that ``fuxictr-mm prepare log`` writes, with settings by the number of rows."""

from __future__ import annotations

import math
from typing import Any

from fuxictr_mm.datasets.writer import Summary

#: Settings by the number of training rows: those of the first bound that is larger.
SIZES: tuple[tuple[float, dict[str, Any]], ...] = (
    (1e5, {"batch_size": 256, "epochs": 20, "embedding_dim": 32, "dnn_hidden_units": [128, 64]}),
    (1e6, {"batch_size": 1024, "epochs": 8, "embedding_dim": 32, "dnn_hidden_units": [128, 64]}),
    (math.inf, {"batch_size": 4096, "epochs": 4, "embedding_dim": 64, "dnn_hidden_units": [256, 128]}),
)

#: Training rows of a user from which on the user is a feature: an embedding of fewer is not learned.
USER_ROWS = 3


def log_experiments(summary: Summary, max_len: int) -> dict[str, dict[str, Any]]:
    """Return models and their settings; the user is a feature where users have some rows in training."""
    rows = summary.splits["train"].rows
    size = next(settings for bound, settings in SIZES if rows < bound)
    common: dict[str, Any] = {
        **size,
        "metrics": ["AUC", "gAUC", "logloss"],
        "group_id": "user_id",
        "max_len": max_len,
        "embedding_regularizer": 2e-4,
        "net_dropout": 0.2,
    }
    attention = {"num_heads": 4, "attention_hidden_units": [32], "attention_dropout": 0.1, "learning_rate": 4e-3}
    models = {"DIN": common, "DIN_MM": {**common, **attention}}
    if rows < USER_ROWS * summary.users:
        return models
    user = {"feature_specs": [{"name": "user_id", "type": "categorical", "vocab_size": summary.vocab_sizes["user_id"]}]}
    models = {name: {**settings, **user} for name, settings in models.items()}
    factors = {"learning_rate": 5e-3, "factor_regularizer": 0.02, "embedding_dim": 17, "early_stop_patience": 3}
    no_network = {"dnn_hidden_units": None, "net_dropout": None}
    models["LightFM"] = {**common, **user, **factors, **no_network, "batch_size": 4 * size["batch_size"]}
    return models
