"""The options of synthetic data as a command takes them."""

import argparse
import dataclasses
import json

import pytest

from fuxictr_mm import Experiment
from fuxictr_mm.commands.synth import add_arguments, main_from_args
from fuxictr_mm.data.synthetic.spec import PRESETS
from fuxictr_mm.data.synthetic.writer import CONFIGURATION, generate
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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*names, *CONFIGURATION])
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


SMALL = ["--users=150", "--items=120", "--train-rows=200", "--valid-rows=50", "--test-rows=50"]


def synthesize(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    main_from_args(parser.parse_args([*SMALL, *arguments]))


@pytest.mark.parametrize(
    ("options", "labels"), [((), ["label"]), (("--preset=tasks", "--emb-bits=8", "--emb-items=0.5"), ["label", "like"])]
)
def test_the_folder_can_be_trained_on_as_it_is(tmp_path, capsys, options, labels):
    folder = tmp_path / "my data"
    synthesize("--out", str(folder), "--json", *options)
    experiments = json.loads(capsys.readouterr().out)["experiments"]
    assert experiments == ["DIN_my data", "DIN_MM_my data"]
    for name in experiments:
        settings = {"model_root": str(tmp_path / "runs"), "epochs": 1, "batch_size": 1000}
        experiment = Experiment.load(name, folder, **settings)
        metrics = experiment.fit().metrics["valid"]
        for label in labels:
            assert (f"{label}_AUC" if len(labels) > 1 else "AUC") in metrics


def test_a_configuration_that_exists_is_kept(tmp_path, capsys):
    synthesize("--out", str(tmp_path / "data"), "--quiet")
    path = tmp_path / "data/model_config.yaml"
    path.write_text("{}", "utf-8")
    synthesize("--out", str(tmp_path / "data"), "--overwrite", "--seed=8", "--json")
    assert json.loads(capsys.readouterr().out)["kept"] == list(CONFIGURATION)
    assert path.read_text("utf-8") == "{}"


@pytest.mark.parametrize(("valid_rows", "metrics"), [(2, ["AUC", "logloss"]), (400, ["AUC", "gAUC", "logloss"])])
def test_experiments_have_gauc_only_if_the_validation_rows_define_it(tmp_path, valid_rows, metrics):
    synthesize(f"--out={tmp_path / 'few'}", "--quiet", f"--valid-rows={valid_rows}")
    assert Experiment.load("DIN_few", config=tmp_path / "few").config.metrics == metrics
