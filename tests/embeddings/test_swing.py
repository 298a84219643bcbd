"""Swing against its definition, its caps, its files, and the planted topics."""

import tracemalloc
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.data.synthetic.spec import SyntheticSpec
from fuxictr_mm.data.synthetic.world import World
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.embeddings import swing as module
from fuxictr_mm.embeddings.swing import Clicks, Neighbors, swing
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError


def brute_force(pairs, alpha, beta):
    """Sum over all pairs of users, as the definition says."""
    items_of = {}
    for user, item in pairs:
        items_of.setdefault(user, set()).add(item)
    scores = {}
    for a, b in combinations(items_of.values(), 2):
        shared = a & b
        for i in shared:
            for j in shared - {i}:
                scores[i, j] = scores.get((i, j), 0.0) + (len(a) * len(b)) ** -beta / (alpha + len(shared))
    return scores


def as_scores(found):
    keys = zip(found.anchors.tolist(), found.neighbors.tolist(), strict=True)
    return dict(zip(keys, found.scores.tolist(), strict=True))


def from_pairs(pairs):
    users, items = np.array(sorted(pairs)).T
    return Clicks.from_pairs(users, items)


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=70),
    st.floats(0.1, 5),
    st.floats(0, 1),
)
def test_equals_brute_force(pairs, alpha, beta):
    expected = brute_force(pairs, alpha, beta)
    if not expected:
        with pytest.raises(DataError, match="no two users share two items"):
            swing(from_pairs(pairs), verbose=0)
        return
    assert as_scores(swing(from_pairs(pairs), alpha=alpha, user_weight=beta)) == pytest.approx(expected, rel=1e-12)


def test_small_blocks_and_chunks_and_large_ids_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(2**31 - 1, 40, replace=False))
    pairs = {
        (int(u), int(ids[i]))
        for u, i in zip(rng.integers(0, 2**32, 60)[rng.integers(60, size=900)], rng.integers(40, size=900), strict=True)
    }
    monkeypatch.setattr(module, "BLOCK_PAIRS", 50)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 30)
    monkeypatch.setattr(module, "CHUNK_TERMS", 7)
    assert as_scores(swing(from_pairs(pairs))) == pytest.approx(brute_force(pairs, 1.0, 0.5), rel=1e-12)


def test_by_hand():
    # Users 1 and 2 share items 1 and 2, user 1 clicked 3 as well: 1 / sqrt(3 * 2) / (1 + 2).
    found = swing(from_pairs({(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)}))
    assert as_scores(found) == pytest.approx({(1, 2): 1 / (6**0.5 * 3), (2, 1): 1 / (6**0.5 * 3)})


def test_top_k_keeps_the_best_and_ties_go_to_the_smaller_id():
    pairs = {(u, i) for u in (1, 2) for i in (1, 2, 3, 4)} | {(u, i) for u in (3, 4) for i in (1, 4)}
    found = swing(from_pairs(pairs), top_k=2)
    assert found.neighbors[:2].tolist() == [4, 2]
    assert np.diff(found.offsets).max() == 2


def test_caps_draw_by_seed_and_are_unbiased():
    rng = np.random.default_rng(1)
    pairs = {(int(u), int(i)) for u, i in rng.integers(1, [80, 8], (400, 2))}
    full = as_scores(swing(from_pairs(pairs)))
    draws = [as_scores(swing(from_pairs(pairs), users_per_item=10, seed=s)) for s in range(150)]
    assert draws[0] == as_scores(swing(from_pairs(pairs), users_per_item=10, seed=0)) != draws[1]
    mean = np.mean([[d.get(key, 0.0) for key in full] for d in draws], axis=0)
    np.testing.assert_allclose(mean, list(full.values()), rtol=0.25)
    assert mean.sum() == pytest.approx(sum(full.values()), rel=0.02)


def test_a_user_beyond_the_cap_counts_with_some_of_the_items():
    crawler = {(0, i) for i in range(1, 50)}
    pairs = crawler | {(1, i) for i in range(1, 50)}
    found = swing(from_pairs(pairs), items_per_user=49)
    assert len(found.item_ids) == 49
    capped = swing(from_pairs(crawler | {(u, i) for u in (1, 2) for i in (1, 2)}), items_per_user=2)
    assert as_scores(capped)[1, 2] >= 1 / (2 * 3)
    assert set(capped.item_ids.tolist()) <= {1, 2}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0, expected a number above 0"),
        ({"user_weight": -1.0}, "user_weight is -1.0, expected 0 or more"),
        ({"top_k": 0}, "top_k is 0, expected at least 1"),
        ({"users_per_item": 1}, "users_per_item is 1, expected at least 2"),
    ],
)
def test_options_out_of_range(option, message):
    with pytest.raises(ConfigError, match=message):
        swing(from_pairs({(1, 1)}), **option)


def write_train(path, **changes):
    columns = {
        "user_id": [7, 7, 9],
        "item_id": [4, 5, 4],
        "item_seq": [[0, 2, 3], [2, 3, 0], []],
        "label": [1, 0, 1],
    } | changes
    pq.write_table(pa.table(columns), path)
    return path


def test_clicks_are_histories_and_positive_targets_each_once(tmp_path):
    clicks = Clicks.read(write_train(tmp_path / "train.parquet"))
    assert clicks.users.tolist() == [7, 9]
    assert clicks.items.tolist() == [2, 3, 4, 4]
    assert clicks.offsets.tolist() == [0, 3, 4]


