import copy

import pytest

from fuxictr_mm.data.feature_map import build_feature_map, unify_dims
from fuxictr_mm.data.schema import Feature, complete, parse_features
from fuxictr_mm.errors import ConfigError
from tests.configs import config_of
from tests.errors import raises_naming

#: The challenge's columns, with the pretrain_dim that FuxiCTR asks for.
CHALLENGE = [
    {"name": "user_id", "active": True, "dtype": "int", "type": "meta"},
    {"name": "item_seq", "active": True, "dtype": "int", "type": "meta"},
    {"name": "likes_level", "active": True, "dtype": "int", "type": "categorical", "vocab_size": 11},
    {"name": "views_level", "active": True, "dtype": "int", "type": "categorical", "vocab_size": 11},
    {"name": "item_id", "active": True, "dtype": "int", "type": "categorical", "source": "item", "vocab_size": 91718},
    {
        "name": "item_tags", "active": True, "dtype": "int", "type": "sequence", "source": "item",
        "max_len": 5, "vocab_size": 11740,
    },
    {
        "name": "item_emb_d128", "active": True, "dtype": "float", "type": "embedding", "source": "item",
        "embedding_dim": 128, "pretrain_dim": 128,
    },
]  # fmt: skip


def params(columns=CHALLENGE, **others):
    return {
        "dataset_id": "d",
        "item_info": "items.parquet",
        "model_id": "m",
        "feature_cols": copy.deepcopy(columns),
        "label_col": {"name": "label", "dtype": "float"},
        "embedding_dim": 64,
        "group_id": "user_id",
        "max_len": 64,
        **others,
    }


def features_of(given):
    return parse_features(config_of(given).columns)


def feature_map_of(given, widths=None, sizes=None):
    widths = {"item_tags": 5, "item_emb_d128": 128, **(widths or {})}
    return build_feature_map(complete(features_of(given), widths, sizes or {}), config_of(given))


def fuxictr_feature_map(given, folder):
    """What FuxiCTR itself makes of the same configuration, as its run_expid does: saved, then loaded."""
    from fuxictr.features import FeatureMap
    from fuxictr.preprocess import FeatureProcessor

    processor = FeatureProcessor(
        copy.deepcopy(given["feature_cols"]), given["label_col"], given["dataset_id"], str(folder)
    )
    processor.fit(None, rebuild_dataset=False)
    feature_map = FeatureMap(given["dataset_id"], processor.data_dir)
    feature_map.load(processor.json_file, given)
    return feature_map


def assert_same(ours, theirs):
    assert list(ours.features) == list(theirs.features)
    for name, spec in theirs.features.items():
        more = {"freeze_emb": True} if spec["type"] == "embedding" else {}
        more |= {"source": ""} if spec["type"] == "meta" else {}
        assert ours.features[name] == {**spec, **more}, name
    for attribute in ("dataset_id", "labels", "group_id", "default_emb_dim", "input_length"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert ours.column_index == theirs.column_index
    assert ours.sum_emb_out_dim() == theirs.sum_emb_out_dim()
    assert ours.num_fields == theirs.get_num_fields()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"use_features": ["user_id", "item_seq", "views_level", "item_emb_d128", "item_id"]},
        {"feature_specs": [{"name": ["likes_level", "views_level"], "embedding_dim": 8}]},
        {"feature_specs": [{"name": "item_tags", "feature_encoder": "layers.MaskedSumPooling()"}]},
    ],
    ids=["plain", "use_features", "feature_specs", "encoder"],
)
def test_the_feature_map_equals_that_of_fuxictr(tmp_path, change):
    given = params(**change)
    ours, theirs = feature_map_of(given), fuxictr_feature_map(given, tmp_path)
    assert_same(ours, theirs)
    # FuxiCTR keeps the count of all features when only some are used.
    assert ours.total_features == (11 + 91718 if "use_features" in change else theirs.total_features)


