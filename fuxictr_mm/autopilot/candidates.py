"""The models that the autopilot may try, and their settings and features for a dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fuxictr_mm.autopilot.facts import Facts
from fuxictr_mm.config import DatasetConfig
from fuxictr_mm.config.sizes import SWA_EPOCHS, SWA_LEARNING_RATE, size_for, updates_of

#: The target's name in models, whatever its column is called.
ITEM_ID = "item_id"

#: What is tried of most models, in the form of ``tuner_space``, and where they begin: the point of the first trial.
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    "embedding_regularizer": {"low": 1e-6, "high": 1e-3, "log": True},
    "net_dropout": {"low": 0.0, "high": 0.4},
}
FIRST: dict[str, Any] = {"learning_rate": 1e-3, "embedding_regularizer": 2e-4, "net_dropout": 0.2}

#: Fraction of cold targets among the rows to score from which on dropout of item ids is tried, and its values.
COLD, ID_DROPOUT = 0.01, (0.0, 0.1, 0.3)


@dataclass(frozen=True)
class Candidate:
    """A model that may be tried, and how (``docs/choosing_settings.md`` has what the settings are worth).

    Parameters
    ----------
    why : str
        Why it is tried.
    settings : dict
        Its own settings.
    space, first : dict
        What is tried, and the point of the first trial (``first_of``).
    units : tuple of str
        Settings that take the hidden units.
    batch_factor : int
        What the batch size for data of its size is multiplied by.
    least_history : float
        The shortest mean history that it is tried for.
    of_users : bool
        Whether it is tried only where the user is a feature, with and without the features besides user, item and
        embeddings.
    has_factors : bool
        Whether a factorization (``factor_dim``) is tried with it if the user is a feature.
    """

    why: str
    settings: dict[str, Any]
    space: dict[str, Any] = field(default_factory=lambda: SPACE)
    first: dict[str, Any] = field(default_factory=lambda: FIRST)
    units: tuple[str, ...] = ("dnn_hidden_units",)
    batch_factor: int = 1
    least_history: float = 0
    of_users: bool = False
    has_factors: bool = False


MODELS: dict[str, Candidate] = {
    "LightFM": Candidate(
        "user and item as sums of their features: fast, and its errors differ from those of the other models",
        {"early_stop_patience": 3},
        {
            "learning_rate": {"low": 2e-3, "high": 2e-2, "log": True},
            "factor_regularizer": {"low": 3e-3, "high": 1e-1, "log": True},
            "embedding_dim": [9, 17, 33],
            "history": [False, True],
        },
        {"learning_rate": 5e-3, "factor_regularizer": 0.02, "embedding_dim": 17, "history": False},
        units=(),
        batch_factor=4,
        of_users=True,
    ),
    "DIN_MM": Candidate(
        "target attention, SENet and cross network over ids, text and image",
        {"num_heads": 4, "attention_hidden_units": [32], "din_use_softmax": True, "attention_dropout": 0.1,
         "batch_norm": False},
        {**SPACE, "interest": ["din", "multi_head"], "cross": [None, "v2"], "label_smoothing": [0.0, 0.1],
         "swa_start": [None, SWA_EPOCHS]},
        {**FIRST, "learning_rate": SWA_LEARNING_RATE["DIN_MM"], "interest": "din", "cross": None,
         "label_smoothing": 0.0, "swa_start": SWA_EPOCHS},
        has_factors=True,
    ),
    "QIN": Candidate(
        "products of all fields of user, target and interest, layer by layer",
        {"num_layers": 2, "num_row": 2, "batch_norm": False},
        {**SPACE, "num_layers": [1, 2, 3], "swa_start": [None, SWA_EPOCHS]},
        {**FIRST, "learning_rate": SWA_LEARNING_RATE["QIN"], "embedding_regularizer": 1e-3, "num_layers": 2,
         "swa_start": SWA_EPOCHS},
        units=(),
    ),
    "DIN": Candidate(
        "the challenge's baseline",
        {"attention_hidden_units": [32], "din_use_softmax": True, "batch_norm": False},
        {**SPACE, "swa_start": [None, SWA_EPOCHS]},
        {**FIRST, "learning_rate": SWA_LEARNING_RATE["DIN"], "swa_start": SWA_EPOCHS},
    ),
    "Transformer_DCN": Candidate(
        "a transformer, for longer histories",
        {"first_k_cols": 4, "transformer_layers": 1},
        first={**FIRST, "learning_rate": 5e-4},
        units=("dcn_hidden_units", "mlp_hidden_units"),
        least_history=5,
    ),
}  # fmt: skip

#: What is tried of the dim of a factorization; the first is that of the first trial.
FACTOR_DIMS = (17, 33, 0)

#: Computed features that are added to the dataset's: the length of the history, and its similarity to the target.
LENGTH, SIMILARITY = "autopilot_length", "autopilot_similarity"
STATISTICS = ["mean", "max", "newest_5"]


def computed_features(dataset: DatasetConfig, facts: Facts) -> list[dict[str, Any]]:
    """Return entries of features that are computed from target and history: its length, and its similarities to it.

    A dataset without item files, whose columns are encoded, has none.
    """
    if not dataset.item_files:
        return []
    names, _ = types_and_active(dataset)
    stored = [n for n in names if names[n] == "embedding"] or list(facts.embeddings.values())
    entries: list[dict[str, Any]] = [{"name": LENGTH, "active": False, "type": "length"}]
    for number, name in enumerate(dict.fromkeys([*stored[:1], *facts.embeddings.values()])):
        entry = {"name": f"{SIMILARITY}_{number}", "active": False, "type": "similarity", "of": name}
        entries.append({**entry, "statistics": STATISTICS})
    return entries


def features_to_try(dataset: DatasetConfig, facts: Facts) -> list[list[str]]:
    """Return lists of features: the active ones, those with an embedding each of text and image, and both with more.

    The first list is that of the first trial: the active features, with what is computed from their embeddings.
    """
    names, active = types_and_active(dataset)
    others = [n for n in active if names[n] != "embedding"]
    choices = [active]
    if facts.embeddings and set(facts.embeddings.values()) - set(active):
        choices.append([*others, *facts.embeddings.values()])
    if not dataset.item_files:
        return choices
    similar = {entry["of"]: entry["name"] for entry in computed_features(dataset, facts) if "of" in entry}
    more = [[*choice, LENGTH, *(similar[n] for n in choice if n in similar)] for choice in choices]
    return [*more, *choices]


def types_and_active(dataset: DatasetConfig) -> tuple[dict[str, str], list[str]]:
    """Return the type of every feature that is not meta, and the names of the active ones."""
    types: dict[str, str] = {}
    active: list[str] = []
    for column in dataset.feature_cols or ():
        for name in [column.name] if isinstance(column.name, str) else column.name:
            if column.type != "meta":
                types[name] = str(column.type)
                active += [name] if column.active else []
    return types, active


def features_of_users(dataset: DatasetConfig, facts: Facts) -> list[list[str]]:
    """Return lists of features for a model of users: only user, target and embeddings, and the active ones."""
    names, active = types_and_active(dataset)
    roles = dataset.roles
    stored = [n for n in active if names[n] == "embedding"] or list(facts.embeddings.values())
    few = [name for name in (roles.user, roles.target, *stored) if name in names]
    return [few, list(dict.fromkeys([*active, roles.user]))]


def factor_space(model: str, features: list[list[str]], few: list[str]) -> dict[str, list[Any]]:
    """Return the settings of a factorization to try with a model, those of its first trial first.

    ``few`` are user, target and embeddings; those that are in all lists of features are tried separately, besides all.
    """
    shared = [name for name in few if all(name in names for names in features)]
    if not MODELS[model].has_factors or shared[:2] != few[:2]:
        return {}
    named = [ITEM_ID if name == few[1] else name for name in shared]  # as models know the target
    return {"factor_dim": list(FACTOR_DIMS), "factor_features": [named, None]}


def space_of(
    model: str, facts: Facts, features: list[list[str]], target: str, factors: dict[str, list[Any]] | None = None
) -> dict[str, Any]:
    """Return what is tried of a model, in the form of ``tuner_space``."""
    space = {**MODELS[model].space, "use_features": features, **(factors or {})}
    if max(facts.cold.values(), default=0) >= COLD and all(target in names for names in features):
        space["feature_specs"] = [[{"name": target, "dropout": p}] if p else [] for p in ID_DROPOUT]
    if "swa_start" in space:
        space["swa_start"] = [_updates(model, facts, epochs) for epochs in space["swa_start"]]
    return space


def first_of(model: str, facts: Facts, features: list[list[str]], factors: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the point of a model's first trial in its space."""
    first = {**MODELS[model].first, "use_features": features[0], **{name: tried[0] for name, tried in factors.items()}}
    if "swa_start" in first:
        first["swa_start"] = _updates(model, facts, first["swa_start"])
    return first


