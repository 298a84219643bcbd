"""An experiment: from its configuration to data, model and run. Scripts, tuner and notebooks call nothing else."""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from fuxictr.pytorch.torch_utils import seed_everything
from torch.nn.modules.batchnorm import _BatchNorm

from fuxictr_mm.compat import check_params, is_foreign, make_safe
from fuxictr_mm.config import DatasetConfig, ExperimentConfig, config_hash
from fuxictr_mm.data.batch import make_formatter
from fuxictr_mm.data.dataset import Dataset, load_dataset
from fuxictr_mm.data.interactions import InteractionFiles, InteractionTable
from fuxictr_mm.data.loaders import InMemoryLoader, Loader, Shard
from fuxictr_mm.data.streaming import StreamingLoader
from fuxictr_mm.errors import ConfigError, MissingFileError, UserError
from fuxictr_mm.files import read_json, write_json
from fuxictr_mm.logs import LogFiles, set_up_logging  # noqa: F401  # former place
from fuxictr_mm.metrics import check_metrics
from fuxictr_mm.model import check_is_built
from fuxictr_mm.registry import describe_error, load_model_class
from fuxictr_mm.runs import Run, RunPaths, find_runs, read_run, unwritable
from fuxictr_mm.runtime import device_of, is_main, keep_freed_memory, local_gpu, set_precision
from fuxictr_mm.threads import restored_threads, use_threads
from fuxictr_mm.training import distributed, loop
from fuxictr_mm.training.callbacks import Callback, RunWriter, TensorBoardLogger, is_installed
from fuxictr_mm.training.checkpoints import hub_weights, saved_settings, setting_differences
from fuxictr_mm.training.resume import TrainingCheckpoint

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

#: Settings that say how long to train, and change nothing of the steps until then.
LENGTH_KEYS = ("epochs", "early_stop_patience")


