"""Experiments of a prepared log: their settings follow what was counted."""

import pytest

from fuxictr_mm.datasets.experiments import (
    columns_to_compare,
    din_experiments,
    explain,
    first_experiments,
    users_recur,
)
from fuxictr_mm.datasets.summary import SplitSummary, Summary


@pytest.mark.parametrize(("users", "recur"), [(50, True), (200, False)])
def test_the_user_is_a_feature_where_users_recur(users, recur):
    summary = Summary(9, users, {"train": SplitSummary(rows=300)}, vocab_sizes={"user_id": users + 1})
    assert users_recur(summary) == recur
    assert ("LightFM" in first_experiments(summary, 20, users_recur(summary))) == recur


def test_a_high_learning_rate_comes_with_the_average_of_the_weights():
    """As ``docs/choosing_settings.md`` has it."""
    for rows, updates in ((80_024, 626), (600, 6), (1, 2), (3_000_000, 1466)):
        summary = Summary(9, 1, {"train": SplitSummary(rows=rows)}, vocab_sizes={"user_id": 2})
        experiments = first_experiments(summary, 20, True)
        for name, entry in experiments.items():
            rate = entry["learning_rate"]
            assert (rate, entry.get("swa_start")) == ((5e-3, None) if name == "LightFM" else (4e-3, updates))
            patience = entry["early_stop_patience"], entry["reduce_lr_on_plateau"]
            assert patience == (5 if name == "LightFM" else 4, False)
            epochs = 4 if rows == 3_000_000 else 20
            assert entry["epochs"] == (3 * epochs if name == "LightFM" else epochs)
            if name == "LightFM":  # few rows in large batches would be few updates
                assert entry["batch_size"] == {80_024: 1024, 3_000_000: 16_384}.get(rows, 256)


@pytest.mark.parametrize(
    ("cold", "coverage", "dropout"), [(85, True, 0.5), (85, False, None), (40, True, None), (40, False, None)]
)
def test_item_ids_are_dropped_where_targets_are_cold_and_embeddings_tell_the_item(cold, coverage, dropout):
    splits = {"train": SplitSummary(rows=300), "test": SplitSummary(rows=100, cold=cold)}
    summary = Summary(9, 200, splits, {"title_emb": 1.0} if coverage else {}, vocab_sizes={"user_id": 201})
    entry = first_experiments(summary, 20, users_recur(summary))["DIN_MM"]
    assert entry.get("feature_specs") == (dropout and [{"name": "item_id", "dropout": dropout}])
    assert "factor_dim" not in entry
    assert sum(f"{cold}%" in line for line in explain(summary, users_recur(summary))) == (cold > 80 or not coverage)


@pytest.mark.parametrize(
    ("cold", "sampled", "dropout"), [(5, True, 0.1), (4, True, None), (40, False, None), (85, True, 0.5)]
)
def test_item_ids_are_dropped_where_negatives_are_sampled_and_targets_cold(cold, sampled, dropout):
    splits = {"train": SplitSummary(rows=300), "test": SplitSummary(rows=100, cold=cold)}
    summary = Summary(9, 10, splits, {"title_emb": 1.0}, vocab_sizes={"user_id": 11})
    entries = first_experiments(summary, 20, True, sampled=sampled)
    shared = {"unknown": "trained"} if dropout == 0.1 else {}
    assert entries["DIN_MM"].get("feature_specs") == (dropout and [{"name": "item_id", "dropout": dropout, **shared}])
    assert ("feature_specs" in entries["DIN"], "feature_specs" in entries["LightFM"]) == (
        bool(dropout and sampled),
    ) * 2
    assert entries["LightFM"].get("history", False) is sampled
    lines = explain(summary, True, sampled=sampled)
    assert any("dropout: 0.1" in line for line in lines) == (sampled and cold >= 5)
    assert any("DIN_MM and LightFM have dropout: 0.1" in line for line in lines) == (dropout == 0.1)
    assert any("LightFM has history" in line for line in lines) is sampled
    assert entries["DIN_MM"].get("factor_history", False) is sampled
    assert ("factor_features" in entries["DIN_MM"]) is not sampled


def test_the_softmax_of_attention_is_a_setting_of_din_alone():
    summary = Summary(9, 1, {"train": SplitSummary(rows=80_024)}, vocab_sizes={"user_id": 2})
    softmax = {name: entry.get("din_use_softmax") for name, entry in first_experiments(summary, 20, True).items()}
    assert softmax == {"DIN": True, "DIN_MM": None, "LightFM": None}


