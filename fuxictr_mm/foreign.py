"""Models written for FuxiCTR or for the challenge: what they need before they may run here.

Their base class evaluates texts of the configuration as Python, unpickles weights and overwrites checkpoints in place.
Each of these is met here, once, so that their files need no edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fuxictr_mm.checking import nearest
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.training.checkpoints import load_state_dict, save_state_dict
from fuxictr_mm.training.optimizers import optimizer_class
from fuxictr_mm.training.regularization import parse_regularizer

#: FuxiCTR's names of the binary cross-entropy, and the losses of torch that take a prediction and a label of one shape.
#: A fixed list, because FuxiCTR evaluates any other text as Python.
LOSSES = ("bce", "binary_crossentropy", "binary_cross_entropy", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


def is_foreign(model_class: type) -> bool:
    """Whether a class is no MultimodalModel."""
    return not issubclass(model_class, MultimodalModel)


def check_params(model_class: type, params: Mapping[str, Any]) -> None:
    """Refuse settings that FuxiCTR would evaluate as Python or ignore without a word.

    Raises
    ------
    ConfigError
        A loss or optimizer that does not exist; vectors that should train, which only a MultimodalModel can do.
    """
    if params["loss"] not in LOSSES:
        known = ", ".join(LOSSES)
        raise ConfigError(f"loss: there is no '{params['loss']}'{nearest(params['loss'], LOSSES)} (there are: {known})")
    optimizer_class(params["optimizer"])
    for key in ("embedding_regularizer", "net_regularizer"):
        parse_regularizer(params.get(key), key)
    if params.get("precision") == "bf16":
        raise ConfigError(f"precision is bf16, but {model_class.__name__} is no MultimodalModel; fp32 and tf32 work")
    for column in [*params["feature_cols"], *(params.get("feature_specs") or [])]:
        if column.get("freeze_emb") is False:
            raise ConfigError(
                f"feature '{column['name']}': freeze_emb is False, but {model_class.__name__} is no MultimodalModel "
                "and gets the stored vectors as they are; leave it out"
            )


def make_safe(model: Any) -> None:
    """Let a model write and read its weights as ours do: beside and renamed, without unpickling."""

    def save_weights(checkpoint: str) -> None:
        save_state_dict(model.state_dict(), checkpoint)

    model.save_weights = save_weights
    model.load_weights = partial(load_state_dict, model)
