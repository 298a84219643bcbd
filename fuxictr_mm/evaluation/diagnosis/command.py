"""``fuxictr-mm diagnose``: what a trained model uses, what it ignores, and where it fails."""

from __future__ import annotations

import argparse
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm import __version__
from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.torchrun import is_one_of_several

if TYPE_CHECKING:
    from fuxictr_mm.evaluation.diagnosis.slices import Popularity
    from fuxictr_mm.evaluation.diagnosis.trained import Trained

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm diagnose``."""
    add_examples(
        parser,
        "fuxictr-mm diagnose --expid DIN_MM_tiny",
        "fuxictr-mm diagnose --expid DIN_MM_tiny --split test --test_data data/tiny_mm/test_labelled.parquet",
        "fuxictr-mm diagnose --expid DIN_MM_tiny --json --quiet | python -m json.tool",
    )
    parser.add_argument("--expid", required=True, help="experiment id in model_config.yaml")
    parser.add_argument("--run", metavar="RUN", help="a run's name or folder (default: the newest finished one)")
    parser.add_argument("--config", default=".", metavar="DIR", help="folder of the configuration (default: this one)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--data_root", metavar="DIR", help="take the place of the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--weights", metavar="FILE", help="trained weights (default: those of the run)")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="rows to look at (default: valid)")
    parser.add_argument("--test_data", metavar="FILE", help="take the place of the dataset's test_data; needs labels")
    parser.add_argument(
        "--rows", type=int, default=20_000, help="most rows to look at, drawn at random (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="permutations of each field (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of rows and permutations (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="JSON file (default: diagnosis.json in the run's folder)")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Diagnose, write the JSON file, print the summary or the JSON."""
    from fuxictr_mm import experiment
    from fuxictr_mm.evaluation.diagnosis.summary import format_summary
    from fuxictr_mm.evaluation.diagnosis.trained import find_trained

    if is_one_of_several():
        raise ConfigError("diagnose runs in one process; start it without torchrun")
    for name, least in (("rows", 2), ("repeats", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} is {getattr(args, name)}, expected {least} or more")
    if not args.quiet:
        experiment.set_up_logging()
    trained = find_trained(
        args.expid,
        config=args.config,
        run=args.run,
        weights=args.weights,
        gpu=args.gpu,
        data_root=args.data_root,
        model_zoo=args.model_zoo,
        test_data=args.test_data,
    )
    out = Path(args.out) if args.out else trained.output
    check_outputs([out], _inputs(trained), overwrite=True)
    result = diagnose_trained(
        trained,
        split=args.split,
        rows=args.rows,
        repeats=args.repeats,
        seed=args.seed,
        verbose=0 if args.quiet else 1,
    )
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_beside(out, lambda stream: stream.write(text.encode()))
    show(args, result, f"{format_summary(result)}\n\nall figures: {out}")


def diagnose_trained(trained: Trained, *, split: str = "valid", **options: Any) -> dict[str, Any]:
    """Read the data, build the model, load its weights, and diagnose it.

    Parameters
    ----------
    trained : Trained
        From ``find_trained``.
    split : {"valid", "test"}
        Rows to look at; they need labels.
    **options
        ``rows``, ``repeats``, ``seed`` and ``verbose`` of ``diagnose``.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        Whatever is wrong with configuration, data or weights.
    """
    from fuxictr.pytorch.torch_utils import seed_everything

    from fuxictr_mm import experiment
    from fuxictr_mm.data.dataset import load_dataset
    from fuxictr_mm.data.interactions import InteractionTable
    from fuxictr_mm.device import device_of
    from fuxictr_mm.evaluation.diagnosis.diagnose import diagnose
    from fuxictr_mm.training.hardware import keep_freed_memory, set_precision

    params = dict(trained.params)
    # Differences of a few ten-thousandths are looked at, which bf16 would blur; and the split has to be in memory.
    params.update({key: value for key, value in {"precision": "fp32", "compile": False}.items() if key in params})
    params.update(resident=True, verbose=0)
    if params.get("task", "binary_classification") != "binary_classification":
        raise ConfigError(f"{params['model_id']}: diagnose looks at predicted clicks, but task is {params['task']}")
    seed_everything(params["seed"])
    set_precision("fp32", device_of(params["gpu"]))
    if params["gpu"] < 0 and params.get("keep_memory", True):
        keep_freed_memory()
    dataset = load_dataset(params, {split: True})
    table = dataset.splits[split]
    assert isinstance(table, InteractionTable)
    model = experiment.build_model(trained.model_class, dataset, params)
    model.load_weights(str(trained.weights))
    model.eval()
    result = diagnose(model, params, table, _popularity(params, dataset.items.num_items), **options)
    return {
        "version": result.pop("version"),
        "fuxictr_mm": __version__,
        "created_at": datetime.now().isoformat(timespec="seconds"),
        "expid": params["model_id"],
        "run": trained.run,
        "model": params["model"],
        "dataset_id": params["dataset_id"],
        "weights": str(trained.weights),
        "split": split,
        **result,
    }


def _popularity(params: dict[str, Any], num_items: int) -> Popularity | None:
    """Count clicks in the training file, None where it is not there."""
    from fuxictr_mm.evaluation.diagnosis.slices import count_items

    try:
        return count_items(params.get("train_data") or "", params["label_col"]["name"], num_items)
    except MissingFileError as error:
        logger.warning(f"{error}; nothing is said of popularity")
        return None


def _inputs(trained: Trained) -> list[str | Path]:
    params = trained.params
    files = [params["item_info"]] if isinstance(params["item_info"], str) else list(params["item_info"])
    return [*files, *(params[k] for k in ("train_data", "valid_data", "test_data") if params.get(k)), trained.weights]