def test_where_users_recur_the_attention_has_a_factorization():
    splits = {"train": SplitSummary(rows=300)}
    summary = Summary(9, 10, splits, {"title_emb": 1.0}, vocab_sizes={"user_id": 11})
    entry = first_experiments(summary, 20, users_recur(summary))["DIN_MM"]
    assert (entry["factor_dim"], entry["factor_features"]) == (17, ["user_id", "item_id", "title_emb"])
    assert entry["factor_table_regularizer"] == 1e-4
    assert sum("factor_dim: 17" in line for line in explain(summary, users_recur(summary))) == 1


@pytest.mark.parametrize(
    ("rows", "items", "coverage", "penalty"),
    [
        (12_000, 9, True, 1e-2),
        (40_000, 9, False, 2e-3),
        (80_000, 20_000, True, 2e-4),
        (80_000, 8_000, False, 2e-4),
        (80_000, 8_001, False, 2e-3),
        (80_000, 16_000, False, 2e-3),
        (80_000, 16_001, False, 1e-2),
        (40_000, 9_000, False, 1e-2),
        (3_000_000, 900_000, False, 1e-5),
    ],
)
def test_few_rows_have_a_strong_penalty_and_many_a_weak_one(rows, items, coverage, penalty):
    """As ``docs/choosing_settings.md`` has it; few rows per item without embeddings are as few rows."""
    splits, embeddings = {"train": SplitSummary(rows=rows)}, {"title_emb": 1.0} if coverage else {}
    summary = Summary(10**6, rows, splits, embeddings, vocab_sizes={"user_id": rows + 1}, trained_items=items)
    for name, entry in first_experiments(summary, 20, users_recur(summary)).items():
        if name != "LightFM":
            assert entry["embedding_regularizer"] == penalty
    lines = explain(summary, users_recur(summary))
    assert ["embedding_regularizer" in line for line in lines] == [True] * (penalty != 2e-4)
    assert any("training rows on average" in line for line in lines if "regularizer" in line) == (
        rows > 12_000 and penalty in (2e-3, 1e-2) and items > 9
    )


@pytest.mark.parametrize(("rows", "compared"), [(99_999, ["category", "tags"]), (100_000, [])])
def test_few_rows_have_the_similarity_of_categories_and_tags(rows, compared):
    kinds = {"title": "text", "category": "categorical", "price": "numeric", "tags": "sequence", "maker": "categorical"}
    sizes = {"user_id": 11, "category": 5, "tags": 20, "maker": 21}
    summary = Summary(100, 10, {"train": SplitSummary(rows=rows)}, vocab_sizes=sizes)
    assert columns_to_compare(summary, kinds) == compared
    assert any("category, tags" in line for line in explain(summary, True, compared)) == bool(compared)


@pytest.mark.parametrize(("sampled", "compared"), [(True, ["title_emb", "category"]), (False, ["category"])])
def test_sampled_negatives_have_the_similarity_of_embeddings(sampled, compared):
    summary = Summary(100, 10, {"train": SplitSummary(rows=300)}, {"title_emb": 1.0}, vocab_sizes={"category": 5})
    assert columns_to_compare(summary, {"category": "categorical"}, sampled) == compared
    lines = explain(summary, True, compared, sampled)
    assert sum("type: similarity" in line for line in lines) == len(compared)
    summary.splits["train"] = SplitSummary(rows=100_000)
    assert columns_to_compare(summary, {"category": "categorical"}, sampled) == compared[:-1]


@pytest.mark.parametrize(("dim", "many"), [(66, True), (65, False)])
def test_more_dims_than_half_of_the_items_with_training_rows_are_named(dim, many):
    summary = Summary(140, 10, {"train": SplitSummary(rows=300)}, trained_items=130, dims={"title_emb": dim})
    assert any("title_emb" in line for line in explain(summary, True)) == many


@pytest.mark.parametrize(("rows", "penalty"), [(300, 3e-4), (12_000, 2.5e-4), (80_024, 3.7e-5), (10**8, 1e-6)])
def test_the_penalty_of_a_factorization_falls_with_the_rows(rows, penalty):
    """As ``docs/choosing_settings.md`` has it: a fixed penalty of whole tables hides what users like."""
    summary = Summary(9, 10, {"train": SplitSummary(rows=rows)}, {"title_emb": 1.0}, vocab_sizes={"user_id": 11})
    assert first_experiments(summary, 20, users_recur(summary))["LightFM"]["embedding_regularizer"] == penalty


@pytest.mark.parametrize(("rows", "penalty"), [(12_000, 1e-2), (40_000, 2e-3), (80_000, 2e-4), (3_600_000, 1e-5)])
def test_the_penalty_of_synthetic_data_follows_the_rows(rows, penalty):
    assert {entry["embedding_regularizer"] for entry in din_experiments(rows, 20).values()} == {penalty}
