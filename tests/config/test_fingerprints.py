"""Fingerprints as folders on disk hold them: a value that changes makes results stale and ends no interrupted run."""

from pathlib import Path

import pyarrow as pa
import pytest

from fuxictr_mm.config import checkpoint_hash, config_hash, json_hash, seeds_hash
from fuxictr_mm.data.numbering import digest_of
from fuxictr_mm.data.vocabulary import Vocabulary
from fuxictr_mm.encoding.cache import Cache
from fuxictr_mm.runs import Run

SETTINGS = {
    "model": "DIN", "model_id": "DIN_tiny", "dataset_id": "tiny", "seed": 7, "gpu": 0, "verbose": 1, "resident": "auto",
    "train_data": "/d/train.parquet", "data_root": "/d", "model_root": "/m", "learning_rate": 0.001,
    "metrics": ["AUC", "logloss"], "description": "x", "item_info": ["/d/a.parquet"], "path": Path("/p"),
    "feature_cols": [{"name": "likes", "type": "numeric", "sharding": "rows"}, {"name": ["a", "b"]}],
    "feature_specs": [{"name": "likes", "embedding_dim": 4}],
}  # fmt: skip

#: With keys of several types, which have no order.
MIXED = {**SETTINGS, "loss_weights": {1: 0.5, "b": 1}}


def run(settings):
    sources = {"model_code": "abc", "data": {"train_data": "1", "test_data": "2"}}
    return Run(Path("r"), "r", "e", "d", config=settings, environment=sources)


HASHES = {
    "settings": config_hash,
    "of all seeds": lambda settings: config_hash(settings, with_paths=False),
    "in memory": lambda settings: checkpoint_hash(settings, True),
    "streamed": lambda settings: checkpoint_hash(settings, False),
    "seeds": seeds_hash,
    "run": lambda settings: run(settings).config_key,
}


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("settings", SETTINGS, "ab08cd4e38f2904a"),
        ("of all seeds", SETTINGS, "5f18d23ccee76c58"),
        ("in memory", SETTINGS, "3c14470f008ba201"),
        ("streamed", SETTINGS, "7688d2061cfd1df8"),
        ("seeds", SETTINGS, "01e42b404e4125b1"),
        ("run", SETTINGS, "909b79dae7a0c9a3"),
        ("settings", MIXED, "4ea9b0b50ff30b70"),
        ("of all seeds", MIXED, "150ebebfc16abddd"),
        ("in memory", MIXED, "84959fd81c86284e"),
        ("streamed", MIXED, "1390492a6d3e0c27"),
        ("seeds", MIXED, "ca624b274b03f2c2"),
        ("run", MIXED, "6d738bcda8c51067"),
    ],
)
def test_fingerprints_of_settings_are_those_of_earlier_versions(name, settings, expected):
    assert HASHES[name](settings)[:16] == expected


def test_other_fingerprints_are_those_of_earlier_versions():
    cache = Cache(Path("r"), {"settings": {"b": 1, "a": [1, 2.5]}, "files": {"train": "ab"}, "path": Path("/p")})
    assert cache.folder.name == "encoded-052454841157"
    assert digest_of(Vocabulary.build([pa.array(["a", "b", ""])])).startswith("8156f186567be3a7")
    assert digest_of(Vocabulary.build([pa.array([3, -1])])).startswith("24ae9fd247ec47b4")


def test_what_a_fingerprint_leaves_out():
    for key, changed in {"gpu": 1, "seed": 8, "train_data": "/e/train.parquet", "model_root": "/n"}.items():
        other = {**SETTINGS, key: changed}
        same = {name for name, of in HASHES.items() if of(other) == of(SETTINGS)}
        expected = {
            "gpu": set(HASHES),
            "seed": {"of all seeds", "seeds", "run"},
            "train_data": {"of all seeds"},
            "model_root": {"of all seeds", "seeds", "run"},
        }
        assert same == expected[key], key


def test_keys_of_several_types_have_a_hash():
    assert json_hash({1: 2, "b": 3}) == json_hash({"b": 3, 1: 2}) == json_hash({"1": 2, "b": 3})
