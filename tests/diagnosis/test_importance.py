"""Permutations of item fields in every batch format, of context and histories; groups of fields and findings."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from fuxictr_mm.config import Roles
from fuxictr_mm.data.batch import challenge_format, flat_format
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.diagnosis.importance import (
    all_groups,
    findings,
    histories,
    modality_of,
    name_fields,
    number_of_passes,
    permute_items,
    permute_once,
    permuted_items,
)
from fuxictr_mm.diagnosis.scorer import Scorer
from fuxictr_mm.jagged import Jagged


@pytest.fixture
def scorer(trained):
    experiment, model, dataset = trained
    found = Scorer(experiment, model, dataset.splits["valid"])
    found.score_base()
    return found


def test_known_items_are_permuted_among_each_other(trained):
    items = copy.deepcopy(trained[1].feature_map.items)
    items.known[[5, 900]] = False
    permutation = permute_items(items, 3)
    assert permutation[[0, 5, 900]].tolist() == [0, 5, 900]
    assert sorted(permutation.tolist()) == list(range(1001))
    assert (permutation == torch.arange(1001)).sum() < 15
    assert torch.equal(permutation, permute_items(items, 3))
    assert not torch.equal(permutation, permute_items(items, 4))


def test_permuted_embeddings_equal_a_permuted_table(scorer):
    """Reading other rows of the item table equals a table with permuted rows."""
    model = scorer.model
    permutation = permute_items(model.feature_map.items, 0)
    with permuted_items(model, ["txt_emb_pca8", "item_tags"], permutation) as change:
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
    assert not np.array_equal(found, scorer.score())


def test_permuted_ids_equal_a_permuted_embedding_table(scorer, faulty):
    permutation = permute_items(scorer.model.feature_map.items, 0)
    with permuted_items(scorer.model, ["item_id"], permutation):
        found = scorer.score()
    experiment, model, dataset = faulty
    table = dict(model.embedding_layer.named_parameters())["embedding_layer.embedding_layers.item_id.weight"]
    table.data = table.data[permutation]
    np.testing.assert_array_equal(found, Scorer(experiment, model, dataset.splits["valid"]).score())


def test_trainable_embeddings_are_permuted(load, tiny_dataset):
    experiment = load("DIN_MM_tiny", feature_specs=[{"name": "txt_emb_pca8", "freeze_emb": False}])
    dataset = tiny_dataset(experiment.config.to_dict())
    model = experiment.build_model(dataset).eval()
    assert list(model.item_vectors) == ["txt_emb_pca8"]
    scorer = Scorer(experiment, model, dataset.splits["valid"].slice(0, 200))
    before, permutation = scorer.score(), permute_items(model.feature_map.items, 0)
    with permuted_items(model, ["txt_emb_pca8"], permutation):
        found = scorer.score()
    weight = model.item_vectors["txt_emb_pca8"].weight
    weight.data = weight.data[permutation]
    np.testing.assert_array_equal(found, scorer.score())
    assert not np.array_equal(found, before)


def test_other_batch_formats_are_permuted(trained, make_batch):
    _, model, dataset = trained
    items, feature_map = model.feature_map.items, copy.copy(model.feature_map)
    feature_map.features = {**feature_map.features, "item_seq": {"type": "sequence", "source": ""}}
    batch = make_batch(dataset.splits["valid"], range(40))
    permutation = permute_items(items, 0)
    before, ids = flat_format(batch, feature_map, items, 20), batch.target.long()
    with permuted_items(model, ["item_id", "img_emb_pca8"], permutation) as change:
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
    items = trained[1].feature_map.items

    def fail():
        with permuted_items(trained[1], ["item_id"], permute_items(items, 0)):
            assert "rows" in vars(items)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "rows" not in vars(items)


def test_a_seed_is_one_permutation(scorer):
    groups = all_groups(scorer.model.feature_map.features, scorer.model.feature_map.items.names, {"item_seq": []})
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
    along = {"item_seq": ["when"], "bought": ["price"]}
    groups = all_groups(features, ("item_tags", "txt_emb", "codes_rq_text", "item_emb"), along)
    assert [g.name for g in groups if g.kind == "field"] == [
        "hour", "item_id", "item_tags", "txt_emb", "codes_rq_text", "item_emb"
    ]  # fmt: skip
    assert {(g.name, g.kind, g.fields) for g in groups if g.kind != "field"} == {
        ("text", "modality", ("txt_emb", "codes_rq_text")),
        ("item_emb", "modality", ("item_emb",)),
        ("all modalities", "vectors", ("txt_emb", "codes_rq_text", "item_emb")),
        ("all ids", "ids", ("item_id", "item_tags")),
        ("whole context", "context", ("hour",)),
        ("history", "history", ("when",)),
        ("history bought", "history", ("bought", "price")),
    }
    assert modality_of("img_emb_CLIPRN50", "embedding") == "image"


def test_history_of_a_model_that_ignores_it_costs_nothing(faulty):
    experiment, model, dataset = faulty
    torch.nn.init.zeros_(model.attention.W_o.weight)
    scorer = Scorer(experiment, model, replace(dataset.splits["valid"], group=None))
    scorer.score_base()
    history = all_groups(model.feature_map.features, model.feature_map.items.names, {"item_seq": []})[-1]
    assert permute_once(scorer, history, 0) == (0.0, 0.0)


def test_fields_of_senet_are_named_where_their_number_tells():
    assert name_fields(4, [], ["a", "b"]) == ["target.a", "target.b", "history.a", "history.b"]
    assert name_fields(3, ["c"], ["a", "b"]) == ["context.c", "target.a", "target.b"]
    assert name_fields(2, ["c"], ["a", "b"]) == ["field.0", "field.1"]


def jagged(rows):
    offsets = np.cumsum([0] + [len(row) for row in rows])
    return Jagged(torch.tensor([item for row in rows for item in row]), torch.from_numpy(offsets))


def test_histories_are_permuted_with_everything_along_them():
    """Each entry along a history is its item times 10."""
    lists = {"seen": [[1], [2, 3], []], "bought": [[4, 5], [6], [7, 8, 9]]}
    columns = {name: jagged(rows) for name, rows in lists.items()}
    context = {f"{name}_price": column.with_values(column.values * 10) for name, column in columns.items()}
    seen = columns["seen"]
    table = InteractionTable(
        {**context, "bought": columns["bought"]}, torch.tensor([1, 2, 3]), seen.values, seen.offsets, torch.ones(3)
    )
    specs = {f"{name}_price": {"history": name} for name in lists}
    along = histories(Roles(history="seen", histories=["bought", "absent"]), table.context, specs)
    assert along == {"seen": ["seen_price"], "bought": ["bought_price"]}
    rows = torch.randperm(3, generator=torch.Generator().manual_seed(1)).tolist()

    class Recorder:
        def __init__(self):
            self.table, self.cost = table, lambda prediction: prediction

        def score(self, changed):
            return changed

    for group in all_groups({}, (), along):
        moved = permute_once(Recorder(), group, 1)
        found = {"seen": Jagged(moved.history_values, moved.history_offsets), **moved.context}
        for name in lists:
            changed = name == ("seen" if group.source == "history" else "bought")
            expected = jagged([lists[name][row] for row in (rows if changed else range(3))])
            assert torch.equal(found[name].values, expected.values)
            assert torch.equal(found[name].offsets, expected.offsets)
            assert torch.equal(found[f"{name}_price"].values, expected.values * 10)
            assert torch.equal(found[f"{name}_price"].offsets, expected.offsets)


def test_a_modality_whose_permutation_raises_the_auc_is_not_without_effect():
    def entry(name, kind, drop, fields):
        return {"name": name, "kind": kind, "fields": fields, "auc_lost": drop, "deviation": 0.0, "noise": 0.01}

    groups = [entry("text", "modality", 0.05, ["t"]), entry("image", "modality", -0.05, ["i"])]
    fields = [
        entry("t", "field", 0.05, ["t"]),
        entry("i", "field", -0.05, ["i"]),
        entry("hour", "field", -0.03, ["hour"]),
    ]
    found = [(f.code, f.subject) for f in findings({"importance": {"groups": groups, "fields": fields}})]
    assert found == [("harmful", "image"), ("harmful", "hour")]
