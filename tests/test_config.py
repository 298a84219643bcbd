"""Configuration: FuxiCTR's files give FuxiCTR's parameters, and whatever is wrong is told in one line."""

from pathlib import Path

import fuxictr.utils
import pytest
import yaml

from fuxictr_mm.config import (
    check_model_params,
    config_hash,
    list_datasets,
    list_experiments,
    load_config,
    model_schema,
)
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.files import load_yaml
from fuxictr_mm.model import MultimodalModel

ROOT = Path(__file__).resolve().parents[1]

MODEL = """
Base:
    seed: 1
    epochs: 5
    metrics: [AUC]
_shared: &shared
    batch_size: 16
    epochs: 6
X_tiny:
    <<: *shared
    model: X
    dataset_id: d
    epochs: 7
    learning_rate: 2.0e-3
Y_tiny:
    model: Y
    data_root: ./overruled/
    dataset_id: d
"""

DATASET = """
d:
    data_root: ./data/
    data_format: parquet
    train_data: ./data/d/train.parquet
    valid_data: ./data/d/valid.parquet
    test_data: ./data/d/test.parquet
    item_info: ./data/d/item_info.parquet
    rebuild_dataset: False
    feature_cols:
        - {name: user_id, active: True, dtype: int, type: meta}
        - {name: [likes_level, views_level], active: True, dtype: int, type: categorical, vocab_size: 11}
        - {name: item_tags, active: True, dtype: int, type: sequence, max_len: 5, source: item}
    label_col: {name: label, dtype: float}
"""

