"""The settings of a model alone, checked against its annotated signature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fuxictr_mm.checking import is_multimodal, matches, mismatch, model_schema, uncheckable, unknown_key
from fuxictr_mm.config.features import Dropout
from fuxictr_mm.config.model import HiddenUnits

#: Settings of models of FuxiCTR's zoo that this library's models of the same names do not have.
OF_FUXICTR = {
    "BST": (
        "bst_target_field", "bst_sequence_field", "attention_dropout", "layer_norm", "seq_pooling_type",
        "stacked_transformer_layers", "use_causal_mask", "use_position_emb", "use_residual",
    ),
    "DIEN": (
        "dien_target_field", "dien_sequence_field", "dien_neg_seq_field", "attention_activation", "attention_dropout",
        "attention_hidden_units", "attention_type", "aux_activation", "aux_hidden_units", "aux_loss_alpha",
        "enable_sum_pooling", "gru_type", "item_info_fields", "use_attention_softmax",
    ),
    "DIN": ("din_target_field", "din_sequence_field"),
    "ETA": ("reuse_hash", "short_seq_len", "topk", "use_scale"),
    "SDIM": ("hash_bits", "l2_norm", "reuse_hash", "short_seq_len", "use_qkvo", "use_scale"),
    "SIM": ("alpha", "beta", "gsu_type", "short_seq_len", "topk"),
    "TWIN": ("Kc_cross_features", "short_seq_len", "topk"),
}  # fmt: skip

#: Those of them that name the target or the history, which here are roles of the dataset, whatever the model.
FIELDS_OF_FUXICTR = {key for keys in OF_FUXICTR.values() for key in keys if key.endswith("_field")}


def check_signature(
    model_class: type, values: Mapping[str, Any], common: Iterable[str], known_problems: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return what is wrong with flat settings by the signature of a model, and which keys could not be checked.

    ``common`` are the keys of every model.
    """
    schema = model_schema(model_class)
    known = {*schema, *common}
    problems: dict[str, str] = {}
    doubts: list[str] = []
    theirs = 0
    where = f"model {model_class.__name__}: "
    for key, value in values.items():
        if key in known_problems:
            continue
        if key not in known:
            is_ours = is_multimodal(model_class)
            if is_ours and (key in OF_FUXICTR.get(model_class.__name__, ()) or key in FIELDS_OF_FUXICTR):
                # The advice is the same for all: once.
                problems[key] = where + (f"'{key}' too" if theirs else _of_fuxictr(key, model_class.__name__))
                theirs += 1
            elif is_ours:
                problems[key] = where + unknown_key(key, known)
            else:
                doubts.append(where + unknown_key(key, known))
        else:
            for annotation in (schema.get(key, Any), _usual(key, value)):
                try:
                    if not matches(value, annotation):
                        problems.setdefault(key, where + mismatch(key, value, annotation))
                except TypeError as error:  # a constraint that the type does not have
                    problems[key] = uncheckable(model_class, key, annotation, error)
    return problems, doubts


def _of_fuxictr(key: str, model: str) -> str:
    """Return a sentence about a setting that only a model of FuxiCTR has, of the same name or another."""
    has_roles = key.endswith("_field") or f"{model.lower()}_target_field" in OF_FUXICTR.get(model, ())
    roles = ", target and history are roles of the dataset" if has_roles else ""
    if key not in OF_FUXICTR.get(model, ()):
        theirs = next(name for name, keys in OF_FUXICTR.items() if key in keys)
        return f"'{key}' is a key of FuxiCTR's {theirs}, which {model} does not have; leave it out{roles}"
    return (
        f"'{key}' is a key of FuxiCTR's {model}, and this is the library's; leave it out{roles}, or give a checkout of "
        "FuxiCTR for its own: --model_zoo FuxiCTR/model_zoo"
    )


def _usual(key: str, value: Any) -> Any:
    """Return the range that FuxiCTR's names of settings imply where a model does not annotate it."""
    if key.endswith("dropout") and isinstance(value, int | float):
        return Dropout
    if key.endswith("hidden_units") and isinstance(value, list) and all(isinstance(dim, int) for dim in value):
        return HiddenUnits
    return Any
