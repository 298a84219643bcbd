"""A file that is read for many experiments is parsed once."""

from fuxictr_mm import yaml_files
from fuxictr_mm.config import list_experiments
from fuxictr_mm.config.entries import load_model_config
from fuxictr_mm.yaml_files import load_yaml


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
