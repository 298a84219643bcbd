"""``fuxictr-mm influence``: rank the training rows by what they do to the validation loss, train without the worst."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_mm import experiment
from fuxictr_mm.data.dataset import Dataset, load_dataset
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.loaders import gather
from fuxictr_mm.device import device_of
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.evaluation import influence_report as report
from fuxictr_mm.evaluation.influence import Checkpoint, influence_on_validation
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.torchrun import is_one_of_several
from fuxictr_mm.training import loop
from fuxictr_mm.training.hardware import set_precision

logger = logging.getLogger(__name__)

SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm influence``."""
    parser.add_argument("--expid", required=True, help="experiment id in model_config.yaml")
    parser.add_argument("--config", default=".", metavar="DIR", help="folder of the configuration (default: this one)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--data_root", metavar="DIR", help="take the place of the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--seed", type=int, help="take the place of the experiment's seed")
    parser.add_argument("--test_data", metavar="FILE", help="take the place of the dataset's test_data")
    parser.add_argument(
        "--checkpoints",
        "--weights",
        nargs="+",
        metavar="FILE",
        help="weights to compute influence with, as run_expid.py leaves them (default: train, keep every epoch's)",
    )
    parser.add_argument(
        "--plain-loss", action="store_true", help="take the validation loss as it is, its intercept not fitted anew"
    )
    parser.add_argument("--layer", metavar="NAME", help="the model's last nn.Linear (default: found by itself)")
    parser.add_argument("--out", metavar="FILE", help="Parquet file of all rows (default: beside the experiment's log)")
    parser.add_argument("--json", metavar="FILE", help="write the summary as JSON")
    parser.add_argument(
        "--drop-worst", type=float, metavar="P", help="train again without the worst P percent, and compare"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars and no log")


def main_from_args(args: argparse.Namespace) -> None:
    """Rank the rows, write and print them, train without the worst if asked to."""
    if is_one_of_several():
        raise ConfigError("influence runs in one process; start it without torchrun")
    for path in args.checkpoints or []:
        if not Path(path).is_file():
            raise MissingFileError(f"--checkpoints {path}: no such file; give files that run_expid.py wrote")
    if args.drop_worst is not None and not 0 < args.drop_worst < 100:
        raise ConfigError(f"--drop-worst is {args.drop_worst:g}, expected percents above 0 and below 100")
    if not args.quiet:
        experiment.set_up_logging()
    overrides = {"seed": args.seed, "test_data": args.test_data, "verbose": 0 if args.quiet else None}
    params, model_class = experiment.read_params(
        args.config,
        args.expid,
        gpu=args.gpu,
        data_root=args.data_root,
        model_zoo=args.model_zoo,
        overrides={key: value for key, value in overrides.items() if value is not None},
    )
    out = Path(args.out) if args.out else experiment.log_path(params).with_suffix(".influence.parquet")
    data = [params.get(f"{split}_data") for split in ("train", "valid", "test")]
    items = [params["item_info"]] if isinstance(params["item_info"], str) else params["item_info"]
    check_outputs([out, args.json], [*data, *items, *(args.checkpoints or [])], overwrite=True)
    set_precision(params.get("precision", "fp32"), device_of(params["gpu"]))
    splits = {"train": True, "valid": True, **({"test": False} if params.get("test_data") else {})}
    dataset = load_dataset(params, splits)
    if args.drop_worst is not None:
        _number_of_worst(dataset, args.drop_worst)
    with tempfile.TemporaryDirectory(prefix="fuxictr-mm-influence-") as folder:
        metrics: dict[str, Any] = {}
        if args.checkpoints:
            checkpoints = [Checkpoint(Path(path), params["learning_rate"]) for path in args.checkpoints]
        else:
            checkpoints, metrics["before"] = train_keeping_checkpoints(params, model_class, dataset, Path(folder))
        influence = rank_by_influence(params, model_class, dataset, checkpoints, args.layer, not args.plain_loss)
        ranking = report.read_rows(params["train_data"], params["label_col"]["name"])
        ranking = ranking.append_column("influence", pa.array(influence))
        ranking = ranking.append_column("rank", pa.array(report.rank_rows(influence)))
        report.write_ranking(out, ranking)
        groups = report.summarize(ranking)
        worst, best = (report.extremes(ranking, SHOWN, best) for best in (False, True))
        print(f"\n{report.format_groups(groups)}")
        print(f"\nworst rows, which raise the validation loss most:\n{report.format_rows(worst)}")
        print(f"\nbest rows, which lower it most:\n{report.format_rows(best)}")
        print(f"\nall {ranking.num_rows} rows: {out}")
        answer = {"expid": args.expid, "rows": ranking.num_rows, "checkpoints": len(checkpoints), "out": str(out)}
        answer |= {"groups": report.to_dict(groups), "worst": worst, "best": best}
        if args.drop_worst is not None:
            if "before" not in metrics:
                _, metrics["before"] = train_keeping_checkpoints(params, model_class, dataset, Path(folder))
            dropped = np.argsort(ranking["rank"].to_numpy())[: _number_of_worst(dataset, args.drop_worst)]
            metrics["after"] = train_without(params, model_class, dataset, dropped, Path(folder))
            answer |= {"dropped": len(dropped), "metrics": metrics}
            print(f"\n{_format_comparison(metrics, len(dropped), ranking.num_rows)}")
    if args.json:
        text = json.dumps(answer, indent=1)
        write_beside(args.json, lambda stream: stream.write(text.encode()))


def train_keeping_checkpoints(
    params: Mapping[str, Any], model_class: type, dataset: Dataset, folder: Path
) -> tuple[list[Checkpoint], dict[str, dict[str, float]]]:
    """Train an experiment as ``run_expid.py`` does, but keep the weights of every evaluation in a folder.

    Parameters
    ----------
    params, model_class
        From ``read_params``.
    dataset : Dataset
        With ``train`` and ``valid``; ``test`` is evaluated where it has labels.
    folder : Path
        Nothing is written elsewhere.

    Returns
    -------
    checkpoints : list of Checkpoint
        One per evaluation (per epoch, if ``eval_steps`` is not set) up to the best, with the learning rate until then.
    metrics : dict
        Of the best weights, ``valid`` and ``test``.
    """
    params = {**params, "model_root": str(folder)}
    seed_everything(params["seed"])
    model = _build(params, model_class, dataset)
    train = experiment.make_loader(dataset.splits["train"], model, params, shuffle=params["shuffle"], training=True)
    valid = experiment.make_loader(dataset.splits["valid"], model, params)
    keeper = _CheckpointKeeper(model, valid, folder)
    history = loop.fit(model, train, params["epochs"], keeper, params.get("max_gradient_norm", 10.0))
    if model._save_best_only:
        # Steps after the best weights have no part in the model.
        values = [model._monitor.get_value(entry) for entry in history]
        del keeper.kept[values.index(model._best_metric) + 1 :]
    metrics = {"valid": loop.evaluate(model, valid, params["metrics"])}
    if "test" in dataset.splits and dataset.splits["test"].has_labels:
        test = experiment.make_loader(dataset.splits["test"], model, params)
        metrics["test"] = loop.evaluate(model, test, params["metrics"])
    return keeper.kept, metrics


def rank_by_influence(
    params: Mapping[str, Any],
    model_class: type,
    dataset: Dataset,
    checkpoints: list[Checkpoint],
    layer: str | None = None,
    recalibrate: bool = True,
) -> np.ndarray:
    """Return the influence ``(R,)`` of every training row, in the order of the file; in float32, without dropout.

    See ``fuxictr_mm.evaluation.influence.influence_on_validation``.
    """
    # Numbers of rows pass through the model's logits, and bf16 holds none above 256 exactly.
    plain = {key: value for key, value in {"precision": "fp32", "compile": False}.items() if key in params}
    params = {**params, **plain}
    seed_everything(params["seed"])
    model = _build(params, model_class, dataset)
    train, valid = (experiment.make_loader(dataset.splits[split], model, params) for split in ("train", "valid"))
    return influence_on_validation(model, checkpoints, train, valid, layer, recalibrate, params["verbose"])


def train_without(
    params: Mapping[str, Any], model_class: type, dataset: Dataset, rows: np.ndarray, folder: Path
) -> dict[str, dict[str, float]]:
    """Return the metrics of the experiment trained without some training rows.

    Parameters
    ----------
    params, model_class, dataset, folder
        As in ``train_keeping_checkpoints``; ``train`` is in memory.
    rows : ndarray
        Numbers of the rows to leave out.

    Raises
    ------
    DataError
        One class is all that is left.
    """
    table = dataset.splits["train"]
    assert isinstance(table, InteractionTable)
    assert table.label is not None
    kept = torch.ones(len(table), dtype=torch.bool)
    kept[torch.from_numpy(rows)] = False
    batch = gather(table, kept.nonzero().squeeze(1).to(table.target.device))
    assert batch.label is not None
    if len(batch.label.unique()) < 2:
        raise DataError(f"--drop-worst: label is {batch.label[0]:g} in all {len(batch)} rows that are left; drop fewer")
    history = batch.history
    smaller = InteractionTable(
        batch.context, batch.target, history.values, history.offsets, batch.label, batch.group, table.source
    )
    splits = {**dataset.splits, "train": smaller}
    return train_keeping_checkpoints(params, model_class, replace(dataset, splits=splits), folder)[1]


class _CheckpointKeeper:
    """The validation loader; every pass over it keeps the weights that it is going to be scored with."""

    def __init__(self, model: Any, valid: Any, folder: Path) -> None:
        self.model = model
        self.valid = valid
        self.folder = folder
        self.kept: list[Checkpoint] = []

    def __len__(self) -> int:
        return len(self.valid)

    def __iter__(self) -> Iterator[Any]:
        path = self.folder / f"{len(self.kept)}.checkpoint"
        self.model.save_weights(path)
        self.kept.append(Checkpoint(path, float(self.model.optimizer.param_groups[0]["lr"])))
        return iter(self.valid)


def _build(params: Mapping[str, Any], model_class: type, dataset: Dataset) -> Any:
    """Make the model with a feature map of its own, so that one dataset serves several models."""
    return experiment.build_model(model_class, replace(dataset, feature_map=copy.deepcopy(dataset.feature_map)), params)


def _number_of_worst(dataset: Dataset, percent: float) -> int:
    """Return how many training rows are so many percent.

    Raises
    ------
    ConfigError
        They are none, or cannot be left out of a split on disk.
    """
    table = dataset.splits["train"]
    if not isinstance(table, InteractionTable):
        raise ConfigError("--drop-worst: train is streamed from disk; set resident: True in dataset_config.yaml")
    number = int(len(table) * percent / 100)
    if number < 1:
        raise ConfigError(f"--drop-worst {percent:g}: is less than one of {len(table)} rows; raise it")
    return number


def _format_comparison(metrics: Mapping[str, Any], dropped: int, rows: int) -> str:
    """Return the metrics before and after as a table, with what they are worth."""
    lines = [f"{'':24}{'before':>10}{'after':>10}{'change':>10}"]
    for split, before in metrics["before"].items():
        for name, value in before.items():
            after = metrics["after"][split][name]
            lines.append(f"{f'{split} {name}':24}{value:10.6f}{after:10.6f}{after - value:+10.6f}")
    lines.append(f"trained without the worst {dropped} of {rows} rows; no file of the dataset was changed")
    lines.append("valid is optimistic after: its rows chose what was dropped; judge by test, and by several seeds")
    if "test" not in metrics["before"]:
        lines.append("test has no labels: name a file that has by --test_data FILE")
    return "\n".join(lines)
