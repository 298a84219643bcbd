"""Permutations below the views: what a model sees, in its own view and in those of other libraries."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from fuxictr_mm.data.batch import challenge_format, flat_format
from fuxictr_mm.diagnosis.importance import all_groups, draw, modality_of, number_of_passes, permute_once, swapped
from fuxictr_mm.diagnosis.scorer import Scorer, sample, with_context, with_history


@pytest.fixture
def scorer(trained):
    model, dataset, params = trained
    found = Scorer(model, dataset.splits["valid"], params)
    found.score_base()
    return found


def test_known_items_swap_among_each_other(trained):
    items = copy.deepcopy(trained[0].feature_map.items)
    items.known[[5, 900]] = False
    permutation = draw(items, 3)
    assert permutation[[0, 5, 900]].tolist() == [0, 5, 900]
    assert sorted(permutation.tolist()) == list(range(1001))
    assert (permutation == torch.arange(1001)).sum() < 15
    assert torch.equal(permutation, draw(items, 3))
    assert not torch.equal(permutation, draw(items, 4))


def test_swapped_vectors_equal_a_table_written_anew(scorer):
    """Reading other rows of the item table is the same as a table whose rows have moved."""
    model = scorer.model
    permutation = draw(model.feature_map.items, 0)
    with swapped(model, ["txt_emb_pca8", "item_tags"], permutation) as change:
        assert change is None
        found = scorer.score()
    items = model.feature_map.items
    kept = {name: items[name] for name in ("txt_emb_pca8", "item_tags")}
    try:
        for name, column in kept.items():
            setattr(items, f"column_{name}", column[permutation])
        expected = scorer.score()
    finally:
        for name, column in kept.items():
            setattr(items, f"column_{name}", column)
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, scorer.base)
    np.testing.assert_array_equal(scorer.score(), scorer.base)


def test_swapped_ids_equal_an_embedding_table_written_anew(scorer, faulty):
    permutation = draw(scorer.model.feature_map.items, 0)
    with swapped(scorer.model, ["item_id"], permutation):
        found = scorer.score()
    model, dataset, params = faulty
    table = dict(model.embedding_layer.named_parameters())["embedding_layer.embedding_layers.item_id.weight"]
    table.data = table.data[permutation]
    np.testing.assert_array_equal(found, Scorer(model, dataset.splits["valid"], params).score())


def test_vectors_that_train_along_are_swapped(settings, tiny_dataset):
    from fuxictr_mm.experiment import build_model

    params, model_class = settings("DIN_MM_tiny", feature_specs=[{"name": "txt_emb_pca8", "freeze_emb": False}])
    dataset = tiny_dataset(params)
    model = build_model(model_class, dataset, params).eval()
    assert list(model.item_vectors) == ["txt_emb_pca8"]
    scorer = Scorer(model, dataset.splits["valid"].slice(0, 200), params)
    before, permutation = scorer.score(), draw(model.feature_map.items, 0)
    with swapped(model, ["txt_emb_pca8"], permutation):
        found = scorer.score()
    weight = model.item_vectors["txt_emb_pca8"].weight
    weight.data = weight.data[permutation]
    np.testing.assert_array_equal(found, scorer.score())
    assert not np.array_equal(found, before)


def test_other_views_are_swapped_as_well(trained, make_batch):
    model, dataset, _ = trained
    items, feature_map = model.feature_map.items, copy.copy(model.feature_map)
    feature_map.features = {**feature_map.features, "item_seq": {"type": "sequence", "source": ""}}
    batch = make_batch(dataset.splits["valid"], range(40))
    permutation = draw(items, 0)
    before, ids = flat_format(batch, feature_map, items, 20), batch.target.long()
    with swapped(model, ["item_id", "img_emb_pca8"], permutation) as change:
        flat = change(flat_format(batch, feature_map, items, 20))
        _, rows, mask = change(challenge_format(batch, feature_map, items, 20))
    assert torch.equal(flat["item_id"].long(), permutation[ids])
    assert torch.equal(flat["img_emb_pca8"], items["img_emb_pca8"][permutation[ids]])
    assert torch.equal(flat["txt_emb_pca8"], before["txt_emb_pca8"])
    assert torch.equal(flat["item_seq"], permutation[before["item_seq"]])
    asked = torch.cat([before["item_seq"], ids[:, None]], dim=1).flatten()
    assert torch.equal(rows["item_id"], permutation[asked])
    assert torch.equal(rows["img_emb_pca8"], items["img_emb_pca8"][permutation[asked]])
    assert torch.equal(rows["item_tags"], items["item_tags"][asked])
    assert not rows["img_emb_pca8"].view(40, 21, 8)[:, :-1][mask == 0].any()


def test_the_model_is_the_same_after_an_error(trained):
    items = trained[0].feature_map.items

    def fail():
        with swapped(trained[0], ["item_id"], draw(items, 0)):
            assert "rows" in vars(items)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "rows" not in vars(items)


def test_rows_swap_context_and_histories(trained):
    table = trained[1].splits["valid"].slice(0, 50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    moved = with_context(table, ["likes_level"], order)
    assert torch.equal(moved.context["likes_level"], table.context["likes_level"][order])
    assert torch.equal(moved.context["views_level"], table.context["views_level"])
    moved = with_history(table, order)
    ours, theirs = (t.history_values.split(t.history_offsets.diff().tolist()) for t in (moved, table))
    for row, other in enumerate(order.tolist()):
        assert torch.equal(ours[row], theirs[other])
    assert torch.equal(moved.target, table.target)
    assert sample(table, 50, 0) is table
    drawn = sample(table, 20, 1)
    assert len(drawn) == 20
    assert torch.equal(drawn.target, sample(table, 20, 1).target)
    assert not torch.equal(drawn.target, sample(table, 20, 2).target)


def test_a_seed_is_one_permutation(scorer):
    groups = all_groups(scorer.model.feature_map.features, scorer.model.feature_map.items.names)
    for group in groups[::4]:
        assert permute_once(scorer, group, 3) == permute_once(scorer, group, 3)
    assert number_of_passes(groups, 5) == 50


def test_groups_of_fields():
    def spec(kind, source="item"):
        return {"type": kind, "source": source}

    features = {
        "user_id": spec("meta", ""),
        "hour": spec("categorical", ""),
        "item_seq": spec("sequence", ""),
        "item_id": spec("categorical"),
        "made": spec("categorical"),
        "item_tags": spec("sequence"),
        "txt_emb": spec("embedding"),
        "codes_rq_text": spec("sequence"),
        "item_emb": spec("embedding"),
    }
    groups = all_groups(features, ("item_tags", "txt_emb", "codes_rq_text", "item_emb"))
    assert [g.name for g in groups if g.kind == "field"] == [
        "hour", "item_id", "item_tags", "txt_emb", "codes_rq_text", "item_emb"
    ]  # fmt: skip
    assert {(g.name, g.kind, g.fields) for g in groups if g.kind != "field"} == {
        ("text", "modality", ("txt_emb", "codes_rq_text")),
        ("item_emb", "modality", ("item_emb",)),
        ("all modalities", "vectors", ("txt_emb", "codes_rq_text", "item_emb")),
        ("all ids", "ids", ("item_id", "item_tags")),
        ("whole context", "context", ("hour",)),
        ("history", "history", ()),
    }
    assert modality_of("img_emb_CLIPRN50", "embedding") == "image"


def test_history_of_a_model_that_ignores_it_costs_nothing(faulty):
    model, dataset, params = faulty
    for parameter in (model.attention.W_o.weight,):
        torch.nn.init.zeros_(parameter)
    scorer = Scorer(model, replace(dataset.splits["valid"], group=None), params)
    scorer.score_base()
    history = all_groups(model.feature_map.features, model.feature_map.items.names)[-1]
    assert permute_once(scorer, history, 0) == (0.0, 0.0)