# As the challenge's own tuner wrote it, whose `pretrain_dim` is left out and whose `item_info` is one file.
CHALLENGE = """
MicroLens_1M_x1:
    data_format: parquet
    data_root: ./data/
    feature_cols:
    -   {active: true, dtype: int, name: user_id, type: meta}
    -   {active: true, dtype: int, name: item_seq, type: meta}
    -   {active: true, dtype: int, name: likes_level, type: categorical, vocab_size: 11}
    -   {active: true, dtype: int, name: views_level, type: categorical, vocab_size: 11}
    -   {active: true, dtype: int, name: item_id, source: item, type: categorical, vocab_size: 91718}
    -   {active: true, dtype: int, max_len: 5, name: item_tags, source: item, type: sequence, vocab_size: 11740}
    -   {active: true, dtype: float, embedding_dim: 128, name: item_emb_d128, source: item, type: embedding}
    item_info: ./data/MicroLens_1M_x1/item_info.parquet
    label_col: {dtype: float, name: label}
    rebuild_dataset: false
    test_data: ./data/MicroLens_1M_x1/test.parquet
    train_data: ./data/MicroLens_1M_x1/train.parquet
    valid_data: ./data/MicroLens_1M_x1/valid.parquet
"""
CHALLENGE_MODEL = """
Base: {model_root: './checkpoints/', num_workers: 3, verbose: 1, early_stop_patience: 3, pickle_feature_encoder: True,
       save_best_only: True, eval_steps: null, debug_mode: False, group_id: user_id, use_features: null,
       feature_specs: null, feature_config: null}
DIN_default: {model: DIN, dataset_id: MicroLens_1M_x1, loss: 'binary_crossentropy', metrics: [AUC, logloss],
    task: binary_classification, optimizer: adam, learning_rate: 1.0e-3, embedding_regularizer: 0, net_regularizer: 0,
    batch_size: 4096, embedding_dim: 64, dnn_hidden_units: [1024, 512, 256], dnn_activations: ReLU,
    attention_hidden_units: [512, 256], attention_hidden_activations: ReLU, attention_output_activation: null,
    attention_dropout: 0.1, din_use_softmax: False, net_dropout: 0, batch_norm: True, epochs: 100, shuffle: True,
    seed: 20242025, monitor: "AUC", monitor_mode: 'max', max_len: 64, accumulation_steps: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory without data, and a configuration folder beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "conf/model_config.yaml").write_text(MODEL)
    (tmp_path / "conf/dataset_config.yaml").write_text(DATASET)
    return tmp_path / "conf"


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refused(folder, expid="X_tiny"):
    with pytest.raises((ConfigError, MissingFileError)) as caught:
        load_config(folder, expid)
    message = str(caught.value)
    assert "\n" not in message
    return message


def split(folder):
    """Turn the two files into folders of files."""
    for stem in ("model_config", "dataset_config"):
        content = yaml.safe_load((folder / f"{stem}.yaml").read_text())
        (folder / f"{stem}.yaml").unlink()
        (folder / stem).mkdir()
        for name, entry in content.items():
            (folder / stem / f"{name}.yaml").write_text(yaml.safe_dump({name: entry}))


@pytest.mark.parametrize("form", ["files", "folders"])
@pytest.mark.parametrize("expid", ["X_tiny", "Y_tiny"])
def test_the_same_parameters_as_fuxictr(folder, form, expid):
    if form == "folders":
        split(folder)
    theirs = fuxictr.utils.load_config(str(folder), expid)
    ours = load_config(folder, expid)
    assert {k: ours[k] for k in theirs} == theirs


def test_experiment_over_base_over_default(folder):
    params = load_config(folder, "X_tiny")
    assert (params["epochs"], params["seed"], params["batch_size"], params["max_len"]) == (7, 1, 16, 100)
    assert load_config(folder, "Y_tiny")["epochs"] == 5


def test_every_experiment_of_the_repository_loads():
    for expid, entry in list_experiments(ROOT).items():
        assert load_config(ROOT, expid)["model"]
        assert entry["description"]
    assert set(list_datasets(ROOT)) == {"tiny_mm", "tiny_noisy_mm", "MicroLens_1M_x1"}


def test_the_challenges_own_files_load(folder):
    from fuxictr_mm.registry import load_model_class

    (folder / "dataset_config.yaml").write_text(CHALLENGE)
    (folder / "model_config.yaml").write_text(CHALLENGE_MODEL)
    params = load_config(folder, "DIN_default")
    assert [c["name"] for c in params["feature_cols"]][-1] == "item_emb_d128"
    assert check_model_params(load_model_class("DIN"), params) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        (".5e1", 5.0),
        ("3", 3),
        ("1_000", 1000),
        ("'1e-3'", "1e-3"),
        ("e-3", "e-3"),
        ("1e", "1e"),
        ("+", "+"),
        ("1.2.3", "1.2.3"),
        ("-.inf", -float("inf")),
    ],
)
def test_numbers(tmp_path, text, value):
    (tmp_path / "x.yaml").write_text(f"key: {text}\n")
    read = load_yaml(tmp_path / "x.yaml")["key"]
    assert read == value
    assert type(read) is type(value)


def test_a_key_twice(folder):
    change(folder / "model_config.yaml", "    learning_rate", "    epochs: 8\n    learning_rate")
    assert "model_config.yaml, line 14, column 5: not valid YAML: the key 'epochs' is given twice" in refused(folder)


def test_an_experiment_twice(folder):
    change(folder / "model_config.yaml", "Y_tiny:", "X_tiny:")
    assert "line 15, column 1: not valid YAML: the key 'X_tiny' is given twice" in refused(folder)


def test_an_experiment_in_two_files(folder):
    split(folder)
    (folder / "model_config/zz.yaml").write_text((folder / "model_config/X_tiny.yaml").read_text())
    assert "both hold the experiment id 'X_tiny'" in refused(folder)


def test_a_merged_mapping_may_be_overridden_wherever_it_stands(tmp_path):
    # The anchor lies deeper than its user, so the merge happens before the anchored mapping is made.
    text = "t: &t {k: 1, m: 2}\nx:\n    inner: &a\n        <<: *t\n        k: 3\ny:\n    <<: *a\n"
    (tmp_path / "x.yaml").write_text(text)
    content = load_yaml(tmp_path / "x.yaml")
    assert content["y"] == content["x"]["inner"] == {"k": 3, "m": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: 3\n", "line 2, column 2: not valid YAML"),
        ("a:\n\tb: 1\n", "line 2, column 1: not valid YAML"),
        ("a: {{b}}\n", "line 1, column 5: not valid YAML: found unhashable key"),
        ("a: 2025-02-30\n", "not valid YAML: day"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: \x01\n", "not valid YAML"),
        ("- a\n", "the top level is a list"),
    ],
)
def test_broken_yaml(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml") as caught:
        load_yaml(tmp_path / "x.yaml")
    assert message in str(caught.value)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        load_yaml(tmp_path / "x.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "empty.yaml") == {}


def test_unknown_names_list_what_there_is(folder):
    message = refused(folder, "X_tny")
    assert "no experiment id 'X_tny'; did you mean 'X_tiny'? (there are: X_tiny, Y_tiny)" in message
    change(folder / "model_config.yaml", "dataset_id: d", "dataset_id: dd")
    assert "no dataset id 'dd'" in refused(folder)
    assert "(there are: d)" in refused(folder)


@pytest.mark.parametrize("entry", ["3", "null", "[1]"])
def test_an_entry_that_is_no_mapping(folder, entry):
    with (folder / "model_config.yaml").open("a") as file:
        file.write(f"Z_tiny: {entry}\n")
    assert "'Z_tiny' is" in refused(folder, "Z_tiny")
    with pytest.raises(ConfigError, match="expected a mapping"):
        list_experiments(folder)
    (folder / "model_config.yaml").write_text(f"Base: {entry}\nX_tiny: {{model: X, dataset_id: d}}\n")
    assert "'Base' is" in refused(folder)


def test_missing_files(folder, tmp_path):
    with pytest.raises(MissingFileError, match="no such folder"):
        load_config(tmp_path / "nowhere", "X_tiny")
    (folder / "dataset_config.yaml").unlink()
    assert "holds neither dataset_config.yaml nor a folder dataset_config/" in refused(folder)


def test_model_and_dataset_must_be_named(folder):
    change(folder / "model_config.yaml", "    model: Y\n", "")
    assert "Y_tiny: model is None" in refused(folder, "Y_tiny")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data_format: parquet", "data_format: csv", "data_format is 'csv', expected one of 'parquet'"),
        ("train_data:", "trian_data:", "unknown key 'trian_data'; did you mean 'train_data'?"),
        ("vocab_size: 11", "vocab_size: '11'", "vocab_size is '11', expected whole number (a number in quotes"),
        ("vocab_size: 11", "vocabsize: 11", "unknown key 'vocabsize'; did you mean 'vocab_size'?"),
        ("type: meta", "type: mta", "type is 'mta', expected one of"),
        (", type: meta", "", "feature 'user_id': type is missing"),
        ("rebuild_dataset: False", "rebuild_dataset: True", "rebuild_dataset: True; ids must be integers already"),
        ("label_col: {name: label", "label_col: {nam: label", "label_col: unknown key 'nam'"),
        ("    label_col: {name: label, dtype: float}", "    label_col: [{name: label, dtype: float}]", "one label"),
        ("    item_info: ./data/d/item_info.parquet\n", "", "item_info is missing"),
        ("        - {name: user_id, active: True, dtype: int, type: meta}", "        - user_id", "the entry 'user_id'"),
    ],
)
def test_wrong_dataset_keys(folder, old, new, message):
    change(folder / "dataset_config.yaml", old, new)
    assert message in refused(folder)


def test_all_problems_at_once(folder):
    change(folder / "dataset_config.yaml", "data_format: parquet", "data_format: csv")
    change(folder / "dataset_config.yaml", "type: meta", "type: mta")
    assert "data_format" in refused(folder)
    assert "'mta'" in refused(folder)


@pytest.mark.parametrize("where", ["feature_cols", "feature_specs", "initializer"])
def test_no_code_of_a_configuration_runs(folder, tmp_path, where):
    ran = tmp_path / "ran"
    code = f"__import__('os').system('touch {ran}')"
    if where == "feature_cols":
        change(folder / "dataset_config.yaml", "max_len: 5,", f'max_len: 5, feature_encoder: "{code}",')
    elif where == "feature_specs":
        spec = f'    feature_specs: [{{name: item_tags, feature_encoder: ["nn.Identity()", "{code}"]}}]\n'
        change(folder / "model_config.yaml", "    learning_rate", spec + "    learning_rate")
    else:
        change(
            folder / "model_config.yaml", "    learning_rate", f'    embedding_initializer: "{code}"\n    learning_rate'
        )
    assert "is not allowed; expected a call of a layer" in refused(folder)
    assert not ran.exists()


def test_paths_are_sought_here_then_beside_the_configuration(folder):
    for name in ("train", "valid"):
        path = folder / f"data/d/{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    here = Path("data/d/train.parquet")
    here.parent.mkdir(parents=True)
    here.touch()
    params = load_config(folder, "X_tiny")
    assert params["train_data"] == "./data/d/train.parquet"
    assert Path(params["valid_data"]) == folder / "data/d/valid.parquet"
    assert params["test_data"] == "./data/d/test.parquet"


@pytest.mark.parametrize("path", [".", "./", "..", "/"])
def test_a_folder_for_a_file_is_left_for_the_reader_to_judge(folder, path):
    change(folder / "dataset_config.yaml", "./data/d/train.parquet", path)
    assert Path(load_config(folder, "X_tiny")["train_data"]).is_dir()


def test_data_root_moves_what_lies_inside(folder, tmp_path):
    change(folder / "dataset_config.yaml", "./data/d/item_info.parquet", "[data/d/a.parquet, /elsewhere/b.parquet]")
    params = load_config(folder, "X_tiny", data_root=tmp_path / "moved")
    assert Path(params["train_data"]) == tmp_path / "moved/d/train.parquet"
    assert params["item_info"] == [str(tmp_path / "moved/d/a.parquet"), "/elsewhere/b.parquet"]
    assert params["data_root"] == str(tmp_path / "moved")


def test_environment_variables(folder, monkeypatch, tmp_path):
    text = (folder / "dataset_config.yaml").read_text().replace("./data/", "${SOME_DATA}/")
    (folder / "dataset_config.yaml").write_text(text)
    monkeypatch.delenv("SOME_DATA", raising=False)
    message = refused(folder)
    assert "environment variable SOME_DATA, which is not set" in message
    assert "--data_root" in message
    moved = load_config(folder, "X_tiny", data_root=tmp_path)
    assert Path(moved["test_data"]) == tmp_path / "d/test.parquet"
    monkeypatch.setenv("SOME_DATA", "/some")
    assert Path(load_config(folder, "X_tiny")["test_data"]) == Path("/some/d/test.parquet")


class Foreign:
    """As FuxiCTR's models are: nothing annotated, everything else in kwargs."""

    def __init__(self, feature_map, learning_rate=1e-3, hidden_units=(1,), **kwargs):
        pass


