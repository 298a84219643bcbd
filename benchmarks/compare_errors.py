"""Error rates of ``fuxictr-mm compare``: on seeds of one experiment, and on a planted difference.

    for seed in 1 2 3 4 5 6 7 8; do python run_expid.py --expid DIN_MM_tiny --seed $seed; done
    python -m benchmarks.compare_errors --expid DIN_MM_tiny

Seeds of one configuration are compared as if they were two configurations, so "different" is always wrong.

Shape letters: R runs, N rows, S samples.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np

from fuxictr_mm.arguments import run_main
from fuxictr_mm.errors import DataError
from fuxictr_mm.evaluation.intervals import Ranking
from fuxictr_mm.evaluation.significance import Difference, Side, bootstrap, difference
from fuxictr_mm.runs import find_runs

#: Runs of each side where sides have several.
GROUP = 3


def main() -> None:
    """Print a row per experiment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_errors", description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="checkpoints", metavar="DIR", help="the model_root of the runs (checkpoints)")
    parser.add_argument("--expid", nargs="+", required=True, help="experiments with 6 finished seeds or more")
    parser.add_argument("--splits", type=int, default=300, help="random choices of 3 against 3 (300)")
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap samples of users (1000)")
    parser.add_argument("--planted", type=float, default=0.01, help="difference in AUC to plant (0.01)")
    parser.add_argument("--plants", type=int, default=0, help="how often to plant it (0)")
    args = parser.parse_args()
    print(
        "| validation rows | experiment | seeds | their std | false positives by rows alone, 3 against 3 | by compare, "
        "3 against 3 | by compare, single runs | detectable with 80 % | planted: found | found or not detectable |"
    )
    print("| --- " * 10 + "|")
    for expid in args.expid:
        scores, label, user = read_scores(args.root, expid)
        ranked = [Ranking(label, score) for score in scores]
        samples = bootstrap(ranked, user, args.samples, 0)
        compare = comparer(ranked, samples, int(user.max()) + 1)
        std = np.std([run.value for run in ranked], ddof=1)
        groups = list(false_differences(len(ranked), compare, args.splits))
        pairs = [
            compare([i], [j], [k for k in range(len(ranked)) if k not in (i, j)])
            for i, j in itertools.combinations(range(len(ranked)), 2)
        ]
        fractions = [
            np.mean([d.rows_low > 0 or d.rows_high < 0 for d in groups]),
            np.mean([d.is_significant() for d in groups]),
            np.mean([d.is_significant() for d in pairs]),
        ]
        planted = found_plants(scores, label, user, args.planted, args.plants) if args.plants else ("", "")
        print(
            f"| {len(label):,} | {expid} | {len(ranked)} | {std:.4f} | "
            + " | ".join(f"{fraction:.1%}" for fraction in fractions)
            + f" | {np.mean([d.detectable for d in groups]):.3f} | {planted[0]} | {planted[1]} |",
            flush=True,
        )


def read_scores(root: str, expid: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Return the logits of every run, R of ``(N,)``, the labels ``(N,)`` and the users ``(N,)`` numbered from 0."""
    runs = [run for run in find_runs(root, expid=expid) if run.finished]
    if len(runs) < 2 * GROUP:
        raise DataError(f"{root}: {len(runs)} finished runs of {expid}, {2 * GROUP} or more are needed")
    predictions = [run.predictions() for run in runs]
    label, _, group = predictions[0]
    assert label is not None
    if any(found.difference_of_rows(predictions[0]) for found in predictions):
        raise DataError(f"{root}: runs of {expid} were validated on different rows")
    probability = [p.astype(float).clip(1e-7, 1 - 1e-7) for _, p, _ in predictions]
    user = np.arange(len(label)) if group is None else np.unique(group, return_inverse=True)[1]
    return [np.log(p / (1 - p)) for p in probability], label, user


def comparer(ranked: Sequence[Ranking], samples: np.ndarray, users: int) -> Callable[..., Difference]:
    """Return a function that compares runs by their numbers, with further seeds of either side if given."""

    def side(name: str, runs: Sequence[int], others: Sequence[int]) -> Side:
        return Side(name, name, [ranked[i] for i in runs], samples[list(runs)], [ranked[i].value for i in others])

    return lambda first, second, others=(): difference(side("a", first, others), side("b", second, others), users)


def false_differences(runs: int, compare: Callable[..., Difference], splits: int) -> list[Difference]:
    """Compare three random seeds with three others, again and again."""
    generator = random.Random(0)
    sampled = [generator.sample(range(runs), 2 * GROUP) for _ in range(splits)]
    return [compare(chosen[:GROUP], chosen[GROUP:]) for chosen in sampled]


def found_plants(
    scores: Sequence[np.ndarray], label: np.ndarray, user: np.ndarray, size: float, trials: int
) -> tuple[str, str]:
    """Add noise to the logits of three seeds until they are worse by ``size``; count how often that is detected."""
    noise, generator = np.random.default_rng(0), random.Random(1)
    found, reported = [], []
    for trial in range(trials):
        error = noise.normal(size=len(label))
        chosen = generator.sample(range(len(scores)), 2 * GROUP)
        worse = [scores[i] for i in chosen[GROUP:]]
        scale = _scale_of(lambda scale, worse=worse, error=error: _mean_auc(label, worse, scale * error), size)
        ranked = [Ranking(label, scores[i]) for i in chosen[:GROUP]]
        ranked += [Ranking(label, score + scale * error) for score in worse]
        compare = comparer(ranked, bootstrap(ranked, user, 300, trial), int(user.max()) + 1)
        result = compare(range(GROUP), range(GROUP, 2 * GROUP))
        found.append(result.is_significant() and result.value > 0)
        reported.append(found[-1] or result.detectable > size)
    return f"{np.mean(found):.0%}", f"{np.mean(reported):.0%}"


def _mean_auc(label: np.ndarray, scores: Sequence[np.ndarray], error: np.ndarray) -> float:
    return float(np.mean([Ranking(label, score + error).value for score in scores]))


def _scale_of(mean_auc: Callable[[float], float], size: float) -> float:
    """Return the scale of the noise at which the AUC is lower by ``size``."""
    base, low, high = mean_auc(0.0), 0.0, 5.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if base - mean_auc(middle) < size else (low, middle)
    return low


if __name__ == "__main__":
    run_main(main)
