"""``fuxictr-mm diagnose``: what a trained model uses, what it ignores, and where it fails."""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm import __version__
from fuxictr_mm.arguments import add_examples, add_experiment_options, add_output_options, show
from fuxictr_mm.diagnosis.findings import MODEL_AT_CHANCE, NOTE, PROBLEM, Finding, format_findings, ordered
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.files import check_outputs, check_replaceable, write_beside
from fuxictr_mm.runtime import is_one_of_several
from fuxictr_mm.terminal import progress_bar

if TYPE_CHECKING:
    from fuxictr_mm.data.interactions import InteractionTable
    from fuxictr_mm.data.items import ItemTable
    from fuxictr_mm.diagnosis.slices import Popularity
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.runs import Run, RunPaths

logger = logging.getLogger(__name__)

#: Version of the keys of a diagnosis and their meaning; raised for incompatible changes.
VERSION = 1

#: Settings of a run that this command replaces.
OWN_KEYS = frozenset({"gpu", "data_root", "model_root", "verbose"})

#: Sections that may be missing, and why.
ABSENT = {
    "attention": "the model has no attention whose weights can be read",
    "heads": "the model has no attention whose weights can be read",
    "senet": "the model has no SENet",
    "popularity": "no training file to count clicks in",
    "vectors": "the model reads no embedding of items",
    "neighbours": "the model reads no embedding of items",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm diagnose``."""
    add_examples(
        parser,
        "fuxictr-mm diagnose --expid DIN_MM_tiny",
        "fuxictr-mm diagnose --expid DIN_MM_tiny --split test --test_data data/tiny_mm/test_labelled.parquet",
        "fuxictr-mm diagnose --expid DIN_MM_tiny --json --quiet | python -m json.tool",
    )
    add_experiment_options(parser, gpu=True)
    parser.add_argument("--run", metavar="RUN", help="a run's name or folder (default: the newest finished one)")
    parser.add_argument("--weights", metavar="FILE", help="trained weights (default: those of the run)")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="examples to use (default: valid)")
    parser.add_argument("--test_data", metavar="FILE", help="replaces the dataset's test_data; needs labels")
    parser.add_argument(
        "--rows", type=int, default=20_000, help="largest number of examples, sampled (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="permutations of each field (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sample and permutations (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="JSON file (default: diagnosis.json in the run's folder)")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Diagnose, write the JSON file, print the summary or the JSON."""
    from fuxictr_mm.logs import set_up_logging

    if is_one_of_several():
        raise ConfigError("diagnose runs in one process; start it without torchrun")
    for name, least in (("rows", 2), ("repeats", 1), ("seed", 0)):
        if not least <= getattr(args, name) < 2**31:
            raise ConfigError(f"--{name} is {getattr(args, name)}, expected {least} to {2**31 - 1}")
    if not args.quiet:
        set_up_logging()
    options = ("config", "run", "weights", "gpu", "data_root", "model_zoo", "test_data")
    trained = find_trained(args.expid, **{name: getattr(args, name) for name in options})
    out = Path(args.out) if args.out else trained.output
    data = trained.experiment.config.dataset
    if trained.experiment.batch_format(trained.experiment.model_class) == "flat":
        data.require_items("diagnose")
    inputs = [*data.item_files, data.train_data, data.valid_data, data.test_data, trained.weights]
    check_outputs([out], inputs, overwrite=True)
    check_replaceable(out, ["fuxictr_mm", "expid", "split", "findings"], "diagnosis")
    verbose = 0 if args.quiet else 1
    result = diagnose_trained(
        trained, split=args.split, rows=args.rows, repeats=args.repeats, seed=args.seed, verbose=verbose
    )
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_beside(out, lambda stream: stream.write(text.encode()))
    show(args, result, f"{format_summary(result)}\n\nall figures: {out}")


@dataclass(frozen=True)
class Trained:
    """A trained experiment: weights, name, evaluations and settings of their run, and the file for its diagnosis."""

    experiment: Experiment
    weights: Path
    run: str | None
    output: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def find_trained(
    expid: str,
    *,
    run: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    test_data: str | None = None,
    **where: Any,
) -> Trained:
    """Return configuration and weights of an experiment.

    Parameters
    ----------
    expid : str
        Experiment id.
    run : str, optional
        Name or folder of a run; the newest finished one by default, and without any the experiment's newest weights.
    weights : path, optional
        Replaces the run's weights; without ``run`` they belong to no run, and the configuration is the folder's.
    test_data : str, optional
        Replaces the dataset's.
    **where
        ``config``, ``gpu``, ``data_root`` and ``model_zoo`` of ``Experiment.load``.

    Raises
    ------
    ConfigError, MissingFileError
        The configuration is wrong; no such run, no such file.
    """
    from fuxictr_mm.config import PATH_KEYS
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.runs import DIAGNOSIS

    own: dict[str, Any] = {} if test_data is None else {"test_data": test_data}
    experiment = Experiment.load(expid, **where, **own)
    found = _find_run(experiment.paths, run) if run or not weights else None
    if found is not None and found.config:
        # The configuration of the run is used; its paths are those of the folder, because files may have moved.
        settings = {k: v for k, v in found.config.items() if k not in (*PATH_KEYS, *OWN_KEYS)}
        experiment = Experiment.load(expid, **where, **{**settings, **own})
    newest = experiment.paths.weights
    if weights is not None:
        path, remedy = Path(weights), "give a file that fuxictr-mm train wrote"
    elif found is not None:
        path, remedy = found.weights, "the weights of this run were deleted; give others by --weights"
    else:
        path = newest
        remedy = f"{expid} is not trained; give a file by --weights, or train first: {experiment.command('train')}"
    if not path.exists():
        raise MissingFileError(f"{path}: no such file, {remedy}")
    output = newest.with_suffix(".diagnosis.json") if found is None else found.path / DIAGNOSIS
    if found is None:
        return Trained(experiment, path, None, output)
    history = found.history() if weights is None else []
    return Trained(experiment, path, found.run, output, history, found.config)


def _find_run(paths: RunPaths, name: str | None) -> Run | None:
    """Return the run of this name, or the newest finished one, None without any."""
    from fuxictr_mm.runs import find_runs, left_out, present_first, read_run, resolve_one

    root, expid = paths.model_root, paths.expid
    is_folder = name is not None and os.sep in name and Path(name).is_dir()
    if name is not None and is_folder:
        runs = [read_run(name)]
    elif name is not None:
        runs = resolve_one(name, find_runs(root), root)
    else:
        runs = [run for run in find_runs(root, dataset=paths.dataset_id, expid=expid) if run.finished]
        if not runs:
            return None
    run = present_first(runs)[0]
    if newer := left_out(runs, run):
        logger.warning(f"{run.path} is diagnosed; {newer}")
    if name is None:
        return run
    if run.problem:
        raise ConfigError(f"--run {name}: {run.problem}")
    if run.expid != expid:
        raise ConfigError(f"--run {name}: is a run of {run.expid}, expected one of {expid}; give --expid {run.expid}")
    return run


def diagnose_trained(trained: Trained, *, split: str = "valid", **options: Any) -> dict[str, Any]:
    """Read the data, build the model, load its weights, and diagnose it.

    Parameters
    ----------
    trained : Trained
        From ``find_trained``.
    split : {"valid", "test"}
        Examples to use; they need labels.
    **options
        ``rows``, ``repeats``, ``seed`` and ``verbose`` of ``diagnose``.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        Configuration, data or weights are wrong.
    """
    from fuxictr_mm.config import kind_of_task
    from fuxictr_mm.data.interactions import InteractionTable

    config = trained.experiment.config
    config.dataset.require_one_label("diagnose")
    if kind_of_task(config.task) != "binary_classification":
        raise ConfigError(f"{config.expid}: task is {config.task}, diagnose expects binary_classification")
    # AUC drops of a few ten-thousandths are below the precision of bf16; the split must be in memory.
    settings = config.to_dict()
    plain = {key: value for key, value in {"precision": "fp32", "compile": False}.items() if key in settings}
    experiment = trained.experiment.with_settings(resident=True, verbose=0, **plain)
    experiment.prepare_process()
    dataset = experiment.load_dataset({split: True}, trained.weights)
    table = dataset.splits[split]
    assert isinstance(table, InteractionTable)
    model = experiment.build_model(dataset)
    model.load_weights(str(trained.weights))
    model.eval()
    result = diagnose(experiment, model, table, _popularity(experiment, dataset.items), **options)
    result["findings"] += [asdict(finding) for finding in _findings_of_training(trained)]
    return {
        "fuxictr_mm": __version__,
        "created_at": datetime.now().isoformat(timespec="seconds"),
        "expid": config.expid,
        "run": trained.run,
        "model": config.model,
        "dataset_id": config.dataset_id,
        "weights": str(trained.weights),
        "split": split,
        **result,
    }


def _findings_of_training(trained: Trained) -> Iterator[Finding]:
    """Yield whether a run might have got better yet."""
    from fuxictr_mm.runs import best_epoch_was_last

    if trained.history and best_epoch_was_last(trained.history, trained.settings):
        epochs = trained.settings["epochs"]
        yield Finding(
            NOTE,
            "training",
            "best_epoch_was_last",
            trained.run or "run",
            f"the best epoch was the last allowed one, {epochs} of {epochs}",
            "train with more epochs: early stopping ends them when nothing is gained",
        )


def _popularity(experiment: Experiment, items: ItemTable) -> Popularity | None:
    """Count clicks in the training file, None where there is none."""
    from fuxictr_mm.data.interactions import InteractionTable
    from fuxictr_mm.diagnosis.slices import Popularity, count_items

    dataset = experiment.config.dataset
    try:
        if dataset.item_info is None:  # items are those of encoded columns
            table = experiment.load_dataset({"train": True}).splits["train"]
            assert isinstance(table, InteractionTable)
            assert table.label is not None
            counts = [
                rows.bincount(minlength=items.num_items) for rows in (table.target, table.target[table.label == 1])
            ]
            return Popularity(*(count.numpy() for count in counts))
        label, target = dataset.label_names[0], dataset.roles.target
        return count_items(dataset.train_data or "", label, items.num_items, target, items.vocabulary)
    except MissingFileError as error:
        logger.warning(f"{error}; the section on popularity is left out")
        return None


def _sections() -> tuple[ModuleType, ...]:
    """Return the modules of the sections in the order of the summary, imported late because they need torch."""
    from fuxictr_mm.diagnosis import attention, calibration, importance, slices, vectors

    return attention, importance, vectors, calibration, slices


def diagnose(
    experiment: Experiment,
    model: Any,
    table: InteractionTable,
    popularity: Popularity | None = None,
    *,
    rows: int = 20_000,
    repeats: int = 5,
    seed: int = 0,
    verbose: int = 0,
) -> dict[str, Any]:
    """Diagnose a trained model.

    Parameters
    ----------
    experiment : Experiment
        The experiment of the model.
    model : BaseModel
        With its trained weights; it is not changed.
    table : InteractionTable
        Examples with labels, of both classes.
    popularity : Popularity, optional
        Of the training examples.
    rows : int
        Of a larger table, this many examples are sampled.
    repeats : int
        Permutations of each group of fields.
    seed : int
        Of the sample and of the permutations.
    verbose : int
        0 turns the progress bar off.

    Returns
    -------
    dict
        Plain values, as described in ``docs/diagnosis.md``.

    Raises
    ------
    DataError
        A class has fewer than two examples, or predictions are not finite.
    """
    from fuxictr_mm.diagnosis import attention, calibration, importance, slices, vectors
    from fuxictr_mm.diagnosis.attention_hooks import find_attention
    from fuxictr_mm.diagnosis.scorer import Scorer, sample

    started = time.perf_counter()
    items, features = model.feature_map.items, model.feature_map.features
    context, item_fields = importance.context_fields(features), importance.item_fields(features, items.names)
    along = importance.histories(experiment.config.dataset.roles, table.context, model.feature_map.along_history)
    groups = importance.all_groups(features, items.names, along)
    hooks, senets = find_attention(model), importance.find_senets(model)
    recorded = [attention.RecordedAttention(one) for one in hooks]
    passes = 1 + attention.number_of_passes(hooks) + importance.number_of_passes(groups, repeats)
    shown, model._verbose = model._verbose, 0
    try:
        with progress_bar(range(passes), "diagnosis", verbose) as bar:
            bar.unit = "pass"
            scorer = Scorer(experiment, model, sample(table, rows, seed), bar.update)
            with ExitStack() as stack:
                for block in [*(one.recording() for one in recorded), *(one.recording() for one in senets)]:
                    stack.enter_context(block)
                prediction = scorer.score_base()
            of_attention = attention.measure(scorer, recorded)
            of_fields = importance.measure(scorer, groups, repeats, seed)
    finally:
        model._verbose = shown
    label, target = scorer.label, scorer.table.target.cpu().numpy()
    lengths = scorer.table.history_offsets.diff().cpu().numpy()
    clicks = np.bincount(target[label == 1], minlength=items.num_items) if popularity is None else popularity.clicked
    result: dict[str, Any] = {
        "version": VERSION,
        "rows": len(label),
        "rows_in_split": len(table),
        "repeats": repeats,
        "seed": seed,
        "metrics": _metrics(label, prediction),
        **of_attention,
        **importance.describe_senets(senets, context, item_fields),
        "importance": of_fields,
        **vectors.measure(
            [name for name in item_fields if features[name]["type"] == "embedding"],
            lambda name: items[name].cpu().numpy(),
            clicks,
            items.known.cpu().numpy(),
            experiment.config.dataset.item_files,
            vectors.ItemNames(experiment.config.dataset.roles.target, items.vocabulary),
        ),
        "calibration": calibration.measure(label, prediction, seed=seed)
        | {"command": f"{experiment.command('predict')} --calibrate platt"},
        **slices.measure(label, prediction, lengths, target, popularity),
    }
    if "popularity" in result:
        result["calibration"]["by_popularity"] = calibration.by_popularity(result["popularity"])
    result["absent"] = {section: reason for section, reason in ABSENT.items() if section not in result}
    result["passes"] = scorer.passes
    result["seconds"] = time.perf_counter() - started
    found = [finding for section in _sections() for finding in section.findings(result)]
    result["findings"] = [asdict(finding) for finding in ordered([*_findings_of_metrics(result), *found])]
    return result


def _metrics(label: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
    from fuxictr_mm.evaluation.significance import auc_with_interval
    from fuxictr_mm.metrics import evaluate_metrics

    return {
        **auc_with_interval(label, prediction),
        **evaluate_metrics(label, prediction, ["logloss"]),
        "positives": int(label.sum()),
        "rate": float(label.mean()),
    }


def _findings_of_metrics(result: Mapping[str, Any]) -> Iterator[Finding]:
    from fuxictr_mm.metrics import constant_logloss

    metrics = result["metrics"]
    if metrics["low"] <= 0.5 <= metrics["high"]:
        yield Finding(
            PROBLEM,
            "metrics",
            MODEL_AT_CHANCE,
            "model",
            f"the model ranks at random: AUC {metrics['auc']:.4f}, and its 95 % interval ({metrics['low']:.4f} to "
            f"{metrics['high']:.4f}) contains 0.5",
            "its parts cannot be diagnosed: check whether the training loss falls, run fuxictr-mm check-data, and "
            "use more rows if the interval is wide",
        )
    if metrics["high"] < 0.5:
        yield Finding(
            PROBLEM,
            "metrics",
            "ranks_backwards",
            "model",
            f"positives are ranked behind the others: AUC {metrics['auc']:.4f}, and its 95 % interval "
            f"({metrics['low']:.4f} to {metrics['high']:.4f}) is below 0.5",
            "see whether the label means the same in train and in these rows: fuxictr-mm check-data",
        )
    constant = constant_logloss(metrics["rate"])
    if round(metrics["logloss"] - constant, 4) > 0:
        yield Finding(
            PROBLEM,
            "metrics",
            "worse_than_constant",
            "predictions",
            f"the logloss is {metrics['logloss']:.4f}, and {constant:.4f} if the positive rate {metrics['rate']:.4f} "
            "were predicted for all rows",
            f"ranking is not affected: {result['calibration']['command']}; or train with more regularization, such as "
            "a larger embedding_regularizer or net_dropout, or fewer epochs",
        )


def format_summary(result: Mapping[str, Any]) -> str:
    """Return a diagnosis for a terminal: the tables section by section, then the findings."""
    metrics = result["metrics"]
    of = "" if result["rows"] == result["rows_in_split"] else f" of {result['rows_in_split']}"
    named = " ".join(str(result[key]) for key in ("expid", "run", "split") if result.get(key))
    head = (
        f"{named or 'diagnosis'}: AUC {metrics['auc']:.4f} ({metrics['low']:.4f} to {metrics['high']:.4f}), logloss "
        f"{metrics['logloss']:.4f}, {result['rows']}{of} rows; {result['passes']} passes in {result['seconds']:.1f} s"
    )
    tables = [table for section in _sections() for table in section.tables(result) if table]
    absent = [f"no {name}: {reason}" for name, reason in result["absent"].items()]
    return "\n\n".join([head, *tables, *absent, format_findings(result["findings"])])
