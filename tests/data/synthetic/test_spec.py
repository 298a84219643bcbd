"""Options of synthetic data and its command."""

import argparse
import dataclasses

import pytest

from fuxictr_mm.data.synthetic.spec import PRESETS, add_arguments, main_from_args
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.errors import ConfigError, DataError
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


def test_command_line_starts_from_the_preset_and_takes_every_field(tmp_path, hashes):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args(["--out", "x"]).preset == "tiny"
    changes = {"users": 150, "items": 120, "train_rows": 50, "valid_rows": 20, "test_rows": 20, "text_noise": 0.5}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    arguments = ["--preset", "tiny", "--out", str(tmp_path / "out"), "--quiet", *options]
    main_from_args(parser.parse_args(arguments))
    spec = dataclasses.replace(TINY, **changes)
    generate(spec, tmp_path / "direct", progress=False)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "direct")
    with pytest.raises(DataError):
        main_from_args(parser.parse_args(arguments))
    main_from_args(parser.parse_args([*arguments, "--overwrite"]))


def test_a_size_that_is_given_is_neither_scaled_nor_refused_as_scaled(tmp_path, monkeypatch):
    """A hundredth of the tiny preset's items is too few, but the command names another number."""
    specs = []
    monkeypatch.setattr("fuxictr_mm.data.synthetic.writer.generate", lambda spec, out, **_: specs.append(spec))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = ["--scale", "0.01", "--items", str(TINY.items), "--out", str(tmp_path), "--quiet"]
    main_from_args(parser.parse_args(arguments))
    assert specs[0].items == TINY.items
    assert specs[0].users == round(TINY.users / 100)
