"""An experiment from its id to its result: what the scripts and the tuner call."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from fuxictr.pytorch.torch_utils import seed_everything
from torch.nn.modules.batchnorm import _BatchNorm

from fuxictr_mm.compat import check_params, is_foreign, make_safe
from fuxictr_mm.config import ExperimentConfig, config_hash
from fuxictr_mm.data.batch import make_formatter
from fuxictr_mm.data.dataset import Dataset, load_dataset
from fuxictr_mm.data.interactions import InteractionFiles, InteractionTable
from fuxictr_mm.data.loaders import InMemoryLoader, Loader, Shard
from fuxictr_mm.data.streaming import BUFFER_ROWS, StreamingLoader
from fuxictr_mm.errors import ConfigError, MissingFileError, UserError
from fuxictr_mm.files import write_beside
from fuxictr_mm.metrics import check_metrics
from fuxictr_mm.registry import load_model_class
from fuxictr_mm.runs import RunPaths, unwritable
from fuxictr_mm.runtime import device_of, is_main, keep_freed_memory, local_gpu, set_precision
from fuxictr_mm.threads import restored_threads, use_threads
from fuxictr_mm.training import distributed, loop
from fuxictr_mm.training.callbacks import Callback, RunWriter, TensorBoardLogger, is_installed
from fuxictr_mm.training.resume import TrainingCheckpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What an experiment reached.

    Parameters
    ----------
    expid : str
        Experiment id.
    config_hash : str
        Hash of everything that decided the result.
    valid, test : dict or None
        Metrics; ``test`` is None where the test file has no labels.
    seconds : float
        Wall time of the whole run.
    """

    expid: str
    config_hash: str
    valid: dict[str, float]
    test: dict[str, float] | None
    seconds: float


def read_params(
    config_dir: str | os.PathLike[str],
    expid: str,
    *,
    gpu: int = -1,
    data_root: str | os.PathLike[str] | None = None,
    model_zoo: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], type]:
    """Return the checked parameters of an experiment and its model class.

    Raises
    ------
    ConfigError, MissingFileError
        Anything that is wrong with the configuration, before a data file is touched.
    """
    zoo = None if model_zoo is None else Path(model_zoo)
    overrides = {**(overrides or {}), "gpu": local_gpu(gpu)}
    config = ExperimentConfig.load(config_dir, expid, data_root, overrides, partial(load_model_class, model_zoo=zoo))
    device_of(config.gpu)
    model_class = load_model_class(config.model, zoo)
    if not issubclass(model_class, torch.nn.Module):
        raise ConfigError(f"model: {config.model} is no model, expected a subclass of MultimodalModel or BaseModel")
    for doubt in config.check_model(model_class):
        logger.warning(f"{doubt}; perhaps nothing reads it")
    params = config.to_dict()
    monitored = [params["monitor"]] if isinstance(params["monitor"], str) else list(params["monitor"])
    check_metrics([*params["metrics"], *monitored], params.get("group_id"))
    foreign = is_foreign(model_class)
    view = params.get("batch_view")
    if view is not None and (view == "jagged") == foreign:
        takes = "challenge or flat" if foreign else "jagged"
        raise ConfigError(f"{expid}: batch_view is {view}, but {model_class.__name__} takes {takes}")
    if foreign:
        check_params(model_class, params)
    return params, model_class


def log_path(params: Mapping[str, Any]) -> Path:
    """Return the log file of an experiment, ``model_root/dataset_id/expid.log``."""
    return _paths(params).log


def record_path(params: Mapping[str, Any]) -> Path:
    """Return the result file of an experiment, ``model_root/dataset_id/expid.json``."""
    return _paths(params).result


def _paths(params: Mapping[str, Any]) -> RunPaths:
    return RunPaths(Path(params["model_root"]), params["dataset_id"], params["model_id"])


