"""One run of an experiment: its lock, its log, training, metrics, and the files that it writes."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from fuxictr_mm.config import (
    NOT_SET,
    DatasetConfig,
    ExperimentConfig,
    checkpoint_hash,
    describe_differences,
    result_differences,
)
from fuxictr_mm.data.dataset import Dataset
from fuxictr_mm.data.fingerprint import data_hashes
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.loaders import Loader
from fuxictr_mm.data.numbers import unscaled
from fuxictr_mm.data.shards import Shard
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.files import write_json
from fuxictr_mm.logs import LogFiles
from fuxictr_mm.runs import (
    DATA,
    MODEL_CODE,
    Result,
    Run,
    RunPaths,
    best_epoch_was_last,
    runs_of,
    unwritable,
    vocabulary_of_weights,
)
from fuxictr_mm.runtime import is_main
from fuxictr_mm.training import distributed, loop, scoring
from fuxictr_mm.training.baselines import warn_of_baselines
from fuxictr_mm.training.callbacks import Callback, RunWriter, TensorBoardLogger, is_installed
from fuxictr_mm.training.initial_weights import find_initial_weights, load_initial_weights, warn_of_random_weights
from fuxictr_mm.training.metric_checks import check_metrics_of_valid, metrics_of_test
from fuxictr_mm.training.resume import (
    TrainingCheckpoint,
    hashes_of_data,
    newest_checkpoint,
    read_content,
    remove_checkpoints,
    streams_of,
)
from fuxictr_mm.training.settings_text import describe_settings

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment

logger = logging.getLogger(__name__)

#: Settings of the length of training, which do not change its steps.
LENGTH_KEYS = {"epochs", "early_stop_patience"}


class TrainingRun:
    """One call of ``Experiment.fit``."""

    def __init__(self, experiment: Experiment, resume: bool, results_csv: Path | None) -> None:
        self.started = time.perf_counter()
        self.experiment = experiment
        self.config = experiment.config
        self.paths = experiment.paths
        self.resume = resume
        self.results_csv = results_csv
        self.data = data_hashes(self.config.to_dict())

    def run(self) -> Run:
        """Train and return the run, or the finished run if it is to be resumed."""
        experiment, config = self.experiment, self.config
        if self.resume:
            if (finished := self._finished()) is not None:
                self._remove_leftover()
                return finished
            self._check_resumable()
        with LogFiles() as logs, ExitStack() as stack:
            experiment.prepare_process()
            if is_main() and self.paths.lock.exists():
                with _locked(self.paths):  # a process that trains now is found before the files are read
                    pass
            splits: dict[str, bool | None] = {"train": True, "valid": True}
            if config.dataset.test_data:
                splits["test"] = False
            newest = newest_checkpoint(self.paths.checkpoint) if self.resume else None
            # Those of the interrupted run, whatever the number of processes was.
            shard = experiment.make_shard() if newest is None else distributed.make_shard(streams_of(newest))
            dataset = experiment.load_dataset(splits, None if newest is None else self.paths.weights, shard)
            check_metrics_of_valid(config, dataset)
            _warn_of_unscaled(dataset, config.dataset)
            model = experiment.build_model(dataset)
            if newest is None and (initial := find_initial_weights(config)) is not None:
                load_initial_weights(model, initial, dataset, config.dataset.item_files)
            elif newest is None:
                warn_of_random_weights(dataset)
            if self.results_csv is not None:
                _check_writable(self.results_csv)
            writer = None
            if is_main():
                stack.enter_context(_locked(self.paths))
            if self.resume:
                # Another process may have held the lock and finished the run while this one read the data.
                late = self._finished() if is_main() else None
                if distributed.largest(late is not None)[0] and (late := late or self._finished()) is not None:
                    return late
            checkpoint = self._checkpoint(dataset)
            if is_main():
                if self.resume:
                    # Before anything is written: a refused run leaves all files as they are.
                    self._check_residence(dataset)
                    checkpoint.check(config.model)
                self._save_vocabularies(dataset.vocabularies)
                if config.record:
                    writer = RunWriter.open(self.paths, config.to_dict(), self.started, self.resume, self._sources())
            logs.open([self.paths.log, *([writer.log] if writer else [])], "a" if self.resume else "w")
            return self._train(dataset, model, shard, checkpoint, writer)

    def _finished(self) -> Run | None:
        """Return the run of these settings and data that has finished, None if there is none."""
        finished = self.experiment.finished.newest()
        if finished is not None:
            logger.info(f"{self.paths.result}: already finished, with {finished.valid}")
        return finished

    def _remove_leftover(self) -> None:
        """Delete the training checkpoint of a run that was killed between its last file and this deletion."""
        if is_main() and self.paths.checkpoint.exists():
            # Not one that trains now, nor that of an interrupted run of other settings: this result may be of a seed.
            with suppress(UserError), _locked(self.paths):
                newest = newest_checkpoint(self.paths.checkpoint)
                ours = [self._fingerprint(in_memory) for in_memory in (True, False)]
                if newest is not None and read_content(newest).config_hash in ours:
                    remove_checkpoints(self.paths.checkpoint)

    def _fingerprint(self, in_memory: bool) -> str:
        return checkpoint_hash(self.config.to_dict(), in_memory)

    def _checkpoint(self, dataset: Dataset) -> TrainingCheckpoint:
        config = self.config
        # With resident: auto, whether a split is in memory may change between two runs, and with it the order of rows.
        in_memory = isinstance(dataset.splits["train"], InteractionTable)
        return TrainingCheckpoint(
            self.paths.checkpoint,
            self._fingerprint(in_memory),
            self.experiment.model_code,
            60 * config.checkpoint_minutes,
            hashes_of_data(config.to_dict(), self.data),
            every_steps=config.checkpoint_steps,
            keep=config.checkpoint_keep,
            in_background=config.checkpoint_in_background,
        )

    def _check_residence(self, dataset: Dataset) -> None:
        """Refuse to resume a run whose training rows were in memory and are streamed now, or the reverse."""
        newest = newest_checkpoint(self.paths.checkpoint)
        in_memory = isinstance(dataset.splits["train"], InteractionTable)
        if newest is not None and read_content(newest).config_hash == self._fingerprint(not in_memory):
            now, then = ("in memory", "streamed") if in_memory else ("streamed", "in memory")
            raise UserError(
                f"{self.paths.checkpoint}: its training rows were {then}, now they are {now}, in another order "
                f"(resident: {self.config.resident}); set resident: {not in_memory}, or start again without --resume"
            )

    def _save_vocabularies(self, vocabularies: Vocabularies) -> None:
        """Write the vocabularies of the weights to come; weights of others are removed, which they would misread."""
        path = vocabulary_of_weights(self.paths.weights)
        if vocabularies.path is not None or not (vocabularies or path.exists()):
            return
        if not vocabularies.equal_file(path):
            self.paths.weights.unlink(missing_ok=True)
            remove_checkpoints(self.paths.checkpoint)
        if vocabularies:
            vocabularies.save(path)
        else:
            path.unlink()

    def _sources(self) -> dict[str, Any]:
        """Return hashes of the model's file and of the data, which a result belongs to."""
        return {MODEL_CODE: self.experiment.model_code, DATA: self.data}

    def _check_resumable(self) -> None:
        """Refuse to train a finished run longer: its training checkpoint is deleted. Warn of other settings or data."""
        newest = self.experiment.finished.newest_result()
        if newest_checkpoint(self.paths.checkpoint) is not None or newest is None:
            return
        is_same = newest.config_hash == self.config.fingerprint()
        if is_same and (changed := self.experiment.finished.changed_data(newest.data)):
            logger.warning(f"{changed} has changed since {self.paths.result} was written; training from the start")
            return
        finished = next((run for run in runs_of(self.paths) if run.finished), None)
        if finished is None:
            return
        found = result_differences(finished.config, self.config.to_dict())
        code = self.experiment.model_code
        same_file = finished.environment.get(MODEL_CODE, code) == code
        starts = [config.get("initial_weights") for config in (finished.config, self.config.to_dict())]
        if starts[0] != starts[1]:  # a path, which is not a difference of results elsewhere
            found["initial_weights"] = [NOT_SET if start is None else start for start in starts]
        phrases = describe_differences(found, "in that run")
        what = "; ".join(phrases) or ("paths of its files" if same_file else f"the file of {self.config.model}")
        if found and found.keys() <= LENGTH_KEYS:
            raise UserError(
                f"{finished.path}: has finished ({what}) and has no training checkpoint to resume from; restore its "
                "settings, or train from the start, without --resume"
            )
        logger.warning(f"{finished.path}: has finished with other settings ({what}); training from the start")

    def _train(
        self, dataset: Dataset, model: Any, shard: Shard, checkpoint: TrainingCheckpoint, writer: RunWriter | None
    ) -> Run:
        experiment, config = self.experiment, self.config
        logger.info(describe_settings(experiment))
        test_metrics = metrics_of_test(config, dataset)
        train = experiment.make_loader(
            dataset.splits["train"], model, shuffle=config.shuffle, training=True, shard=shard
        )
        valid = experiment.make_loader(dataset.splits["valid"], model)
        self._fit(model, train, valid, checkpoint, writer)
        logger.info("Validation")
        if (weight := config.dataset.sample_weight) is not None:
            logger.info(f"Metrics count every row once: {weight} (sample_weight) weights the loss alone")
        scored = scoring.score(model, valid)
        of_valid = scoring.measure(scored, config.metrics)
        of_test, scored_test = dict[str, float](), None
        if "test" in dataset.splits and (test_metrics or config.record):
            logger.info("Test")
            test_rows = dataset.splits["test"]
            test = experiment.make_loader(test_rows, model)
            scored_test = scoring.score(model, test, labels=bool(test_metrics), groups=test_rows.has_groups)
            if test_metrics:
                of_test = scoring.measure(scored_test, test_metrics)
        if scored.label is not None:
            calibrate = f"{experiment.command('predict')} --calibrate platt"
            # Probabilities of weighted rows are not those of these rows; their order is.
            checked = {name: value for name, value in of_valid.items() if name.endswith("AUC") or weight is None}
            warn_of_baselines(checked, scored.label, config.tasks, calibrate)
        seconds = time.perf_counter() - self.started if writer is None else writer.seconds
        result = Result(of_valid, seconds, of_test)
        if is_main():
            metrics = {"valid": of_valid, "test": of_test or None, "seconds": seconds}
            content = {"expid": config.expid, "config_hash": config.fingerprint(), **metrics}
            if writer is not None:
                writer.finish(content, model, scored, scored_test, _group_texts(dataset))
            now = datetime.now().isoformat(timespec="seconds")
            hashes = {"settings_hash": config.fingerprint(paths=False), **self._sources()}
            write_json(self.paths.result, {**content, **hashes, "finished_at": now})
            checkpoint.remove()
            if self.paths.suffix:
                _publish(self.paths)
            if self.results_csv is not None:
                append_result(result, config, self.results_csv)
        return experiment.finished.run_of(result, None if writer is None else writer.path)

    def _fit(
        self, model: Any, train: Loader, valid: Loader, checkpoint: TrainingCheckpoint, writer: RunWriter | None
    ) -> None:
        config, shard = self.config, train.shard
        if is_main():
            # The result of an earlier run does not belong to the weights that are written next.
            self.paths.result.unlink(missing_ok=True)
        if distributed.size() > 1:
            rows = distributed.size() * config.batch_size
            logger.info(f"{distributed.size()} processes with batches of {config.batch_size}: {rows} rows per step")
        if shard.streams is not None:
            logger.info(f"train: {shard.streams} streams, {shard.streams // shard.size} per process")
        history = loop.fit(
            model,
            train,
            config.epochs,
            valid,
            config.max_gradient_norm,
            checkpoint,
            self.resume,
            self._callbacks(writer),
            evaluate_first=config.initial_weights is not None,
        )
        if best_epoch_was_last(history, config.to_dict()):
            logger.info(f"The best epoch was the last allowed one, {config.epochs}: more epochs may be better")

    def _callbacks(self, writer: RunWriter | None) -> list[Callback]:
        if writer is None:
            return []
        logger.info(f"Run: {writer.path}")
        tensorboard = self.config.tensorboard
        if is_installed() if tensorboard is None else tensorboard:
            return [writer, TensorBoardLogger(writer.tensorboard)]
        return [writer]


