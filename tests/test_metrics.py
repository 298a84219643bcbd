"""Metrics against FuxiCTR, scikit-learn and closed forms."""

import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from fuxictr_mm.data.groups import NO_GROUP
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.metric_names import check_metrics, parse_metric, split_task
from fuxictr_mm.metrics import evaluate_metrics, evaluate_tasks, find_undefined
from tests.errors import raises_naming

ALL_METRICS = ["AUC", "logloss", "gAUC", "gAUC_pos", "gAUC_mean", "avgAUC", "MRR", "NDCG(k=3)"]


def sample(rows=400, groups=60, ties=True, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    score = rng.integers(0, 9, rows) / 10 + 0.05 if ties else rng.permutation(rows) / rows
    return label, score, rng.integers(0, groups, rows)


def fuxictr_values(label, score, group, metrics):
    """FuxiCTR's own values, without the pool of processes that its evaluate_metrics starts."""
    from fuxictr import metrics as reference

    functions = {"gAUC": reference.gAUC, "avgAUC": reference.avgAUC, "MRR": reference.MRR}
    functions |= {f"NDCG(k={k})": reference.NDCG(k=k) for k in (1, 3, 10)}
    chosen = [functions[name] for name in metrics]
    frame = pl.DataFrame({"group": group, "y_true": label, "y_pred": score})
    blocks = frame.partition_by("group", maintain_order=True)
    values = np.array([reference.evaluate_block(block, chosen) for block in blocks]).sum(0)
    return dict(zip(metrics, values[:, 0] / values[:, 1], strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_group_metrics_equal_fuxictr(seed):
    for ties, metrics in [(True, ["gAUC", "avgAUC"]), (False, ["gAUC", "MRR", "NDCG(k=1)", "NDCG(k=3)", "NDCG(k=10)"])]:
        label, score, group = sample(ties=ties, seed=seed)
        expected = fuxictr_values(label, score, group, metrics)
        assert evaluate_metrics(label, score, metrics, group) == pytest.approx(expected, abs=1e-11)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=30))
def test_auc_equals_sklearn_over_all_examples_and_within_groups(examples):
    label, score, group = (np.array(column) for column in zip(*examples, strict=True))
    score = score / 7
    members = [group == g for g in np.unique(group)]
    members = [inside for inside in members if len(set(label[inside])) == 2]
    if not members:
        return
    expected = [roc_auc_score(label[inside], score[inside]) for inside in members]
    weights = {
        "gAUC": [inside.sum() for inside in members],
        "gAUC_pos": [label[inside].sum() for inside in members],
        "gAUC_mean": None,
        "avgAUC": None,
    }
    found = evaluate_metrics(label, score, ["AUC", *weights], group)
    assert found.pop("AUC") == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert found == pytest.approx({name: np.average(expected, weights=w) for name, w in weights.items()}, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_order_of_rows_names_of_groups_and_scale_of_scores_do_not_matter(seed, ties):
    label, score, group = sample(rows=60, groups=9, ties=ties, seed=seed)
    label[:2] = 0, 1
    metrics = [name for name in ALL_METRICS if name != "logloss"]
    label[group == group[0]] = np.arange((group == group[0]).sum()) % 2  # group metrics are defined
    if (group == group[0]).sum() < 2:
        return
    expected = evaluate_metrics(label, score, metrics, group)
    order = np.random.default_rng(seed).permutation(len(label))
    names = np.array([f"user {(g * 7 + 3) % 10}" for g in group])
    shuffled = evaluate_metrics(label[order], score[order], metrics, names[order])
    assert shuffled == pytest.approx(expected, abs=1e-12)
    assert evaluate_metrics(label, 100 * score - 3, metrics, group) == pytest.approx(expected, abs=1e-12)
    reversed_auc = evaluate_metrics(1 - label, -score, ["AUC", "gAUC"], group)
    assert reversed_auc == pytest.approx({name: expected[name] for name in ("AUC", "gAUC")}, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 10, 1000])
def test_ndcg_with_ties_equals_sklearn(k):
    label, score, group = sample(rows=120, groups=12)
    expected = []
    for g in np.unique(group):
        inside = group == g
        expected.append(
            ndcg_score([label[inside]], [score[inside]], k=k) if inside.sum() > 1 else float(label[inside][0])
        )
    assert evaluate_metrics(label, score, [f"NDCG@{k}"], group)[f"NDCG@{k}"] == pytest.approx(
        np.mean(expected), abs=1e-12
    )


def test_log_loss_equals_sklearn_also_at_the_ends():
    label, score, _ = sample()
    score[:4] = 0, 0, 1, 1
    label[:4] = 0, 1, 0, 1
    expected = log_loss(label, score)
    values = evaluate_metrics(label, score, ["logloss", "binary_crossentropy"])
    assert values == pytest.approx({"logloss": expected, "binary_crossentropy": expected}, rel=1e-14)


def test_closed_forms():
    # Group 7 ranks its positive second of three, group 9 ties one positive with one negative, group 3 has none.
    label = [0, 1, 0, 1, 0, 0]
    score = [0.9, 0.5, 0.1, 0.4, 0.4, 0.8]
    group = [7, 7, 7, 9, 9, 3]
    values = evaluate_metrics(label, score, ALL_METRICS, group)
    assert values["AUC"] == pytest.approx((2 / 4 + 1.5 / 4) / 2)
    assert values["gAUC"] == pytest.approx((3 * 0.5 + 2 * 0.5) / 5)
    assert values["MRR"] == pytest.approx((1 / 2 + (1 + 1 / 2) / 2 + 0) / 3)
    second = 1 / math.log2(3)
    assert values["NDCG(k=3)"] == pytest.approx((second + (1 + second) / 2 + 0) / 3)


def test_a_constant_prediction_is_worth_chance():
    label, group = [1, 0, 0, 0] * 5, np.repeat(np.arange(5), 4)
    values = evaluate_metrics(label, np.full(20, 0.25), ["AUC", "gAUC", "MRR", "NDCG@1"], group)
    assert values == pytest.approx({"AUC": 0.5, "gAUC": 0.5, "MRR": (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, "NDCG@1": 0.25})


@pytest.mark.parametrize(
    "convert", [list, np.asarray, torch.as_tensor, lambda x: torch.as_tensor(x).float().unsqueeze(1)]
)
def test_lists_arrays_and_tensors_agree(convert):
    label, score, group = sample()
    score = score.astype(np.float32).astype(np.float64)
    expected = evaluate_metrics(label, score, ALL_METRICS, group)
    assert evaluate_metrics(convert(label), convert(score), ALL_METRICS, convert(group)) == expected


def test_scores_that_float32_cannot_tell_apart_are_no_tie():
    assert evaluate_metrics([0, 1], [0.5, 0.5 + 1e-12], ["AUC"]) == {"AUC": 1.0}


@pytest.mark.parametrize(("name", "k"), [("NDCG(k=10)", 10), ("NDCG@10", 10), ("NDCG( k = 2 )", 2), ("NDCG(7)", 7)])
def test_spellings_of_ndcg(name, k):
    metric = parse_metric(name)
    assert (metric.name, metric.kind, metric.k, metric.needs_group) == (name, "NDCG", k, True)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("auc", "'AUC'"),
        ("log_loss", "'logloss'"),
        ("ndcg@10", "'NDCG"),
        ("NDCG(k=0)", ""),
        ("NDCG(__import__('os'))", ""),
        (3, ""),
    ],
)
def test_unknown_metrics_are_refused(name, nearest):
    with pytest.raises(ConfigError) as refused:
        parse_metric(name)
    assert repr(name) in str(refused.value)
    assert f"did you mean {nearest}" in str(refused.value) or not nearest


