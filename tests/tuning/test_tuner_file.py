"""A tuner file: its base, its dataset, its space, and what is wrong in them."""

import pytest

from fuxictr_mm.config import list_experiments
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.tuning import enumerate_trials
from fuxictr_mm.yaml_files import dump_yaml, load_yaml
from tests.errors import raises_naming
from tests.tuning.grids import HEAD, tuner_file


def test_an_inline_base_and_a_named_experiment(folder):
    head = "base_expid: X\nmodel_config:\n    Base: {model_root: there}\n    X: {model: Fake, dataset_id: tiny}\n"
    head += "dataset_config:" + (folder / "base/dataset_config.yaml").read_text().replace("\n", "\n    ") + "\n"
    experiments = list_experiments(enumerate_trials(tuner_file(folder, "width: [1]", head=head)))
    assert [name.split("_")[:2] for name in experiments] == [["X", "001"]]
    assert next(iter(experiments.values()))["model_root"] == "there"
    named = tuner_file(folder, "width: [1]", head="base_config: base\nbase_expid: Fake_named\n")
    assert next(iter(list_experiments(enumerate_trials(named)))).startswith("Fake_named_001_")


def test_the_dataset_may_be_a_block_of_the_tuner_file(folder):
    block = (folder / "base/dataset_config.yaml").read_text().strip().replace("tiny:", "mine:", 1)
    head = f"base_config: base\nbase_expid: Fake_default\ndataset_id: mine\n{block}\n"
    written = enumerate_trials(tuner_file(folder, "width: [1]", head=head))
    assert list(load_yaml(written / "dataset_config.yaml")) == ["mine"]


def test_paths_that_count_from_the_base_folder_are_found(folder, monkeypatch):
    (folder / "base/data/tiny").mkdir(parents=True)
    (folder / "base/data/tiny/train.parquet").touch()
    written = enumerate_trials(tuner_file(folder, "width: [1]"))
    entry = load_yaml(written / "dataset_config.yaml")["tiny"]
    assert entry["train_data"] == str(folder / "base/data/tiny/train.parquet")
    assert entry["valid_data"] == "data/tiny/valid.parquet"


def test_initial_weights_that_count_from_the_base_folder_are_found(folder):
    models = load_yaml(folder / "base/model_config.yaml")
    models["Fake_default"]["initial_weights"] = "../before.model"
    (folder / "base/model_config.yaml").write_text(dump_yaml(models))
    (folder / "before.model").touch()
    (folder / "base/other.model").touch()
    found = f"{(folder / 'before.model').resolve()}"
    written = list_experiments(enumerate_trials(tuner_file(folder, "width: [1]")))
    assert [entry["initial_weights"] for entry in written.values()] == [found]
    space = "initial_weights: [null, ../before.model, other.model, before.model]"
    written = list_experiments(enumerate_trials(tuner_file(folder, space)))
    others = [None, found, str((folder / "base/other.model").resolve()), "before.model"]
    assert [entry["initial_weights"] for entry in written.values()] == others


@pytest.mark.parametrize("missing", ["model_config.yaml", "dataset_config.yaml"])
def test_a_base_folder_without_configuration_names_the_key(folder, missing):
    (folder / "base" / missing).unlink()
    with raises_naming(
        (ConfigError, MissingFileError), "grid.yaml", folder / "base", missing, "base_config"
    ) as refused:
        enumerate_trials(tuner_file(folder, "width: [1]"))
    assert "--config" not in str(refused.value)


def test_the_challenges_own_tuner_file(folder):
    text = """
base_config: ./base/
base_expid: Fake_default
dataset_id: MicroLens_1M_x1
dataset_config:
    MicroLens_1M_x1:
        data_root: ./data/
        data_format: parquet
        train_data: ./data/MicroLens_1M_x1/train.parquet
        valid_data: ./data/MicroLens_1M_x1/valid.parquet
        item_info: ./data/MicroLens_1M_x1/item_info.parquet
        rebuild_dataset: False
        feature_cols: [{name: item_id, active: True, dtype: int, type: categorical, vocab_size: 91718, source: item}]
        label_col: {name: label, dtype: float}
tuner_space:
    embedding_regularizer: [1.e-6, 1.e-7]
    net_regularizer: 0
    learning_rate: 1.e-3
    batch_size: 8192
"""
    (folder / "grid.yaml").write_text(text)
    experiments = list_experiments(enumerate_trials(folder / "grid.yaml"))
    assert [entry["embedding_regularizer"] for entry in experiments.values()] == [1e-6, 1e-7]
    assert all(name.startswith("Fake_MicroLens_1M_x1_00") for name in experiments)


