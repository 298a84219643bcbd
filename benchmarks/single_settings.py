"""What one changed setting is worth: differences of an experiment with and without it, over seeds, with intervals.

ML100K_MM=FOLDER python -m benchmarks.single_settings --expid DIN_MM_written_ml100k --seeds 1 2 3

Runs that have finished are not trained again, so the same command continues, and another one may train part of them.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.seeds import mean_and_deviation
from fuxictr_mm.arguments import run_main

if TYPE_CHECKING:
    from fuxictr_mm.runs import Run

#: V4 in ``benchmarks/real/dataset_config.yaml``, and features of it or of the history that are not active there.
V4, LENGTH, SIMILARITY = "item_emb_d128", "history_length", "v4_similarity"

#: What is added to ``use_features`` by these changes; all others are settings.
FEATURES: dict[str, str] = {"length": LENGTH, "similarity": SIMILARITY}

#: Settings of each change.
CHANGES: dict[str, dict[str, Any]] = {
    "norm_l2": {"feature_specs": [{"name": V4, "norm": "l2"}]},
    "norm_layer": {"feature_specs": [{"name": V4, "norm": "layer"}]},
    "norm_standard": {"feature_specs": [{"name": V4, "norm": "standard"}]},
    "scale": {"feature_specs": [{"name": V4, "scale": 2.83}]},
    "id_dropout": {"feature_specs": [{"name": "item_id", "dropout": 0.1}]},
    "v4_dropout": {"feature_specs": [{"name": V4, "dropout": 0.1}]},
    "plateau": {"lr_schedule": "plateau", "reduce_lr_on_plateau": True},
    "plateau_patience": {"lr_schedule": "plateau", "reduce_lr_on_plateau": True, "plateau_patience": 2},
    "warmup": {"warmup_steps": 300},
    "linear": {"lr_schedule": "linear", "epochs": 8},
    "cosine": {"lr_schedule": "cosine", "epochs": 8},
    "embedding_rate_up": {"embedding_learning_rate": 1.2e-2},
    "embedding_rate_down": {"embedding_learning_rate": 1.3e-3},
    "weight_decay": {"weight_decay": 1e-2},
    "table_decay": {"embedding_weight_decay": 0.1, "embedding_regularizer": None},
    "label_smoothing": {"label_smoothing": 0.1},
    "ema": {"ema": 0.999, "swa_start": None},
    "no_average": {"swa_start": None},
    "din": {"interest": "din"},
    "din_softmax": {"interest": "din", "din_use_softmax": True},
    "no_softmax": {"din_use_softmax": False},  # of DIN
    "cross": {"cross": "v2"},
    "no_factors": {"factor_dim": 0, "factor_features": None},
}


def main() -> None:
    """Train the experiment and every change of it with every seed, print a row for each change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="benchmarks/real", metavar="DIR")
    parser.add_argument("--expid", required=True, help="the experiment without a change")
    names = [*FEATURES, *CHANGES]
    parser.add_argument("--changes", nargs="*", choices=names, default=names, metavar="CHANGE", help=", ".join(names))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--gpu", type=int, default=-1)
    parser.add_argument("--root", type=Path, default=Path("checkpoints/single_settings"), help="folder of the runs")
    args = parser.parse_args()

    logging.basicConfig(level=logging.WARNING)
    runs: dict[str, list[Run]] = {name: [] for name in ["none", *args.changes]}
    # Every change with one seed, then with the next, so that an early end leaves comparable runs.
    for seed in args.seeds:
        for name, found in runs.items():
            found.append(_run_of(args, name, seed))
    print("| change | valid AUC | difference | test AUC | difference |", "| --- | --- | --- | --- | --- |", sep="\n")
    for name, found in runs.items():
        cells = [cell for split in ("valid", "test") for cell in _cells(name, found, runs["none"], split)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def settings_of(change: str, use_features: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a change of an experiment with these features; none of ``none``."""
    if change in FEATURES:
        return {"use_features": [*use_features, FEATURES[change]]}
    return CHANGES.get(change, {})


def _run_of(args: argparse.Namespace, change: str, seed: int) -> Run:
    """Return the finished run of a change and a seed, trained if there is none."""
    from fuxictr_mm.experiment import Experiment

    own = {"seed": seed, "model_root": str(args.root / change), "metrics": ["AUC", "gAUC"], "tensorboard": False}
    experiment = Experiment.load(args.expid, args.config, gpu=args.gpu, verbose=0, **own)
    experiment = experiment.with_settings(**settings_of(change, experiment.config.use_features))
    return next(iter(experiment.finished.all()), None) or experiment.fit()


def _cells(name: str, runs: Sequence[Run], without: Sequence[Run], split: str) -> tuple[str, str]:
    """Return the AUC of runs on a split, and the difference from those ``without`` the change with its interval."""
    from fuxictr_mm.evaluation.compare import compare_groups

    auc = mean_and_deviation([run.metrics[split]["AUC"] for run in runs if split in run.metrics])
    if runs is without or split not in runs[0].metrics:  # rows to submit have no labels
        return auc, ""
    found = compare_groups({name: runs, "without": without}, [], split=split).pairs[0].found
    return auc, f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


if __name__ == "__main__":
    run_main(main)
