"""An experiment: from its configuration to data, model and run. Scripts, tuner and notebooks call nothing else."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from fuxictr_mm.checking import SettingsError
from fuxictr_mm.compat import check_labels, is_third_party, make_safe
from fuxictr_mm.config import ExperimentConfig, Fold
from fuxictr_mm.data.batch import make_formatter
from fuxictr_mm.data.dataset import Dataset
from fuxictr_mm.data.folds import with_fold
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.interleaved import InterleavedLoader
from fuxictr_mm.data.loaders import InMemoryLoader, Loader
from fuxictr_mm.data.shards import Shard, default_streams
from fuxictr_mm.data.streaming import StreamingLoader
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.embedding_model import check_names
from fuxictr_mm.encoding.fuxictr import load_dataset
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.files import StrPath
from fuxictr_mm.fuxictr_imports import seed_everything
from fuxictr_mm.model import check_is_built
from fuxictr_mm.prediction import find_weights, predict
from fuxictr_mm.registry import code_hash, describe_error, load_model_class
from fuxictr_mm.runs import ENSEMBLE, MODEL_CODE, FinishedRuns, Run, RunPaths, vocabulary_of_weights
from fuxictr_mm.runtime import device_of, keep_freed_memory, local_gpu, only_one, set_precision
from fuxictr_mm.settings_problems import settings_problems
from fuxictr_mm.threads import restored_threads, use_threads
from fuxictr_mm.training import distributed
from fuxictr_mm.training.initial_weights import find_initial_weights, with_run_of_weights
from fuxictr_mm.training.memory import warn_of_large_parameters
from fuxictr_mm.training.run import TrainingRun

logger = logging.getLogger(__name__)


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
        self.model_code = code_hash(model_class)
        self.model_zoo = model_zoo
        self.paths = RunPaths.of(config)
        self._options: dict[str, StrPath] = {"--expid": config.expid}

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
        """Read and check an experiment; data files are not read.

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
            The configuration is wrong.
        """
        zoo = None if model_zoo is None else Path(model_zoo)
        find_model = partial(load_model_class, model_zoo=zoo)
        settings["gpu"] = local_gpu(gpu)
        checked = ExperimentConfig.load(config, expid, data_root, settings, find_model, settings_problems)
        experiment = cls(checked, find_model(checked.model), model_zoo)
        given = {"--expid": expid, "--config": config, "--data_root": data_root, "--model_zoo": model_zoo}
        experiment._options = {
            k: v for k, v in given.items() if v is not None and (k, Path(v)) != ("--config", Path("."))
        }
        return experiment._check()

    @classmethod
    def of_run(cls, run: Run, *, gpu: int = -1) -> Experiment:
        """Return the experiment of a run, as it was configured.

        Raises
        ------
        ConfigError
            The configuration cannot be read, or is not one of this version.
        """
        if not run.config:
            raise ConfigError(f"{run.path}: the configuration of the run cannot be read ({run.problem})")
        if run.model == ENSEMBLE:
            raise ConfigError(f"{run.path}: an ensemble has no weights; score with one of its runs")
        config = ExperimentConfig.from_dict({**run.config, "gpu": local_gpu(gpu)})
        zoo = None if run.model_zoo is None else Path(run.model_zoo)
        experiment = cls(config, load_model_class(config.model, zoo), run.model_zoo)
        if run.environment.get(MODEL_CODE, experiment.model_code) != experiment.model_code:
            # Defaults may be others, such as an epsilon, which no shape of the weights tells.
            logger.warning(
                f"{run.path}: the file of {config.model} has changed since this run was trained, so predictions may "
                "differ from its own; train again, or set what the changelog names"
            )
        return experiment._check(is_trained=True)

    def _check(self, is_trained: bool = False) -> Experiment:
        """Refuse a device that is absent and settings that do not go with the model; return the experiment.

        What a run has been trained with is no more than a warning: an older version may have ignored it.
        """
        if not is_trained:
            self.config = with_run_of_weights(self.config)
        config, model_class = self.config, self.model_class
        device_of(config.gpu)
        for doubt in config.check_model(model_class):
            logger.warning(f"{doubt}; perhaps it is not used")
        problems = settings_problems(model_class, config.to_dict())
        if problems and not is_trained:
            raise SettingsError(config.expid, problems)
        for problem in problems.values():
            logger.warning(f"{config.expid}: {problem}")
        if config.dataset.global_item_info is not None and not is_third_party(model_class):
            logger.info(
                f"{config.expid}: global_item_info has no effect: {config.model} reads the item files of item_info"
            )
        return self

    def with_settings(self, **settings: Any) -> Experiment:
        """Return the experiment with other settings.

        Raises
        ------
        ConfigError
            Settings are invalid.
        """
        config = ExperimentConfig.from_dict({**self.config.to_dict(), **settings})
        experiment = copy(self)
        experiment.config, experiment.paths = config, replace(RunPaths.of(config), suffix=self.paths.suffix)
        return experiment._check()

    def in_float32(self, **settings: Any) -> Experiment:
        """Return the experiment in float32 and not compiled, with other settings besides, as of ``with_settings``."""
        known = self.config.to_dict()
        plain = {"precision": "fp32", "compile": False}
        return self.with_settings(**{key: value for key, value in plain.items() if key in known}, **settings)

    def command(self, name: str) -> str:
        """Return the command line that runs a command, such as ``train``, on the experiment as it was loaded.

        Changes by ``with_settings`` are not included.
        """
        options = [str(word) for option in self._options.items() for word in option]
        return shlex.join(["fuxictr-mm", name, *options])

    def of_seed(self, seed: int) -> Experiment:
        """Return the experiment with a seed, and separate files until it has finished: seeds can train in parallel."""
        experiment = self.with_settings(seed=seed)
        experiment.paths = replace(self.paths, suffix=f".seed{seed}")
        return experiment

    def of_fold(self, fold: Fold) -> Experiment:
        """Return the experiment ``EXPID_fold1``, ``EXPID_fold2`` ... that holds out a fold of its training rows."""
        name = f"{self.config.expid}_fold{fold.number}"
        return self.with_settings(fold=fold.model_dump(), model_id=name)

    @property
    def finished(self) -> FinishedRuns:
        """What has been trained already of exactly these settings, model file and data."""
        return FinishedRuns(self.config, self.paths, self.model_code, self.model_zoo)

    def fit(self, *, resume: bool = False, progress: bool | None = None, results_csv: StrPath | None = None) -> Run:
        """Train, evaluate and write a run.

        Parameters
        ----------
        resume : bool
            Resume an interrupted run of this configuration; without one, start a new run.
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
            Data is invalid, the loss is not finite, the disk is full; or a finished run of other settings, which cannot
            be resumed.
        Interrupted
            Ctrl-C or SIGTERM came; ``resume=True`` continues.
        """
        verbose = self.config.verbose if progress is None else 2 * progress
        experiment = self if verbose == self.config.verbose else self.with_settings(verbose=verbose)
        with only_one(self.config.expid), distributed.process_group(self.config.gpu), restored_threads():
            return TrainingRun(experiment, resume, None if results_csv is None else Path(results_csv)).run()

    def predict(self, data: Any = None, *, weights: StrPath | None = None) -> np.ndarray:
        """Return the predicted probabilities of the rows of a file or data frame.

        Parameters
        ----------
        data : path or data frame, optional
            A Parquet file, a folder of part files, or a pandas or Polars data frame, with the columns of the training
            file except the label; the dataset's ``test_data`` by default. Rows that ``fuxictr-mm prepare log --like``
            wrote, given by path, are read with their own item files.
        weights : path or str, optional
            A state dict, a ``.safetensors`` file, a folder written by ``fuxictr-mm export-hub``, or the name or folder
            of a run, or an experiment id (its newest finished run); by default those of the newest run.

        Returns
        -------
        ndarray
            ``(rows,)`` float32, in the order of the rows; ``(rows, T)`` with T labels, in the order of ``label_col``.

        Raises
        ------
        MissingFileError, UserError
            The weights do not exist or do not fit, or the data is invalid.
        """
        return predict(self, data, self.find_weights(weights), [self.paths.log])

    def find_weights(self, weights: StrPath | None = None) -> Path:
        """Return the file of weights, by default those of the newest run; a warning names settings or data that differ.

        Raises
        ------
        MissingFileError, UserError
            The weights do not exist, or the folder was not written by ``fuxictr-mm export-hub``.
        """
        return find_weights(self, weights)

    def prepare_process(self) -> None:
        """Set seed, precision and memory of this process by the configuration."""
        config, device = self.config, device_of(self.config.gpu)
        seed_everything(config.seed)
        set_precision(config.precision, device)
        if device.type == "cpu" and config.keep_memory:
            keep_freed_memory()

    def make_shard(self) -> Shard:
        """Return the part of the rows that this process reads."""
        config, processes = self.config, distributed.size()
        if not config.shuffle:
            return distributed.make_shard(None)  # in the files' order, every process passes over all rows
        return distributed.make_shard(config.streams or (default_streams(processes) if processes > 1 else None))

    def load_dataset(
        self, splits: Mapping[str, bool | None], weights: StrPath | None = None, shard: Shard | None = None
    ) -> Dataset:
        """Read and check splits of the dataset, the part of the rows that is in ``shard``, by default ``make_shard``.

        ``splits`` says of each whether it must have labels; None: they are not read. The vocabularies of trained
        ``weights`` number the ids; by default they are built from the data, after those of ``initial_weights``.

        Raises
        ------
        ConfigError, DataError, MissingFileError
            The data or the file of the vocabularies is invalid.
        """
        if weights is not None:
            vocabularies = Vocabularies.load(vocabulary_of_weights(Path(weights)))
        else:
            vocabularies = Vocabularies()
            if (initial := find_initial_weights(self.config)) is not None:
                vocabularies.earlier = Vocabularies.load(vocabulary_of_weights(initial))
        shard = self.make_shard() if shard is None else shard
        fold, options = self.config.fold, dict[str, Any](flat=self.is_flat, shard=shard)
        if fold is None or not {"train", "valid"} & splits.keys():
            return load_dataset(self.config, splits, vocabularies, **options)
        if shard.size > 1:
            raise ConfigError("fold: a fold is trained by one process; start it without torchrun")
        both = {"train": True, "valid": True, **splits}
        dealt = with_fold(load_dataset(self.config, both, vocabularies, **options), fold)
        return replace(dealt, splits={split: dealt.splits[split] for split in splits})

    @property
    def is_flat(self) -> bool:
        """Whether the model takes a dict of columns."""
        return self.batch_format(self.model_class) == "flat"

    def build_model(self, dataset: Dataset) -> Any:
        """Build the model, its item table on its device, and choose the number of threads.

        Raises
        ------
        ConfigError
            The model's constructor raises an error for its settings.
        """
        config, model_class = self.config, self.model_class
        feature_map = dataset.feature_map
        check_names([name for name, spec in feature_map.features.items() if spec["type"] != "meta"])
        feature_map.items = dataset.items.to(device_of(config.gpu))
        if is_third_party(model_class):
            check_labels(model_class, config.to_dict(), feature_map.labels)
        try:
            with warn_of_large_parameters(config.expid, device_of(config.gpu), self.command("plan")):
                model = model_class(feature_map, **config.model_arguments())
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a model file may raise anything
            raise ConfigError(
                f"{config.expid}: {model_class.__name__} cannot be built with these settings ({describe_error(error)})"
            ) from error
        check_is_built(model)
        if config.batch_size == 1 and any(isinstance(m, _BatchNorm) for m in model.modules()):
            raise ConfigError(f"{config.expid}: batch_size is 1, but batch norm needs 2 rows or more")
        if is_third_party(model_class):
            make_safe(model, self.batch_format(model), config.task_weights)
        if self.paths.suffix:
            model.checkpoint = str(self.paths.weights.absolute())
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
        shard: Shard | None = None,
        batch_size: int | None = None,
    ) -> Loader:
        """Return a loader of a split, in memory or streamed, in the batch format of the model.

        Of several processes, each gets a part of every batch for training; otherwise ``split`` is its part of the rows.
        All of them call it together. ``batch_size`` is that of the experiment by default.
        """
        config, batch_size = self.config, batch_size or self.config.batch_size
        feature_map = model.feature_map
        view = make_formatter(self.batch_format(model), feature_map, feature_map.items, config.max_len)
        device = device_of(config.gpu)
        shard = (self.make_shard() if shard is None else shard) if training else Shard()
        options: dict[str, Any] = {"shuffle": shuffle, "seed": config.seed, "view": view, "shard": shard}
        if isinstance(split, InteractionTable):
            is_part = shard.size > 1 and shard.streams is not None
            rows = int(distributed.total(len(split))) if is_part else len(split)
            return InMemoryLoader(split.to(device), batch_size, num_samples=rows, **options)
        loader = StreamingLoader if shard.streams is None else InterleavedLoader
        return loader(split, batch_size, buffer_rows=config.buffer_rows, device=device, **options)
