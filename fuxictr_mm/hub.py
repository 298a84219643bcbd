"""``fuxictr-mm export-hub``: a trained experiment as a folder in the form that the Hugging Face hub expects."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm import __version__
from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.errors import MissingFileError, UserError
from fuxictr_mm.runs import HUB_CARD, HUB_CONFIG, HUB_FEATURES, HUB_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

    from fuxictr_mm.experiment import Result

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm export-hub``."""
    add_examples(
        parser,
        "fuxictr-mm export-hub --expid DIN_MM_tiny --out DIN_MM_tiny_hub",
        "fuxictr-mm export-hub --expid DIN_MM_tiny --out DIN_MM_tiny_hub --overwrite --quiet",
    )
    parser.add_argument("--expid", required=True, help="experiment id in model_config.yaml")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--config", default=".", metavar="DIR", help="folder of model_config.yaml (default: this one)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights other than the experiment's own")
    parser.add_argument("--data_root", metavar="DIR", help="take the place of the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that an earlier export wrote")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Write the folder."""
    from fuxictr_mm import experiment

    if not args.quiet:
        experiment.set_up_logging()
    params, model_class = experiment.read_params(
        args.config, args.expid, data_root=args.data_root, model_zoo=args.model_zoo
    )
    export(params, model_class, args.out, weights=args.weights, overwrite=args.overwrite)
    files = sorted(os.listdir(args.out))
    show(args, {"folder": str(args.out), "expid": args.expid, "files": files}, f"{args.out}: {', '.join(files)}")


def export(
    params: dict[str, Any], model_class: type, out: Path, *, weights: Path | None = None, overwrite: bool = False
) -> None:
    """Write a trained experiment as a folder: weights, configuration, features and a model card.

    Parameters
    ----------
    params, model_class
        From ``experiment.read_params``.
    out : path
        The folder; it is there whole or not at all.
    weights : path, optional
        The experiment's checkpoint by default.
    overwrite : bool
        Whether a folder that an earlier export wrote may be replaced.

    Raises
    ------
    MissingFileError, UserError
        No such weights, or not those of this experiment; the folder is there already or cannot be written.
    """
    from fuxictr_mm import experiment
    from fuxictr_mm.training.checkpoints import describe_features

    _check_place(out, overwrite)
    checkpoint = weights or experiment.log_path(params).with_suffix(".model")
    if not checkpoint.exists():
        raise MissingFileError(
            f"{checkpoint}: no such weights; train first: python run_expid.py --expid {params['model_id']}"
        )
    dataset = experiment.load_dataset(params, {})
    model = experiment.build_model(model_class, dataset, params)
    model.load_weights(checkpoint)
    # The model's own feature map, if it keeps one: layers write their widths into it, and loading compares with it.
    feature_map = getattr(model, "feature_map", dataset.feature_map)
    # What a record says is of the experiment's own weights.
    record = None if weights else experiment.read_record(params, with_paths=False)
    if record is None:
        logger.warning(f"{checkpoint}: not of a finished run of this very configuration; the card has no metrics")
    config = describe_experiment(params, model_class, record)

    def write(folder: Path) -> None:
        save_safetensors(model.state_dict(), folder / HUB_WEIGHTS)
        (folder / HUB_CONFIG).write_text(_json(config), encoding="utf-8")
        (folder / HUB_FEATURES).write_text(_json(describe_features(feature_map)), encoding="utf-8")
        (folder / HUB_CARD).write_text(model_card(config, params.get("description")), encoding="utf-8")

    _write_folder(out, write)


def describe_experiment(params: Mapping[str, Any], model_class: type, record: Result | None) -> dict[str, Any]:
    """Return what ``config.json`` holds: model, versions, parameters, and the metrics of the run if there are any."""
    from importlib.metadata import version

    import torch

    from fuxictr_mm.training.checkpoints import LOCAL_KEYS

    return {
        "library_name": "fuxictr-mm",
        "library_version": __version__,
        "fuxictr_version": version("fuxictr"),
        "torch_version": torch.__version__,
        "architectures": [model_class.__name__],
        "experiment": params["model_id"],
        "parameters": {k: v for k, v in params.items() if k not in LOCAL_KEYS},
        "metrics": {} if record is None else {"valid": record.valid, "test": record.test},
    }


def find_weights(weights: Path | None, params: Mapping[str, Any]) -> Path | None:
    """Return the file of weights that a user named by a file or a folder, and log the settings that differ from theirs.

    Raises
    ------
    MissingFileError, UserError
        The folder is no export.
    """
    from fuxictr_mm.training.checkpoints import hub_weights, saved_settings, setting_differences

    if weights is None:
        return None
    path = hub_weights(weights) if weights.is_dir() else weights
    if saved := saved_settings(path):
        for difference in setting_differences(saved[1], params, "in the folder"):
            logger.warning(f"{saved[0]}: {difference}")
    return path


def save_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict; a table that features share is stored once, its other names stand in the metadata."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and view in names:
            aliases[name] = names[view]
            continue
        names[view] = name
        # A part of another tensor's memory would be refused.
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        kept[name] = tensor.contiguous() if whole else tensor.clone(memory_format=torch.contiguous_format)
    try:
        save_file(kept, path, metadata={"format": "pt", **aliases})
    except SafetensorError as error:  # as which it reports a full disk
        raise OSError(str(error)) from error
    path.chmod(0o644)


def model_card(config: Mapping[str, Any], description: str | None) -> str:
    """Return the README of the folder, its metrics in the front matter as the hub reads them."""
    import yaml

    model, parameters = config["architectures"][0], config["parameters"]
    metrics = (config["metrics"] or {}).get("valid") or {}
    front: dict[str, Any] = {
        "library_name": config["library_name"],
        "tags": ["click-through-rate", "recommendation", "multimodal", "fuxictr", model],
    }
    if metrics:
        found = [{"type": name.lower(), "name": f"validation {name}", "value": v} for name, v in metrics.items()]
        task = {"type": "click-through-rate-prediction", "name": "Click-through rate prediction"}
        dataset = {"type": parameters["dataset_id"], "name": parameters["dataset_id"]}
        result = {"task": task, "dataset": dataset, "metrics": found}
        front["metrics"] = [name.lower() for name in metrics]
        front["model-index"] = [{"name": config["experiment"], "results": [result]}]
    measured = "".join(f"| {name} | {value:.6f} |\n" for name, value in metrics.items())
    table = f"| metric | validation |\n| --- | --- |\n{measured}\n" if metrics else ""
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---

# {config["experiment"]}

`{model}` trained on `{parameters["dataset_id"]}` with fuxictr-mm {config["library_version"]}.
{(" ".join(description.split()) + chr(10)) if description else ""}
{table}`{HUB_CONFIG}` has all parameters, `{HUB_FEATURES}` the features and their order. Frozen
embeddings of items are data and not in `{HUB_WEIGHTS}`.

Score a test file with an experiment of the same settings and features in your `model_config.yaml`:

```bash
python prediction.py --expid {config["experiment"]} --weights FOLDER
```

or, in Python:

```python
from pathlib import Path
from fuxictr_mm import experiment

params, model_class = experiment.read_params(".", "{config["experiment"]}")
scores = experiment.predict_test(params, model_class, Path("FOLDER/{HUB_WEIGHTS}"))
```
"""


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"


def _check_place(out: Path, overwrite: bool) -> None:
    """Refuse a place where something else would be lost."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / HUB_CONFIG).is_file() or not (out / HUB_WEIGHTS).is_file():
        raise UserError(f"{out}: is there already and no export of fuxictr-mm; give another folder")
    if not overwrite:
        raise UserError(f"{out}: holds an export already; give another folder, or --overwrite")


def _write_folder(out: Path, write: Any) -> None:
    """Let ``write(folder)`` fill a folder beside, then put it in its place."""
    out = out.absolute()
    beside: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        new, old = beside / "new", beside / "old"
        new.mkdir()
        write(new)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise UserError(f"{out}: could not be written ({error.strerror or error})") from error
    finally:
        if beside is not None:
            shutil.rmtree(beside)
