r"""AUC with ``table: touched`` against ``dense``, each with its best regularizer, on the real sets.

ML100K_MM=FOLDER MLS_MM=FOLDER python -m benchmarks.table_kinds --expid LightFM_mls LightFM_ml100k
ML100K_MM=FOLDER MLS_MM=FOLDER python -m benchmarks.table_kinds --expid DIN_MM_mls DIN_MM_ml100k \
    --regularizer 2e-5 2e-4 2e-3 --settings '{max_len: 50, batch_size: 512}'

The regularizer is chosen by the validation AUC of the first seed; the difference on test is that of all seeds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from typing import Any

from fuxictr_mm.arguments import run_main

TABLES = ["user_id", "likes_level", "views_level", "item_id", "item_tags"]


def main() -> None:
    """Print a row for every run, and the difference of the two kinds of every experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="benchmarks/real", metavar="DIR")
    parser.add_argument("--expid", nargs="+", default=["LightFM_mls", "LightFM_ml100k"])
    parser.add_argument("--regularizer", nargs="+", type=float, default=[0.0, 1e-5, 1e-4, 1e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--settings", default="{}", metavar="YAML", help="other settings of every run")
    args = parser.parse_args()

    import yaml

    from fuxictr_mm.evaluation.compare import compare_groups
    from fuxictr_mm.experiment import Experiment

    others: dict[str, Any] = yaml.safe_load(args.settings)
    logging.basicConfig(level=logging.WARNING)
    print("| experiment | `table` | `embedding_regularizer` | seed | valid AUC | test AUC |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as root:

        def fit(expid: str, kind: str, weight: float, seed: int) -> Any:
            settings: dict[str, Any] = {"seed": seed, "embedding_regularizer": weight, "model_root": root, "verbose": 0}
            experiment = Experiment.load(expid, args.config, **(settings | others))
            tables = [name for name in TABLES if name in experiment.config.use_features]
            run = experiment.with_settings(feature_specs=[{"name": tables, "table": kind}]).fit()
            found = f"{run.valid['AUC']:.4f} | {run.test['AUC']:.4f}" if run.test else f"{run.valid['AUC']:.4f} |"
            print(f"| {expid} | {kind} | {weight:g} | {seed} | {found} |", flush=True)
            return run

        for expid in args.expid:
            best = {}
            for kind in ("touched", "dense"):
                tried = {weight: fit(expid, kind, weight, args.seeds[0]) for weight in args.regularizer}
                weight = max(tried, key=lambda weight: tried[weight].valid["AUC"])
                best[kind] = [tried[weight], *(fit(expid, kind, weight, seed) for seed in args.seeds[1:])]
            runs = [run for group in best.values() for run in group]
            split = "test" if runs[0].test else "valid"
            (pair,) = compare_groups(best, runs, split=split).pairs
            found = pair.found
            sides = " against ".join(f"{side.name} {side.mean:.4f}" for side in (pair.first, pair.second))
            print(
                f"{expid}, {split} AUC: {sides}: {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]", flush=True
            )


if __name__ == "__main__":
    run_main(main)