def set_up_logging() -> None:
    """Log to the terminal, and keep what is logged until ``open_log`` names a file for it."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if not is_main():
        terminal.setLevel(logging.ERROR)  # what other processes than the main one log is the same
    kept = MemoryHandler(capacity=100_000, flushLevel=logging.CRITICAL + 1)
    logging.basicConfig(level=logging.INFO, handlers=[terminal, kept], force=True)
    # FuxiCTR announces every object it makes on the root logger; what matters of it is logged here.
    logging.getLogger("root").addFilter(lambda record: "Set column index" not in record.msg)


def open_log(params: Mapping[str, Any], mode: str = "w", record: RunWriter | None = None) -> None:
    """Begin the log file of the experiment, and that of the run; called once the input is known to be good.

    Raises
    ------
    ConfigError
        The folder cannot be written.
    """
    if not is_main():
        return
    files = []
    for path in [log_path(params)] + ([record.log] if record is not None else []):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(path, mode=mode, encoding="utf-8")
        except OSError as error:
            raise unwritable(path, error) from error
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        files.append(file)
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, MemoryHandler):
            for kept in handler.buffer:
                for file in files:
                    file.handle(kept)
            handler.close()
            root.removeHandler(handler)
        elif isinstance(handler, logging.FileHandler):
            # That of an earlier experiment in this process.
            handler.close()
            root.removeHandler(handler)
    for file in files:
        root.addHandler(file)


def build_model(model_class: type, dataset: Dataset, params: Mapping[str, Any]) -> Any:
    """Make the model of an experiment, the item table on its device beside it, and choose the number of threads.

    Raises
    ------
    ConfigError
        The model's constructor refuses its settings.
    """
    feature_map = dataset.feature_map
    feature_map.items = dataset.items.to(device_of(params["gpu"]))
    keys = {k: v for k, v in params.items() if k != "model"}
    try:
        model = model_class(feature_map, **keys)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a model file raises, the user set it off
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{params['model_id']}: {model_class.__name__} cannot be made of these settings ({reason}); "
            "--debug shows where"
        ) from error
    if params["batch_size"] == 1 and any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ConfigError(f"{params['model_id']}: batch_size is 1, but batch norm needs 2 rows or more")
    if is_foreign(model_class):
        make_safe(model, _view_name(model, params))
    model.settings = dict(params)  # to name what differs where weights of other settings are loaded
    model.count_parameters()
    use_threads(model, params)
    return model


def _view_name(model: Any, params: Mapping[str, Any]) -> str:
    return params.get("batch_view") or str(getattr(model, "batch_view", "flat"))


def make_loader(
    split: InteractionTable | InteractionFiles,
    model: Any,
    params: Mapping[str, Any],
    *,
    shuffle: bool = False,
    training: bool = False,
) -> Loader:
    """Return a loader of a split, in memory or streamed, in the view that the model takes.

    Of several processes, each gets a part of every batch for training, else a part of the rows.
    """
    view = make_formatter(_view_name(model, params), model.feature_map, model.feature_map.items, params["max_len"])
    device, batch_size = device_of(params["gpu"]), params["batch_size"]
    share = Shard(distributed.rank(), distributed.size(), "batch" if training else "block")
    options = {"shuffle": shuffle, "seed": params["seed"], "view": view, "share": share}
    if isinstance(split, InteractionTable):
        return InMemoryLoader(split.to(device), batch_size, **options)
    buffer_rows = params.get("buffer_rows", BUFFER_ROWS)
    return StreamingLoader(split, batch_size, buffer_rows=buffer_rows, device=device, **options)


def run_experiment(
    params: dict[str, Any], model_class: type, results_csv: Path | None = None, resume: bool = False
) -> Result:
    """Train, evaluate and record one experiment.

    Parameters
    ----------
    params : dict
        From ``read_params``.
    model_class : type
        From ``read_params``.
    results_csv : path, optional
        A line is appended, in FuxiCTR's form.
    resume : bool
        Go on where an earlier run of the same configuration was killed; without trace of one, begin.
    """
    with distributed.process_group(params["gpu"]), restored_threads(), ExitStack() as stack:
        return _run_experiment(params, model_class, results_csv, resume, stack)


def _run_experiment(
    params: dict[str, Any], model_class: type, results_csv: Path | None, resume: bool, stack: ExitStack
) -> Result:
    started = time.perf_counter()
    if resume and (finished := read_record(params)):
        logger.info(f"{record_path(params)}: finished already, with {finished.valid}")
        return finished
    seed_everything(params["seed"])
    set_precision(params.get("precision", "fp32"), device_of(params["gpu"]))
    if params["gpu"] < 0 and params.get("keep_memory", True):
        keep_freed_memory()
    splits = {"train": True, "valid": True}
    if params.get("test_data"):
        splits["test"] = False
    dataset = load_dataset(params, splits)
    model = build_model(model_class, dataset, params)
    if results_csv is not None:
        _check_writable(results_csv)
    if is_main():
        stack.enter_context(_alone(params))
    record = (
        RunWriter.open(_paths(params), params, started, resume) if is_main() and params.get("record", True) else None
    )
    open_log(params, "a" if resume else "w", record)
    logger.info("Parameters: " + json.dumps(params, default=str, sort_keys=True))
    train = make_loader(dataset.splits["train"], model, params, shuffle=params["shuffle"], training=True)
    valid = make_loader(dataset.splits["valid"], model, params)
    if is_main():
        # A result of an earlier run says nothing about the weights that are about to be written.
        record_path(params).unlink(missing_ok=True)
    if distributed.size() > 1:
        rows = distributed.size() * params["batch_size"]
        logger.info(f"{distributed.size()} processes with batches of {params['batch_size']}: {rows} rows a step")
    # With resident: auto, what fits may change between two runs, and with it the order of the rows.
    resident = isinstance(dataset.splits["train"], InteractionTable)
    checkpoint = TrainingCheckpoint(_paths(params).checkpoint, config_hash({**params, "resident": resident}))
    norm = params.get("max_gradient_norm", 10.0)
    callbacks: list[Callback] = []
    if record is not None:
        logger.info(f"Run: {record.path}")
        callbacks.append(record)
        if params.get("tensorboard", is_installed()):
            callbacks.append(TensorBoardLogger(record.tensorboard))
    loop.fit(model, train, params["epochs"], valid, norm, checkpoint, resume, callbacks)
    logger.info("Validation")
    scored = loop.score(model, valid)
    valid_result = loop.measure(scored, params["metrics"])
    test_result = None
    if "test" in dataset.splits and dataset.splits["test"].has_labels:
        logger.info("Test")
        test_result = loop.evaluate(model, make_loader(dataset.splits["test"], model, params), params["metrics"])
    seconds = time.perf_counter() - started if record is None else record.seconds
    result = Result(params["model_id"], config_hash(params), valid_result, test_result, seconds)
    if is_main():
        if record is not None:
            record.finish(vars(result), model, scored)
        _write_record(result, params)
        checkpoint.remove()
        if results_csv is not None:
            append_result(result, params, results_csv)
    return result


@contextmanager
def _alone(params: Mapping[str, Any]) -> Iterator[None]:
    """Keep other processes from training the same experiment into the same files meanwhile."""
    paths = _paths(params)
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


def read_record(params: Mapping[str, Any], *, with_paths: bool = True) -> Result | None:
    """Return the result of a finished run of exactly this configuration, None if there is none.

    Without paths, the data may have been elsewhere when it ran.
    """
    try:
        record = json.loads(record_path(params).read_text(encoding="utf-8"))
        result = Result(**{f.name: record[f.name] for f in fields(Result)})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none yet, or not one of ours
    run = result.config_hash if with_paths else record.get("settings_hash")
    return result if run == config_hash(params, with_paths=with_paths) else None


def _write_record(result: Result, params: Mapping[str, Any]) -> None:
    path, settings = record_path(params), config_hash(params, with_paths=False)
    record = {**vars(result), "settings_hash": settings, "finished_at": datetime.now().isoformat(timespec="seconds")}
    write_beside(path, lambda stream: stream.write(json.dumps(record, indent=1).encode() + b"\n"))


def _check_writable(path: Path) -> None:
    """Refuse a file that could not be appended to when the run is over."""
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK) or path.is_dir():
        raise ConfigError(f"{path}: results could not be appended to it; run in a folder of yours")


def append_result(result: Result, params: Mapping[str, Any], path: Path) -> None:
    """Append a line to a CSV of results, as FuxiCTR does."""

    def listing(metrics: Mapping[str, float] | None) -> str:
        return " - ".join(f"{k}: {v:.6f}" for k, v in metrics.items()) if metrics else "N.A."

    fields = [
        f" {datetime.now():%Y%m%d-%H%M%S}",
        f"[command] python {' '.join(sys.argv)}",
        f"[exp_id] {result.expid}",
        f"[dataset_id] {params['dataset_id']}",
        "[train] N.A.",
        f"[val] {listing(result.valid)}",
        f"[test] {listing(result.test)}",
    ]
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(",".join(fields) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: the result line could not be appended ({error.strerror})") from error


def predict_test(params: dict[str, Any], model_class: type, weights: Path | None = None) -> np.ndarray:
    """Score the test file of a trained experiment.

    Parameters
    ----------
    params, model_class
        From ``read_params``.
    weights : path, optional
        State dict; the experiment's checkpoint by default.

    Returns
    -------
    ndarray
        ``(rows,)`` float32, one probability per row of the test file, in its order.
    """
    checkpoint = weights or log_path(params).with_suffix(".model")
    if not checkpoint.is_file():
        raise MissingFileError(
            f"{checkpoint}: no such weights; train first: python run_expid.py --expid {params['model_id']}"
        )
    if weights is None and read_record(params, with_paths=False) is None:
        logger.warning(f"{checkpoint}: not of a finished run of this very configuration; scoring with it all the same")
    seed_everything(params["seed"])
    set_precision(params.get("precision", "fp32"), device_of(params["gpu"]))
    with distributed.process_group(params["gpu"]), restored_threads():
        dataset = load_dataset(params, {"test": False})
        model = build_model(model_class, dataset, params)
        model.load_weights(checkpoint)
        open_log(params, mode="a")
        return loop.predict(model, make_loader(dataset.splits["test"], model, params)).numpy()


def find_config(given: str | os.PathLike[str] | None, script_folder: str | os.PathLike[str]) -> Path:
    """Return the configuration folder: the one given, else the working directory if it holds one, else the script's."""
    if given is not None:
        return Path(given)
    here = Path(".")
    return here if (here / "model_config.yaml").is_file() or (here / "model_config").is_dir() else Path(script_folder)


def results_csv_path(config_dir: str | os.PathLike[str]) -> Path:
    """Return the CSV in the working directory that results of a configuration folder go to, named after the folder."""
    return Path(f"{Path(config_dir).resolve().name}.csv")
