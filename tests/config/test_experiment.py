"""One description of every key: what loads, what is refused, and when two configurations are the same."""

from pathlib import Path
from typing import Annotated

import fuxictr.utils
import pytest
import yaml
from pydantic import Field

from fuxictr_mm.checking import model_schema
from fuxictr_mm.config import DatasetConfig, Dropout, ExperimentConfig, list_datasets, list_experiments
from fuxictr_mm.config.columns import split_entries
from fuxictr_mm.data.synthetic.writer import INT8_FACTOR
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.registry import load_model_class
from fuxictr_mm.yaml_files import dump_yaml, load_yaml
from tests.errors import check_names, raises_naming
from tests.paths import ROOT

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
    description: an experiment
    model: X
    dataset_id: d
    epochs: 7
    learning_rate: 2.0e-3
    monitor: {AUC: 1, logloss: -1}
    max_gradient_norm: 5
    feature_specs: [{name: likes_level, embedding_dim: 4}]
    num_heads: 4
    net_dropout: 0
Y_tiny:
    model: Y
    data_root: ./overruled/
    dataset_id: d
"""

DATASET = """
d:
    description: a dataset
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
    resident: False
"""

# The challenge's own, with keys that have no effect here.
CHALLENGE = """
Base: {model_root: './checkpoints/', num_workers: 3, verbose: 1, early_stop_patience: 3, pickle_feature_encoder: True,
       save_best_only: True, eval_steps: null, debug_mode: False, group_id: user_id, use_features: null,
       feature_specs: null, feature_config: null}
