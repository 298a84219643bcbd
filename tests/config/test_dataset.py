"""Keys of datasets: what is refused."""

import pytest

from fuxictr_mm.config import DatasetConfig, ExperimentConfig
from fuxictr_mm.config.columns import split_entries
from fuxictr_mm.data.synthetic.writer import INT8_FACTOR
from fuxictr_mm.errors import ConfigError
from tests.config.written import change, refused
from tests.errors import check_names, raises_naming
from tests.paths import ROOT


def test_embeddings_of_8_bit_integers_are_read_on_unit_scale():
    config = ExperimentConfig.load(ROOT, "SIM_taobao")
    scales = [f.scale for f in split_entries(config.dataset.feature_cols) if f.type == "embedding"]
    assert scales == [1 / INT8_FACTOR]


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


def test_a_data_root_that_is_a_number_is_named_where_it_is_replaced(folder, tmp_path):
    change(folder / "dataset_config.yaml", "data_format: parquet", "data_format: parquet\n    data_root: 2024")
    change(folder / "dataset_config.yaml", "    data_root: ./data/\n", "")
    with raises_naming(ConfigError, "data_root is 2024"):
        ExperimentConfig.load(folder, "X_tiny")
    assert ExperimentConfig.load(folder, "X_tiny", tmp_path).dataset.data_root == str(tmp_path)
