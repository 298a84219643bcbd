"""Every row is held out once, with its user, or after the rows of its training."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.config import Fold
from fuxictr_mm.data.folds import fold_of_rows
from fuxictr_mm.data.groups import NO_GROUP
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.experiment import Experiment
from tests.errors import raises_naming


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # on a busy machine
@given(st.lists(st.integers(-(2**60), 2**60), min_size=6, max_size=60), st.integers(2, 5))
def test_rows_of_a_user_share_a_fold(users, count):
    group = np.array(users)
    number = len(np.unique(group))
    fold = Fold(number=1, of=count, by="user")
    if number < count:
        with raises_naming(ConfigError, "fold", number, count):
            fold_of_rows(group, len(group), fold)
        return
    held_out = fold_of_rows(group, len(group), fold)
    assert set(held_out) == set(range(count))
    assert all(len(set(held_out[group == user])) == 1 for user in group)
    sizes = [len(np.unique(group[held_out == k])) for k in range(count)]
    assert max(sizes) - min(sizes) <= 1


def test_rows_without_a_user_are_dealt_one_by_one():
    group = np.array([5] * 4 + [NO_GROUP] * 40)
    held_out = fold_of_rows(group, len(group), Fold(number=1, of=4))
    assert len(set(held_out[:4])) == 1
    assert np.bincount(held_out[4:]).min() >= 10 - 1


def test_rows_and_blocks_in_time():
    at_random = fold_of_rows(None, 100, Fold(number=1, of=5, by="row"))
    assert np.bincount(at_random).tolist() == [20] * 5
    assert not np.array_equal(at_random, np.sort(at_random))
    in_time = fold_of_rows(None, 103, Fold(number=1, of=3, by="time"))
    assert np.array_equal(in_time, np.sort(in_time))
    sizes = np.bincount(in_time + 1)
    assert len(sizes) == 4
    assert sizes.max() - sizes.min() <= 1
    with raises_naming(ConfigError, "group_id", "user"):
        fold_of_rows(None, 100, Fold(number=1, of=5, by="user"))


@pytest.mark.parametrize("by", ["user", "time"])
def test_the_rows_of_the_splits_are_dealt_out_again(by):
    experiment = Experiment.load("LightFM_tiny", ".", verbose=0)
    whole = experiment.load_dataset({"train": True, "valid": True})
    label = np.concatenate([whole.splits[split].label.numpy() for split in ("train", "valid")])
    group = np.concatenate([whole.splits[split].group.numpy() for split in ("train", "valid")])
    target = np.concatenate([whole.splits[split].target.numpy() for split in ("train", "valid")])
    held_out = fold_of_rows(group, len(label), Fold(number=1, of=3, by=by))
    for number in (1, 2, 3):
        fold = experiment.of_fold(Fold(number=number, of=3, by=by))
        assert fold.config.expid == f"LightFM_tiny_fold{number}"
        dataset = fold.load_dataset({"train": True, "valid": True, "test": False})
        trained = held_out < number - 1 if by == "time" else held_out != number - 1
        for split, rows in (("train", trained), ("valid", held_out == number - 1)):
            table = dataset.splits[split]
            assert dataset.summaries[split].num_rows == len(table) == rows.sum()
            np.testing.assert_array_equal(table.label.numpy(), label[rows])
            np.testing.assert_array_equal(table.target.numpy(), target[rows])
            assert table.history_offsets[-1] == len(table.history_values)
        assert set(dataset.files) == {"test"}  # from which texts of groups are read
        alone = fold.load_dataset({"valid": True})
        assert list(alone.splits) == ["valid"]
        np.testing.assert_array_equal(alone.splits["valid"].target.numpy(), target[held_out == number - 1])
        if by == "user":
            assert not set(dataset.splits["train"].group.tolist()) & set(dataset.splits["valid"].group.tolist())


def test_a_streamed_split_is_refused():
    experiment = Experiment.load("LightFM_tiny", ".", verbose=0, resident=False)
    with raises_naming(ConfigError, "resident: True"):
        experiment.of_fold(Fold(number=1, of=3)).load_dataset({"train": True, "valid": True})


@pytest.mark.parametrize("fold", [{"number": 4, "of": 3}, {"number": 0, "of": 3}, {"number": 1, "of": 1}])
def test_a_fold_that_is_none(fold):
    with raises_naming(ConfigError, "fold"):
        Experiment.load("LightFM_tiny", ".", verbose=0, fold=fold)