DIN_default: {model: DIN, dataset_id: d, loss: 'binary_crossentropy', metrics: [AUC, logloss],
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


def add(folder, *lines):
    """Add settings to X_tiny."""
    change(
        folder / "model_config.yaml",
        "    num_heads: 4\n",
        "".join(f"    {line}\n" for line in ("num_heads: 4", *lines)),
    )


def refused(folder, expid="X_tiny", **options):
    with pytest.raises((ConfigError, MissingFileError)) as caught:
        ExperimentConfig.load(folder, expid, **options)
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
    del theirs["description"]  # theirs is the dataset's
    ours = ExperimentConfig.load(folder, expid).to_dict()
    assert {k: ours[k] for k in theirs} == theirs


def test_experiment_over_base_over_default(folder):
    config = ExperimentConfig.load(folder, "X_tiny")
    assert (config.epochs, config.seed, config.batch_size, config.max_len) == (7, 1, 16, 100)
    assert (config.resident, config.description, config.dataset.label_col.name) == (False, "an experiment", "label")
    assert config.model_settings == {"num_heads": 4, "net_dropout": 0}
    assert ExperimentConfig.load(folder, "Y_tiny").epochs == 5
    assert ExperimentConfig.load(folder, "X_tiny", overrides={"epochs": 3, "num_heads": 2}).epochs == 3


def test_a_run_loads_from_its_own_dict(folder):
    config = ExperimentConfig.load(folder, "X_tiny", overrides={"gpu": 0})
    again = ExperimentConfig.from_dict(config.to_dict())
    assert again == config
    assert again.model_arguments() == {k: v for k, v in config.to_dict().items() if k != "model"}
    with raises_naming(ConfigError, "X_tiny", "label_col", "epochs is 0"):
        ExperimentConfig.from_dict({**{k: v for k, v in config.to_dict().items() if k != "label_col"}, "epochs": 0})


def test_every_experiment_of_the_repository_loads():
    for expid, entry in list_experiments(ROOT).items():
        assert ExperimentConfig.load(ROOT, expid).model
        assert entry["description"]
    assert set(list_datasets(ROOT)) == {
        "tiny_mm",
        "tiny_noisy_mm",
        "long_mm",
        "path_mm",
        "taobao_like",
        "tasks_mm",
        "MicroLens_1M_x1",
    }


def test_embeddings_of_8_bit_integers_are_read_on_unit_scale():
    config = ExperimentConfig.load(ROOT, "SIM_taobao")
    scales = [f.scale for f in split_entries(config.dataset.feature_cols) if f.type == "embedding"]
    assert scales == [1 / INT8_FACTOR]


def test_the_challenges_own_files_load(folder):
    (folder / "model_config.yaml").write_text(CHALLENGE)
    config = ExperimentConfig.load(folder, "DIN_default", find_model=load_model_class)
    assert config.check_model(load_model_class("DIN")) == []


def test_fingerprints_of_finished_runs_stay(folder):
    """Values that earlier releases wrote into the results of these two experiments."""
    prints = [
        ExperimentConfig.load(folder, expid).fingerprint(paths) for expid in ("X_tiny", "Y_tiny") for paths in (1, 0)
    ]
    assert [text[:16] for text in prints] == [
        "2379fccb1a8690a5",
        "de3dcaf0152bee78",
        "358da8d3b0eb7b36",
        "5a96fd342bd3b425",
    ]


def test_the_fingerprint_holds_what_decides_a_result(folder):
    def of(paths=True, **overrides):
        return ExperimentConfig.load(folder, "X_tiny", overrides=overrides).fingerprint(paths)

    assert of(gpu=3, verbose=0, num_workers=9, description="x", embedding_regularizer=1) == of(
        embedding_regularizer=1.0
    )
    spec = {"name": "item_tags", "table": "sharded"}
    of_sharding = [of(feature_specs=[{**spec, **more}]) for more in ({}, {"sharding": "row"}, {"sharding": "table"})]
    assert of_sharding[0] == of_sharding[1] == of_sharding[2] != of(feature_specs=[{**spec, "table": "touched"}])
    changes = {
        "seed": 2,
        "learning_rate": 1e-4,
        "train_data": "x",
        "use_features": ["user_id", "item_tags"],
        "num_heads": 2,
    }
    found = {of(**{key: value}) for key, value in changes.items()} | {of(), of(use_features=["item_tags", "user_id"])}
    assert len(found) == len(changes) + 2
    assert of(paths=False, seed=2, train_data="x") == of(paths=False)


@pytest.mark.parametrize("expid", ["2024", "1e3", "010", "true", "2025-01-01"])
def test_ids_that_yaml_reads_as_something_else(folder, expid):
    change(folder / "model_config.yaml", "Y_tiny:", f"{expid}:")
    assert ExperimentConfig.load(folder, expid).expid == expid
    assert list(list_experiments(folder)) == ["X_tiny", expid]
    check_names(refused(folder, "Y"), ", ".join(sorted(["X_tiny", expid])))


@pytest.mark.parametrize("dataset_id", ["2024", "1.0", "1e3", "true", "2024-01-01"])
def test_dataset_ids_that_yaml_reads_as_something_else(folder, dataset_id):
    change(folder / "dataset_config.yaml", "\nd:", f"\n{dataset_id}:")
    change(folder / "model_config.yaml", "dataset_id: d", f"dataset_id: {dataset_id}")
    config = ExperimentConfig.load(folder, "X_tiny")
    assert config.dataset_id == dataset_id
    (folder / "again.yaml").write_text(dump_yaml(config.to_dict()))
    assert load_yaml(folder / "again.yaml")["dataset_id"] == dataset_id
    entries = f"model_config: {{X: {{dataset_id: {dataset_id}}}}}\ndataset_config: {{{dataset_id}: {{}}}}"
    (folder / "tuner.yaml").write_text(f"dataset_id: {dataset_id}\n{entries}")
    read = load_yaml(folder / "tuner.yaml")
    assert {read["dataset_id"], read["model_config"]["X"]["dataset_id"], *read["dataset_config"]} == {dataset_id}


@pytest.mark.parametrize("name", ["a/b", "..", "a/"])
def test_an_id_that_is_no_name_of_a_folder(folder, name):
    """Runs are looked for in the folder ROOT/DATASET/EXPID."""
    path = folder / "model_config.yaml"
    path.write_text(MODEL.replace("X_tiny:", f"'{name}':"))
    with raises_naming(ConfigError, path, f"'{name}'"):
        ExperimentConfig.load(folder, name)
    path.write_text(MODEL.replace("dataset_id: d", f"dataset_id: '{name}'"))
    dataset = folder / "dataset_config.yaml"
    dataset.write_text(DATASET.replace("\nd:", f"\n'{name}':"))
    with raises_naming(ConfigError, dataset, f"'{name}'"):
        ExperimentConfig.load(folder, "X_tiny")


def test_an_experiment_in_two_files(folder):
    split(folder)
    (folder / "model_config/zz.yaml").write_text((folder / "model_config/X_tiny.yaml").read_text())
    check_names(refused(folder), "'X_tiny'", "zz.yaml")


def test_unknown_names_list_what_there_is(folder):
    check_names(refused(folder, "X_tny"), "'X_tny'", "'X_tiny'", "X_tiny, Y_tiny")
    change(folder / "model_config.yaml", "dataset_id: d", "dataset_id: dd")
    change(folder / "model_config.yaml", "epochs: 7", "epochs: '7'")
    message = refused(folder)
    check_names(message, "'dd'", "'d'", "epochs is '7'", "write 7 ")
    assert "label_col" not in message


@pytest.mark.parametrize("entry", ["3", "null", "[1]"])
def test_an_entry_that_is_no_mapping(folder, entry):
    with (folder / "model_config.yaml").open("a") as file:
        file.write(f"Z_tiny: {entry}\n")
    assert "'Z_tiny' is" in refused(folder, "Z_tiny")
    with raises_naming(ConfigError, "'Z_tiny'"):
        list_experiments(folder)
    (folder / "model_config.yaml").write_text(f"Base: {entry}\nX_tiny: {{model: X, dataset_id: d}}\n")
    assert "'Base' is" in refused(folder)


def test_missing_files_and_names(folder, tmp_path):
    assert "no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "tuner.yaml").touch()
    assert f"fuxictr-mm tune --config {tmp_path}/tuner.yaml" in refused(tmp_path / "tuner.yaml")
    with raises_naming(MissingFileError, tmp_path / "nowhere"):  # as base_config of a tuner file
        list_experiments(tmp_path / "nowhere")
    change(folder / "model_config.yaml", "    model: Y\n", "")
    assert "Y_tiny: model is None" in refused(folder, "Y_tiny")
    (folder / "dataset_config.yaml").unlink()
    check_names(refused(folder), folder, "dataset_config.yaml", "dataset_config/")


def test_a_tab_needs_no_double_quotes():
    assert [DatasetConfig._check_sep(sep) for sep in ("\\t", "\t", ";")] == ["\t", "\t", ";"]


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("data_format: parquet", "data_format: h5", ["data_format is 'h5'", "'parquet'", "'csv'", "'npz'"]),
        ("data_format: parquet", "data_format: csv", ["data_format", "csv", "item_info"]),
        ("data_format: parquet", "data_format: parquet\n    valid_size: 0.1", ["valid_size", "0.1"]),
        ("data_format: parquet", "data_format: csv\n    sep: '::'", ["sep", "'::'", "one character"]),
        ("train_data:", "trian_data:", ["'trian_data'", "'train_data'"]),
        ("vocab_size: 11", "vocab_size: '11'", ["vocab_size is '11'", "null"]),
        ("vocab_size: 11", "vocabsize: 11", ["'vocabsize'", "'vocab_size'"]),
        ("vocab_size: 11", "11: vocab_size", ["'11'"]),
        ("type: meta", "type: mta", ["'user_id'", "type is 'mta'", "'meta'"]),
        ("active: True", "active: yes please", ["active is 'yes please'"]),
        (", type: meta", "", ["'user_id'", "type is missing"]),
        ("{name: user_id, active: True, ", "{", ["feature_cols: {'dtype': 'int', 'type': 'meta'}", "name is missing"]),
        (", dtype: int, type: meta", ", type: meta", ["'user_id'", "dtype is missing"]),
        ("rebuild_dataset: False", "rebuild_dataset: True", ["rebuild_dataset"]),
        ("label_col: {name: label", "label_col: {nam: label", ["'nam'"]),
        ("label_col: {name: label, dtype: float}", "label_col: [{name: a}, {name: a}]", ["'a'"]),
        ("label_col: {name: label, dtype: float}", "label_col: [{name: a}, {nam: b}]", ["'nam'"]),
        ("label_col: {name: label, dtype: float}", "label_col: [a, b]", ["label_col", "'a'"]),
        ("label_col: {name: label, dtype: float}", "label_col: []", ["label_col", "empty"]),
        ("    label_col: {name: label, dtype: float}\n", "", ["label_col is missing"]),
        ("item_info: ./data/d/item_info.parquet", "item_info: []", ["item_info is []"]),
        ("        - {name: user_id, active: True, dtype: int, type: meta}", "        - user_id", ["'user_id'"]),
    ],
)
def test_wrong_dataset_keys(folder, old, new, names):
    change(folder / "dataset_config.yaml", old, new)
    check_names(refused(folder), *names)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("seed: -1", ["seed is -1", "0", "4294967296"]),
        ("accumulation_steps: 0", ["accumulation_steps is 0", "1"]),
        ("accumulation_steps: 1.0", ["accumulation_steps is 1.0"]),
        ("eval_steps: True", ["eval_steps is True"]),
        ("shuffle: 1", ["shuffle is 1"]),
        ("shuffle: 'yes'", ["shuffle is 'yes'", "True"]),
        ("model_root: 2024", ["model_root", "'2024'"]),
        ("embedding_regularizer: [1]", ["embedding_regularizer is [1]", "string", "null"]),
        ("group_id: [a, b]", ["group_id is ['a'", "'b'"]),
        ("feature_specs: [{name: a, tpe: meta}]", ["'a'", "'tpe'", "'type'"]),
        ("feature_specs: [{name: a, dropout: 1}]", ["'a'", "dropout is 1", "0", "null"]),
        ("feature_specs: [{name: a, norm: L2}]", ["'a'", "norm is 'L2'", "'l2'", "'layer'"]),
        ("feature_specs: [{name: a, scale: 0}]", ["'a'", "scale is 0"]),
        ("feature_specs: [{name: a, statistics: [median]}]", ["'a'", "'median'"]),
        ("feature_specs: [{name: a, statistics: [newest_0]}]", ["'a'", "'newest_0'"]),
        ("weight_decay: -1", ["weight_decay is -1", "0", "null"]),
        ("embedding_learning_rate: 0", ["embedding_learning_rate is 0"]),
        ("ema: 1", ["ema is 1", "0", "null"]),
        ("lr_schedule: step", ["lr_schedule is 'step'", "'plateau'", "'constant'", "'linear'", "'cosine'"]),
        ("warmup_steps: -1", ["warmup_steps is -1"]),
        ("label_smoothing: 1", ["label_smoothing is 1"]),
        ("plateau_patience: 0", ["plateau_patience is 0"]),
        ("metrics: AUC", ["metrics is 'AUC'"]),
        ("use_features: [[a]]", ["use_features is [['a']]"]),
        ("use_features: [item_tag]", ["use_features", "'item_tag'; did you mean 'item_tags'"]),
        ("feature_specs: [{name: a}, {name: item_tags, norm: l2}]", ["no feature 'a'", "'item_tags': norm is l2"]),
        ("task_weights: {lable: 2}", ["no label 'lable'; did you mean 'label'"]),
    ],
)
def test_wrong_experiment_keys(folder, line, names):
    key = line.split(":")[0] + ":"
    text = [
        line for line in (folder / "model_config.yaml").read_text().splitlines() if not line.strip().startswith(key)
    ]
    (folder / "model_config.yaml").write_text("\n".join(text) + "\n")
    add(folder, line)
    check_names(refused(folder), *names)