def test_clicks_merged_in_parts_are_the_same(tmp_path, monkeypatch):
    from fuxictr_mm.embeddings import swing as clicks_module

    path = write_train(tmp_path / "train.parquet")
    whole = Clicks.read(path)
    monkeypatch.setattr(clicks_module, "MERGE_CLICKS", 1)
    monkeypatch.setattr(clicks_module.parquet, "CHUNK_ROWS", 1)
    assert Clicks.read(path).items.tolist() == whole.items.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": [7, -1, 9]}, "user_id: row 1 holds the id -1, expected 0 to"),
        ({"item_seq": [[2], [-3], []]}, "item_seq: row 1 holds the id -3"),
        ({"item_seq": [[0], [], []], "label": [0, 0, 0]}, "no click in it"),
        ({"user_id": ["a", "b", "c"]}, "expected numbers"),
    ],
)
def test_bad_clicks(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        Clicks.read(write_train(tmp_path / "train.parquet", **changes))


def test_neighbors_are_read_as_they_were_written(tmp_path):
    found = swing(from_pairs({(u, i) for u in range(5) for i in range(1, 2 + u)}))
    found.write(tmp_path / "neighbors.parquet")
    assert as_scores(Neighbors.read(tmp_path / "neighbors.parquet")) == as_scores(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_id": [1, 1]}, "item_id 1 is there twice"),
        ({"scores": [[0.5], []]}, "row 1: expected as many scores as neighbors"),
        ({"scores": [[0.5], [-1.0]]}, "row 1 holds -1.0, expected numbers above 0"),
        ({"scores": [[0.5], [float("nan")]]}, "row 1 holds nan, expected numbers above 0"),
        ({"neighbors": [[], []], "scores": [[], []]}, "no neighbour in it"),
    ],
)
def test_bad_neighbors(tmp_path, changes, message):
    columns = {"item_id": [1, 2], "neighbors": [[2], [1]], "scores": [[0.5], [0.5]]} | changes
    kinds = {"item_id": pa.int64(), "neighbors": pa.list_(pa.int64()), "scores": pa.list_(pa.float64())}
    pq.write_table(pa.table(columns, pa.schema(kinds)), tmp_path / "neighbors.parquet")
    with pytest.raises(DataError, match=message):
        Neighbors.read(tmp_path / "neighbors.parquet")


def test_missing_files(tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        Clicks.read(tmp_path / "train.parquet")


def peak_of(compute):
    tracemalloc.start()
    try:
        return compute(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_item_of_half_a_million_users_is_scored_in_bounded_memory():
    users = np.arange(500_000)
    others = 2 + users % 50
    clicks = Clicks.from_pairs(np.concatenate([users, users]), np.concatenate([np.ones_like(users), others]))
    found, peak = peak_of(lambda: swing(clicks, users_per_item=100, verbose=0))
    assert peak < 300e6  # some copies of a million clicks; the pairs of all users would be 10^12 bytes
    assert found.item_ids.tolist() == list(range(1, 52))
    # Of its 100 users drawn, about 2 share each other item; scaled, all pairs of 10,000 users: 5e7 w w / (1 + 2)
    score = as_scores(found)
    mean = np.mean([score.get((1, other), 0.0) for other in range(2, 52)])
    assert mean == pytest.approx(5e7 / 2 / 3, rel=0.5)
    with pytest.raises(ConfigError, match=r"users_per_item is 10000, .* an item has 10000 users .* at most 5000"):
        swing(clicks, users_per_item=10_000, verbose=0)


def test_a_user_of_many_items_counts_with_a_capped_number():
    many = np.arange(1, 20_001)
    clicks = Clicks.from_pairs(np.repeat([1, 2, 3], len(many)), np.tile(many, 3))
    found, peak = peak_of(lambda: swing(clicks, items_per_user=200, verbose=0))
    assert peak < 50e6
    assert len(found.item_ids) <= 3 * 200


def test_memory_is_bounded_where_users_share_all_their_items(monkeypatch):
    rng = np.random.default_rng(0)
    shared = {(u, i) for u in range(120) for i in range(1, 41)} | {(u, 50 + int(rng.integers(9))) for u in range(120)}
    clicks = from_pairs(shared)
    expected = as_scores(swing(clicks, verbose=0))
    monkeypatch.setattr(module, "CHUNK_TERMS", 20_000)
    found, peak = peak_of(lambda: swing(clicks, verbose=0))
    assert as_scores(found) == pytest.approx(expected, rel=1e-12)
    # Terms of all pairs of 120 users by 40 items and as many anchors: 11 million of 16 bytes and more
    assert peak < 60e6


def test_neighbors_recover_the_planted_topics(tmp_path):
    spec = SyntheticSpec(users=1500, items=300, train_rows=6000, valid_rows=10, test_rows=10)
    generate(spec, tmp_path / "world", progress=False)
    found = swing(Clicks.read(tmp_path / "world" / "train.parquet"), top_k=5)
    world = World.build(spec)
    for topics in (world.text_topics, world.image_topics):
        main = topics[1:].argmax(axis=1)
        clicked = found.item_ids - 1
        chance = np.mean(main[clicked][:, None] == main[clicked][None, :])
        alike = np.mean(main[found.anchors - 1] == main[found.neighbors - 1])
        assert alike > chance + 0.2, (alike, chance)