def test_a_shared_table_is_as_large_as_with_fuxictr(tmp_path):
    columns = [
        {"name": "item_id", "active": True, "dtype": "int", "type": "categorical", "source": "item", "vocab_size": 20},
        {
            "name": "item_seq", "active": True, "dtype": "int", "type": "sequence", "max_len": 7, "vocab_size": 30,
            "share_embedding": "item_id", "feature_encoder": None,
        },
        {"name": "price", "active": True, "dtype": "float", "type": "numeric", "embedding_dim": 4},
        {
            "name": "words", "active": True, "dtype": "int", "type": "sequence", "vocab_size": 9, "max_len": 3,
            "feature_encoder": "nn.Flatten()", "emb_output_dim": 192,
        },
    ]  # fmt: skip
    given = params(columns, max_len=7)
    ours, theirs = feature_map_of(given, {"words": 3}), fuxictr_feature_map(given, tmp_path)
    assert_same(ours, theirs)
    assert ours.total_features == theirs.total_features == 30 + 1 + 9
    assert ours.features["item_id"]["vocab_size"] == ours.features["item_seq"]["vocab_size"] == 30


def test_name_lists_and_inactive_columns():
    columns = [
        *CHALLENGE[:2],
        {"name": ["likes_level", "views_level"], "dtype": "int", "type": "categorical", "vocab_size": 11},
        {"name": "hidden", "active": False, "dtype": "int", "type": "categorical", "vocab_size": 3},
        {"name": "hidden_id", "active": False, "dtype": "int", "type": "meta"},
        CHALLENGE[4],
    ]
    names = [f.name for f in features_of(params(columns))]
    assert names == ["user_id", "item_seq", "likes_level", "views_level", "item_id"]
    used = features_of(params(columns, use_features=["hidden", "item_id"]))
    assert [f.name for f in used] == ["user_id", "item_seq", "hidden", "item_id"]


def test_num_fields_counts_what_is_used():
    given = params(use_features=["item_id", "likes_level"])
    feature_map = feature_map_of(given)
    assert feature_map.num_fields == feature_map.get_num_fields() == 2
    assert feature_map_of(params()).num_fields == 5


def test_parsing_leaves_the_parameters_alone():
    given = params(feature_specs=[{"name": "likes_level", "embedding_dim": 3}])
    before = copy.deepcopy(given)
    features_of(given)
    assert given == before


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"use_features": ["item_id", "like_level"]}, ["use_features", "'like_level'", "'likes_level'"]),
        ({"use_features": ["item_id", "price"]}, ["use_features", "'price'", "likes_level, views_level"]),
        (
            {"feature_specs": [{"name": ["item_id", "item_tag"], "embedding_dim": 3}]},
            ["feature_specs", "'item_tag'", "'item_tags'"],
        ),
        (
            {"feature_specs": [{"name": "item_tags", "share_embedding": "item_idd"}]},
            ["share_embedding", "'item_tags'", "'item_idd'", "'item_id'"],
        ),
        (
            {
                "use_features": ["likes_level", "item_tags"],
                "feature_specs": [{"name": "item_tags", "share_embedding": "item_id"}],
            },
            ["share_embedding", "'item_tags'", "'item_id'"],
        ),
        (
            {"feature_specs": [{"name": "likes_level", "share_embedding": "views_level"}]},
            ["share_embedding", "'likes_level'", "'views_level'"],
        ),
        ({"feature_specs": [{"name": "item_id", "source": ""}]}, ["item_id", "source: item"]),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(change, names):
    with raises_naming(ConfigError, *names):
        features_of(params(**change))


def test_a_duplicate_name_is_refused():
    columns = [*CHALLENGE, {"name": ["price", "item_id"], "type": "categorical"}]
    with raises_naming(ConfigError, "feature_cols", "'item_id'"):
        features_of(params(columns))


def vector(**keys):
    column = {"name": "v", "type": "embedding", "source": "item", **keys}
    given = params([*CHALLENGE[:5], column])
    return feature_map_of(given, {"v": 128}).features["v"]


