"""An experiment from its id to its result: what the scripts and the tuner call."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_mm.config import check_model_params, config_hash, load_config
from fuxictr_mm.data.dataset import Dataset, load_dataset
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.loaders import ResidentLoader
from fuxictr_mm.data.views import make_view
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.evaluation.metrics import check_metrics
from fuxictr_mm.files import write_beside
from fuxictr_mm.registry import load_model_class
from fuxictr_mm.training import loop
from fuxictr_mm.training.snapshots import Snapshots

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
    params = load_config(config_dir, expid, data_root=data_root)
    params.update(overrides or {})
    params["gpu"] = gpu
    if gpu >= 0 and gpu >= torch.cuda.device_count():
        raise ConfigError(
            f"--gpu {gpu}: there are {torch.cuda.device_count()} CUDA devices here; --gpu -1 uses the CPU"
        )
    model_class = load_model_class(params["model"], None if model_zoo is None else Path(model_zoo))
    for doubt in check_model_params(model_class, params):
        logger.warning(f"{doubt}; nothing may read it")
    monitored = [params["monitor"]] if isinstance(params["monitor"], str) else list(params["monitor"])
    check_metrics([*params["metrics"], *monitored], params.get("group_id"))
    for key in ("batch_size", "epochs", "max_len", "early_stop_patience", "accumulation_steps", "embedding_dim"):
        if key in params and params[key] < 1:
            raise ConfigError(f"{expid}: {key} is {params[key]}, expected 1 or more")
    return params, model_class


def log_path(params: Mapping[str, Any]) -> Path:
    """Return the log file of an experiment, ``model_root/dataset_id/expid.log``."""
    return Path(params["model_root"]) / params["dataset_id"] / f"{params['model_id']}.log"


def record_path(params: Mapping[str, Any]) -> Path:
    """Return the result file of an experiment, ``model_root/dataset_id/expid.json``."""
    return log_path(params).with_suffix(".json")


def set_up_logging() -> None:
    """Log to the terminal, and keep what is logged until ``open_log`` names a file for it."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    kept = MemoryHandler(capacity=100_000, flushLevel=logging.CRITICAL + 1)
    logging.basicConfig(level=logging.INFO, handlers=[terminal, kept], force=True)
    # FuxiCTR announces every object it makes on the root logger; what matters of it is logged here.
    logging.getLogger("root").addFilter(lambda record: "Set column index" not in record.msg)


def open_log(params: Mapping[str, Any], mode: str = "w") -> None:
    """Begin the experiment's log file; called once the input is known to be good, so that bad input leaves nothing.

    Raises
    ------
    ConfigError
        The folder cannot be written.
    """
    path = log_path(params)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, mode=mode, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); set model_root to a folder of yours"
        ) from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, MemoryHandler):
            handler.setTarget(file)
            handler.close()
            root.removeHandler(handler)
        elif isinstance(handler, logging.FileHandler):
            # That of an earlier experiment in this process.
            handler.close()
            root.removeHandler(handler)
    root.addHandler(file)


def build_model(model_class: type, dataset: Dataset, params: Mapping[str, Any]) -> Any:
    """Make the model of an experiment, the item table on its device beside it."""
    feature_map = dataset.feature_map
    feature_map.items = dataset.items.to(_device(params))
    keys = {k: v for k, v in params.items() if k != "model"}
    model = model_class(feature_map, **keys)
    model.count_parameters()
    return model


def _device(params: Mapping[str, Any]) -> torch.device:
    return torch.device("cpu" if params["gpu"] < 0 else f"cuda:{params['gpu']}")


def make_loader(
    table: InteractionTable, model: Any, params: Mapping[str, Any], *, shuffle: bool = False
) -> ResidentLoader:
    """Return a loader of a table in the view that the model takes."""
    name = params.get("batch_view") or str(getattr(model, "batch_view", "flat"))
    view = make_view(name, model.feature_map, model.feature_map.items, params["max_len"])
    return ResidentLoader(
        table.to(_device(params)), params["batch_size"], shuffle=shuffle, seed=params["seed"], view=view
    )


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
    started = time.perf_counter()
    if resume and (finished := read_record(params)):
        logger.info(f"{record_path(params)}: finished already, with {finished.valid}")
        return finished
    seed_everything(params["seed"])
    splits = {"train": True, "valid": True}
    if params.get("test_data"):
        splits["test"] = False
    dataset = load_dataset(params, splits)
    model = build_model(model_class, dataset, params)
    open_log(params, mode="a" if resume else "w")
    logger.info("Parameters: " + json.dumps(params, default=str, sort_keys=True))
    train = make_loader(dataset.splits["train"], model, params, shuffle=params["shuffle"])
    valid = make_loader(dataset.splits["valid"], model, params)
    # A result of an earlier run says nothing about the weights that are about to be written.
    record_path(params).unlink(missing_ok=True)
    snapshots = Snapshots(log_path(params).with_suffix(".snapshot"), config_hash(params))
    norm = params.get("max_gradient_norm", 10.0)
    loop.fit(model, train, params["epochs"], valid, norm, snapshots, resume)
    logger.info("Validation")
    valid_result = loop.evaluate(model, valid, params["metrics"])
    test_result = None
    if "test" in dataset.splits and dataset.splits["test"].label is not None:
        logger.info("Test")
        test_result = loop.evaluate(model, make_loader(dataset.splits["test"], model, params), params["metrics"])
    result = Result(params["model_id"], config_hash(params), valid_result, test_result, time.perf_counter() - started)
    _write_record(result, record_path(params))
    snapshots.remove()
    if results_csv is not None:
        append_result(result, params, results_csv)
    return result


def read_record(params: Mapping[str, Any]) -> Result | None:
    """Return the result of a finished run of exactly this configuration, None if there is none."""
    try:
        record = json.loads(record_path(params).read_text(encoding="utf-8"))
        result = Result(**{f.name: record[f.name] for f in fields(Result)})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none yet, or not one of ours
    return result if result.config_hash == config_hash(params) else None


def _write_record(result: Result, path: Path) -> None:
    record = {**vars(result), "finished_at": datetime.now().isoformat(timespec="seconds")}
    write_beside(path, lambda stream: stream.write(json.dumps(record, indent=1).encode() + b"\n"))


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
        ``(rows,)`` float64, one probability per row of the test file, in its order.
    """
    checkpoint = weights or log_path(params).with_suffix(".model")
    if not checkpoint.is_file():
        raise MissingFileError(
            f"{checkpoint}: no such weights; train first: python run_expid.py --expid {params['model_id']}"
        )
    seed_everything(params["seed"])
    dataset = load_dataset(params, {"test": False})
    model = build_model(model_class, dataset, params)
    model.load_weights(checkpoint)
    open_log(params, mode="a")
    return loop.predict(model, make_loader(dataset.splits["test"], model, params)).double().numpy()


def find_config(given: str | os.PathLike[str] | None, script_folder: str | os.PathLike[str]) -> Path:
    """Return the configuration folder: the one given, else the working directory if it holds one, else the script's."""
    if given is not None:
        return Path(given)
    here = Path(".")
    return here if (here / "model_config.yaml").is_file() or (here / "model_config").is_dir() else Path(script_folder)


def results_csv_path(config_dir: str | os.PathLike[str]) -> Path:
    """Return the CSV in the working directory that results of a configuration folder go to, named after the folder."""
    return Path(f"{Path(config_dir).resolve().name}.csv")