class Ours(MultimodalModel):
    def __init__(self, feature_map, *, depth: int = 1, net_dropout: Dropout = 0, units: tuple[int, ...] = (), **params):
        pass


class Foreign:
    """As FuxiCTR's models are: nothing annotated, everything else in kwargs."""

    def __init__(self, feature_map, learning_rate=1e-3, hidden_units=(1,), num_heads=1, net_dropout=0, **kwargs):
        pass


def test_all_problems_in_one_message(folder, monkeypatch):
    monkeypatch.delenv("SOME_DATA", raising=False)
    change(folder / "dataset_config.yaml", "data_format: parquet", "data_format: h5")
    change(folder / "dataset_config.yaml", "./data/d/train", "${SOME_DATA}/d/train")
    change(folder / "dataset_config.yaml", "type: meta", "type: mta")
    change(folder / "model_config.yaml", "epochs: 7", "epochs: '7'")
    add(folder, "dept: 1", "units: [3, x]")
    message = refused(folder, find_model=lambda name: Ours)
    for part in (
        "'h5'",
        "variable SOME_DATA",
        "'mta'",
        "epochs is '7'",
        "'dept'; did you mean 'depth'?",
        "units is [3, 'x']",
    ):
        assert message.count(part) == 1
    assert "item_info" not in message  # a rule on it and data_format says nothing where that is wrong itself