def test_widths_of_vectors_are_inferred_and_a_linear_map_joins_them():
    alone = vector()
    assert alone["pretrain_dim"] == 128
    assert "embedding_dim" not in alone
    for same in (vector(embedding_dim=128), vector(embedding_dim=128, pretrain_dim=128)):
        assert (same["pretrain_dim"], same["embedding_dim"]) == (128, 128)
        # FuxiCTR's layers then make a Linear(128, 128), as the challenge's published weights have it.
        assert "feature_encoder" not in same
    narrower = vector(embedding_dim=16)
    assert (narrower["pretrain_dim"], narrower["embedding_dim"]) == (128, 16)
    as_it_is = vector(feature_encoder="nn.Identity()")
    assert (as_it_is["embedding_dim"], as_it_is["feature_encoder"]) == (128, "nn.Identity()")
    assert vector(feature_encoder="nn.Linear(128, 64)")["feature_encoder"] == "nn.Linear(128, 64)"
    assert vector(freeze_emb=False)["freeze_emb"] is False


def test_complete_fills_in_only_what_is_missing():
    features = [
        Feature("item_id", "categorical", "item"),
        Feature("tags", "sequence", "item", max_len=5),
        Feature("level", "categorical", vocab_size=11),
        Feature("item_seq", "meta"),
    ]
    completed = complete(features, {"tags": 5}, {"item_id": 30, "tags": 40})
    assert [(f.vocab_size, f.max_len) for f in completed] == [(30, None), (40, 5), (11, None), (None, None)]


def test_the_history_as_a_feature_has_the_length_of_the_experiment():
    history = {"name": "item_seq", "type": "sequence", "max_len": 100, "vocab_size": 91718}
    columns = [CHALLENGE[0], history, *CHALLENGE[2:]]
    assert feature_map_of(params(columns)).features["item_seq"]["max_len"] == 64
    assert feature_map_of(params(columns, max_len=None)).features["item_seq"]["max_len"] == 100


def test_one_width_for_all_fields_leaves_the_original_alone():
    columns = [*CHALLENGE[:6], {"name": "v", "type": "embedding", "source": "item"}]
    original = feature_map_of(params(columns), {"v": 128})
    before = copy.deepcopy(original.features)
    unified = unify_dims(original, 24)
    assert {n: s["embedding_dim"] for n, s in unified.features.items() if s["type"] != "meta"} == dict.fromkeys(
        ["likes_level", "views_level", "item_id", "item_tags", "v"], 24
    )
    assert "feature_encoder" not in unified.features["v"]
    assert unified.features["v"]["pretrain_dim"] == 128
    assert unified.sum_emb_out_dim() == 24 * unified.num_fields == 120
    assert original.features == before
    assert original.default_emb_dim == 64


@pytest.mark.parametrize(("dim", "unchanged"), [(24, True), (25, False)])
def test_a_stored_embedding_of_the_one_width_may_pass_unchanged(dim, unchanged):
    columns = [*CHALLENGE[:6], {"name": "v", "type": "embedding", "source": "item", "feature_encoder": "nn.Identity()"}]
    unified = unify_dims(feature_map_of(params(columns), {"v": 24}), dim)
    assert ("feature_encoder" in unified.features["v"]) == unchanged


VECTOR = "item_emb_d128"
LENGTH = {"name": "length", "type": "length"}
SIMILARITY = {"name": "similarity", "type": "similarity", "of": VECTOR}


def test_computed_features_are_embedded_as_what_they_are():
    columns = [*CHALLENGE, LENGTH, {**LENGTH, "name": "bins", "vocab_size": 8}]
    columns += [{**SIMILARITY, "statistics": ["max", "histogram_10"]}, {**SIMILARITY, "name": "other"}]
    specs = feature_map_of(params(columns)).features
    assert specs["length"] == {"source": "", "type": "numeric", "computed": "length"}
    assert (specs["bins"]["type"], specs["bins"]["vocab_size"]) == ("categorical", 8)
    assert (specs["similarity"]["type"], specs["similarity"]["pretrain_dim"]) == ("embedding", 11)
    assert specs["other"]["statistics"] == ["mean", "max"]
    assert [n for n in specs if "computed" in specs[n]] == ["length", "bins", "similarity", "other"]


