"""Sequences of clicks from rows, next items and their negatives, and the AUC of next items."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.embeddings.sequences import NextItems, Sequences, share_below
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


@pytest.mark.parametrize("rows", [1, 1000])
def test_the_longest_history_of_a_user_and_the_clicked_targets_that_it_lacks(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("fuxictr_mm.data.parquet.CHUNK_ROWS", rows)
    columns = {
        "user_id": [7, 9, 7, 7, 9, 7, 5],
        "item_seq": [[0, 2, 3], [8, 8], [3, 2, 3], [2, 3, 4], [], [2], []],
        "item_id": [4, 1, 6, 5, 8, 6, 1],
        "label": [1, 1, 1, 0, 1, 1, 0],
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    found = Sequences.read(tmp_path / "train.parquet")
    # Of equally long histories the last; item 4 is in it, 6 is appended once, 5 was not clicked.
    assert found.users.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert found.items.tolist() == [2, 3, 4, 6, 8, 8, 1]
    pq.write_table(pa.table(columns).slice(6), tmp_path / "train.parquet")
    with raises_naming(DataError, "train.parquet"):
        Sequences.read(tmp_path / "train.parquet")
    pq.write_table(pa.table(columns).slice(0, 0), tmp_path / "train.parquet")
    with raises_naming(DataError, "train.parquet"):
        Sequences.read(tmp_path / "train.parquet")


def test_a_batch_has_the_items_before_the_next_one_and_the_clicks_of_others():
    random = np.random.default_rng(0)
    users = np.sort(random.integers(100, 140, size=400))
    items = random.integers(1, 61, size=400)
    data = NextItems(Sequences(users, items), np.arange(1, 51), 0.25, max_len=4, negatives=5, seed=0)
    known = items <= 50
    sequences = {user: items[known & (users == user)] for user in np.unique(users)}
    assert len(data.held) + len(data.train) == sum(len(row) - 1 for row in sequences.values())
    batch = data.batch(data.train, np.random.default_rng(1))
    ids = np.arange(1, 51)[batch.items]
    histories = [tuple(part.tolist()) for part in np.split(ids[batch.history], batch.offsets[1:-1])]
    found = sorted(zip(histories, ids[batch.candidates[:, 0]].tolist(), strict=True))
    held = set(data.users[data.held].tolist())
    train = [row for number, row in enumerate(sequences.values()) if number not in held]
    assert len(held) == 10
    assert found == sorted(
        (tuple(row[max(0, p - 4) : p].tolist()), row[p]) for row in train for p in range(1, len(row))
    )
    counts = np.bincount(np.concatenate(train), minlength=51)
    sampled = np.bincount(ids[batch.candidates[:, 1:]].ravel(), minlength=51)
    assert not (sampled[counts == 0]).any()
    for position, candidates, counted in zip(data.train, ids[batch.candidates], batch.counts, strict=True):
        own = set(sequences[np.unique(users)[data.users[position]]].tolist())
        assert counted.tolist() == [True, *(item not in own for item in candidates[1:].tolist())]


def test_negatives_are_sampled_in_proportion_to_clicks():
    items = np.concatenate([np.ones(300, int), np.full(100, 2)])
    data = NextItems(Sequences(np.repeat(np.arange(100), 4), items), np.arange(1, 3), 0.5, 2, 20, seed=0)
    negatives = data.sample(2000, np.random.default_rng(0)).candidates[:, 1:]
    assert negatives.mean() == pytest.approx((data.pool == 1).mean(), abs=0.01)


def test_auc_by_hand():
    scores = np.array([[0.5, 0.1, 0.5, 0.9], [1.0, 0.0, 0.0, 2.0]])
    counts = np.array([[True, True, True, True], [True, True, False, False]])
    assert share_below(scores, counts) == (1 + 0.5 + 1, 4)


def test_too_few_users():
    one = Sequences(np.zeros(9, dtype=np.int64), np.arange(1, 10))
    with raises_naming(DataError, "1 users"):
        NextItems(one, np.arange(1, 10), 0.1, 5, 1, seed=0)