def _updates(model: str, facts: Facts, epochs: int | None) -> int | None:
    return epochs and updates_of(epochs, facts.rows["train"], sizes(model, facts)["batch_size"])


def models_to_try(facts: Facts, has_user: bool) -> dict[str, str]:
    """Return the models that suit the data, each with the reason; ``has_user``: whether the user is a feature."""
    suitable = {name: c for name, c in MODELS.items() if facts.history_mean >= c.least_history}
    return {name: c.why for name, c in suitable.items() if has_user or not c.of_users}


def sizes(model: str, facts: Facts) -> dict[str, Any]:
    """Return batch size, epochs, dim of embeddings and hidden units of a model for data of this size."""
    size = size_for(facts.rows["train"])
    return {**size, "batch_size": size["batch_size"] * MODELS[model].batch_factor}


def settings_for(model: str, dataset_id: str, facts: Facts, group_id: str | None) -> dict[str, Any]:
    """Return the base settings of a model for data of this size."""
    size = sizes(model, facts)
    units = size.pop("units")
    candidate = MODELS[model]
    return {
        "model": model,
        "dataset_id": dataset_id,
        "metrics": ["AUC", "gAUC", "logloss"] if group_id else ["AUC", "logloss"],
        **({"group_id": group_id} if group_id else {}),
        "monitor": "AUC",
        "monitor_mode": "max",
        "early_stop_patience": 2,
        "max_len": int(min(100, max(10, math.ceil(facts.history_high)))),
        "model_root": "./checkpoints/",
        "verbose": 0,
        **size,
        **dict.fromkeys(candidate.units, units),
        **candidate.settings,
    }