def test_the_signature_is_the_schema(folder):
    def check(model_class, **settings):
        values = ExperimentConfig.load(folder, "X_tiny").to_dict() | settings
        return ExperimentConfig.from_dict({k: v for k, v in values.items() if v is not None}).check_model(model_class)

    assert check(Ours, depth=3, units=[1, 2], num_heads=None) == []
    assert not {"monitor", "learning_rate"} & set(model_schema(Ours))  # declared by ModelSettings
    with raises_naming(ConfigError, "net_dropout is 1.5", "depth is True"):
        check(Ours, depth=True, net_dropout=1.5, num_heads=None)
    # Of a FuxiCTR model, what is not annotated is taken as it is, except for the ranges that its names imply.
    assert len(check(Foreign, temperature=3, hidden_units="any")) == 1
    with raises_naming(ConfigError, "net_dropout is 1", "hidden_units is [0]"):
        check(Foreign, net_dropout=1, hidden_units=[0])


class Unresolved(MultimodalModel):
    def __init__(self, feature_map: "NotImported", *, depth: "Missing" = 1, **params):  # noqa: F821
        pass


class NoType(MultimodalModel):
    def __init__(self, feature_map, *, depth: Annotated[int, Field(max_length=3)] = 1, **params):
        pass


@pytest.mark.parametrize("model_class", [Unresolved, NoType])
def test_an_annotation_that_cannot_be_checked(folder, model_class):
    message = refused(folder, find_model=lambda name: model_class, overrides={"depth": 2})
    check_names(message, model_class.__name__, "depth")


