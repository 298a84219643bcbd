"""Train and evaluate one experiment: ``fuxictr-mm train`` and ``python run_expid.py``."""

import argparse
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from fuxictr_mm.arguments import add_examples, add_experiment_options, load_experiment
from fuxictr_mm.commands.scripts import command_of, script_folder, script_of
from fuxictr_mm.errors import ConfigError

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.tuning.seeds import Processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    command, predict = command_of(parser, "train"), command_of(parser, "predict")
    started = "run_expid.py" if command.startswith("python ") else "-m fuxictr_mm train"
    add_examples(
        parser,
        f"{command} --expid DIN_MM_tiny",
        f"{command} --expid DIN_MM_MicroLens --gpu 0 --seed 7 --data_root /data",
        f"{command} --expid DIN_MM_tiny --seeds 1 2 3    then: {predict} --runs DIN_MM_tiny",
        f"torchrun --nproc-per-node 2 {started} --expid DIN_MM_tiny",
    )
    add_experiment_options(parser, gpu=True)
    parser.set_defaults(config=None)
    parser.add_argument("--seed", type=int, help="replaces the experiment's seed")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="train with each of these seeds, several in parallel"
    )
    parser.add_argument(
        "--folds", type=int, metavar="K", help="train K times, each time with another part of train and valid held out"
    )
    parser.add_argument(
        "--fold_by",
        choices=("user", "row", "time"),
        help="what --folds holds out (default: user, by group_id)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="for --seeds and --folds: parallel processes (default: one per core, on a GPU one)",
    )
    parser.add_argument(
        "--initial_weights",
        metavar="RUN",
        help="start with these weights: a run, an experiment id (its newest run) or a file; tables may have new ids",
    )
    parser.add_argument("--fold", help=argparse.SUPPRESS)
    parser.add_argument("--beside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run of this experiment")
    parser.add_argument(
        "--quiet", action="store_true", help="no progress, no log, no summary on the terminal; warnings are printed"
    )


def main_from_args(args: argparse.Namespace) -> None:
    """Train the experiment."""
    from fuxictr_mm.config import Fold, find_config, results_csv_path
    from fuxictr_mm.logs import set_up_logging

    if not args.quiet:
        set_up_logging()
    config = find_config(args.config, script_folder(args))
    settings = {"seed": args.seed, "verbose": 0 if args.quiet else None, "initial_weights": args.initial_weights}
    experiment = load_experiment(args, config, **settings)
    if args.seeds:
        _train_seeds(experiment, config, args)
        return
    if args.folds is not None:
        _train_folds(experiment, config, args)
        return
    if args.jobs is not None:
        raise ConfigError("--jobs is for --seeds and --folds; one seed is trained in one process; leave it out")
    if args.fold is None and args.fold_by is not None:
        raise ConfigError("--fold_by says what --folds holds out; give --folds too, e.g. --folds 5, or leave it out")
    if args.fold is not None:
        number, of = map(int, args.fold.split("/"))
        experiment = experiment.of_fold(Fold(number=number, of=of, by=args.fold_by or "user"))
    if args.beside:
        experiment = experiment.of_seed(args.seed)
    experiment.fit(resume=args.resume, results_csv=results_csv_path(config))


def _train_seeds(experiment: "Experiment", config: Path, args: argparse.Namespace) -> None:
    """Train every seed, and print their metrics."""
    from fuxictr_mm.commands.runs import table
    from fuxictr_mm.runtime import is_one_of_several
    from fuxictr_mm.tuning.seeds import train_seeds

    if args.folds is not None:
        raise ConfigError("--seeds and --folds exclude each other; keep one")
    if args.seed is not None:
        raise ConfigError("--seed and --seeds exclude each other; keep one")
    if is_one_of_several():
        raise ConfigError("--seeds starts its own processes; start it without torchrun, or give one --seed")
    runs = train_seeds(experiment, args.seeds, _processes(args, config, experiment))
    if args.quiet:
        return
    print(table(runs))
    print(f"average them: {_predict(args, args.expid, experiment.config.model_root)}")


def _train_folds(experiment: "Experiment", config: Path, args: argparse.Namespace) -> None:
    """Train every fold, and print their metrics and those of the out-of-fold predictions."""
    from fuxictr_mm.commands.runs import table
    from fuxictr_mm.runtime import is_one_of_several
    from fuxictr_mm.tuning.folds import train_folds

    if is_one_of_several():
        raise ConfigError("--folds starts its own processes; start it without torchrun")
    runs, combined = train_folds(experiment, args.folds, _processes(args, config, experiment), args.fold_by or "user")
    if args.quiet:
        return
    print(table([*runs, combined]))
    print(f"submit their average: {_predict(args, combined.expid, experiment.config.model_root)}")


def _processes(args: argparse.Namespace, config: Path, experiment: "Experiment") -> "Processes":
    from fuxictr_mm.tuning.seeds import Processes
    from fuxictr_mm.tuning.source import Source

    seed = [] if args.seed is None else ["--seed", str(args.seed)]
    # Of an experiment id, all processes take the run that is the newest one now.
    weights = experiment.config.initial_weights
    initial = [] if weights is None else ["--initial_weights", weights]
    given = [*Source(args.data_root, args.model_zoo).arguments, *seed, *initial]
    return Processes(config, script_of(args), args.jobs, args.resume, given, args.quiet)


def _predict(args: argparse.Namespace, expid: str, root: str) -> str:
    """Return the command line that averages the runs of an experiment below ``root``."""
    where = "" if Path(root) == Path("checkpoints") else f" --root {quote(str(root))}"
    return f"{command_of(args, 'predict')} --runs {quote(expid)}{where}"