def test_metrics_of_a_configuration_are_checked():
    assert [metric.kind for metric in check_metrics(["AUC", "gAUC"], "user_id")] == ["AUC", "gAUC"]
    for names, found in ("AUC", "'AUC'"), (["AUC", "gAUC"], "'gAUC'"), (["NDCG@5"], "'NDCG@5'"):
        with pytest.raises(ConfigError, match=found):
            check_metrics(names)


@pytest.mark.parametrize(
    ("label", "score", "metrics", "found"),
    [
        ([0, 1, 1, 0], [0.1, math.nan, 0.3, math.inf], ["AUC"], ["2 of 4 predictions", "nan in row 1"]),
        ([1, 1], [0.1, 0.2], ["AUC"], ["2 labels"]),
        ([0, 2], [0.1, 0.2], ["AUC"], ["1 of 2 labels", "2.0 in row 1"]),
        ([0, math.nan], [0.1, 0.2], ["AUC"], ["nan in row 1"]),
        ([0, 1], [0.1, 1.2], ["logloss"], ["1 of 2 predictions", "1.2 in row 1"]),
        ([0, 1], [0.1], ["AUC"], ["2 labels", "1 predictions"]),
        ([], [], ["AUC"], ["rows"]),
        ([0, 1], [0.1, 0.2], ["gAUC"], ["2 groups"]),
    ],
)
def test_bad_examples_are_refused(label, score, metrics, found):
    with raises_naming(DataError, *found):
        evaluate_metrics(label, score, metrics, group_id=list(range(len(score))))


@pytest.mark.parametrize("none", [None, float("nan"), pd.NA])
def test_rows_without_a_group_count_in_metrics_of_rows_only(none):
    label, score, group = sample()
    without = np.arange(len(label)) % 5 == 0
    given = [none if missing else f"u{g:02}" for g, missing in zip(group, without, strict=True)]
    found = evaluate_metrics(label, score, ALL_METRICS, given)
    rows, others = evaluate_metrics(label, score, ALL_METRICS, group), ~without
    within = evaluate_metrics(label[others], score[others], ALL_METRICS, group[others])
    assert found == {name: rows[name] if not parse_metric(name).needs_group else within[name] for name in ALL_METRICS}
    as_stored = torch.from_numpy(np.where(without, NO_GROUP, group))
    assert evaluate_metrics(label, score, ALL_METRICS, as_stored) == found