def _group_texts(dataset: Dataset) -> dict[str, Any]:
    """Return the groups of the validation and test rows where they are texts, as a run's folder keeps them."""
    found = {}
    for split in sorted({"valid", "test"} & dataset.files.keys()):
        try:
            found[split] = dataset.files[split].group_texts()
        except UserError as error:  # deleted since
            logger.warning(f"{error}; the groups of {split} rows are written as hashes")
    return found


def _warn_of_unscaled(dataset: Dataset, config: DatasetConfig) -> None:
    """Warn of numeric features that are far from mean 0 and standard deviation 1."""
    if not (found := unscaled(dataset)):
        return
    listing = "; ".join(f"{name} ({moments.describe()})" for name, moments in found.items())
    is_read = config.item_files or config.data_format == "csv" or config.rebuild_dataset  # elsewhere it has no effect
    scaled = {f.name for f in dataset.features if f.normalizer == "StandardScaler"}
    fix = "set normalizer: StandardScaler, and " if is_read else "scale them in the files, and "
    logger.warning(
        f"numeric features are far from mean 0 and standard deviation 1: {listing}; such inputs often make a "
        f"model much worse: {'' if found.keys() <= scaled else fix}replace a column with a long tail by its logarithm"
    )


@contextmanager
def _locked(paths: RunPaths) -> Iterator[None]:
    """Lock the files of the experiment against other processes."""
    lock = FileLock(paths.lock, blocking=False)
    try:
        paths.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"{paths.expid}: another process is writing to {paths.folder}; wait until it ends, or set "
            "another model_root"
        ) from None
    except OSError as error:
        raise unwritable(paths.folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _publish(paths: RunPaths) -> None:
    """Make the files of a seed those of the newest run, unless that trains now; the run's folder has them as well."""
    newest = replace(paths, suffix="")
    files = [(vocabulary_of_weights(paths.weights), vocabulary_of_weights(newest.weights))]
    files += [(getattr(paths, name), getattr(newest, name)) for name in ("log", "weights", "result")]
    try:
        with FileLock(newest.lock, timeout=10):
            newest.result.unlink(missing_ok=True)  # a kill in between leaves no result of other weights
            for source, target in files:
                if source.exists():
                    source.replace(target)
                else:
                    target.unlink(missing_ok=True)
    except Timeout:
        for source, _ in files:
            source.unlink(missing_ok=True)


def remove_leftover(experiment: Experiment) -> None:
    """Delete the files left by a process that was killed after its run was complete and before the process ended.

    That is its training checkpoint, and all files of a seed trained in parallel. They are kept while another process
    trains the experiment, and where its newest run is to be resumed.
    """
    paths = experiment.paths
    own = [vocabulary_of_weights(paths.weights), paths.log, paths.weights, paths.result]
    files = own if paths.suffix else []  # others are those of the newest run
    if not any(path.exists() for path in (*files, paths.checkpoint)):
        return
    newest = next((run for run in runs_of(paths) if run.seed == experiment.config.seed), None)
    if newest is None or not newest.is_usable:
        return
    with suppress(UserError), _locked(paths):
        remove_checkpoints(paths.checkpoint)
        for path in files:
            path.unlink(missing_ok=True)


def _check_writable(path: Path) -> None:
    """Refuse a file that cannot be appended to, before the run."""
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK) or path.is_dir():
        raise ConfigError(f"{path}: is not writable; run in another folder")


def append_result(result: Result, config: ExperimentConfig, path: Path) -> None:
    """Append a line to a CSV of results, as FuxiCTR does."""

    def listing(metrics: Mapping[str, float]) -> str:
        return " - ".join(f"{k}: {v:.6f}" for k, v in metrics.items()) if metrics else "N.A."

    fields = [
        f" {datetime.now():%Y%m%d-%H%M%S}",
        f"[command] python {' '.join(sys.argv)}",
        f"[exp_id] {config.expid}",
        f"[dataset_id] {config.dataset_id}",
        "[train] N.A.",
        f"[val] {listing(result.valid)}",
        f"[test] {listing(result.test)}",
    ]
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(",".join(fields) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: the result line could not be appended ({error.strerror})") from error
