"""The features that the autopilot tries."""

from dataclasses import replace

from fuxictr_mm.autopilot.facts import look
from fuxictr_mm.autopilot.features import Features


def test_lists_of_features(dataset):
    embeddings = list(look(dataset).embeddings.values())
    features = Features.of(dataset, embeddings)
    more, both_more, first, second = features.to_try
    assert "item_emb_d16" in first
    assert {"txt_emb_pca8", "img_emb_pca8"} <= set(second)
    assert set(first) - set(second) == {"item_emb_d16"}
    added = {entry["name"]: entry for entry in features.computed}
    for plain, with_more in ((first, more), (second, both_more)):
        assert with_more[: len(plain)] == plain
        assert {added[n].get("of") for n in with_more[len(plain) :]} - {None} == {n for n in plain if "emb" in n}
    assert replace(features, embeddings=[]).to_try[1:] == [first]
    encoded = replace(features, has_items=False)
    assert (encoded.computed, encoded.to_try) == ([], [first, second])
    few, all_active = features.of_users
    assert not features.has_user  # the user of tiny_mm is no feature
    assert few == ["item_id", "item_emb_d16"]
    assert set(few) < set(all_active)
    assert features.factors == {}


def test_features_of_a_factorization():
    types = {"user_id": "categorical", "item_id": "categorical", "level": "categorical", "a": "embedding"}
    features = Features(types, list(types), ["b"], "user_id", "item_id", True)
    assert features.to_try[-1] == ["user_id", "item_id", "level", "b"]
    assert features.factors == {"factor_dim": [17, 33, 0], "factor_features": [["user_id", "item_id"], None]}
    assert replace(features, active=["item_id", "a"]).factors == {}
