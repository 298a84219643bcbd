"""Settings of synthetic data."""

import dataclasses

import pytest

from fuxictr_mm.data.synthetic.spec import PRESETS
from fuxictr_mm.errors import ConfigError
from tests.errors import raises_naming

TINY = PRESETS["tiny"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("items", 9),
        ("items", 45),
        ("train_rows", -1),
        ("valid_rows", 0),
        ("users", 0),
        ("topics", 7),
        ("topics", 2),
        ("tags", 8),
        ("text_dim", 3),
        ("image_dim", 0),
        ("emb_dim", 15),
        ("emb_dim", 64),
        ("cold_items", 1.0),
        ("cold_share", 1.5),
        ("text_noise", -0.1),
        ("image_scale", 0.0),
        ("image_scale", 1e6),
        ("history_mean", 0.0),
        ("bias", float("nan")),
        ("text_noise", 1e8),  # beyond half precision: embeddings of infinity
        ("zipf_exponent", 1000.0),  # all probabilities of zero
        ("topic_sharpness", 1e308),
        ("history_mean", 1e300),
        ("taste_topics", 4),
        ("taste_share", 1.5),
        ("history_noise", -0.1),
        ("recent_noise", 21),
        ("like_after_click", 2),
        ("seed", -1),
    ],
)
def test_impossible_options_are_refused_in_one_line(name, value):
    with raises_naming(ConfigError, f"{name} is {value};"):
        dataclasses.replace(TINY, **{name: value})


@pytest.mark.parametrize(
    ("preset", "factor", "train", "valid"),
    [("microlens-1m", 0.02, 72_000, 3000), ("taobao-mm", 1e-4, 7526, 752), ("tiny", 2, 32_000, 6000)],
)
def test_a_scaled_world_has_rows_enough_to_validate(preset, factor, train, valid):
    spec = PRESETS[preset].scaled(factor)
    assert (spec.train_rows, spec.valid_rows) == (train, valid)
