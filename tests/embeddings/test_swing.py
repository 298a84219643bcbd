"""Swing against its definition, its caps and memory, its files, and planted topics."""

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
from fuxictr_mm.embeddings.click_rows import pack
from fuxictr_mm.embeddings.swing import Clicks, Neighbors, SwingOptions, swing
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from tests.errors import raises_naming


def brute_force(pairs, alpha=1.0, beta=0.5):
    """The sum over all pairs of users, as in the definition."""
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
    return dict(zip(zip(found.items.tolist(), found.neighbors.tolist(), strict=True), found.scores, strict=True))


def from_pairs(pairs):
    return from_columns(*np.array(sorted(pairs)).T)


def from_columns(users, items):
    return Clicks.from_keys(np.unique(pack(users, items)))


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=70),
    st.floats(0.1, 5),
    st.floats(0, 1),
)
def test_equals_brute_force(pairs, alpha, beta):
    expected = brute_force(pairs, alpha, beta)
    if not expected:
        with pytest.raises(DataError):
            swing(from_pairs(pairs), verbose=0)
        return
    assert as_scores(swing(from_pairs(pairs), SwingOptions(alpha=alpha, user_weight=beta))) == pytest.approx(
        expected, rel=1e-12
    )


def test_small_blocks_and_chunks_and_large_ids_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(2**31 - 1, 40, replace=False))
    users = rng.integers(0, 2**32, 60)[rng.integers(60, size=900)]
    pairs = set(zip(users.tolist(), ids[rng.integers(40, size=900)].tolist(), strict=True))
    monkeypatch.setattr(module, "CHUNK_SIZE", 80)
    monkeypatch.setattr(module, "CHUNK_TERMS", 7)
    assert as_scores(swing(from_pairs(pairs))) == pytest.approx(brute_force(pairs), rel=1e-12)


def test_top_k_keeps_the_best_and_ties_go_to_the_smaller_id():
    pairs = {(u, i) for u in (1, 2) for i in (1, 2, 3, 4)} | {(u, i) for u in (3, 4) for i in (1, 4)}
    found = swing(from_pairs(pairs), SwingOptions(top_k=2))
    assert found.neighbors[:2].tolist() == [4, 2]
    assert np.bincount(found.items).max() == 2


def test_sampled_users_depend_on_the_seed_and_scores_are_unbiased():
    rng = np.random.default_rng(1)
    pairs = {(int(u), int(i)) for u, i in rng.integers(1, [80, 8], (400, 2))}
    full = as_scores(swing(from_pairs(pairs)))
    samples = [as_scores(swing(from_pairs(pairs), SwingOptions(users_per_item=10, seed=s))) for s in range(150)]
    assert samples[0] == as_scores(swing(from_pairs(pairs), SwingOptions(users_per_item=10, seed=0))) != samples[1]
    mean = np.mean([[sample.get(key, 0.0) for key in full] for sample in samples], axis=0)
    np.testing.assert_allclose(mean, list(full.values()), rtol=0.25)
    assert mean.sum() == pytest.approx(sum(full.values()), rel=0.02)


def test_a_user_beyond_the_cap_counts_with_a_sample_of_the_items():
    crawler = {(0, i) for i in range(1, 50)}
    found = swing(from_pairs(crawler | {(u, i) for u in (1, 2) for i in (1, 2)}), SwingOptions(items_per_user=2))
    assert as_scores(found)[1, 2] >= 1 / (2 * 3)
    assert set(found.items.tolist()) <= {1, 2}


@pytest.mark.parametrize(
    "option",
    [
        {"alpha": 0.0},
        {"alpha": float("inf")},
        {"user_weight": -1.0},
        {"top_k": 0},
        {"users_per_item": 1},
        {"items_per_user": 1},
    ],
)
def test_settings_out_of_range(option):
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=rf"{name} is {value}"):
        SwingOptions.read(option, "swing")


def write_train(path, **changes):
    columns = {
        "user_id": [7, 7, 9],
        "item_id": [4, 5, 4],
        "item_seq": [[0, 2, 3], [2, 3, 0], []],
        "label": [1, 0, 1],
    } | changes
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("merge", [1, 8_000_000])
def test_clicks_are_histories_and_positive_targets_each_once(merge, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MERGE_CLICKS", merge)
    monkeypatch.setattr("fuxictr_mm.data.parquet.CHUNK_ROWS", 1 if merge == 1 else 1000)
    clicks = Clicks.read(write_train(tmp_path / "train.parquet"))
    assert clicks.item_ids.tolist() == [2, 3, 4]
    assert clicks.matrix.toarray().tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"user_id": [7, -1, 9]}, "user_id: row 1 .*-1"),
        ({"user_id": [7, 2**32, 9]}, f"user_id: row 1 .*{2**32}"),
        ({"item_seq": [[2], [-3], []]}, "item_seq: row 1 .*-3"),
        ({"item_seq": [[0], [], []], "label": [0, 0, 0]}, "item_seq"),
        ({"user_id": ["a", "b", "c"]}, "user_id"),
    ],
)
def test_bad_clicks(tmp_path, changes, found):
    with pytest.raises(DataError, match=found):
        Clicks.read(write_train(tmp_path / "train.parquet", **changes))
    with raises_naming(MissingFileError, "valid.parquet"):
        Clicks.read(tmp_path / "valid.parquet")


