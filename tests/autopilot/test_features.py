"""The features that the autopilot tries."""

from dataclasses import replace

import pytest

from fuxictr_mm.autopilot.facts import look
from fuxictr_mm.autopilot.features import STATISTICS, Features
from fuxictr_mm.config.columns import split_entries
from fuxictr_mm.config.features import FeatureConfig


def test_lists_of_features(dataset):
    embeddings = list(look(dataset).embeddings.values())
    features = Features.of(dataset, embeddings)
    first, second, more, both_more = features.to_try
    assert "item_emb_d16" in first
    assert {"txt_emb_pca8", "img_emb_pca8"} <= set(second)
    assert set(first) - set(second) == {"item_emb_d16"}
    added = {entry["name"]: entry for entry in features.computed}
    for plain, with_more in ((first, more), (second, both_more)):
        assert with_more[: len(plain)] == plain
        assert {added[n].get("of") for n in with_more[len(plain) :]} - {None} == {n for n in plain if "emb" in n}
    assert replace(features, embeddings=[]).to_try[:-1] == [first]
    encoded = replace(features, has_items=False)
    assert (encoded.computed, encoded.to_try) == ([], [first, second])
    all_active, few = features.of_users
    assert not features.has_user  # the user of tiny_mm is no feature
    assert few == ["item_id", "item_emb_d16"]
    assert set(few) < set(all_active)
    assert features.factors == {}


@pytest.mark.parametrize(
    ("changes", "added"),
    [({}, False), ({"active": False}, True), ({"statistics": ["mean"]}, True), ({"of": "txt_emb_pca8"}, True)],
)
def test_a_similarity_of_the_dataset_is_not_added_again(dataset, changes, added):
    """``prepare log --negatives`` writes one of each embedding."""
    match = {"name": "item_emb_d16_match", "type": "similarity", "of": "item_emb_d16", "statistics": STATISTICS}
    columns = [*dataset.feature_cols, FeatureConfig(**match | changes)]
    features = Features.of(dataset.model_copy(update={"feature_cols": columns}), ["item_emb_d16"])
    assert [entry.get("of") for entry in features.computed] == [None, *(["item_emb_d16"] if added else [])]
    assert len({frozenset(names) for names in features.to_try}) == len(features.to_try) == 2


def test_features_of_a_factorization():
    types = {"user_id": "categorical", "item_id": "categorical", "level": "categorical", "a": "embedding"}
    features = Features(types, list(types), ["b"], "user_id", "item_id", True)
    assert features.to_try[1] == ["user_id", "item_id", "level", "b"]
    named = ["user_id", "item_id", "a"]
    with_a = [names for names in features.to_try if "a" in names]
    assert len(with_a) == 2
    assert features.factors == {"factor_dim": [17, 33, 0], "factor_features": [named, None], "use_features": with_a}
    assert replace(features, active=["item_id", "a"]).factors == {}


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        ({"item_id": {"padding_idx": 7}}, False),
        ({"likes_level": {"share_embedding": "item_id", "vocab_size": 1001}}, False),
    ],
)
def test_unknown_items_may_be_trained_where_no_other_column_has_their_embedding(dataset, changes, allowed):
    columns = [c.model_copy(update=changes.get(c.name, {})) for c in split_entries(dataset.feature_cols)]
    found = Features.of(dataset.model_copy(update={"feature_cols": columns}), [])
    assert found.trains_unknown is allowed
    assert not Features.of(dataset.model_copy(update={"item_info": None}), []).trains_unknown


@pytest.mark.parametrize(
    ("changes", "is_tried"),
    [
        ({}, True),
        ({"norm": "l2"}, False),
        ({"scale": 2.0}, False),
        ({"freeze_emb": False}, False),
        ({"source": ""}, False),
    ],
)
def test_norms_are_tried_of_frozen_embeddings_of_items_without_one(dataset, changes, is_tried):
    columns = [
        c.model_copy(update=changes if c.type == "embedding" else {}) for c in split_entries(dataset.feature_cols)
    ]
    of = dataset.model_copy(update={"feature_cols": columns})
    assert Features.of(of, []).plain == (("item_emb_d16",) if is_tried else ())
    assert Features.of(of.model_copy(update={"item_info": None}), []).plain == ()


@pytest.mark.parametrize("stored", [[], ["a"]])
@pytest.mark.parametrize("more", [[], ["a"], ["level"]])
def test_no_list_of_features_is_tried_twice(more, stored):
    """A tuner file with a value twice is refused, as for a log of users and items alone."""
    types = {"user_id": "categorical", "item_id": "categorical", "level": "categorical", "a": "embedding"}
    active = ["item_id", "user_id", *more]
    features = Features(types, active, stored, "user_id", "item_id", True)
    for lists in (features.to_try, features.of_users, features.factors["use_features"]):
        assert len({frozenset(names) for names in lists}) == len(lists)
    assert set(features.of_users[0]) == set(active)
