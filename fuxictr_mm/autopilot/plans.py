"""How each model is tried on a dataset: its settings, its space and its first trial."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.autopilot.candidates import MODELS
from fuxictr_mm.autopilot.facts import Facts
from fuxictr_mm.autopilot.features import Features
from fuxictr_mm.config.sizes import PENALTY, SWA_EPOCHS, factor_penalty_for, penalty_for, size_for, updates_of

#: Fraction of cold targets among the rows to score from which on dropout of item ids is tried, and its values.
COLD, ID_DROPOUT = 0.01, (0.0, 0.1, 0.3)

#: Training rows that a core takes in a second: models with attention, 398,262 rows of MovieLens-1M.
ROWS_A_SECOND = 7_500

#: Epochs of a trial that has less time than those of its size take.
LEAST_EPOCHS = 8


@dataclass(frozen=True)
class Plan:
    """How a model is tried."""

    model: str
    why: str  #: Why it is tried.
    settings: dict[str, Any]  #: Those of the base experiment.
    space: dict[str, Any]  #: What is tried, in the form of ``tuner_space``.
    first: dict[str, Any]  #: The point of the first trial.


def plans_for(dataset_id: str, facts: Facts, features: Features, seconds: float = math.inf) -> list[Plan]:
    """Return the plans of the models that suit the data; ``seconds``: what a trial on a core may take."""
    suitable = [name for name, candidate in MODELS.items() if facts.history_mean >= candidate.least_history]
    return [
        plan_for(name, dataset_id, facts, features, seconds)
        for name in suitable
        if features.has_user or not MODELS[name].of_users
    ]


def plan_for(model: str, dataset_id: str, facts: Facts, features: Features, seconds: float = math.inf) -> Plan:
    """Return the plan of a model."""
    candidate, rows = MODELS[model], facts.rows["train"]
    size = size_for(rows)
    batch_size = size.batch_size * candidate.batch_factor
    fitting = max(LEAST_EPOCHS, seconds * ROWS_A_SECOND / rows)
    settings = {
        "model": model,
        "dataset_id": dataset_id,
        "metrics": ["AUC", "gAUC", "logloss"] if facts.group else ["AUC", "logloss"],
        **({"group_id": facts.group} if facts.group else {}),
        "monitor": "AUC",
        "monitor_mode": "max",
        "early_stop_patience": 2,
        "max_len": int(min(100, max(10, math.ceil(facts.history_high)))),
        "model_root": "./checkpoints/",
        "verbose": 0,
        "batch_size": batch_size,
        "epochs": int(min(size.epochs, fitting)),
        "embedding_dim": size.embedding_dim,
        **{name: list(size.units) for name in candidate.units},
        **candidate.settings,
    }
    lists = features.of_users if candidate.of_users else features.to_try
    space = {**candidate.space, "use_features": lists}
    first = {**candidate.first, "use_features": lists[0]}
    bare_items = 0 if facts.embeddings else facts.items
    penalty = factor_penalty_for(rows) if candidate.penalty is None else penalty_for(rows, bare_items)
    space["embedding_regularizer"] = {"low": penalty.low, "high": penalty.high, "log": True}
    first["embedding_regularizer"] = (candidate.penalty if penalty is PENALTY else None) or penalty.first
    if candidate.has_average:
        first["swa_start"] = updates_of(SWA_EPOCHS, rows, batch_size)
        space["swa_start"] = [None, first["swa_start"]]
    if candidate.has_factors:
        space |= features.factors
        first |= {name: tried[0] for name, tried in features.factors.items()}
    if max(facts.cold.values(), default=0) >= COLD and all(features.target in names for names in lists):
        space["feature_specs"] = [[{"name": features.target, "dropout": p}] if p else [] for p in ID_DROPOUT]
        first["feature_specs"] = space["feature_specs"][1]  # the least above none
    return Plan(model, candidate.why, settings, space, first)
