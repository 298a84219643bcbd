"""Predictions of an experiment for the rows of a file or data frame, and the weights that give them."""

from __future__ import annotations

import logging
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.config import describe_differences, result_differences
from fuxictr_mm.data.later_items import (
    item_files_of,
    of_another_base,
    of_unprepared,
    refuse_folder_of_splits,
    refuse_raw,
)
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.encoding.fuxictr import load_dataset
from fuxictr_mm.errors import DataError, MissingFileError, UserError, first_line
from fuxictr_mm.files import StrPath
from fuxictr_mm.logs import LogFiles
from fuxictr_mm.runs import is_present, outdated, present_first, runs_of, vocabulary_of_weights, weights_of
from fuxictr_mm.runtime import only_one
from fuxictr_mm.threads import restored_threads
from fuxictr_mm.training import distributed, scoring
from fuxictr_mm.training.checkpoints import saved_settings

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment

logger = logging.getLogger(__name__)


def predict(experiment: Experiment, data: Any, weights: Path, logs: Sequence[Path]) -> np.ndarray:
    """Return the predictions of the rows of a file or data frame; see ``Experiment.predict``."""
    if data is None or isinstance(data, str | os.PathLike):
        return _predict_file(
            experiment, experiment.config.dataset.test_data if data is None else os.fspath(data), weights, logs
        )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "data.parquet")
        _write_frame(data, path)
        try:
            return _predict_file(experiment, path, weights, logs)
        except UserError as error:
            raise type(error)(str(error).replace(path, "data frame")) from error


def find_weights(experiment: Experiment, weights: StrPath | None = None) -> Path:
    """Return the file of weights that an experiment predicts with; see ``Experiment.find_weights``."""
    if weights is None:
        path = experiment.paths.weights
        if not path.exists():
            raise MissingFileError(f"{path}: no such weights; train first: {experiment.command('train')}")
        if experiment.finished.result(paths=False) is None:
            logger.warning(f"{path}: not from a finished run of exactly this configuration, but used")
        _warn_of_data(experiment, path)
        return path
    path = weights_of(weights, experiment.config.model_root)
    if saved := saved_settings(path):
        found = result_differences(saved[1], experiment.config.to_dict())
        for difference in describe_differences(found, "in the folder"):
            logger.warning(f"{saved[0]}: {difference}")
    else:
        logger.warning(
            f"{path}: no settings are saved with these weights, so the settings of {experiment.config.expid} "
            "are used; settings "
            "without parameters (activations, heads, history_mask) are not compared"
        )
    return path


def _warn_of_data(experiment: Experiment, weights: Path) -> None:
    """Warn where the newest run is of other data than now, and an older one, which ``diagnose`` takes, is not."""
    runs = [run for run in runs_of(experiment.paths) if run.is_usable]
    if not runs:
        return
    # By the file: two runs that began in the same second have no order.
    newest = next((run for run in runs if run.weights.exists() and run.weights.samefile(weights)), runs[0])
    first = present_first(runs)[0]
    if first is not newest and is_present(first) and not is_present(newest):
        reason = outdated(newest) or "its data is unknown"
        logger.warning(
            f"{weights}: weights of the newest run, {newest.run} ({reason}); {first.run} is on the present data: "
            f"fuxictr-mm predict --runs {shlex.quote(str(first.path))}"
        )


def _predict_file(experiment: Experiment, path: str | None, weights: Path, logs: Sequence[Path]) -> np.ndarray:
    with (
        only_one(experiment.config.expid),
        distributed.process_group(experiment.config.gpu),
        restored_threads(),
        LogFiles() as files,
        tempfile.TemporaryDirectory() as scratch,
    ):
        if path:
            refuse_folder_of_splits(path)
            refuse_raw(path, experiment.config.dataset.item_files)
        experiment.prepare_process()
        vocabularies = Vocabularies.load(vocabulary_of_weights(weights))
        other = None if path == experiment.config.dataset.test_data else path
        options: dict[str, Any] = {
            "flat": experiment.is_flat,
            "test_data": other,
            "scratch": Path(scratch),
            "shard": experiment.make_shard(),
        }
        config = experiment.config
        item_files = config.dataset.item_files
        if path and item_files:
            config = config.with_dataset(item_info=item_files_of(path, item_files))
        try:
            dataset = load_dataset(config, {"test": None}, vocabularies, **options)
        except (DataError, MissingFileError) as error:
            hint = of_unprepared(path, item_files) or of_another_base(path, item_files) if other and path else ""
            raise type(error)(f"{error}{hint}") from error
        model = experiment.build_model(dataset)
        model.load_weights(weights)
        files.open(logs, "a")
        return scoring.predict(model, experiment.make_loader(dataset.splits["test"], model)).numpy()


def _write_frame(frame: Any, path: str) -> None:
    """Write a data frame as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not hasattr(frame, "__arrow_c_stream__"):
        raise UserError(f"predict: got a {type(frame).__name__}, expected a path or a pandas or Polars data frame")
    try:
        pq.write_table(pa.table(frame), path)
    except (pa.ArrowException, ValueError) as error:  # ValueError: a column twice
        reason = first_line(error)
        raise DataError(
            f"data frame: cannot be converted to Arrow ({reason}); expected columns of one type, and each name once"
        ) from error
