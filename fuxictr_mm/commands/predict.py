"""Score rows, write a submission or a table: ``fuxictr-mm predict`` and ``python prediction.py``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm.arguments import add_examples, load_experiment
from fuxictr_mm.commands.scripts import command_of, script_folder
from fuxictr_mm.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from fuxictr_mm.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    command = command_of(parser, "predict")
    add_examples(
        parser,
        f"{command} --expid DIN_MM_tiny",
        f"{command} --expid DIN_MM_MicroLens --gpu 0 --weights DIN_MM_hub --task 'Task1&2'",
        f"{command} --expid DIN_MM_shop --config data/shop --data data/shop_new/test --out predictions.parquet",
        f"{command} --runs DIN_MM_tiny DIN_tiny --average logit --fit-weights --calibrate platt",
    )
    parser.add_argument(
        "--config", default=None, metavar="DIR", help="folder of model_config.yaml (default: the working directory)"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--expid", help="experiment id in model_config.yaml: its newest weights")
    what.add_argument("--runs", nargs="+", metavar="NAME", help="experiment ids, runs or folders, to be averaged")
    parser.add_argument("--data", metavar="PATH", help="Parquet file, or folder, to score in place of the test file")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--task", default="Task2", choices=("Task1", "Task2", "Task1&2"), help="column of the scores")
    parser.add_argument("--label", metavar="NAME", help="with several labels, the one to write (default: the first)")
    parser.add_argument(
        "--weights",
        metavar="RUN",
        help="weights other than the experiment's own: a run, an experiment id (its newest run), a state dict, a "
        ".safetensors file, or a folder written by fuxictr-mm export-hub",
    )
    parser.add_argument("--data_root", metavar="DIR", help="replaces the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("submission"),
        metavar="PATH",
        help="folder of the submission (default: submission); or a table, .parquet or .csv: ids, label, prediction",
    )
    parser.add_argument("--calibrate", choices=("platt", "beta", "isotonic"), help="calibrate on the validation rows")
    parser.add_argument(
        "--average",
        choices=("rank", "logit", "mean"),
        help="for --runs: what is averaged (default: rank; mean in a regression)",
    )
    parser.add_argument("--fit-weights", action="store_true", help="for --runs: fit weights on the validation rows")
    parser.add_argument("--stack", action="store_true", help="for --runs: LightGBM instead of an average")
    parser.add_argument(
        "--name", help="for --runs: experiment id of the ensemble (default: EXPID_ensemble, or ensemble)"
    )
    parser.add_argument(
        "--root", default="checkpoints", metavar="DIR", help="for --runs: their model_root (default: checkpoints)"
    )


def main_from_args(args: argparse.Namespace) -> None:
    """Score, write ``submission/NAME.zip`` or a table, and print the metrics of ``--data`` that has labels."""
    from fuxictr_mm.data.parquet import count_rows
    from fuxictr_mm.logs import set_up_logging
    from fuxictr_mm.prediction_files import check_table, is_table, measure, write_table
    from fuxictr_mm.runtime import is_main
    from fuxictr_mm.submission import write_submission

    set_up_logging()
    if is_table(args.out):
        check_table(args.out)  # before scoring
    name, scores, settings = _of_runs(args) if args.runs else _of_experiment(args)
    if not is_main():
        return
    if args.data is not None:
        settings = {**settings, "test_data": args.data}
        for label, metrics in measure(args.data, scores, settings).items():
            values = ", ".join(f"{key} {value:.6f}" for key, value in metrics.items() if key != "rows")
            print(f"{args.data}: {values} ({metrics['rows']:.0f} rows with {label})")
    if is_table(args.out):
        write_table(args.out, settings["test_data"], scores, settings)
        print(f"{args.out}: {len(scores)} rows")
    else:
        index, of_label = _label_of(settings, args.label, args.out)
        scores = scores if scores.ndim == 1 else scores[:, index]
        is_parquet = settings.get("data_format", "parquet") == "parquet"
        rows = count_rows(settings["test_data"]) if is_parquet else len(scores)
        written = write_submission(args.out / f"{name}.zip", scores, task=args.task, expected_rows=rows)
        print(f"{written}: {len(scores)} rows, column {args.task}{of_label}")


def _label_of(settings: dict[str, Any], label: str | None, out: Path) -> tuple[int, str]:
    """Return the index of the label to write, and what is printed of it: nothing where there is only one."""
    from fuxictr_mm.config import label_names, per_label
    from fuxictr_mm.prediction_files import is_table

    names = label_names(settings)
    if label is not None and label not in names:
        raise ConfigError(f"--label {label}: label_col of {settings['model_id']} names {', '.join(names) or 'none'}")
    index = 0 if label is None else names.index(label)
    tasks = per_label(settings.get("task", "binary_classification"), max(len(names), 1))
    if tasks[index] == "regression" and not is_table(out):
        of = f" of {names[index]}" if len(names) > 1 else ""
        raise ConfigError(
            f"{settings['model_id']}: the task{of} is a regression, but a submission holds probabilities; write a "
            "table, e.g. --out predictions.parquet"
        )
    return index, f", label {names[index]} of {', '.join(names)}" if len(names) > 1 else ""


def _of_experiment(args: argparse.Namespace) -> tuple[str, "np.ndarray", dict[str, Any]]:
    """Return the experiment id, the scores by its newest weights, and its settings."""
    from fuxictr_mm.config import find_config
    from fuxictr_mm.evaluation.ensemble import refuse_ensemble
    from fuxictr_mm.prediction import predict
    from fuxictr_mm.runs import run_of_weights

    for option in _given(args):
        raise ConfigError(f"{option} is for --runs; --expid scores with one run's weights")
    config = find_config(args.config, script_folder(args))
    try:
        experiment = load_experiment(args, config)
    except ConfigError:
        refuse_ensemble(args.expid)
        raise
    _label_of(experiment.config.to_dict(), args.label, args.out)  # refused before scoring
    if args.calibrate and args.weights:
        raise ConfigError("--calibrate needs the validation predictions of a run; remove --weights")
    weights = experiment.find_weights(args.weights)
    run = run_of_weights(experiment.paths, weights) if args.calibrate else None
    scores = predict(experiment, args.data, weights, [experiment.paths.log])
    if run is not None:
        scores = _calibrate(run, scores, args.calibrate)
    return args.expid, scores, experiment.config.to_dict()


def _of_runs(args: argparse.Namespace) -> tuple[str, "np.ndarray", dict[str, Any]]:
    """Return the name of the ensemble, its scores, and its settings."""
    from fuxictr_mm.evaluation.ensemble import describe_ensemble, ensemble
    from fuxictr_mm.runs import find_runs, resolve_one
    from fuxictr_mm.runtime import is_one_of_several

    for option in ("weights", "data_root", "model_zoo", "config", "data"):
        if getattr(args, option):
            fix = "--fit-weights fits those of an average" if option == "weights" else "leave it out"
            raise ConfigError(f"--{option} is for --expid; runs have their own weights and files; {fix}")
    if is_one_of_several():
        raise ConfigError("--runs averages in one process; start it without torchrun")
    first = resolve_one(args.runs[0], find_runs(args.root), args.root)[0]
    _label_of({"model_id": first.expid, **first.config}, args.label, args.out)  # refused before an ensemble is written
    options = {option: getattr(args, option) for option in ("fit_weights", "stack", "name", "gpu")}
    run = ensemble(args.runs, args.root, average=args.average, single=not _given(args), **options)
    if not run.config.get("test_data"):
        raise ConfigError(
            f"{run.path}: its dataset has no test_data; set test_data in dataset_config.yaml and train again"
        )
    for line in describe_ensemble(run):
        print(line)
    scores = run.predictions("test").prediction
    if args.calibrate:
        scores = _calibrate(run, scores, args.calibrate)
    return run.expid, scores, run.config


def _given(args: argparse.Namespace) -> list[str]:
    """Return the options of an average that are given."""
    names = ("average", "fit_weights", "stack", "name")
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]


def _calibrate(run: "Run", scores: "np.ndarray", method: str) -> "np.ndarray":
    """Return calibrated scores, and print what changes on the validation rows; one that makes all equal is left out."""
    from fuxictr_mm.evaluation.calibration import calibrate_run

    found = calibrate_run(run)
    print(found.describe(method))
    calibrator = found.calibrator(method)
    return scores if calibrator.is_constant else calibrator(scores)