class Experiment:
    """An experiment that can be trained, evaluated and used for predictions.

    Parameters
    ----------
    config : ExperimentConfig
        Its checked configuration.
    model_class : type
        The class of its model.
    model_zoo : path, optional
        Folder of model files that was searched first.

    Examples
    --------
    ::

        experiment = Experiment.load("DIN_MM_tiny", config=".", embedding_dim=32)
        run = experiment.fit(progress=True)
    """

    def __init__(self, config: ExperimentConfig, model_class: type, model_zoo: StrPath | None = None) -> None:
        self.config = config
        self.model_class = model_class
        self.model_zoo = model_zoo
        self.paths = RunPaths.of(config)

    @classmethod
    def load(
        cls,
        expid: str,
        config: StrPath = ".",
        *,
        gpu: int = -1,
        data_root: StrPath | None = None,
        model_zoo: StrPath | None = None,
        **settings: Any,
    ) -> Experiment:
        """Read and check an experiment; no data file is touched.

        Parameters
        ----------
        expid : str
            Experiment id, an entry of ``model_config.yaml``.
        config : path
            Folder of ``model_config.yaml`` and ``dataset_config.yaml``.
        gpu : int
            Index of the GPU, -1 for the CPU.
        data_root : path, optional
            Replaces the dataset's ``data_root``.
        model_zoo : path, optional
            A folder of model files to search first.
        **settings
            Settings that take precedence over those of the files, such as ``embedding_dim=32``.

        Raises
        ------
        ConfigError, MissingFileError
            Anything that is wrong with the configuration.
        """
        zoo = None if model_zoo is None else Path(model_zoo)
        find_model = partial(load_model_class, model_zoo=zoo)
        settings["gpu"] = local_gpu(gpu)
        checked = ExperimentConfig.load(config, expid, data_root, settings, find_model)
        experiment = cls(checked, find_model(checked.model), model_zoo)
        experiment._check()
        return experiment

    @classmethod
    def of_run(cls, run: Run, *, gpu: int = -1) -> Experiment:
        """Return the experiment of a run, as it was configured.

        Raises
        ------
        ConfigError
            The configuration cannot be read, or is not one of this version.
        """
        if not run.config:
            raise ConfigError(f"{run.path}: no configuration of a run can be read ({run.problem})")
        config = ExperimentConfig.from_dict({**run.config, "gpu": local_gpu(gpu)})
        zoo = None if run.model_zoo is None else Path(run.model_zoo)
        experiment = cls(config, load_model_class(config.model, zoo), run.model_zoo)
        experiment._check()
        return experiment

    def _check(self) -> None:
        """Refuse what does not fit together: device, model class, metrics, batch format."""
        config, model_class = self.config, self.model_class
        device_of(config.gpu)
        if not issubclass(model_class, torch.nn.Module):
            raise ConfigError(f"model: {config.model} is no model, expected a subclass of MultimodalModel or BaseModel")
        for doubt in config.check_model(model_class):
            logger.warning(f"{doubt}; perhaps nothing reads it")
        monitored = [config.monitor] if isinstance(config.monitor, str) else list(config.monitor)
        check_metrics([*config.metrics, *monitored], config.group_id)
        foreign = is_foreign(model_class)
        if config.batch_view is not None and (config.batch_view == "jagged") == foreign:
            takes = "challenge or flat" if foreign else "jagged"
            raise ConfigError(
                f"{config.expid}: batch_view is {config.batch_view}, but {model_class.__name__} takes {takes}"
            )
        if foreign:
            check_params(model_class, config.to_dict())

    def with_settings(self, **settings: Any) -> Experiment:
        """Return the experiment with other settings.

        Raises
        ------
        ConfigError
            Anything that is wrong with them.
        """
        config = ExperimentConfig.from_dict({**self.config.to_dict(), **settings})
        experiment = type(self)(config, self.model_class, self.model_zoo)
        experiment._check()
        return experiment

    def fit(self, *, resume: bool = False, progress: bool | None = None, results_csv: StrPath | None = None) -> Run:
        """Train, evaluate and write a run.

        Parameters
        ----------
        resume : bool
            Continue a run of this configuration that was interrupted; where there is none, begin.
        progress : bool, optional
            Whether to show progress bars; the setting ``verbose`` by default, which shows them on a terminal.
        results_csv : path, optional
            A file that a line is appended to, in FuxiCTR's form.

        Returns
        -------
        Run
            The run, finished.

        Raises
        ------
        UserError
            Bad data, a loss that is not finite, a disk that is full; or a finished run of other settings, which cannot
            be resumed.
        Interrupted
            Ctrl-C or SIGTERM came; ``resume=True`` continues.
        """
        verbose = self.config.verbose if progress is None else 2 * progress
        experiment = self if verbose == self.config.verbose else self.with_settings(verbose=verbose)
        with _only_one(self.config.expid), distributed.process_group(self.config.gpu), restored_threads():
            return _Training(experiment, resume, None if results_csv is None else Path(results_csv)).run()

    def predict(self, data: Any = None, *, weights: StrPath | None = None) -> np.ndarray:
        """Return the predicted probabilities of the rows of a file or data frame.

        Parameters
        ----------
        data : path or data frame, optional
            A Parquet file, a folder of part files, or a pandas or Polars data frame, with the columns of the training
            file except the label; the dataset's ``test_data`` by default.
        weights : path, optional
            A state dict, a ``.safetensors`` file or a folder written by ``fuxictr-mm export-hub``; by default those of
            the newest run.

        Returns
        -------
        ndarray
            ``(rows,)`` float32, in the order of the rows.

        Raises
        ------
        MissingFileError, UserError
            No such weights, or they do not fit; anything that is wrong with the data.
        """
        return self._predict(data, self.find_weights(weights), [self.paths.log])

    def find_weights(self, weights: StrPath | None = None) -> Path:
        """Return the file of weights, by default those of the newest run; a warning names settings that differ.

        Raises
        ------
        MissingFileError, UserError
            No such weights; a folder that ``fuxictr-mm export-hub`` has not written.
        """
        path = self.paths.weights if weights is None else Path(weights)
        if not path.exists():
            raise MissingFileError(
                f"{path}: no such weights; train first: python run_expid.py --expid {self.config.expid}"
            )
        if weights is None:
            if self.result(paths=False) is None:
                logger.warning(f"{path}: not of a finished run of this very configuration; used all the same")
            return path
        if path.is_dir():
            path = hub_weights(path)
        if saved := saved_settings(path):
            for difference in setting_differences(saved[1], self.config.to_dict(), "in the folder"):
                logger.warning(f"{saved[0]}: {difference}")
        return path

    def predict_of_run(self, run: Run, data: Any) -> np.ndarray:
        """Return the predictions with the weights of a run; see ``Run.predict``."""
        return self._predict(data, run.weights, [])

    def _predict(self, data: Any, weights: Path, logs: Sequence[Path]) -> np.ndarray:
        if data is None or isinstance(data, str | os.PathLike):
            return self._predict_file(self.config.dataset.test_data if data is None else os.fspath(data), weights, logs)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "data.parquet")
            _write_frame(data, path)
            try:
                return self._predict_file(path, weights, logs)
            except UserError as error:
                raise type(error)(str(error).replace(path, "data frame")) from error

    def _predict_file(self, path: str | None, weights: Path, logs: Sequence[Path]) -> np.ndarray:
        with (
            _only_one(self.config.expid),
            distributed.process_group(self.config.gpu),
            restored_threads(),
            LogFiles() as files,
        ):
            self.prepare_process()
            dataset = load_dataset({**self.config.to_dict(), "test_data": path}, {"test": False})
            model = self.build_model(dataset)
            model.load_weights(weights)
            files.open(logs, "a")
            return loop.predict(model, self.make_loader(dataset.splits["test"], model)).numpy()

    def prepare_process(self) -> None:
        """Set seed, arithmetic and memory of this process as the configuration says."""
        config, device = self.config, device_of(self.config.gpu)
        seed_everything(config.seed)
        set_precision(config.precision, device)
        if device.type == "cpu" and config.keep_memory:
            keep_freed_memory()

    def load_dataset(self, splits: Mapping[str, bool]) -> Dataset:
        """Read and check splits of the dataset; each value says whether the split must have labels."""
        return load_dataset(self.config.to_dict(), splits)

    def build_model(self, dataset: Dataset) -> Any:
        """Build the model, its item table on its device, and choose the number of threads.

        Raises
        ------
        ConfigError
            The model's constructor refuses its settings.
        """
        config, model_class = self.config, self.model_class
        feature_map = dataset.feature_map
        feature_map.items = dataset.items.to(device_of(config.gpu))
        try:
            model = model_class(feature_map, **config.model_arguments())
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a model file raises, the user set it off
            raise ConfigError(
                f"{config.expid}: {model_class.__name__} cannot be built with these settings ({describe_error(error)})"
            ) from error
        check_is_built(model)
        if config.batch_size == 1 and any(isinstance(m, _BatchNorm) for m in model.modules()):
            raise ConfigError(f"{config.expid}: batch_size is 1, but batch norm needs 2 rows or more")
        if is_foreign(model_class):
            make_safe(model, self.batch_format(model))
        model.settings = config.to_dict()  # to name what differs where weights of other settings are loaded
        model.count_parameters()
        use_threads(model, config.threads, config.batch_size, config.gpu)
        return model

    def batch_format(self, model: Any) -> str:
        """Return the name of the batch format that the model takes."""
        return self.config.batch_view or str(getattr(model, "batch_view", "flat"))

    def make_loader(
        self,
        split: InteractionTable | InteractionFiles,
        model: Any,
        *,
        shuffle: bool = False,
        training: bool = False,
    ) -> Loader:
        """Return a loader of a split, in memory or streamed, in the batch format of the model.

        Of several processes, each gets a part of every batch for training, otherwise a part of the rows.
        """
        config = self.config
        feature_map = model.feature_map
        view = make_formatter(self.batch_format(model), feature_map, feature_map.items, config.max_len)
        device = device_of(config.gpu)
        share = Shard(distributed.rank(), distributed.size(), "batch" if training else "block")
        options: dict[str, Any] = {"shuffle": shuffle, "seed": config.seed, "view": view, "share": share}
        if isinstance(split, InteractionTable):
            return InMemoryLoader(split.to(device), config.batch_size, **options)
        return StreamingLoader(split, config.batch_size, buffer_rows=config.buffer_rows, device=device, **options)

    def result(self, paths: bool = True) -> dict[str, Any] | None:
        """Return ``EXPID.json`` of a finished run of this very configuration, None if there is none.

        Parameters
        ----------
        paths : bool
            False: also of a run for which the data lay elsewhere, or of another seed.
        """
        found = self._any_result()
        key = "config_hash" if paths else "settings_hash"
        return found if found is not None and found.get(key) == self.config.fingerprint(paths) else None

    def _any_result(self) -> dict[str, Any] | None:
        """Return the result of the newest run of any configuration, None if it has not finished."""
        try:
            found = read_json(self.paths.result)
        except UserError:
            return None
        return found if {"expid", "config_hash", "valid", "test", "seconds"} <= found.keys() else None

    def run_of(self, result: Mapping[str, Any], folder: Path | None) -> Run:
        """Return a finished run by its result, read from its folder if it has one."""
        if folder is not None:
            return replace(read_run(folder), model_zoo=self.model_zoo)
        config = self.config
        return Run(
            path=self.paths.runs,
            run="",
            expid=config.expid,
            dataset_id=config.dataset_id,
            model=config.model,
            seed=config.seed,
            config=config.to_dict(),
            finished=True,
            seconds=result["seconds"],
            valid=result["valid"],
            test=result["test"] or {},
            model_zoo=self.model_zoo,
        )