def test_all_problems_in_one_message(folder):
    space = "widht: [1]\ndnn_hidden_units: [1024, 512]\nwidth: {low: 3, high: 1}"
    names = ["'studdy'", "'study'", "trials is 0", "seed is 'x'", "widht", "[[1024, 512]]", "low is 3"]
    with raises_naming(ConfigError, "grid.yaml", *names):
        enumerate_trials(tuner_file(folder, space, head=HEAD + "studdy: a\nsearch: tpe\ntrials: 0\nseed: x\n"))


@pytest.mark.parametrize("missing", ["base_expid", "dataset_id", "files"])
def test_a_missing_base_hides_no_problem_of_the_space(folder, missing):
    head = {"base_config": "base", "base_expid": "Fake_default", "dataset_id": "tiny"}
    expected = ["batch_size: an empty list", "learning_rate: low is 3"]
    if missing == "files":
        for name in ("model_config.yaml", "dataset_config.yaml"):
            (folder / "base" / name).unlink()
            expected.append(name)
    else:
        head[missing] = "other"
        expected.append("'other'")
    space = "widht: [1]\nbatch_size: []\nlearning_rate: {low: 3, high: 1}"
    text = "".join(f"{key}: {value}\n" for key, value in {**head, "search": "tpe", "trials": 1}.items())
    with raises_naming(ConfigError, *expected) as caught:
        enumerate_trials(tuner_file(folder, space, head=text))
    assert "widht" not in str(caught.value)  # may be a setting of what is missing


def test_an_unknown_model_hides_no_other_problem(folder):
    space = "model: [Fake, Other, 3]\nwidht: [1]\nbatch_size: []\nwidth: {low: 3, high: 1}"
    with raises_naming(ConfigError, "'Other'", "'3'", "batch_size", "low is 3") as caught:
        enumerate_trials(tuner_file(folder, space, head=HEAD + "search: tpe\ntrials: 1\n"))
    assert "widht" not in str(caught.value)  # may be a setting of Other


@pytest.mark.parametrize(
    ("space", "head", "names"),
    [
        ("widht: [1, 2]", HEAD, ["tuner_space: widht", "'width'"]),
        ("dnn_hidden_units: [1024, 512]", HEAD, ["dnn_hidden_units", "[[1024, 512]]"]),
        ("metrics: [AUC, logloss]", HEAD, ["metrics", "[['AUC', 'logloss']]"]),
        ("use_features: [item_id]", HEAD, ["use_features", "[['item_id']]"]),
        ("width: []", HEAD, ["width"]),
        ("widht: [1]\nwidth: []\ndataset_id: [tiny]", HEAD, ["'width'", "width: an empty list", "dataset_id: cannot"]),
        ("width: [1, 2, 1]", HEAD, ["width: 1"]),
        ("dataset_id: [tiny, other]", HEAD, ["dataset_id"]),
        ("model: [Fake, Fakr]", HEAD, ["'Fakr'", "'Fake'"]),
        ("width: [1]", "base_config: base\nbase_expid: Fake_defalt\ndataset_id: tiny\n", ["'Fake_defalt'"]),
        ("width: [1]", "base_config: base\nbase_expid: Fake_default\n", ["dataset_id is 'TBD'"]),
        ("width: [1]", "base_config: base\nbase_exp: Fake_default\n", ["'base_exp'", "'base_expid'"]),
        ("width: [1]", "base_config: base\n", ["base_expid is missing"]),
        ("width: [1]", "base_config: nowhere\nbase_expid: Fake_default\n", ["base_config", "nowhere"]),
        ("width: [1]", "base_expid: X\nmodel_config: {Y: {model: Fake}}\n", ["base_expid", "'X'"]),
        ("width: [1]", "base_expid: X\nmodel_config: {X: 3}\n", ["model_config", "X is 3"]),
        (
            "width: [1]",
            "base_expid: X\ndataset_id: a\nmodel_config: {X: {model: Fake}}\ndataset_config: {b: {}}\n",
            ["'a'"],
        ),
    ],
)
def test_bad_spaces_and_bases_write_nothing(folder, space, head, names):
    with raises_naming(ConfigError, *names):
        enumerate_trials(tuner_file(folder, space, head=head))
    assert not (folder / "grid").exists()
