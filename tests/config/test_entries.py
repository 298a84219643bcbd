"""Entries of the two files: ids, names, paths; a file that is read for many experiments is parsed once."""

from pathlib import Path

import pytest

from fuxictr_mm import yaml_files
from fuxictr_mm.config import ExperimentConfig, list_datasets, list_experiments
from fuxictr_mm.config.entries import load_model_config
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.yaml_files import dump_yaml, load_yaml
from tests.config.written import DATASET, MODEL, change, refused, split
from tests.errors import check_names, raises_naming


def test_a_file_is_parsed_once_and_every_reader_has_its_own_values(tmp_path):
    path = tmp_path / "model_config.yaml"
    path.write_text("Base: {metrics: [AUC]}\nA: {model: M, dataset_id: D, units: [1, 2]}\n")
    before = yaml_files._parse.cache_info().misses
    for _ in range(3):
        entry = load_model_config(tmp_path, "A")
        assert entry == {"model": "M", "dataset_id": "D", "units": [1, 2], "metrics": ["AUC"]}
        entry["units"].append(3)
        entry["metrics"].append("logloss")
        list_experiments(tmp_path)["A"]["units"].append(4)
        load_yaml(path)["A"]["units"].append(5)
    assert yaml_files._parse.cache_info().misses == before + 1
    path.write_text("A: {model: N, dataset_id: D}\n")
    assert load_model_config(tmp_path, "A") == {"model": "N", "dataset_id": "D"}


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
    assert "--config" not in refused(tmp_path / "nowhere")  # which Experiment.load does not have
    (tmp_path / "tuner.yaml").touch()
    assert f"fuxictr-mm tune --config {tmp_path}/tuner.yaml" in refused(tmp_path / "tuner.yaml")
    with raises_naming(MissingFileError, tmp_path / "nowhere"):  # as base_config of a tuner file
        list_experiments(tmp_path / "nowhere")
    change(folder / "model_config.yaml", "    model: Y\n", "")
    assert "Y_tiny: model is None" in refused(folder, "Y_tiny")
    (folder / "dataset_config.yaml").unlink()
    check_names(refused(folder), folder, "dataset_config.yaml", "dataset_config/")
    with raises_naming(MissingFileError, folder, "dataset_config.yaml", "--config") as missing:
        list_datasets(folder)
    assert "tune" not in str(missing.value)  # which reads the datasets of its own file


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


def test_another_dataset_brings_its_own_files(folder):
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text() + path.read_text().replace("\nd:", "\ne:").replace("/d/", "/e/"))
    config = ExperimentConfig.load(folder, "X_tiny", overrides={"dataset_id": "e"})
    assert config.dataset_id == "e"
    assert str(config.dataset.train_data).endswith("data/e/train.parquet")
    with raises_naming(ConfigError, "dataset_config", "f"):
        ExperimentConfig.load(folder, "X_tiny", overrides={"dataset_id": "f"})


def test_paths_of_a_linked_dataset_config_are_relative_to_the_file_that_it_links_to(tmp_path):
    data, look = tmp_path / "data", tmp_path / "look"
    data.mkdir()
    look.mkdir()
    (data / "train.parquet").touch()
    (data / "dataset_config.yaml").write_text("shop: {data_root: ./, train_data: ./train.parquet}\n")
    (look / "dataset_config.yaml").symlink_to(data / "dataset_config.yaml")
    (look / "model_config.yaml").write_text("look: {model: DIN, dataset_id: shop}\n")
    assert ExperimentConfig.load(look, "look").dataset.train_data == str(data / "train.parquet")
