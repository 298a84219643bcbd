"""Run experiments with several seeds and print mean and standard deviation.

python -m benchmarks.seeds --config benchmarks/real --expid DIN_ml100k DIN_MM_ml100k --seeds 1 2 3

The runs are kept, for ``fuxictr-mm compare`` and ``prediction.py --runs``.
"""

from __future__ import annotations

import argparse
import logging
import statistics

from fuxictr_mm.arguments import run_main


def main() -> None:
    """Train every experiment with every seed, print a row per experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=".", metavar="DIR")
    parser.add_argument("--expid", nargs="+", required=True)
    parser.add_argument("--dataset_id", metavar="ID", help="instead of the experiments' own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--precision", help="instead of the experiments' own")
    parser.add_argument("--gpu", type=int, default=-1)
    parser.add_argument("--data_root", metavar="DIR")
    parser.add_argument("--root", default="checkpoints/seeds", metavar="DIR", help="folder of the runs")
    args = parser.parse_args()

    from fuxictr_mm.experiment import Experiment

    logging.basicConfig(level=logging.WARNING)
    header = "| experiment | description | valid AUC | test AUC | test gAUC | seconds a run |"
    print(header, "| --- | --- | --- | --- | --- | --- |", sep="\n")
    for expid in args.expid:
        results = []
        for seed in args.seeds:
            overrides = {"seed": seed, "model_root": args.root, "metrics": ["AUC", "gAUC"], "tensorboard": False}
            given = {"precision": args.precision, "dataset_id": args.dataset_id}
            overrides |= {name: value for name, value in given.items() if value is not None}
            experiment = Experiment.load(expid, args.config, gpu=args.gpu, data_root=args.data_root, **overrides)
            results.append(experiment.fit())
        valid = [r.valid["AUC"] for r in results]
        test = [r.test["AUC"] for r in results if r.test]
        groups = [r.test["gAUC"] for r in results if r.test]
        cells = [mean_and_deviation(values) for values in (valid, test, groups)]
        seconds = statistics.mean(r.seconds for r in results)
        print(f"| {expid} | {experiment.config.description or ''} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def mean_and_deviation(values: list[float], sign: str = "") -> str:
    """Return the cell of a table: mean, with "+" as the sign of a positive one, and standard deviation over runs."""
    if not values:
        return "no labels"
    deviation = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4f}{deviation}"


if __name__ == "__main__":
    run_main(main)
