"""Differences between configurations: by feature, where one side has it, and of what decides a result."""

from fuxictr_mm.config import NOT_SET, comparable, describe_differences, differing, result_differences


def test_features_are_compared_by_name_and_whole_where_one_side_lacks_them():
    first = {"feature_cols": [{"name": ["a", "b"], "dim": 1}, {"name": "c", "dim": 2}], "lr": 0.1, "units": (1, 2)}
    other = {"units": [1, 2], "feature_cols": [{"name": "b", "dim": 3}, {"name": "c", "dim": 2}], "lr": 0.1}
    found = differing([comparable(first), comparable(other)])
    assert found == {"feature_cols.a": [{"dim": 1}, NOT_SET], "feature_cols.b.dim": [1, 3]}


def test_several_sides_of_which_some_lack_a_key():
    assert differing([{"a": 1, "b": None}, {"a": 2}, {"a": 1}]) == {"a": [1, 2, 1], "b": [None, NOT_SET, NOT_SET]}


def test_names_and_paths_decide_no_result():
    theirs = {"epochs": 3, "model_id": "A", "train_data": "here", "gpu": 0, "task_weights": {"like": 1}}
    ours = {"epochs": 5, "model_id": "B", "train_data": "there", "gpu": -1, "task_weights": {"like": 2}}
    found = result_differences(theirs, ours)
    assert found.keys() == {"epochs", "task_weights.like"}
    assert describe_differences(found, "there")[0] == "epochs is 3 there, 5 here"
