"""Rows of MicroLens are those of a plain reading of its miniature."""

import csv

import numpy as np
import pyarrow.parquet as pq

from fuxictr_mm.yaml_files import load_yaml

#: Last interactions of a user that are in later splits.
UNSEEN = {"train": 2, "valid": 1, "test": 0}


def test_microlens(microlens, prepare, read_split, values_of):
    folder, summary, _ = prepare("microlens", microlens, max_len=3)
    with (microlens / "MicroLens-100k_pairs.csv").open() as stream:
        events = [tuple(int(row[key]) for key in ("user", "timestamp", "item")) for row in csv.DictReader(stream)]
    liked: dict[int, list[int]] = {}
    for user, _, item in sorted(events):
        liked.setdefault(user, []).append(item)
    expected = {"train": [], "valid": [], "test": []}
    for user, items in liked.items():
        for place, item in enumerate(items):
            left = len(items) - place
            split = "train" if len(items) < 3 or left > 2 else ("test", "valid")[left - 1]
            expected[split].append((user, item, items[:place][-3:]))
    for split, wanted in expected.items():
        rows = read_split(folder, split)
        found = [(row["user_id"], row["item_id"], row["item_seq"]) for row in rows if row["label"] == 1]
        assert sorted(found) == sorted(wanted)
        assert len(rows) == 2 * len(wanted)
        clicked = {user: items[: len(items) - UNSEEN[split] * (len(items) > 2)] for user, items in liked.items()}
        sampled = [(row["user_id"], row["item_id"]) for row in rows if row["label"] == 0]
        assert all(item not in clicked[user] for user, item in sampled)
        assert {item for _, item in sampled} <= {item for _, item, _ in wanted}
    table = pq.read_table(folder / "items.parquet").to_pylist()
    assert table[0]["item_title"] == 'Wow, a "title" ☃ 1'
    likes = values_of(folder, "likes_level")
    assert likes[table[1]["likes_level"]] == "3"  # 100 likes
    assert table[39]["likes_level"] == 0  # the item that the counts lack
    values = np.load(next(microlens.rglob("*image_features*.npy")))
    assert np.array_equal(np.stack(pq.read_table(folder / "image_emb.parquet")["image_emb"].to_numpy()), values)
    assert summary.coverage == {"text_emb": 1.0, "image_emb": 1.0}
    experiments = load_yaml(folder / "model_config.yaml")
    found = {entry["model"]: entry for entry in experiments.values() if "model" in entry}
    assert found["LightFM"]["history"]  # which alone tells sampled negatives from clicks
