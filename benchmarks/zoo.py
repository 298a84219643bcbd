"""Every model on one dataset with the same search: a study for each, and seeds of its best trial.

python -m benchmarks.zoo --dataset_id ml100k_mm --minutes 40 --jobs 2 --out zoo

A study begins with the settings that `prepare log` writes for so many rows, and searches near the best ones until its
trials have taken the minutes, of one process of one thread; slow trials are pruned. Minutes are wall time, so the
budgets are equal where no more processes run than there are cores. Valid decides, test is only reported. The same
command continues after a kill, with the trials that have finished; more minutes add trials.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import multiprocessing
import os
import re
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.seeds import mean_and_deviation
from fuxictr_mm.arguments import run_main
from fuxictr_mm.errors import ConfigError, UserError

if TYPE_CHECKING:
    from fuxictr_mm.tuning import TrialResult

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "run_expid.py"

#: What is tried of every model that has the setting, besides ``swa_start``.
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    "embedding_regularizer": {"low": 1e-5, "high": 1e-2, "log": True},
    "net_dropout": {"low": 0.0, "high": 0.5},
}
#: The same of LightFM.
FACTOR_SPACE: dict[str, Any] = {
    "learning_rate": {"low": 2e-3, "high": 2e-2, "log": True},
    "embedding_regularizer": {"low": 1e-6, "high": 1e-3, "log": True},
    "factor_regularizer": {"low": 3e-3, "high": 1e-1, "log": True},
}
#: Settings of the first trial: those that ``prepare log`` writes for DIN, or for LightFM.
WRITTEN = (
    "learning_rate", "embedding_regularizer", "net_dropout", "batch_size", "epochs", "early_stop_patience",
    "reduce_lr_on_plateau", "swa_start", "factor_regularizer",
)  # fmt: skip
MOST_TRIALS = 100
#: Failed trials that end the search of a model of which none has finished.
MOST_FAILURES = 3

HEADER = "| model | trials (pruned) | minutes | valid AUC, best trial | valid AUC | test AUC | test gAUC |"


@dataclasses.dataclass(frozen=True)
class Job:
    """The search of one model."""

    expid: str
    config: Path
    dataset_id: str
    minutes: float
    seeds: tuple[int, ...]
    out: Path
    gpu: int


def main() -> None:
    """Search and train every model, print a row when it is finished, and the table by AUC on valid at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "benchmarks" / "real", metavar="DIR")
    parser.add_argument("--dataset_id", required=True)
    parser.add_argument("--expid", nargs="+", help="base experiments (default: all whose id ends in _zoo)")
    parser.add_argument("--minutes", type=float, default=40, help="of trials, for each model")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="models at once")
    parser.add_argument("--gpu", type=int, default=-1)
    parser.add_argument("--out", type=Path, default=Path("zoo"), help="folder of the studies")
    args = parser.parse_args()
    expids = args.expid or experiments(args.config)
    out = (args.out / args.dataset_id).absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the trials
    jobs = [
        Job(expid, args.config.absolute(), args.dataset_id, args.minutes, tuple(args.seeds), out, args.gpu)
        for expid in expids
    ]
    rows: dict[str, tuple[float, str]] = {}
    print(HEADER, re.sub(r"[^|]+", " --- ", HEADER), sep="\n", flush=True)
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(search, job): job.expid for job in jobs}
        for future in as_completed(running):
            try:
                rows[running[future]] = future.result()
            except UserError as error:
                rows[running[future]] = float("-inf"), f"| {running[future]} | {error} | | | | | |"
            print(rows[running[future]][1], flush=True)
    print("", HEADER, re.sub(r"[^|]+", " --- ", HEADER), *(row for _, row in sorted(rows.values())[::-1]), sep="\n")


def experiments(config: Path) -> list[str]:
    """Return the ids of the base experiments of a configuration."""
    from fuxictr_mm.yaml_files import load_yaml

    found = [name for name in load_yaml(config / "model_config.yaml") if re.fullmatch(r"[^_].*_zoo", name)]
    if not found:
        raise ConfigError(f"{config}: no experiment whose id ends in _zoo; name some with --expid")
    return found


def search(job: Job) -> tuple[float, str]:
    """Run the study of a model and the seeds of its best trial; the mean AUC on valid, and the row of the table."""
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.tuning import Processes, read_tuner, run_study, train_seeds
    from fuxictr_mm.yaml_files import write_entries

    logging.basicConfig(level=logging.WARNING)
    name = job.expid.removesuffix("_zoo")
    space, first = trials_of(job)
    constants = {name: value for name, value in first.items() if name not in space}
    constants |= {"model_root": str(job.out / "runs"), "tensorboard": False}
    path = job.out / f"{name}.yaml"
    content = {
        "base_config": str(job.config),
        "base_expid": job.expid,
        "dataset_id": job.dataset_id,
        "search": "local",
        "trials": MOST_TRIALS,
        "pruning": True,
        "tuner_space": space | constants,
    }
    write_entries(path, content, path)
    tuner = dataclasses.replace(read_tuner(path), first=first | constants)
    results: list[TrialResult] = []
    trials = 0
    while minutes_of(results) < job.minutes and trials < MOST_TRIALS:
        trials = max(trials, len(results)) + 1
        found = run_study(dataclasses.replace(tuner, trials=trials), [job.gpu], SCRIPT, quiet=True)
        results = found.trials
        failed = [r for r in results if r.state == "failed"]
        if len(failed) == len(results) == MOST_FAILURES:
            raise UserError(f"{name}: {MOST_FAILURES} trials have failed, the last by: {failed[-1].error}")
    if not found.finished:
        raise UserError(f"{name}: no trial has finished; see {tuner.folder}/logs")
    best = found.finished[0]
    experiment = Experiment.load(best.expid, tuner.folder, gpu=job.gpu)
    runs = train_seeds(experiment, job.seeds, Processes(tuner.folder, SCRIPT, jobs=1, resume=True, quiet=True))
    valid = [run.valid["AUC"] for run in runs]
    cells = [
        name,
        f"{len(results)} ({sum(r.pruned for r in results)})",
        f"{minutes_of(results):.0f}",
        f"{best.score:.4f}",
        mean_and_deviation(valid),
        mean_and_deviation([run.test["AUC"] for run in runs if run.test]),
        mean_and_deviation([run.test["gAUC"] for run in runs if run.test]),
    ]
    return statistics.mean(valid), f"| {' | '.join(cells)} |"


def trials_of(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is tried of a model, and the settings of its first trial."""
    from fuxictr_mm.data.parquet import count_rows
    from fuxictr_mm.datasets.experiments import first_experiments
    from fuxictr_mm.datasets.summary import SplitSummary, Summary
    from fuxictr_mm.experiment import Experiment

    config = Experiment.load(job.expid, job.config, dataset_id=job.dataset_id).config
    splits = {"train": SplitSummary(rows=count_rows(config.dataset.train_data))}
    model = "LightFM" if config.model == "LightFM" else "DIN"
    written = first_experiments(Summary(0, 0, splits), max_len=100, users=True)[model]
    first = {name: written[name] for name in WRITTEN if written.get(name) is not None}
    return (FACTOR_SPACE if model == "LightFM" else SPACE | {"swa_start": [first["swa_start"], None]}), first


def minutes_of(results: Sequence[TrialResult]) -> float:
    """Return what trials have taken, without failed ones."""
    return sum(r.seconds for r in results if not math.isnan(r.seconds)) / 60


if __name__ == "__main__":
    run_main(main)