#: Held by the experiment that trains or predicts: random numbers, arithmetic and signals are those of the process.
_process = threading.Lock()


@contextmanager
def _only_one(expid: str) -> Iterator[None]:
    """Refuse a second experiment at a time in this process, whose random numbers would mix with the first one's."""
    if not _process.acquire(blocking=False):
        raise UserError(
            f"{expid}: another experiment trains or predicts in this process, with the same random numbers; "
            "wait for its end, or use a process for each"
        )
    try:
        yield
    finally:
        _process.release()


class _Training:
    """One call of ``fit``.

    Parameters
    ----------
    experiment : Experiment
        What to train.
    resume : bool
        Whether to continue an interrupted run.
    results_csv : Path, optional
        See ``Experiment.fit``.
    """

    def __init__(self, experiment: Experiment, resume: bool, results_csv: Path | None) -> None:
        self.started = time.perf_counter()
        self.experiment = experiment
        self.config = experiment.config
        self.paths = experiment.paths
        self.resume = resume
        self.results_csv = results_csv

    def run(self) -> Run:
        """Train and return the run, or the finished one that is to be resumed."""
        experiment, config = self.experiment, self.config
        if self.resume:
            if result := experiment.result():
                logger.info(f"{self.paths.result}: finished already, with {result['valid']}")
                return experiment.run_of(result, self._finished_folder())
            self._check_resumable()
        with LogFiles() as logs, ExitStack() as stack:
            experiment.prepare_process()
            splits = {"train": True, "valid": True}
            if config.dataset.test_data:
                splits["test"] = False
            dataset = experiment.load_dataset(splits)
            model = experiment.build_model(dataset)
            if self.results_csv is not None:
                _check_writable(self.results_csv)
            writer = None
            if is_main():
                stack.enter_context(_locked(self.paths))
                if config.record:
                    writer = RunWriter.open(self.paths, config.to_dict(), self.started, self.resume)
            logs.open([self.paths.log, *([writer.log] if writer else [])], "a" if self.resume else "w")
            return self._train(dataset, model, writer)

    def _finished_folder(self) -> Path | None:
        """Return the folder of the newest finished run of this configuration, None if it has none."""
        runs = find_runs(self.config.model_root, dataset=self.config.dataset_id, expid=self.config.expid)
        fingerprint = self.config.fingerprint()
        return next((run.path for run in runs if run.finished and config_hash(run.config) == fingerprint), None)

    def _check_resumable(self) -> None:
        """Refuse to train a finished run for longer: its training checkpoint is gone. Warn of one of other settings."""
        if self.paths.checkpoint.exists() or self.experiment._any_result() is None:
            return
        runs = find_runs(self.config.model_root, dataset=self.config.dataset_id, expid=self.config.expid)
        finished = next((run for run in runs if run.finished), None)
        if finished is None:
            return
        differences = setting_differences(finished.config, self.config.to_dict(), "in that run")
        what = "; ".join(differences) or "paths of its files"
        if differences and all(phrase.split()[0] in LENGTH_KEYS for phrase in differences):
            raise UserError(
                f"{finished.path}: has finished ({what}) and keeps no training checkpoint to resume from; restore its "
                "settings, or train from the start, without --resume"
            )
        logger.warning(f"{finished.path}: has finished with other settings ({what}); training from the start")

    def _train(self, dataset: Dataset, model: Any, writer: RunWriter | None) -> Run:
        experiment, config = self.experiment, self.config
        logger.info(describe_settings(experiment))
        test_has_labels = self._test_has_labels(dataset)
        train = experiment.make_loader(dataset.splits["train"], model, shuffle=config.shuffle, training=True)
        valid = experiment.make_loader(dataset.splits["valid"], model)
        if is_main():
            # A result of an earlier run says nothing about the weights that are about to be written.
            self.paths.result.unlink(missing_ok=True)
        if distributed.size() > 1:
            rows = distributed.size() * config.batch_size
            logger.info(f"{distributed.size()} processes with batches of {config.batch_size}: {rows} rows a step")
        # With resident: auto, whether a split is in memory may change between two runs, and with it the order of rows.
        in_memory = isinstance(dataset.splits["train"], InteractionTable)
        fingerprint = config_hash({**config.to_dict(), "resident": in_memory})
        checkpoint = TrainingCheckpoint(self.paths.checkpoint, fingerprint)
        callbacks = self._callbacks(writer)
        loop.fit(model, train, config.epochs, valid, config.max_gradient_norm, checkpoint, self.resume, callbacks)
        logger.info("Validation")
        scored = loop.score(model, valid)
        metrics = {"valid": loop.measure(scored, config.metrics), "test": None}
        if test_has_labels:
            logger.info("Test")
            test = experiment.make_loader(dataset.splits["test"], model)
            metrics["test"] = loop.evaluate(model, test, config.metrics)
        seconds = time.perf_counter() - self.started if writer is None else writer.seconds
        result = {"expid": config.expid, "config_hash": config.fingerprint(), **metrics, "seconds": seconds}
        if is_main():
            if writer is not None:
                writer.finish(result, model, scored)
            now = datetime.now().isoformat(timespec="seconds")
            hashes = {"settings_hash": config.fingerprint(paths=False)}
            write_json(self.paths.result, {**result, **hashes, "finished_at": now})
            checkpoint.remove()
            if self.results_csv is not None:
                append_result(result, config.dataset_id, self.results_csv)
        return experiment.run_of(result, None if writer is None else writer.path)

    def _test_has_labels(self, dataset: Dataset) -> bool:
        """Whether test metrics can be taken; warns of a label that is the same in all rows, a placeholder."""
        summary = dataset.summaries.get("test")
        if summary is None or not summary.labels:
            return False
        if self.config.task == "binary_classification" and len(summary.labels) == 1:
            logger.warning(
                f"{self.config.dataset.test_data}: the label is {min(summary.labels):g} in all {summary.num_rows} "
                "rows; it is taken for a placeholder, and there are no test metrics"
            )
            return False
        return True

    def _callbacks(self, writer: RunWriter | None) -> list[Callback]:
        if writer is None:
            return []
        logger.info(f"Run: {writer.path}")
        tensorboard = self.config.tensorboard
        if is_installed() if tensorboard is None else tensorboard:
            return [writer, TensorBoardLogger(writer.tensorboard)]
        return [writer]


