"""Few rows and embeddings that determine what users like: the first experiments, and a dot product of embeddings.

python -m benchmarks.few_rows --seeds 1 2 3

Two planted worlds of 15,000 rows are prepared by ``fuxictr-mm prepare log --embeddings``. In ``short`` histories hold
about four items, and most items of the test rows are cold; in ``long`` they hold about twenty, and no item is cold.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from benchmarks.seeds import mean_and_deviation
from fuxictr_mm.arguments import run_main
from fuxictr_mm.cli import main as fuxictr_mm

ROWS, DIM = 15_000, 32

#: Users, items, fraction of the items that appear over time, and the seed of the data.
WORLDS: dict[str, tuple[int, int, float, int]] = {"short": (1500, 3000, 0.8, 1), "long": (250, 1000, 0.0, 2)}


def main() -> None:
    """Prepare every world and train its experiments with every seed; print a row per experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=sorted(WORLDS))
    parser.add_argument("--models", nargs="+", default=["DIN_MM", "DIN", "LightFM"])
    parser.add_argument("--penalties", nargs="+", type=float, default=[2e-4, 1e-2], help="of embedding_regularizer")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args()

    from fuxictr_mm.experiment import Experiment

    logging.basicConfig(level=logging.WARNING)
    print("| world | experiment | embedding_regularizer | test AUC |", "| --- | --- | --- | --- |", sep="\n")
    with tempfile.TemporaryDirectory() as temporary:
        for world in args.worlds:
            source, folder = Path(temporary) / "source" / world, Path(temporary) / world
            write_world(source, *WORLDS[world])
            options = ["--roles", "user=user", "target=item", "time=time", "--labels", "click", "--quiet"]
            files = ["--source", source, "--out", folder, "--embeddings", "vector.parquet"]
            fuxictr_mm(["prepare", "log", *map(str, files), *options])
            print(f"| {world} | dot product | | {dot_product_auc(folder):.4f} |", flush=True)
            for model in args.models:
                for penalty in args.penalties:
                    found = []
                    for seed in args.seeds:
                        settings: dict[str, Any] = {"seed": seed, "embedding_regularizer": penalty, "record": False}
                        settings["model_root"] = str(folder / "runs")
                        result = Experiment.load(f"{model}_{world}", folder, **settings).fit()
                        found += [result.test["AUC"]] if result.test else []
                    print(f"| {world} | {model} | {penalty:g} | {mean_and_deviation(found)} |", flush=True)


def write_world(folder: Path, users: int, items: int, late: float, seed: int) -> None:
    """Write a log, its items and their embeddings: the log-odds of a click are a product of user and embedding."""
    random = np.random.default_rng(seed)
    spectrum = np.arange(1, DIM + 1) ** -0.5
    vectors, tastes = (unit(random.normal(size=(n, DIM)) * spectrum) for n in (items, users))
    moments, user = np.sort(random.random(ROWS)), random.integers(0, users, ROWS)
    item = random.integers(0, items, ROWS)
    if late:  # most impressions are of the newest twentieth of the items
        appears = np.where(random.random(items) < late, random.random(items), 0.0)
        order, first = np.argsort(appears), int((appears == 0).sum())
        there = np.searchsorted(appears[order], moments, side="right")
        is_new, back = random.random(ROWS) < 0.7, random.integers(0, items // 20, ROWS)
        item = order[np.where(is_new & (there > first), np.maximum(there - 1 - back, 0), random.integers(0, there))]
    odds = 8 * (tastes[user] * vectors[item]).sum(1) + 0.3 * random.normal(size=items)[item] - 0.4
    click = (random.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(int)
    folder.mkdir(parents=True)
    times = (1_700_000_000 + moments * 1e7).astype(int)
    pl.DataFrame({"user": user, "item": item, "time": times, "click": click}).write_csv(folder / "interactions.csv")
    numbers = pl.Series([str(n) for n in range(items)])
    prices = random.lognormal(3, 1, items).round(2)
    pl.DataFrame({"item": numbers, "price": prices}).write_csv(folder / "items.csv")
    pl.DataFrame({"item": numbers, "vector": vectors.tolist()}).write_parquet(folder / "vector.parquet")


def dot_product_auc(folder: Path) -> float:
    """Return the test AUC of the product of the target's embedding and the mean of the history's."""
    stored = pl.read_parquet(folder / "vector.parquet")
    vectors = np.zeros((int(stored["item_id"].max()) + 1, DIM))
    vectors[stored["item_id"].to_numpy()] = np.array(stored["vector"].to_list())
    rows = pl.read_parquet(folder / "test" / "*.parquet")
    scores = [
        vectors[target] @ vectors[history].mean(0) if history else 0.0
        for target, history in zip(rows["item_id"].to_list(), rows["item_seq"].to_list(), strict=True)
    ]
    return float(roc_auc_score(rows["click"], scores))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    run_main(main)
