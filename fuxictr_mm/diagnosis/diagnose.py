"""Diagnosis: what a trained model uses, what it ignores, and where it fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm import __version__
from fuxictr_mm.diagnosis.findings import NOTE, Finding, format_findings, ordered
from fuxictr_mm.diagnosis.trained import Trained
from fuxictr_mm.errors import MissingFileError
from fuxictr_mm.terminal import progress_bar

if TYPE_CHECKING:
    from fuxictr_mm.data.interactions import InteractionTable
    from fuxictr_mm.data.items import ItemTable
    from fuxictr_mm.diagnosis.scorer import Scorer
    from fuxictr_mm.diagnosis.slices import Popularity
    from fuxictr_mm.experiment import Experiment

logger = logging.getLogger(__name__)

#: Version of the keys of a diagnosis and their meaning; raised for incompatible changes.
VERSION = 1


#: Sections that may be missing, and why.
ABSENT = {
    "attention": "the model has no attention whose weights can be read",
    "heads": "the model has no attention whose weights can be read",
    "senet": "the model has no SENet",
    "calibration": "the task is a regression, whose predictions are not probabilities",
    "popularity": "there is no training file to count clicks in",
    "vectors": "the model does not read item embeddings",
    "neighbours": "the model does not read item embeddings",
}


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
    from fuxictr_mm.data.interactions import InteractionTable

    config = trained.experiment.config
    config.dataset.require_one_label("diagnose")
    # AUC drops of a few ten-thousandths are below the precision of bf16; the split must be in memory.
    experiment = trained.experiment.in_float32(resident=True, verbose=0)
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
            "train with more epochs: early stopping ends training without improvement",
        )


def _popularity(experiment: Experiment, items: ItemTable) -> Popularity | None:
    """Count clicks in the training file, of a regression its rows; return None if the file does not exist."""
    from fuxictr_mm.data.interactions import InteractionTable
    from fuxictr_mm.diagnosis.slices import Popularity, count_items

    dataset = experiment.config.dataset
    is_regression = "regression" in experiment.config.tasks.values()
    try:
        if dataset.item_info is None:  # items are those of encoded columns
            table = experiment.load_dataset({"train": True}).splits["train"]
            assert isinstance(table, InteractionTable)
            assert table.label is not None
            counts = [
                rows.bincount(minlength=items.num_items) for rows in (table.target, table.target[table.label == 1])
            ]
            found = Popularity(*(count.numpy() for count in counts))
        else:
            label, target = dataset.label_names[0], dataset.roles.target
            found = count_items(dataset.train_data or "", label, items.num_items, target, items.vocabulary)
        return Popularity(found.shown, found.shown) if is_regression else found
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
    from fuxictr_mm.data.ids import Numbering
    from fuxictr_mm.diagnosis import calibration, importance, metrics, slices, vectors

    started = time.perf_counter()
    items, features = model.feature_map.items, model.feature_map.features
    scorer, prediction, of_model = _measure_model(experiment, model, table, rows, repeats, seed, verbose)
    label, target = scorer.label, scorer.table.target.cpu().numpy()
    lengths = scorer.table.history_offsets.diff().cpu().numpy()
    clicked = target if scorer.metric != "AUC" else target[label == 1]
    clicks = np.bincount(clicked, minlength=items.num_items) if popularity is None else popularity.clicked
    item_fields = importance.item_fields(features, items.names)
    result: dict[str, Any] = {
        "version": VERSION,
        "rows": len(label),
        "rows_in_split": len(table),
        "repeats": repeats,
        "seed": seed,
        "metric": scorer.metric,
        "metrics": metrics.measure(label, prediction, scorer.metric),
        **of_model,
        **vectors.measure(
            [name for name in item_fields if features[name]["type"] == "embedding"],
            lambda name: items[name].cpu().numpy(),
            clicks,
            items.known.cpu().numpy(),
            experiment.config.dataset.item_files,
            Numbering(experiment.config.dataset.roles, items.vocabulary),
        ),
        **slices.measure(label, prediction, lengths, target, popularity, scorer.metric),
    }
    if scorer.metric == "AUC":
        command = f"{experiment.command('predict')} --calibrate platt"
        result["calibration"] = {**calibration.measure(label, prediction, seed=seed), "command": command}
        if "popularity" in result:
            result["calibration"]["by_popularity"] = calibration.by_popularity(result["popularity"])
    result["absent"] = {section: reason for section, reason in ABSENT.items() if section not in result}
    result["passes"] = scorer.passes
    result["seconds"] = time.perf_counter() - started
    found = [finding for section in _sections() for finding in section.findings(result)]
    result["findings"] = [asdict(finding) for finding in ordered([*metrics.findings(result), *found])]
    return result


def _measure_model(
    experiment: Experiment, model: Any, table: InteractionTable, rows: int, repeats: int, seed: int, verbose: int
) -> tuple[Scorer, np.ndarray, dict[str, Any]]:
    """Score a sample as it is and with changed inputs; returns its scorer, predictions, and what was measured.

    The sections are those that need passes of the model: attention, SENet and the importance of fields.
    """
    from fuxictr_mm.diagnosis import attention, importance
    from fuxictr_mm.diagnosis.attention_hooks import find_attention
    from fuxictr_mm.diagnosis.scorer import Scorer, sample

    items, features = model.feature_map.items, model.feature_map.features
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
    names = importance.context_fields(features), importance.item_fields(features, items.names)
    of_senets = importance.describe_senets(senets, *names)
    return scorer, prediction, {**of_attention, **of_senets, "importance": of_fields}


def format_summary(result: Mapping[str, Any]) -> str:
    """Return a diagnosis for a terminal: the tables section by section, then the findings."""
    metrics = result["metrics"]
    of = "" if result["rows"] == result["rows_in_split"] else f" of {result['rows_in_split']}"
    named = " ".join(str(result[key]) for key in ("expid", "run", "split") if result.get(key))
    metric = result["metric"]
    other = {"AUC": "logloss", "RMSE": "MAE", "MAE": "RMSE"}[metric]
    value, low, high, second = (metrics[key] for key in (metric.lower(), "low", "high", other.lower()))
    head = (
        f"{named or 'diagnosis'}: {metric} {value:.4f} ({low:.4f} to {high:.4f}), {other} {second:.4f}, "
        f"{result['rows']}{of} rows; {result['passes']} passes in {result['seconds']:.1f} s"
    )
    tables = [table for section in _sections() for table in section.tables(result) if table]
    absent = [f"no {name}: {reason}" for name, reason in result["absent"].items()]
    return "\n\n".join([head, *tables, *absent, format_findings(result["findings"])])