def test_no_group_at_all():
    label, score, _ = sample()
    with raises_naming(DataError, "400", "group"):
        evaluate_metrics(label, score, ["gAUC"], [None] * 400)
    group = torch.full((400,), NO_GROUP)
    assert set(find_undefined(torch.from_numpy(label), ["AUC", "gAUC", "MRR"], group)) == {"gAUC", "MRR"}
    group[label == 1] = 3  # rows without a group are no negatives of a group
    assert set(find_undefined(torch.from_numpy(label), ["AUC", "gAUC", "MRR"], group)) == {"gAUC"}


def test_group_ids_must_be_one_per_example():
    with pytest.raises(DataError, match="3 group ids"):
        evaluate_metrics([0, 1], [0.1, 0.2], ["gAUC"], group_id=[1, 2, 3])


def test_metrics_of_several_labels(caplog):
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(300, 3, generator=generator) < 0.4).float()
    label[torch.rand(300, 3, generator=generator) < 0.3] = math.nan
    label[:, 2] = torch.where(label[:, 2].isnan(), math.nan, 0.0)
    score, group = torch.rand(300, 3, generator=generator), torch.randint(0, 9, (300,), generator=generator)
    with caplog.at_level("WARNING"):
        found = evaluate_tasks(label, score, ["b_AUC", "gAUC", "NDCG@5", "logloss"], ["a", "b", "c"], group)
    assert "c" in caplog.text
    names = ["AUC", "gAUC", "NDCG@5", "logloss"]
    assert list(found) == [*(f"a_{name}" for name in names), *(f"b_{name}" for name in names), *names]
    for task, column in (("a", 0), ("b", 1)):
        known = [row for row in range(300) if not math.isnan(label[row, column])]
        expected = evaluate_metrics(label[known, column], score[known, column], names, group[known])
        assert {name: found[f"{task}_{name}"] for name in names} == expected
    assert all(found[name] == (found[f"a_{name}"] + found[f"b_{name}"]) / 2 for name in names)
    with pytest.raises(DataError, match="a, b"):
        evaluate_tasks(torch.ones(300, 2), score[:, :2], ["AUC"], ["a", "b"])


def test_errors_of_a_regression():
    label, score = [3.0, -1.0, 0.5], [1.0, -1.0, 2.0]
    found = evaluate_metrics(label, score, ["MAE", "RMSE"])
    assert found == pytest.approx({"MAE": 3.5 / 3, "RMSE": math.sqrt((4 + 1.5**2) / 3)})
    with pytest.raises(DataError, match=r"3\.0"):
        evaluate_metrics(label, score, ["RMSE", "AUC"])
    with pytest.raises(DataError, match="nan"):
        evaluate_metrics([1.0, math.nan], [0.0, 0.0], ["RMSE"])


def test_metrics_of_labels_of_both_kinds():
    tasks, kinds = ["click", "watch", "like"], ["binary_classification", "regression", "binary_classification"]
    generator = torch.Generator().manual_seed(1)
    label = (torch.rand(200, 3, generator=generator) < 0.5).float()
    label[:, 1] = torch.where(label[:, 0] > 0, 60 * torch.rand(200, generator=generator), math.nan)
    score, group = torch.rand(200, 3, generator=generator), torch.randint(0, 9, (200,), generator=generator)
    found = evaluate_tasks(label, score, ["AUC", "watch_RMSE", "gAUC"], tasks, group, kinds)
    assert list(found) == ["click_AUC", "click_gAUC", "watch_RMSE", "like_AUC", "like_gAUC", "AUC", "RMSE", "gAUC"]
    known = ~label[:, 1].isnan()
    assert found["RMSE"] == found["watch_RMSE"] == pytest.approx(
        float((label[known, 1] - score[known, 1]).double().square().mean().sqrt())
    )  # fmt: skip
    assert found["gAUC"] == (found["click_gAUC"] + found["like_gAUC"]) / 2
    constant = torch.cat([label[:, :1], torch.full((200, 1), 4.0), label[:, 2:]], dim=1)
    assert "watch_RMSE" in evaluate_tasks(constant, score, ["AUC", "RMSE"], tasks, group, kinds)
    assert not find_undefined(constant, ["gAUC"], group, tasks, kinds=kinds)
    for name in ("click_RMSE", "watch_AUC"):
        with pytest.raises(ConfigError, match=name):
            check_metrics([name], None, tasks, kinds)


def test_a_label_before_a_metric_is_the_longest_that_fits():
    tasks = ["is_like", "is", "AUC"]
    assert split_task("is_like_AUC", tasks) == ("is_like", "AUC")
    assert split_task("is_gAUC_pos", tasks) == ("is", "gAUC_pos")
    assert split_task("gAUC_pos", tasks) == (None, "gAUC_pos")
    assert split_task("AUC", tasks) == (None, "AUC")
    check_metrics(["is_like_AUC", "logloss"], None, tasks)
    with pytest.raises(ConfigError, match="group_id"):
        check_metrics(["is_gAUC"], None, tasks)