@pytest.mark.parametrize("where", ["feature_cols", "feature_specs", "initializer"])
def test_no_code_of_a_configuration_runs(folder, tmp_path, where):
    ran = tmp_path / "ran"
    code = f"__import__('os').system('touch {ran}')"
    if where == "feature_cols":
        change(folder / "dataset_config.yaml", "max_len: 5,", f'max_len: 5, feature_encoder: "{code}",')
    elif where == "feature_specs":
        change(folder / "model_config.yaml", "embedding_dim: 4", f'feature_encoder: ["nn.Identity()", "{code}"]')
    else:
        add(folder, f'embedding_initializer: "{code}"')
    check_names(refused(folder), "touch")
    assert not ran.exists()


def test_paths_are_sought_here_then_beside_the_configuration(folder):
    for name in ("train", "valid"):
        path = folder / f"data/d/{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    here = Path("data/d/train.parquet")
    here.parent.mkdir(parents=True)
    here.touch()
    data = ExperimentConfig.load(folder, "X_tiny").dataset
    assert data.train_data == "./data/d/train.parquet"
    assert Path(data.valid_data) == folder / "data/d/valid.parquet"
    assert data.test_data == "./data/d/test.parquet"


def test_data_root_moves_what_lies_inside(folder, tmp_path, monkeypatch):
    change(folder / "dataset_config.yaml", "./data/d/item_info.parquet", "[data/d/a.parquet, /elsewhere/b.parquet]")
    data = ExperimentConfig.load(folder, "X_tiny", tmp_path / "moved").dataset
    assert Path(data.train_data) == tmp_path / "moved/d/train.parquet"
    assert data.item_info == [str(tmp_path / "moved/d/a.parquet"), "/elsewhere/b.parquet"]
    assert data.data_root == str(tmp_path / "moved")
    change(folder / "dataset_config.yaml", "./data/", "${SOME_DATA}/")
    monkeypatch.delenv("SOME_DATA", raising=False)
    assert "environment variable SOME_DATA, which is not set; set it to the folder of the data, or give" in refused(
        folder
    )
    assert Path(ExperimentConfig.load(folder, "X_tiny", tmp_path).dataset.test_data) == tmp_path / "d/test.parquet"
    monkeypatch.setenv("SOME_DATA", "/some")
    assert ExperimentConfig.load(folder, "X_tiny").dataset.test_data == "/some/d/test.parquet"


