"""The models that the autopilot may try (``docs/choosing_settings.md`` has what their settings are worth)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fuxictr_mm.config.sizes import SWA_LEARNING_RATE

#: What is tried of most models, in the form of ``tuner_space``.
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    "net_dropout": {"low": 0.0, "high": 0.4},
}


@dataclass(frozen=True)
class Candidate:
    """A model that may be tried, and how; its first trial has the settings that ``prepare log`` writes."""

    why: str  #: Why it is tried.
    #: Of the first trial, besides those that ``prepare log`` writes for the model, or in place of those of ``DIN``.
    settings: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=lambda: SPACE)  #: What is tried, besides what follows from the data.
    #: First ``embedding_regularizer`` where neither rows nor rows per item are few; None: as written.
    penalty: float | None = None
    #: Of a model that ``prepare log`` does not write, settings that take the hidden units of ``DIN``.
    units: tuple[str, ...] = ()
    least_history: float = 0  #: The shortest mean history that it is tried for.
    cost: float = 1  #: About how many times as long as one of the other models a trial takes.
    #: Whether it is a factorization, tried only where the user is a feature, with and without the features besides
    #: user, item and embeddings.
    of_users: bool = False


MODELS: dict[str, Candidate] = {
    "LightFM": Candidate(
        "user and item as sums of their features: fast, and its errors differ from those of the other models",
        {"history": False},
        {
            "learning_rate": {"low": 2e-3, "high": 2e-2, "log": True},
            "factor_regularizer": {"low": 3e-3, "high": 1e-1, "log": True},
            "embedding_dim": [9, 17, 33],
            "history": [False, True],
        },
        of_users=True,
    ),
    "DIN_MM": Candidate(
        "target attention, SENet and cross network over ids, text and image",
        {"interest": "multi_head", "din_use_softmax": True, "cross": None, "label_smoothing": 0.0},
        {**SPACE, "interest": ["multi_head", "din"], "cross": [None, "v2"], "label_smoothing": [0.0, 0.1]},
    ),
    "QIN": Candidate(
        "products of all fields of user, target and interest, layer by layer",
        {"learning_rate": SWA_LEARNING_RATE["QIN"], "num_layers": 2, "num_row": 2, "batch_norm": False},
        {**SPACE, "num_layers": [1, 2, 3]},
        penalty=1e-3,
    ),
    "DIN": Candidate("the challenge's baseline"),
    "Transformer_DCN": Candidate(
        "a transformer, for longer histories",
        {
            "max_len": 50,
            "embedding_dim": 16,
            "first_k_cols": 4,
            "transformer_layers": 1,
            "dim_feedforward": 64,
            "dcn_cross_layers": 2,
            "mlp_hidden_units": [32],
        },
        units=("dcn_hidden_units",),
        least_history=5,
        cost=7,
    ),
}
