"""Counts, rates and similarities by brute force; no training row has a part in its own rates."""

import sys

import numpy as np
import polars as pl
import pytest

from benchmarks import boosted_trees
from fuxictr_mm.errors import UserError
from tests.errors import raises_naming
from tests.lightgbm import needs_lightgbm
from tests.paths import TINY

EMBEDDING = "item_emb_d16"


@pytest.fixture
def folder(tmp_path):
    """A folder with few rows of tiny_mm."""
    data = TINY
    for split, rows in (("train", 400), ("valid", 100), ("test_labelled", 100)):
        name = split.removesuffix("_labelled")
        pl.read_parquet(data / f"{split}.parquet").head(rows).write_parquet(tmp_path / f"{name}.parquet")
    for name in ("item_info", "item_feature"):
        pl.read_parquet(data / f"{name}.parquet").write_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


def test_features_by_brute_force(folder):
    features, labels = boosted_trees.make_features(folder, [EMBEDDING])
    train = pl.read_parquet(folder / "train.parquet").to_dicts()
    valid = pl.read_parquet(folder / "valid.parquet").to_dicts()
    items = {row["item_id"]: row for row in pl.read_parquet(folder / "item_info.parquet").to_dicts()}
    assert labels["valid"].tolist() == [row["label"] for row in valid]
    mean = np.mean([row["label"] for row in train])

    def rate(rows):
        found = [row["label"] for row in rows]
        return (sum(found) + boosted_trees.PRIOR * mean) / (len(found) + boosted_trees.PRIOR) if found else None

    def unit(item):
        vector = np.array(items[item][EMBEDDING])
        return vector / max(np.linalg.norm(vector), 1e-12)

    for row, found in zip(valid, features["valid"].to_dicts(), strict=True):
        for key in ("user_id", "item_id"):
            same = [other for other in train if other[key] == row[key]]
            assert found[f"{key}_count"] == (len(same) or None)
            assert found[f"{key}_rate"] == pytest.approx(rate(same))
        history = [item for item in row["item_seq"] if item]
        cosines = [unit(row["item_id"]) @ unit(item) for item in history] or [0.0]
        assert found[f"{EMBEDDING}_mean"] == pytest.approx(np.mean(cosines), abs=1e-5)
        assert found[f"{EMBEDDING}_max"] == pytest.approx(max(cosines), abs=1e-5)
        tags = [tag for tag in items[row["item_id"]]["item_tags"] if tag]
        rates = [rate([o for o in train if tag in items[o["item_id"]]["item_tags"]]) for tag in tags]
        kept = [value for value in rates if value is not None]
        assert found["tag_rate"] == (pytest.approx(np.mean(kept)) if kept else None)


def test_a_row_has_no_part_in_its_own_rates(folder):
    path = folder / "train.parquet"
    before = boosted_trees.make_features(folder, [EMBEDDING])[0]["train"]
    rows = pl.read_parquet(path)
    flipped = rows.with_columns(
        pl.when(pl.int_range(pl.len()) == 7).then(1 - pl.col("label")).otherwise("label").alias("label")
    )
    flipped.write_parquet(path)
    after = boosted_trees.make_features(folder, [EMBEDDING])[0]["train"]
    rates = [name for name in before.columns if name.endswith("rate")]
    assert before[7].select(rates).equals(after[7].select(rates))
    assert not before.select(rates).equals(after.select(rates))


def test_without_lightgbm_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    monkeypatch.setattr(sys, "argv", ["boosted_trees", str(folder)])
    with raises_naming(UserError, "fuxictr-mm[stack]"):
        boosted_trees.main()


def test_it_prints_the_auc_of_both_splits(folder, monkeypatch, capsys, tmp_path):
    needs_lightgbm()
    out = tmp_path / "out"
    words = ["boosted_trees", str(folder), "--embeddings", EMBEDDING, "--seeds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    boosted_trees.main()
    assert "test AUC" in capsys.readouterr().out
    assert len(np.load(out / "valid_1.npy")) == 100
