"""What continuing to train is worth: old weights, a warm start on each new part of a log, and training on all rows.

python benchmarks/continue_training.py --log ml-100k.inter --items ml-100k.item --out FOLDER [--seeds 1 2]

Reads RecBole's files of MovieLens-100K. The oldest 60% of the ratings are the base; parts of 10% follow. Each model is
scored on the part after its last training row. Prints AUC and the CPU seconds of training, a line per model and part.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import polars as pl
from sklearn.metrics import roc_auc_score

from fuxictr_mm.cli import main as command
from fuxictr_mm.experiment import Experiment

BASE, PART, PARTS = 0.6, 0.1, 4


def write_tables(log: Path, items: Path, out: Path) -> pl.DataFrame:
    """Return the ratings in the order of time, a row's position as its time; write the items."""
    names = {"user_id:token": "user_id", "item_id:token": "item_id", "rating:float": "rating", "timestamp:float": "at"}
    rows = pl.read_csv(log, separator="\t").rename(names).sort("at", maintain_order=True)
    films = pl.read_csv(items, separator="\t", infer_schema=False, quote_char=None)
    films.select(
        item_id=pl.col("item_id:token").cast(pl.Int64),
        year=pl.col("release_year:token"),
        genres=pl.col("class:token_seq").str.replace_all(" ", "|"),
    ).write_csv(out / "items.csv")
    return rows.select("user_id", "item_id", time=pl.int_range(pl.len()), click=(pl.col("rating") >= 4).cast(pl.Int8))


class Comparison:
    """The rows of a log, prepared in parts."""

    def __init__(self, rows: pl.DataFrame, out: Path) -> None:
        self.rows, self.out = rows, out

    def end(self, part: int) -> int:
        """Return the row after a part; part 0 is the base."""
        return round(len(self.rows) * (BASE + PART * part))

    def prepare(self, name: str, part: int, *options: object) -> Path:
        """Prepare the rows up to the end of a part."""
        source, folder = self.out / f"source_{part}", self.out / name
        if not source.exists():
            source.mkdir()
            self.rows[: self.end(part)].write_csv(source / "interactions.csv")
            (source / "items.csv").symlink_to((self.out / "items.csv").resolve())
        if not (folder / "manifest.json").exists():
            command(["prepare", "log", "--quiet", "--source", str(source), "--out", str(folder), *map(str, options)])
        return folder

    def score(self, experiment: Experiment, folder: Path, part: int) -> float:
        """Return the AUC of a trained experiment on a part."""
        later = self.prepare(f"{folder.name}_scores_{part}", part, "--like", folder) / "test"
        rows = pl.read_parquet(later).with_columns(score=experiment.predict(str(later)))
        rows = rows.filter(pl.col("source_time") >= self.end(part - 1))
        return float(roc_auc_score(rows["click"], rows["score"]))


def train(folder: Path, model: str, **settings: Any) -> tuple[Experiment, Any, float]:
    """Train; return the experiment, its run and the seconds."""
    own = {"verbose": 0, "tensorboard": False, "threads": 1, "model_root": str(folder.parent / "checkpoints")}
    experiment = Experiment.load(f"{model}_{folder.name}", folder, **own, **settings)
    started = time.process_time()
    run = experiment.fit()
    return experiment, run, time.process_time() - started


def main() -> None:
    """Train and score all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("log", "items", "out"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--model", default="DIN_MM")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    compared = Comparison(write_tables(args.log, args.items, args.out), args.out)
    labels, split = ("--labels", "click"), ("--split", 0.9, 0.1, 0)
    base = compared.prepare("base", 0, *labels, *split)
    for seed in args.seeds:
        stale, run, seconds = train(base, args.model, seed=seed)
        print(f"seed {seed} base: {seconds:.0f} s, AUC of part 1 {compared.score(stale, base, 1):.4f}", flush=True)
        before, weights = base, run.path
        for part in range(1, PARTS):
            later = compared.prepare(f"part_{part}", part, "--like", before, "--extend")
            warm, run, warm_seconds = train(later, args.model, seed=seed, initial_weights=weights)
            before, weights = later, run.path
            held_out = PART * compared.end(0) / BASE / compared.end(part) / 10  # as many rows as of the part alone
            whole = compared.prepare(f"all_{part}", part, *labels, "--split", 1 - held_out, held_out, 0)
            again, _, seconds = train(whole, args.model, seed=seed)
            scores = [
                compared.score(experiment, folder, part + 1)
                for experiment, folder in ((stale, base), (warm, later), (again, whole))
            ]
            print(
                f"seed {seed} part {part + 1}: old {scores[0]:.4f}, warm {scores[1]:.4f} ({warm_seconds:.0f} s), "
                f"all rows {scores[2]:.4f} ({seconds:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
