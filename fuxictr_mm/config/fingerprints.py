"""Fingerprints: the hashes by which results, training checkpoints, caches and studies know what they belong to.

Of settings, flat as ``ExperimentConfig.to_dict`` returns them; all are SHA-256 of JSON with sorted keys:

==========================  =======================================  ==================================================
fingerprint                 of all settings but                      kept as, and what it decides
==========================  =======================================  ==================================================
``config_hash(values)``     ``VOLATILE_KEYS``, which decide no       ``config_hash`` in ``EXPID.json``: whether a result
                            metric, and ``VOLATILE_FEATURE_KEYS``    is of this experiment. Its first 8 digits are in
                                                                     the names of a tuner's experiments and datasets; of
                                                                     the base experiment, in a study.
``config_hash(values,       the above, ``PATH_KEYS``, the roots      ``settings_hash`` in ``EXPID.json``: the same for
with_paths=False)``         ``initial_weights`` and ``seed``         every seed, wherever the files are
``checkpoint_hash``         as ``config_hash(values)``, with         ``config_hash`` in a training checkpoint: where the
                            ``resident`` as it turned out            rows are decides their order, and ``auto`` may
                                                                     turn out otherwise in the process that resumes
``seeds_hash``              ``NAMING_KEYS``; paths count             nowhere: part of ``Run.config_key``, with the
                                                                     hashes of code and data, by which the seeds of one
                                                                     configuration are found
``json_hash(made_from)``    what decides no encoded value, by        the first 12 digits in the name of the folder
                            ``fuxictr_mm.encoding.prepare``          ``encoded-FINGERPRINT``
==========================  =======================================  ==================================================

Of contents: data files by ``data.fingerprint.hash_files``, the code of a model by ``registry.code_hash``, the order of
ids by ``data.numbering.digest_of``, saved embeddings by ``reduction.saved.checksum``. Files on disk depend on all of
these: a change of one makes results stale and interrupted runs start again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fuxictr_mm.config.dataset import PATH_KEYS

#: Keys that decide no result.
VOLATILE_KEYS = (
    "gpu", "threads", "keep_memory", "tensorboard", "record", "verbose", "num_workers", "debug_mode", "description",
    "pickle_feature_encoder", "checkpoint_minutes", "checkpoint_steps", "checkpoint_keep", "checkpoint_in_background",
)  # fmt: skip

#: The same of a feature.
VOLATILE_FEATURE_KEYS = ("sharding",)

#: Settings in which two seeds of one configuration may differ.
NAMING_KEYS = (*VOLATILE_KEYS, "seed", "model_id", "model_root")


def json_hash(value: Any) -> str:
    """Return the hash of a value; what JSON does not have counts as its text."""
    try:
        text = json.dumps(value, sort_keys=True, default=str)
    except TypeError:  # keys of several types have no order
        text = json.dumps(as_json(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(value: Any) -> Any:
    """Return a value as JSON gives it back; what JSON does not have becomes a text."""
    return json.loads(json.dumps(value, default=str))


def config_hash(values: Mapping[str, Any], *, with_paths: bool = True) -> str:
    """Return the hash of all settings that decide a result; without paths, the same for every seed."""
    paths = () if with_paths else (*PATH_KEYS, "data_root", "model_root", "initial_weights", "seed")
    kept = {k: v for k, v in values.items() if k not in VOLATILE_KEYS and k not in paths}
    for key in ("feature_cols", "feature_specs"):
        if isinstance(columns := kept.get(key), list):
            kept[key] = [
                {k: v for k, v in column.items() if k not in VOLATILE_FEATURE_KEYS}
                if isinstance(column, Mapping)
                else column
                for column in columns
            ]
    return json_hash(kept)


def checkpoint_hash(values: Mapping[str, Any], in_memory: bool) -> str:
    """Return the hash of a training checkpoint of settings, by whether the training rows are in memory."""
    return config_hash({**values, "resident": in_memory})


def seeds_hash(values: Mapping[str, Any]) -> str:
    """Return the hash of the settings that the seeds of one configuration have in common."""
    return json_hash(with_text_keys({k: v for k, v in values.items() if k not in NAMING_KEYS}))


def with_text_keys(value: Any) -> Any:
    """Return a configuration whose keys are texts at every depth, so that they can be sorted.

    Examples
    --------
    >>> with_text_keys({"x": [{1: 2, "b": 3}]})
    {'x': [{'1': 2, 'b': 3}]}
    """
    if isinstance(value, dict):
        return {str(k): with_text_keys(v) for k, v in value.items()}
    return [with_text_keys(v) for v in value] if isinstance(value, list | tuple) else value
