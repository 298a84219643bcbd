"""The options of synthetic data as a command takes them."""

import argparse
import dataclasses

from fuxictr_mm.commands.synth import add_arguments, main_from_args
from fuxictr_mm.data.synthetic.spec import PRESETS
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming

TINY = PRESETS["tiny"]


def test_command_line_starts_from_the_preset_and_takes_every_field(tmp_path):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args(["--out", "x"]).preset == "tiny"
    changes = {"users": 150, "items": 120, "train_rows": 50, "valid_rows": 20, "test_rows": 20, "text_noise": 0.5}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    arguments = ["--preset", "tiny", "--out", str(tmp_path / "out"), "--quiet", *options]
    main_from_args(parser.parse_args(arguments))
    spec = dataclasses.replace(TINY, **changes)
    generate(spec, tmp_path / "direct", progress=False)
    names = sorted(path.name for path in (tmp_path / "direct").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()
    with raises_naming(DataError, "--overwrite"):
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