def test_a_data_root_that_is_a_number_is_named_where_it_is_replaced(folder, tmp_path):
    change(folder / "dataset_config.yaml", "data_format: parquet", "data_format: parquet\n    data_root: 2024")
    change(folder / "dataset_config.yaml", "    data_root: ./data/\n", "")
    with raises_naming(ConfigError, "data_root is 2024"):
        ExperimentConfig.load(folder, "X_tiny")
    assert ExperimentConfig.load(folder, "X_tiny", tmp_path).dataset.data_root == str(tmp_path)


def test_another_dataset_brings_its_own_files(folder):
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text() + path.read_text().replace("\nd:", "\ne:").replace("/d/", "/e/"))
    config = ExperimentConfig.load(folder, "X_tiny", overrides={"dataset_id": "e"})
    assert config.dataset_id == "e"
    assert str(config.dataset.train_data).endswith("data/e/train.parquet")
    with raises_naming(ConfigError, "dataset_config", "f"):
        ExperimentConfig.load(folder, "X_tiny", overrides={"dataset_id": "f"})


def test_a_key_of_the_fuxictr_model_of_the_same_name_says_so(folder):
    change(folder / "model_config.yaml", "model: X", "model: DIN")
    add(folder, "din_target_field: item_id")
    message = refused(folder, find_model=load_model_class)
    check_names(message, "din_target_field", "FuxiCTR", "--model_zoo")
    assert "did you mean" not in message


def test_a_field_of_a_fuxictr_model_is_a_role_of_every_model(folder):
    change(folder / "model_config.yaml", "model: X", "model: DIN_MM")
    add(folder, "din_target_field: item_id")
    check_names(refused(folder, find_model=load_model_class), "din_target_field", "DIN_MM", "FuxiCTR's DIN,", "roles")


def test_the_advice_on_keys_of_the_fuxictr_model_and_the_name_of_the_model_come_once(folder):
    change(folder / "model_config.yaml", "model: X", "model: DIN")
    add(folder, "din_target_field: item_id", "din_sequence_field: item_seq", "hoads: 2")
    message = refused(folder, find_model=load_model_class)
    check_names(message, "din_target_field", "din_sequence_field", "hoads")
    assert message.count("--model_zoo") == 1
    assert "model DIN: model DIN" not in message


def test_paths_of_a_linked_dataset_config_are_relative_to_the_file_that_it_links_to(tmp_path):
    data, look = tmp_path / "data", tmp_path / "look"
    data.mkdir()
    look.mkdir()
    (data / "train.parquet").touch()
    (data / "dataset_config.yaml").write_text("shop: {data_root: ./, train_data: ./train.parquet}\n")
    (look / "dataset_config.yaml").symlink_to(data / "dataset_config.yaml")
    (look / "model_config.yaml").write_text("look: {model: DIN, dataset_id: shop}\n")
    assert ExperimentConfig.load(look, "look").dataset.train_data == str(data / "train.parquet")