def test_neighbors_are_read_as_they_were_written(tmp_path):
    found = swing(from_pairs({(u, i) for u in range(5) for i in range(1, 2 + u)}))
    found.write(tmp_path / "neighbors.parquet")
    read = Neighbors.read(tmp_path / "neighbors.parquet")
    assert as_scores(read) == as_scores(found)
    assert read.num_items == found.num_items == len(pq.read_table(tmp_path / "neighbors.parquet"))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"item_id": [1, 1]}, "item_id 1"),
        ({"item_id": [1, -1]}, "item_id: row 1 .*-1"),
        ({"scores": [[0.5], []]}, "row 1"),
        ({"scores": [[0.5], [-1.0]]}, r"scores: row 1 .*-1\.0"),
        ({"scores": [[0.5], [float("nan")]]}, "scores: row 1 .*nan"),
        ({"neighbors": [[], []], "scores": [[], []]}, "neighbors"),
    ],
)
def test_bad_neighbors(tmp_path, changes, where):
    columns = {"item_id": [1, 2], "neighbors": [[2], [1]], "scores": [[0.5], [0.5]]} | changes
    kinds = {"item_id": pa.int64(), "neighbors": pa.list_(pa.int64()), "scores": pa.list_(pa.float64())}
    pq.write_table(pa.table(columns, pa.schema(kinds)), tmp_path / "neighbors.parquet")
    with pytest.raises(DataError, match=where):
        Neighbors.read(tmp_path / "neighbors.parquet")


def peak_of(compute):
    tracemalloc.start()
    try:
        return compute(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_item_of_half_a_million_users_is_scored_in_bounded_memory():
    users = np.arange(500_000)
    others = 2 + users % 50
    clicks = from_columns(np.concatenate([users, users]), np.concatenate([np.ones_like(users), others]))
    found, peak = peak_of(lambda: swing(clicks, SwingOptions(users_per_item=100), verbose=0))
    assert peak < 300e6  # some copies of a million clicks; the pairs of all users would be 10^12 bytes
    assert np.unique(found.items).tolist() == list(range(1, 52))
    # Of its 100 sampled users, about 2 share each other item; scaled, all pairs of 10,000 users: 5e7 w w / (1 + 2)
    score = as_scores(found)
    mean = np.mean([score.get((1, other), 0.0) for other in range(2, 52)])
    assert mean == pytest.approx(5e7 / 2 / 3, rel=0.5)
    with raises_naming(ConfigError, "users_per_item is 10000"):
        swing(clicks, SwingOptions(users_per_item=10_000), verbose=0)


def test_a_user_of_many_items_counts_with_a_capped_number():
    many = np.arange(1, 20_001)
    clicks = from_columns(np.repeat([1, 2, 3], len(many)), np.tile(many, 3))
    found, peak = peak_of(lambda: swing(clicks, SwingOptions(items_per_user=200), verbose=0))
    assert peak < 50e6
    assert found.num_items <= 3 * 200


def test_memory_is_bounded_where_users_share_all_their_items(monkeypatch):
    rng = np.random.default_rng(0)
    clicks = from_pairs(
        {(u, i) for u in range(120) for i in range(1, 41)} | {(u, 50 + int(rng.integers(9))) for u in range(120)}
    )
    expected = as_scores(swing(clicks, verbose=0))
    monkeypatch.setattr(module, "CHUNK_TERMS", 20_000)
    found, peak = peak_of(lambda: swing(clicks, verbose=0))
    assert as_scores(found) == pytest.approx(expected, rel=1e-12)
    # The terms of all pairs of 120 users by 40 items and as many anchors: 11 million of 24 bytes and more
    assert peak < 60e6


def test_neighbors_recover_the_planted_topics(tmp_path):
    spec = SyntheticSpec(users=1500, items=300, train_rows=6000, valid_rows=10, test_rows=10)
    generate(spec, tmp_path / "world", progress=False)
    found = swing(Clicks.read(tmp_path / "world" / "train.parquet"), SwingOptions(top_k=5))
    world = World.build(spec)
    for topics in (world.text_topics, world.image_topics):
        main = topics[1:].argmax(axis=1)
        clicked = np.unique(found.items) - 1
        at_random = np.mean(main[clicked][:, None] == main[clicked][None, :])
        alike = np.mean(main[found.items - 1] == main[found.neighbors - 1])
        assert alike > at_random + 0.2, (alike, at_random)
