"""Where dropout of item ids helps and where it hurts: two planted worlds, a row for each probability.

python -m benchmarks.id_dropout --seeds 1 2 3

In the first world each item has few rows, its embeddings tell what it is, and 80% of the test rows have cold items. In
the second no item is cold, each has twelve rows, and what is liked about it shows in its id alone.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.seeds import mean_and_deviation
from fuxictr_mm.arguments import run_main

ROOT = Path(__file__).resolve().parents[1]

#: Options of ``fuxictr-mm synth`` for each world. With 3,000 rows of valid and test, the noise of choosing an epoch and
#: of the AUC was as large as the gain in the first world.
WORLDS: dict[str, dict[str, Any]] = {
    "memorised": {
        "cold_items": 0.3, "cold_share": 0.8, "train_rows": 3000, "popularity_effect": 0.0,
        "valid_rows": 8000, "test_rows": 10000,
    },
    "informative": {
        "cold_items": 0.0, "cold_share": 0.0, "text_noise": 20.0, "image_noise": 20.0,
        "popularity_effect": 3.0, "context_effect": 0.0, "train_rows": 12000, "test_rows": 6000,
    },
}  # fmt: skip


def main() -> None:
    """Train every world with every probability and seed, print a row per world and probability."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=sorted(WORLDS))
    parser.add_argument("--dropout", nargs="+", type=float, default=[0.1, 0.3, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args()

    logging.basicConfig(level=logging.WARNING)
    header = "| world | dropout of item ids | test AUC | difference from none, seed by seed |"
    print(header, "| --- | --- | --- | --- |", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        for world in args.worlds:
            without = aucs(Path(folder) / world, world, 0.0, args.seeds)
            print(f"| {world} | 0 | {mean_and_deviation(without)} | |", flush=True)
            for dropout in args.dropout:
                found = aucs(Path(folder) / world, world, dropout, args.seeds)
                gains = [one - other for one, other in zip(found, without, strict=True)]
                cells = f"{mean_and_deviation(found)} | {mean_and_deviation(gains, '+')}"
                print(f"| {world} | {dropout:g} | {cells} |", flush=True)


def aucs(folder: Path, world: str, dropout: float, seeds: Iterable[int]) -> list[float]:
    """Return the test AUC of DIN_MM_tiny in a world for each seed; the world is written to ``folder`` once."""
    return [_auc_of(folder, world, dropout, seed) for seed in seeds]


def _auc_of(folder: Path, world: str, dropout: float, seed: int) -> float:
    from fuxictr_mm.data.synthetic.spec import SyntheticSpec
    from fuxictr_mm.data.synthetic.writer import generate
    from fuxictr_mm.experiment import Experiment

    data = folder / "tiny_mm"
    if not data.exists():
        generate(SyntheticSpec(**WORLDS[world]), data)
    settings: dict[str, Any] = {
        "seed": seed,
        "model_root": str(folder / "runs"),
        "record": False,
        "metrics": ["AUC"],
        "embedding_regularizer": None,  # it would do part of what dropout does
        "use_features": ["item_id", "txt_emb_pca8", "img_emb_pca8"],
        "feature_specs": [{"name": "item_id", "dropout": dropout}],
    }
    experiment = Experiment.load("DIN_MM_tiny", ROOT, data_root=folder, **settings)
    experiment = experiment.with_settings(test_data=str(data / "test_labelled.parquet"))
    return experiment.fit().test["AUC"]


if __name__ == "__main__":
    run_main(main)