class Ours(MultimodalModel):
    def __init__(self, feature_map, *, width: int = 1, **params):
        pass


def test_the_signature_is_the_schema(folder):
    schema = model_schema(Ours)
    assert schema["width"] is int
    assert schema["learning_rate"] is float
    params = load_config(folder, "X_tiny")
    assert check_model_params(Ours, {**params, "width": 3}) == []
    with pytest.raises(ConfigError) as caught:
        check_model_params(Ours, {**params, "widht": 3, "learning_rate": "1e-3", "embedding_regularizer": [1]})
    message = str(caught.value)
    assert "unknown key 'widht'; did you mean 'width'?" in message
    assert "learning_rate is '1e-3', expected number (a number in quotes is text" in message
    assert "embedding_regularizer is [1], expected number or text or null" in message


def test_a_model_of_other_code_is_held_to_what_is_known(folder):
    params = load_config(folder, "X_tiny")
    assert len(check_model_params(Foreign, {**params, "temperature": 3, "hidden_units": "any"})) == 1
    with pytest.raises(ConfigError, match="learning_rate is '1e-3'"):
        check_model_params(Foreign, {**params, "learning_rate": "1e-3"})


def test_hash_holds_what_decides_a_result(folder):
    params = load_config(folder, "X_tiny")
    same = dict(reversed({**params, "gpu": 3, "verbose": 0, "num_workers": 9, "description": "x"}.items()))
    assert config_hash(same) == config_hash(params)
    for key, value in {"seed": 2, "learning_rate": 1e-4, "train_data": "x", "use_features": ["a"]}.items():
        assert config_hash({**params, key: value}) != config_hash(params)
    ordered = [config_hash({**params, "use_features": names}) for names in (["a", "b"], ["b", "a"])]
    assert ordered[0] != ordered[1]
