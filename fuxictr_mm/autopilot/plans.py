"""How each model is tried on a dataset: its settings, its space and its first trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.autopilot.candidates import MODELS
from fuxictr_mm.autopilot.facts import Facts
from fuxictr_mm.autopilot.features import Features
from fuxictr_mm.config.sizes import PENALTY, factor_penalty_for, penalty_for
from fuxictr_mm.datasets.experiments import DIN_ATTENTION, first_experiments
from fuxictr_mm.datasets.reader import Reader
from fuxictr_mm.datasets.summary import SplitSummary, Summary

#: Fraction of cold targets among the rows to score from which on dropout of item ids is tried, and what is tried.
COLD = 0.01
ID_SPECS: tuple[dict[str, Any], ...] = ({}, {"dropout": 0.1}, {"dropout": 0.1, "unknown": "trained"}, {"dropout": 0.3})

#: Training rows that a core takes in a second: ``DIN_MM`` with 398,262 rows of MovieLens-1M.
ROWS_A_SECOND = 20_000

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
    cost: float = 1  #: That of the candidate.


def plans_for(dataset_id: str, facts: Facts, features: Features, seconds: float = math.inf) -> list[Plan]:
    """Return the plans of the models that suit the data; ``seconds``: what a trial on a core may take."""
    suitable = [name for name, candidate in MODELS.items() if facts.history_mean >= candidate.least_history]
    return [
        plan_for(name, dataset_id, facts, features, seconds)
        for name in suitable
        if features.has_user or not MODELS[name].of_users
    ]


def plan_for(model: str, dataset_id: str, facts: Facts, features: Features, seconds: float = math.inf) -> Plan:
    """Return the plan of a model; its first trial has the settings that ``prepare log`` writes."""
    candidate, rows = MODELS[model], facts.rows["train"]
    begin = _written(model, facts, features)
    begin["epochs"] = int(min(begin["epochs"], max(LEAST_EPOCHS, seconds * ROWS_A_SECOND / rows)))
    penalty = penalty_for(rows, 0 if features.embeddings_of(features.active) else facts.trained_items)
    if penalty is PENALTY and candidate.penalty:
        begin["embedding_regularizer"] = candidate.penalty
    if candidate.of_users:
        penalty = factor_penalty_for(rows)
    lists = features.of_users if candidate.of_users else features.to_try
    tried: dict[str, list[Any]] = {"use_features": lists}  # the first value of each is that of the first trial
    if begin.get("swa_start"):
        tried["swa_start"] = [begin["swa_start"], None]
    has_history = begin.pop("factor_history", False)
    has_all_fields = begin.pop("factor_features", None) is None  # ``features`` names them
    if begin.pop("factor_dim", None) and features.factors:
        tried |= {**features.factors, "factor_history": [has_history, not has_history]}
        tried["factor_features"] = tried["factor_features"][:: -1 if has_all_fields else 1]
    else:
        begin.pop("factor_table_regularizer", None)
    tried |= _with_norms(_id_specs(begin.pop("feature_specs", []), facts, features, lists), features)
    begin |= {name: values[0] for name, values in tried.items()}
    regularizers = {"low": penalty.low, "high": penalty.high, "log": True}
    space = {**candidate.space, "embedding_regularizer": regularizers, **tried}
    constants = {"model": model, "dataset_id": dataset_id, "model_root": "./checkpoints/", "verbose": 0}
    settings = {**constants, **{k: v for k, v in begin.items() if k not in space and v is not None}}
    return Plan(model, candidate.why, settings, space, {name: begin[name] for name in space}, candidate.cost)


def _written(model: str, facts: Facts, features: Features) -> dict[str, Any]:
    """Return the settings that ``prepare log`` writes for a model, or of one that it does not write those of DIN.

    They are completed by the model's own, or changed to these.
    """
    splits = {
        split: SplitSummary(rows=rows, cold=round(rows * facts.cold.get(split, 0)))
        for split, rows in facts.rows.items()
    }
    coverage = dict.fromkeys(features.embeddings_of(features.active), 1.0)
    summary = Summary(facts.items, 0, splits, coverage, trained_items=facts.trained_items)
    experiments = first_experiments(summary, Reader.history_len, features.has_user, sampled=facts.negatives > 0)
    own = MODELS[model].settings
    if model in experiments:
        found = {**own, **experiments[model]}
    else:
        shared = {name: value for name, value in experiments["DIN"].items() if name not in DIN_ATTENTION}
        units = shared.pop("dnn_hidden_units")
        found = {**shared, **dict.fromkeys(MODELS[model].units, units), **own}
    found["group_id"] = facts.group
    if not facts.has_gauc:
        found["metrics"] = [name for name in found["metrics"] if name != "gAUC"]
    return found


def _id_specs(
    written: Sequence[Mapping[str, Any]], facts: Facts, features: Features, lists: Sequence[Sequence[str]]
) -> list[list[dict[str, Any]]]:
    """Return what is tried of dropout of item ids, what is ``written`` first; nothing where targets are not cold."""
    if max(facts.cold.values(), default=0) < COLD or not all(features.target in names for names in lists):
        return []
    first = {key: value for spec in written for key, value in spec.items() if key != "name"}
    specs = [first, *ID_SPECS]
    if not features.trains_unknown:
        specs = [{key: value for key, value in spec.items() if key != "unknown"} for spec in specs]
    specs = [spec for number, spec in enumerate(specs) if spec not in specs[:number]]
    return [[{"name": features.target, **spec}] if spec else [] for spec in specs]


def _with_norms(specs: list[list[dict[str, Any]]], features: Features) -> dict[str, list[Any]]:
    """Return what is tried of ``feature_specs``: those given, and each with embeddings of norm 1 where none is set."""
    if features.plain:
        specs = specs or [[]]
        specs = [*specs, *([*spec, {"name": [*features.plain], "norm": "l2"}] for spec in specs)]
    return {"feature_specs": specs} if specs else {}