def test_a_compared_embedding_that_is_not_used_is_read_but_not_embedded():
    given = params([*CHALLENGE, SIMILARITY], use_features=["item_id", "similarity"])
    features = features_of(given)
    assert [f.name for f in features if not f.embedded] == [VECTOR]
    assert VECTOR not in feature_map_of(given).features
    tags = {**SIMILARITY, "of": "item_tags"}
    given = params([*CHALLENGE, tags], use_features=["item_id", "similarity"])
    assert [f.name for f in features_of(given) if not f.embedded] == ["item_tags"]
    assert feature_map_of(given).features["similarity"]["pretrain_dim"] == 2


def test_a_compared_column_that_is_not_used_holds_ids_of_the_target():
    columns = [{**column, "name": "shown"} if column["name"] == "item_id" else column for column in CHALLENGE]
    columns += [{**CHALLENGE[5], "name": "similar", "share_embedding": "shown"}, {**SIMILARITY, "of": "similar"}]
    given = params(columns, use_features=["shown", "similarity"], roles={"target": "shown"})
    assert {f.name: f.share_embedding for f in features_of(given) if not f.embedded} == {"similar": "item_id"}


def test_a_column_for_a_setting_of_the_model_is_read_but_not_embedded():
    given = params(feature_specs=[{"name": VECTOR, "embedded": False}])
    assert [f.name for f in features_of(given) if not f.embedded] == [VECTOR]
    assert VECTOR not in feature_map_of(given).features
    shares = [*CHALLENGE, {**CHALLENGE[5], "name": "more_tags", "share_embedding": "item_tags"}]
    with raises_naming(ConfigError, "'more_tags'"):
        features_of(params(shares, feature_specs=[{"name": "item_tags", "embedded": False}]))


def test_settings_that_are_not_given_leave_no_trace():
    specs = feature_map_of(params()).features
    assert not any(key in spec for spec in specs.values() for key in ("dropout", "norm", "scale", "computed"))
    given = params(feature_specs=[{"name": VECTOR, "norm": "l2", "scale": 10, "dropout": 0.2}])
    spec = feature_map_of(given).features[VECTOR]
    assert (spec["norm"], spec["scale"], spec["dropout"]) == ("l2", 10, 0.2)


def test_no_column_shares_embeddings_of_items_of_which_some_are_one():
    specs = [{"name": "item_id", "dropout": 0.1, "unknown": "trained"}]
    assert feature_map_of(params(feature_specs=specs)).features["item_id"]["unknown"] == "trained"
    with raises_naming(ConfigError, "'item_id'", "item_tags"):
        features_of(params(feature_specs=[*specs, {"name": "item_tags", "share_embedding": "item_id"}]))


@pytest.mark.parametrize(
    ("spec", "name", "value"),
    [
        ({"name": "item_id", "norm": "l2"}, "item_id", "norm is l2"),
        ({"name": "likes_level", "scale": 2}, "likes_level", "scale is 2"),
        ({"name": "user_id", "dropout": 0.1}, "user_id", "dropout is 0.1"),
        ({"name": "item_id", "of": VECTOR}, "item_id", f"of is {VECTOR}"),
        ({"name": "likes_level", "embedded": False}, "likes_level", "embedded is False"),
        ({"name": "length", "statistics": ["mean"]}, "length", "statistics is"),
        ({"name": "length", "source": "item"}, "length", "source is item"),
        ({"name": "length", "vocab_size": 1}, "length", "vocab_size is 1"),
        ({"name": "similarity", "of": None}, "similarity", "of is missing"),
        ({"name": "similarity", "of": "likes_level"}, "similarity", "of is likes_level"),
        ({"name": "similarity", "of": "item_id"}, "similarity", "of is item_id"),
        ({"name": "similarity", "of": "item_emb"}, "similarity", f"did you mean '{VECTOR}'"),
        ({"name": VECTOR, "freeze_emb": False}, "similarity", f"of is {VECTOR}"),
        ({"name": "item_tags", "dropout": 0.1, "unknown": "trained"}, "item_tags", "unknown is trained"),
        ({"name": "item_id", "unknown": "trained"}, "item_id", "dropout: 0.1"),
        ({"name": "item_id", "unknown": "trained", "dropout": 0.1, "padding_idx": 3}, "item_id", "padding_idx is 3"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(spec, name, value):
    with raises_naming(ConfigError, name, value):
        features_of(params([*CHALLENGE, LENGTH, SIMILARITY], feature_specs=[spec]))
