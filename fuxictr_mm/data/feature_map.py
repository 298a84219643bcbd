"""FuxiCTR's FeatureMap of the features of an experiment."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from typing import Any

from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.fuxictr_imports import FeatureMap

logger = logging.getLogger(__name__)


def build_feature_map(features: Sequence[Feature], config: ExperimentConfig) -> FeatureMap:
    """Return FuxiCTR's FeatureMap of these features.

    It is built again for every run, so it cannot be of an older configuration.
    """
    dataset_id = config.dataset_id
    feature_map = FeatureMap(dataset_id, os.path.join(config.dataset.data_root or ".", dataset_id))
    feature_map.labels = config.dataset.label_names
    feature_map.tasks = config.tasks  # by label; no key of FuxiCTR's
    feature_map.group_id = config.group_id
    feature_map.sample_weight = config.dataset.sample_weight  # no key of FuxiCTR's
    # A FuxiCTR model has a default of its own.
    feature_map.default_emb_dim = config.embedding_dim if "embedding_dim" in config.model_fields_set else None
    for feature in features:
        if feature.embedded:
            feature_map.features[feature.name] = _fuxictr_spec(feature, config.max_len)
    specs = feature_map.features
    for spec in specs.values():
        if "share_embedding" in spec:
            owner = specs[spec["share_embedding"]]
            owner["vocab_size"] = max(owner["vocab_size"], spec["vocab_size"])
    for spec in specs.values():
        if "share_embedding" in spec:
            spec["vocab_size"] = specs[spec["share_embedding"]]["vocab_size"]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.total_features = sum(
        1 if s["type"] == "numeric" else s.get("vocab_size", 0) for s in specs.values() if "share_embedding" not in s
    )
    feature_map.set_column_index()
    feature_map.short_history = config.dataset.roles.short_history  # no key of FuxiCTR's
    # What a model needs to embed a sequence along a history: no key of FuxiCTR's.
    feature_map.along_history = {
        f.name: {"history": f.history, "type": "numeric" if f.is_number else "categorical", "vocab_size": f.vocab_size}
        for f in features
        if f.history is not None and not f.is_further_history
    }
    return feature_map


def _fuxictr_spec(feature: Feature, history_len: int | None) -> dict[str, Any]:
    spec: dict[str, Any] = {"source": feature.source, "type": feature.type}
    if feature.type == "meta":
        return spec
    spec |= _changed(feature, "table", "sharding", "dropout", "unknown")
    if feature.is_computed:
        return spec | _computed_spec(feature)
    if feature.norm is not None or feature.scale != 1:
        spec.update(norm=feature.norm, scale=feature.scale)
    spec |= _changed(feature, "embedding_dim", "share_embedding", "emb_output_dim")
    if feature.type in ("categorical", "sequence"):
        spec.update(padding_idx=feature.padding_idx, vocab_size=feature.vocab_size)
    if feature.type == "sequence":
        spec["max_len"] = (history_len if feature.is_history else None) or feature.max_len
        spec |= _changed(feature, "padding")  # no key of FuxiCTR's, whose files hold padded lists
    if feature.pretrained:
        spec.update(feature.pretrained)
    if feature.type == "embedding":
        spec["pretrain_dim"] = feature.pretrain_dim
        spec["freeze_emb"] = feature.freeze_emb
        # FuxiCTR's layers project the stored dim to the configured one, unless an encoder replaces the projection.
        if feature.feature_encoder == "nn.Identity()":
            spec.setdefault("embedding_dim", feature.pretrain_dim)
    return spec | _changed(feature, "feature_encoder")


def _changed(feature: Feature, *names: str) -> dict[str, Any]:
    """Return those of the attributes that do not have their default."""
    return {name: value for name in names if (value := getattr(feature, name)) != getattr(Feature, name)}


def _computed_spec(feature: Feature) -> dict[str, Any]:
    """Return how FuxiCTR's layers embed a computed feature: as a number, the id of a bin, or a frozen embedding."""
    spec: dict[str, Any] = {"computed": feature.type, **_changed(feature, "embedding_dim")}
    if feature.type == "similarity":
        dim = sum(_statistic_dim(name) for name in feature.statistics)
        return spec | {
            "type": "embedding", "pretrain_dim": dim, "freeze_emb": True, "of": feature.of,
            "statistics": list(feature.statistics),
        }  # fmt: skip
    if feature.vocab_size is None:
        return spec | {"type": "numeric"}
    return spec | {"type": "categorical", "padding_idx": 0, "vocab_size": feature.vocab_size}


def _statistic_dim(name: str) -> int:
    """Return how many numbers a statistic of a similarity has."""
    kind, _, count = name.partition("_")
    return int(count) if kind == "histogram" else 1


def unify_dims(feature_map: FeatureMap, dim: int) -> FeatureMap:
    """Return a copy in which every field has the same dim; frozen embeddings pass a learned linear projection.

    Those of this dim pass unchanged where their ``feature_encoder`` is ``nn.Identity()``. Item tables and everything
    else are shared with the original.
    """
    unified = copy.copy(feature_map)
    unified.features = type(feature_map.features)()
    for name, spec in feature_map.features.items():
        spec = dict(spec)
        if spec["type"] != "meta":
            unchanged = spec.get("feature_encoder") == "nn.Identity()" and spec.get("pretrain_dim") == dim
            dropped = ["emb_output_dim"]
            dropped += ["feature_encoder"] if spec["type"] == "embedding" and not unchanged else []
            for key in dropped:
                if spec.pop(key, None) is not None:
                    logger.warning(
                        f"feature '{name}': {key} has no effect, because every field of this model has dim {dim}"
                    )
            spec["embedding_dim"] = dim
        unified.features[name] = spec
    unified.default_emb_dim = dim
    return unified
