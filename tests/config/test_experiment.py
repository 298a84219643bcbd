"""One description of every key: what loads, what is refused, and when two configurations are the same."""

from typing import Annotated

import fuxictr.utils
import pytest
from pydantic import Field

from fuxictr_mm.checking import model_schema
from fuxictr_mm.config import Dropout, ExperimentConfig, list_datasets, list_experiments
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.registry import load_model_class
from tests.config.written import add, change, refused, split
from tests.errors import check_names, raises_naming
from tests.paths import ROOT

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


def test_a_file_that_the_dataset_replaces_is_named(folder, caplog):
    """As in FuxiCTR, the dataset's counts, but an experiment on another test file should say that it is not used."""
    with (folder / "model_config.yaml").open("a") as file:
        file.write("\nown: {model: DIN, dataset_id: d, test_data: other.parquet}\n")
    found = ExperimentConfig.load(folder, "own")
    assert "other.parquet" not in str(found.dataset.test_data)
    assert ["own: test_data: no effect" in r.getMessage() for r in caplog.records] == [True]
    caplog.clear()
    assert ExperimentConfig.load(folder, "own", overrides={"test_data": "x.parquet"}).dataset.test_data == "x.parquet"
    assert not caplog.records


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
