"""The experiments that ``fuxictr-mm prepare log`` writes, with settings by the number of rows."""

from __future__ import annotations

from typing import Any

from fuxictr_mm.config.sizes import SWA_EPOCHS, SWA_LEARNING_RATE, size_for, updates_of
from fuxictr_mm.datasets.writer import Summary

#: Training rows of a user from which on the user is a feature: an embedding of fewer is not learned.
USER_ROWS = 3


def users_recur(summary: Summary) -> bool:
    """Return whether users have training rows enough for the user to be a feature."""
    return summary.splits["train"].rows >= USER_ROWS * summary.users


def log_experiments(summary: Summary, max_len: int) -> dict[str, dict[str, Any]]:
    """Return models and their settings; LightFM where the user is a feature."""
    rows = summary.splits["train"].rows
    size = size_for(rows)
    size["dnn_hidden_units"] = size.pop("units")
    common: dict[str, Any] = {
        **size,
        "metrics": ["AUC", "gAUC", "logloss"],
        "group_id": "user_id",
        "max_len": max_len,
        "embedding_regularizer": 2e-4,
        "net_dropout": 0.2,
    }
    average = {"swa_start": updates_of(SWA_EPOCHS, rows, size["batch_size"])}
    attention = {"num_heads": 4, "attention_hidden_units": [32], "attention_dropout": 0.1}
    own: dict[str, dict[str, Any]] = {"DIN": {}, "DIN_MM": attention}
    models = {
        name: {**common, **settings, "learning_rate": SWA_LEARNING_RATE[name], **average}
        for name, settings in own.items()
    }
    if not users_recur(summary):
        return models
    factors = {"learning_rate": 5e-3, "factor_regularizer": 0.02, "embedding_dim": 17, "early_stop_patience": 3}
    no_network = {"dnn_hidden_units": None, "net_dropout": None}
    models["LightFM"] = {**common, **factors, **no_network, "batch_size": 4 * size["batch_size"]}
    return models
