"""The models that the autopilot may try (``docs/choosing_settings.md`` has what their settings are worth)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fuxictr_mm.config.sizes import PENALTY, SWA_LEARNING_RATE

#: What is tried of most models, in the form of ``tuner_space``, and where they begin: the point of the first trial.
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    "net_dropout": {"low": 0.0, "high": 0.4},
}
FIRST: dict[str, Any] = {"learning_rate": 1e-3, "net_dropout": 0.2}


@dataclass(frozen=True)
class Candidate:
    """A model that may be tried, and how."""

    why: str  #: Why it is tried.
    settings: dict[str, Any]  #: Its own settings.
    #: What is tried, and the point of the first trial, besides what follows from the data.
    space: dict[str, Any] = field(default_factory=lambda: SPACE)
    first: dict[str, Any] = field(default_factory=lambda: FIRST)
    #: First ``embedding_regularizer`` where rows are many; None: that of a factorization (``factor_penalty_for``).
    penalty: float | None = PENALTY.first
    #: Whether an average of the weights (``swa_start``) is tried, in the first trial as well.
    has_average: bool = False
    units: tuple[str, ...] = ("dnn_hidden_units",)  #: Settings that take the hidden units.
    batch_factor: int = 1  #: What the batch size for data of its size is multiplied by.
    least_history: float = 0  #: The shortest mean history that it is tried for.
    #: Whether it is tried only where the user is a feature, with and without the features besides user, item and
    #: embeddings.
    of_users: bool = False
    has_factors: bool = False  #: Whether a factorization (``factor_dim``) is tried with it if the user is a feature.


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
        penalty=None,
        units=(),
        batch_factor=4,
        of_users=True,
    ),
    "DIN_MM": Candidate(
        "target attention, SENet and cross network over ids, text and image",
        {"num_heads": 4, "attention_hidden_units": [32], "din_use_softmax": True, "attention_dropout": 0.1,
         "batch_norm": False},
        {**SPACE, "interest": ["din", "multi_head"], "cross": [None, "v2"], "label_smoothing": [0.0, 0.1]},
        {**FIRST, "learning_rate": SWA_LEARNING_RATE["DIN_MM"], "interest": "din", "cross": None,
         "label_smoothing": 0.0},
        has_average=True,
        has_factors=True,
    ),
    "QIN": Candidate(
        "products of all fields of user, target and interest, layer by layer",
        {"num_layers": 2, "num_row": 2, "batch_norm": False},
        {**SPACE, "num_layers": [1, 2, 3]},
        {**FIRST, "learning_rate": SWA_LEARNING_RATE["QIN"], "num_layers": 2},
        penalty=1e-3,
        has_average=True,
        units=(),
    ),
    "DIN": Candidate(
        "the challenge's baseline",
        {"attention_hidden_units": [32], "din_use_softmax": True, "batch_norm": False},
        first={**FIRST, "learning_rate": SWA_LEARNING_RATE["DIN"]},
        has_average=True,
    ),
    "Transformer_DCN": Candidate(
        "a transformer, for longer histories",
        {"first_k_cols": 4, "transformer_layers": 1},
        first={**FIRST, "learning_rate": 5e-4},
        units=("dcn_hidden_units", "mlp_hidden_units"),
        least_history=5,
    ),
}  # fmt: skip
