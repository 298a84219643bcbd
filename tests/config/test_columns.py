"""Columns of an experiment: entries of several names, changes, and those that are used."""

import pytest

from fuxictr_mm.config import Columns, ExperimentConfig, FeatureConfig
from fuxictr_mm.errors import ConfigError
from tests.errors import raises_naming

AGE = {"name": "age", "dtype": "int", "type": "categorical"}
ENTRIES = [{**AGE, "name": ["age", "city"], "vocab_size": 9}, {**AGE, "name": "hidden", "active": False}]
GROUP = {"name": "user_id", "dtype": "int", "type": "meta"}


def columns(*entries, **others):
    return Columns.of({"dataset_id": "d", "feature_cols": [*ENTRIES, *entries], **others})


def test_an_entry_of_several_names_is_one_of_each():
    found = columns()
    assert {name: (c.name, c.vocab_size) for name, c in found.by_name.items()} == {
        "age": ("age", 9), "city": ("city", 9), "hidden": ("hidden", None),
    }  # fmt: skip
    assert [*found.used] == ["age", "city"]
    assert found.problems() == {}


def test_changes_keep_what_they_do_not_name():
    found = columns(feature_specs=[{"name": ["city", "hidden"], "embedding_dim": 4}]).by_name
    assert {n: (c.vocab_size, c.embedding_dim) for n, c in found.items()} == {
        "age": (9, None), "city": (9, 4), "hidden": (None, 4),
    }  # fmt: skip
    assert "feature_encoder" not in found["city"].model_fields_set
    null = columns(feature_specs=[{"name": "city", "feature_encoder": None}]).by_name["city"]
    assert "feature_encoder" in null.model_fields_set


def test_meta_columns_are_used_in_any_case():
    assert [*columns(GROUP, use_features=["hidden"]).used] == ["user_id", "hidden"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"feature_cols": [*ENTRIES, AGE]}, "feature_cols.age"),
        ({"use_features": ["ages"]}, "use_features.ages"),
        ({"feature_specs": [{"name": "ages"}]}, "feature_specs.ages"),
    ],
)
def test_problems_are_of_a_key(change, key):
    assert [*columns(**change).problems()] == [key]


def test_all_features_are_listed_once():
    change = {"use_features": ["qqqq", "wwww"], "feature_specs": [{"name": "zzzz"}]}
    assert [sentence.count("hidden") for sentence in columns(**change).problems().values()] == [1, 0, 0]


@pytest.mark.parametrize(("source", "item_info"), [("", "items.parquet"), ("", None), ("item", None)])
def test_embeddings_of_rows_are_not_normalised(source, item_info):
    vector = {"name": "v", "type": "embedding", "dtype": "float", "source": source, "norm": "l2", "scale": 2}
    found = columns(vector, item_info=item_info)
    assert {"feature v.norm", "feature v.scale"} <= found.problems().keys()
    of_items = columns({**vector, "source": "item"}, item_info="items.parquet")
    assert not {"feature v.norm", "feature v.scale"} & of_items.problems().keys()


def test_nothing_more_is_said_of_a_wrong_entry():
    wrong = {"name": "txt", "type": "embedding", "dtype": "float", "vocab_size": "x", "table": "touched"}
    found = columns(wrong)
    assert found.wrong == {"txt"}
    assert found.problems() == {}
    assert columns({"type": "embedding"}).by_name == {}  # without a name, there is nothing to go by


def test_a_configuration_has_its_columns_and_paths():
    values = {"model": "DIN", "dataset_id": "d", "feature_cols": ENTRIES, "label_col": [{"name": "a"}, {"name": "b"}]}
    config = ExperimentConfig.from_dict({**values, "train_data": "t", "item_info": "i", "use_features": ["hidden"]})
    assert [*config.columns.used] == ["hidden"]
    assert config.dataset.label_names == ["a", "b"]
    other = config.with_dataset(valid_data="v", feature_cols=[FeatureConfig(**AGE)])
    assert (other.require_split("train"), other.require_split("valid"), [*other.columns.by_name]) == ("t", "v", ["age"])
    assert other.seed == config.seed
    with raises_naming(ConfigError, "dataset d", "test_data"):
        other.require_split("test")
