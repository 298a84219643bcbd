"""Gradient-boosted trees on counts, rates and similarities: what features made by hand reach without a network.

python -m benchmarks.boosted_trees FOLDER --embeddings item_emb_d128 --seeds 1 2 3

Needs LightGBM (the extra ``stack``). Rates of a training row are counted on the other folds of the training rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.seeds import mean_and_deviation
from fuxictr_mm.arguments import run_main
from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.errors import UserError
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import HistorySimilarity

STATISTICS = ["mean", "max", "newest_1", "newest_5", "newest_20"]
FOLDS = 5
#: Rows of prior that a rate begins with.
PRIOR = 10
ROUNDS, PATIENCE = 2000, 100
SETTINGS = {
    "objective": "binary", "metric": "auc", "learning_rate": 0.03, "num_leaves": 31, "min_data_in_leaf": 100,
    "feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1, "verbose": -1, "num_threads": 1,
}  # fmt: skip


def main() -> None:
    """Train with every seed, print AUC; the number of rounds is chosen on valid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a dataset in the challenge's layout")
    parser.add_argument("--embeddings", nargs="+", default=["item_emb_d128"], metavar="COLUMN")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the predictions, a .npy for each seed")
    args = parser.parse_args()
    try:
        import lightgbm
    except ImportError as error:
        raise UserError("LightGBM is not installed: pip install 'fuxictr-mm[stack]'") from error
    features, labels = make_features(args.folder, args.embeddings)
    train = lightgbm.Dataset(features["train"], labels["train"], free_raw_data=False)
    found: dict[str, list[float]] = {"valid": [], "test": []}
    for seed in args.seeds:
        valid = lightgbm.Dataset(features["valid"], labels["valid"], reference=train)
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        model = lightgbm.train({**SETTINGS, "seed": seed}, train, ROUNDS, valid_sets=[valid], callbacks=[stop])
        for split, values in found.items():
            scores = model.predict(features[split])
            values.append(roc_auc_score(labels[split], scores))
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                np.save(args.out / f"{split}_{seed}.npy", scores)
    for split, values in found.items():
        print(f"{split} AUC {mean_and_deviation(values)}")
    gains = sorted(zip(model.feature_importance("gain"), features["train"].columns, strict=True), reverse=True)
    print("largest gains:", ", ".join(name for _, name in gains[:8]))


def make_features(folder: Path, embeddings: list[str]) -> tuple[dict[str, pl.DataFrame], dict[str, np.ndarray]]:
    """Return the features and labels of each split."""
    splits = {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("train", "valid", "test")}
    items = pl.read_parquet(folder / "item_info.parquet").join(
        pl.read_parquet(folder / "item_feature.parquet").drop("item_tags"), on="item_id", how="left"
    )
    tables = {name: _table(items, name) for name in embeddings}
    tags = items.select("item_id", "item_tags").explode("item_tags", **EMPTY_AS_NULL).filter(pl.col("item_tags") > 0)
    fold = np.random.default_rng(0).integers(0, FOLDS, len(splits["train"]))
    features = {}
    for name, rows in splits.items():
        parts = [_similarities(rows, column, table) for column, table in tables.items()]
        if name == "train":
            counted = pl.concat(
                [
                    _rates(rows.filter(pl.Series(fold != k)), rows.with_row_index().filter(pl.Series(fold == k)), tags)
                    for k in range(FOLDS)
                ]
            ).sort("index")
        else:
            counted = _rates(splits["train"], rows.with_row_index(), tags)
        lengths = pl.Series("history_length", _histories(rows).lengths.numpy())
        plain = rows.select("likes_level", "views_level").with_columns(lengths)
        features[name] = pl.DataFrame([column for table in (plain, counted.drop("index"), *parts) for column in table])
    return features, {name: rows["label"].to_numpy() for name, rows in splits.items()}


def _table(items: pl.DataFrame, column: str) -> torch.Tensor:
    """Return an embedding as a table by item id, zeros where an item has none."""
    rows = items.filter(pl.col(column).is_not_null())
    values = torch.tensor(rows[column].to_list(), dtype=torch.float32)
    table = torch.zeros(int(items["item_id"].max()) + 1, values.shape[1])
    table[torch.tensor(rows["item_id"].to_numpy())] = values
    return table


def _histories(rows: pl.DataFrame) -> Jagged:
    """Return the histories without padding."""
    values = (
        rows.with_row_index()
        .select("index", "item_seq")
        .explode("item_seq", **EMPTY_AS_NULL)
        .filter(pl.col("item_seq") > 0)
    )
    lengths = np.bincount(values["index"].to_numpy(), minlength=len(rows))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths).cumsum(0)])
    return Jagged(torch.tensor(values["item_seq"].to_numpy()), offsets)


def _similarities(rows: pl.DataFrame, column: str, table: torch.Tensor) -> pl.DataFrame:
    """Return statistics of the cosines of target and history."""
    found = HistorySimilarity(table, STATISTICS)(table, torch.tensor(rows["item_id"].to_numpy()), _histories(rows))
    return pl.DataFrame(found.numpy(), schema=[f"{column}_{name}" for name in STATISTICS])


def _rates(counted: pl.DataFrame, rows: pl.DataFrame, tags: pl.DataFrame) -> pl.DataFrame:
    """Return counts and smoothed rates of rows' users, items and tags, from other rows."""
    mean = float(counted["label"].to_numpy().mean())
    found = rows.select("index", "user_id", "item_id")
    rate = (pl.col("label").sum() + PRIOR * mean) / (pl.len() + PRIOR)
    for key in ("user_id", "item_id"):
        counts = counted.group_by(key, maintain_order=True).agg(
            pl.len().alias(f"{key}_count"), rate.alias(f"{key}_rate")
        )
        found = found.join(counts, on=key, how="left")
    # Of the tags of the target: over all rows, and over those of the user.
    by_tag = counted.select("user_id", "item_id", "label").join(tags, on="item_id")
    of_rows = found.select("index", "user_id", "item_id").join(tags, on="item_id")
    for keys, name in ((["item_tags"], "tag"), (["user_id", "item_tags"], "user_tag")):
        counts = by_tag.group_by(keys, maintain_order=True).agg(
            pl.len().alias(f"{name}_count"), rate.alias(f"{name}_rate")
        )
        means = of_rows.join(counts, on=keys, how="left").group_by("index", maintain_order=True).agg(
            pl.col(f"{name}_count").sum(), pl.col(f"{name}_rate").mean()
        )  # fmt: skip
        found = found.join(means, on="index", how="left")
    return found.drop("user_id", "item_id").sort("index")


if __name__ == "__main__":
    run_main(main)