def describe_settings(experiment: Experiment) -> str:
    """Return a line for each setting that differs from its default, except the features."""
    settings = experiment.config.to_dict()
    defaults = default_settings(experiment.model_class)
    differing = [key for key, value in settings.items() if key not in defaults or value != defaults[key]]
    first = ("model", "dataset_id", "description")
    hidden = (*first, "model_id", "feature_cols", "label_col")
    names = [*(key for key in first if settings.get(key)), *(key for key in differing if key not in hidden)]
    shown = {name: _as_text(settings[name]) for name in names}
    width = max(map(len, shown))
    lines = [f"  {name:{width}}  {text}" for name, text in shown.items()]
    return "\n".join([f"{experiment.config.expid}, settings that differ from the defaults:", *lines])


def _as_text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value, default=str)


def default_settings(model_class: type) -> dict[str, Any]:
    """Return the default of every setting that has one, those of the model by its constructors."""
    defaults: dict[str, Any] = {}
    for cls in reversed(model_class.__mro__):
        init = vars(cls).get("__init__")
        if init is not None and not cls.__module__.startswith(("torch.", "builtins")):
            parameters = inspect.signature(init).parameters.values()
            defaults |= {p.name: p.default for p in parameters if p.default is not p.empty}
    fields = {**DatasetConfig.model_fields, **ExperimentConfig.model_fields}
    defaults |= {name: field.default for name, field in fields.items() if not field.is_required()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


@contextmanager
def _locked(paths: RunPaths) -> Iterator[None]:
    """Keep other processes from training the same experiment into the same files meanwhile."""
    lock = FileLock(paths.lock, blocking=False)
    try:
        paths.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"{paths.expid}: another process trains it into {paths.folder} now; wait for its end, or set another "
            "model_root"
        ) from None
    except OSError as error:
        raise unwritable(paths.folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _write_frame(frame: Any, path: str) -> None:
    """Write a data frame as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not hasattr(frame, "__arrow_c_stream__"):
        raise UserError(f"predict: got a {type(frame).__name__}, expected a path or a pandas or Polars data frame")
    try:
        pq.write_table(pa.table(frame), path)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"data frame: cannot be converted to Arrow ({reason}); expected columns of one type") from error


def _check_writable(path: Path) -> None:
    """Refuse a file that could not be appended to when the run is over."""
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK) or path.is_dir():
        raise ConfigError(f"{path}: results could not be appended to it; run in a folder of yours")


def append_result(result: Mapping[str, Any], dataset_id: str, path: Path) -> None:
    """Append a line to a CSV of results, as FuxiCTR does."""

    def listing(metrics: Mapping[str, float] | None) -> str:
        return " - ".join(f"{k}: {v:.6f}" for k, v in metrics.items()) if metrics else "N.A."

    fields = [
        f" {datetime.now():%Y%m%d-%H%M%S}",
        f"[command] python {' '.join(sys.argv)}",
        f"[exp_id] {result['expid']}",
        f"[dataset_id] {dataset_id}",
        "[train] N.A.",
        f"[val] {listing(result['valid'])}",
        f"[test] {listing(result['test'])}",
    ]
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(",".join(fields) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: the result line could not be appended ({error.strerror})") from error


def find_config(given: StrPath | None, script_folder: StrPath) -> Path:
    """Return the configuration folder: the one given, else the working directory if it holds one, else the script's."""
    if given is not None:
        return Path(given)
    here = Path(".")
    return here if (here / "model_config.yaml").is_file() or (here / "model_config").is_dir() else Path(script_folder)


def results_csv_path(config_dir: StrPath) -> Path:
    """Return the CSV in the working directory that results of a configuration folder go to, named after the folder."""
    return Path(f"{Path(config_dir).resolve().name}.csv")


# Former functions, until their callers have moved to Experiment.


def read_params(
    config_dir: StrPath, expid: str, *, overrides: Mapping[str, Any] | None = None, **options: Any
) -> tuple[dict[str, Any], type]:
    """Return the settings and the model class of ``Experiment.load``."""
    experiment = Experiment.load(expid, config_dir, **{**(overrides or {}), **options})
    return experiment.config.to_dict(), experiment.model_class


def build_model(model_class: type, dataset: Dataset, params: Mapping[str, Any]) -> Any:
    """See ``Experiment.build_model``."""
    return Experiment(ExperimentConfig.from_dict(params), model_class).build_model(dataset)


def make_loader(split: Any, model: Any, params: Mapping[str, Any], **options: Any) -> Loader:
    """See ``Experiment.make_loader``."""
    experiment = Experiment.__new__(Experiment)
    defaults = {"batch_view": None, "buffer_rows": ExperimentConfig.model_fields["buffer_rows"].default}
    experiment.config = SimpleNamespace(**{**defaults, **params})  # type: ignore[assignment]
    return experiment.make_loader(split, model, **options)


def run_experiment(
    params: Mapping[str, Any], model_class: type, results_csv: Path | None = None, resume: bool = False
) -> Run:
    """See ``Experiment.fit``."""
    return Experiment(ExperimentConfig.from_dict(params), model_class).fit(resume=resume, results_csv=results_csv)


def predict_test(params: Mapping[str, Any], model_class: type, weights: Path | None = None) -> np.ndarray:
    """See ``Experiment.predict``."""
    return Experiment(ExperimentConfig.from_dict(params), model_class).predict(weights=weights)


def _paths(params: Mapping[str, Any]) -> RunPaths:
    return RunPaths(Path(params["model_root"]), params["dataset_id"], params["model_id"])


def log_path(params: Mapping[str, Any]) -> Path:
    """See ``RunPaths.log``."""
    return _paths(params).log


def record_path(params: Mapping[str, Any]) -> Path:
    """See ``RunPaths.result``."""
    return _paths(params).result
