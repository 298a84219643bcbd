"""The experiments that ``fuxictr-mm prepare log`` writes, with settings by the number of rows."""

from __future__ import annotations

from typing import Any

from fuxictr_mm.config.sizes import SWA_EPOCHS, SWA_LEARNING_RATE, size_for, updates_of
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.datasets.writer import Summary

#: Training rows of a user from which on the user is a feature: an embedding of fewer is not learned.
USER_ROWS = 3

#: Dim of the factorization of user and item beside ``DIN_MM``, the setting that is worth most where users recur.
FACTOR_DIM = 17

#: Where embeddings tell what an item is, and so many rows are of items that training does not show, dropout of item ids
#: gains: planted worlds of ``docs/choosing_settings.md``, which measured no gain with fewer cold rows.
COLD, COLD_DROPOUT = 0.8, 0.5

#: L2 penalty on the tables of ids. With embeddings and fewer training rows than this, a weak one lets the ids of users
#: and items be memorised within two epochs, and the model ranks worse than a dot product of the embeddings does.
FEW_ROWS, REGULARIZER, FEW_ROWS_REGULARIZER = 20_000, 2e-4, 1e-2


def users_recur(summary: Summary) -> bool:
    """Return whether users have training rows enough for the user to be a feature."""
    return summary.splits["train"].rows >= USER_ROWS * summary.users


def log_experiments(summary: Summary, max_len: int, group: str = "user_id") -> dict[str, dict[str, Any]]:
    """Return models and their settings, with the column that metrics group by; LightFM where the user is a feature."""
    rows = summary.splits["train"].rows
    size = size_for(rows)
    size["dnn_hidden_units"] = size.pop("units")
    common: dict[str, Any] = {
        **size,
        "metrics": ["AUC", "gAUC", "logloss"],
        "group_id": group,
        "max_len": max_len,
        "embedding_regularizer": REGULARIZER,
        "net_dropout": 0.2,
    }
    average = {"swa_start": updates_of(SWA_EPOCHS, rows, size["batch_size"])}
    attention = {"num_heads": 4, "attention_hidden_units": [32], "attention_dropout": 0.1}
    if users_recur(summary):
        fields = ["user_id", ITEM_ID, *summary.coverage]
        attention |= {"factor_dim": FACTOR_DIM, "factor_features": fields}
    if _are_few(summary):  # of DIN_MM alone: LightFM learns nothing with it
        attention["embedding_regularizer"] = FEW_ROWS_REGULARIZER
    if _are_cold(summary) and summary.coverage:
        attention["feature_specs"] = [{"name": ITEM_ID, "dropout": COLD_DROPOUT}]
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


def explain(summary: Summary) -> list[str]:
    """Return a line for each setting that follows from what the data are like, for the summary of ``prepare``."""
    lines = []
    if users_recur(summary):
        rows = summary.splits["train"].rows / summary.users
        lines.append(f"DIN_MM has factor_dim: {FACTOR_DIM}, since users have {rows:.0f} training rows on average")
    if _are_few(summary):
        reason = f"there are fewer than {FEW_ROWS:,} training rows, and the items have embeddings"
        lines.append(f"DIN_MM has embedding_regularizer: {FEW_ROWS_REGULARIZER}, since {reason}")
    if _are_cold(summary):
        split, part = _newest_cold(summary)
        fix = f"DIN_MM has dropout: {COLD_DROPOUT} of {ITEM_ID}"
        if not summary.coverage:
            fix = "their ids are not trained; add embeddings of titles or images: fuxictr-mm embed encode"
        lines.append(f"{part:.0%} of the {split} rows are of items that do not occur in training: {fix}")
    return lines


def _newest_cold(summary: Summary) -> tuple[str, float]:
    """Return the last split, and the fraction of its rows whose item is the target of no training row."""
    split = "test" if "test" in summary.splits else "valid"
    counts = summary.splits.get(split)
    return split, counts.cold / max(counts.rows, 1) if counts else 0.0


def _are_few(summary: Summary) -> bool:
    return bool(summary.coverage) and summary.splits["train"].rows < FEW_ROWS


def _are_cold(summary: Summary) -> bool:
    return _newest_cold(summary)[1] >= COLD
