"""A trained experiment as a folder for the Hugging Face hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm import __version__
from fuxictr_mm.files import check_folder_to_write, write_folder
from fuxictr_mm.runs import HUB_CARD, HUB_CONFIG, HUB_FEATURES, HUB_WEIGHTS, VOCABULARY
from fuxictr_mm.yaml_files import dump_yaml

if TYPE_CHECKING:
    from torch import Tensor

    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.runs import Result

logger = logging.getLogger(__name__)


def export(experiment: Experiment, out: Path, *, weights: str | Path | None = None, overwrite: bool = False) -> None:
    """Write a trained experiment as a folder: weights, configuration, features and a model card.

    Parameters
    ----------
    experiment : Experiment
        The trained experiment.
    out : path
        The folder, written atomically.
    weights : path, optional
        Those of the experiment's newest run by default.
    overwrite : bool
        Whether a folder that an earlier export wrote may be replaced.

    Raises
    ------
    MissingFileError, UserError
        The weights do not exist or do not belong to this experiment; the folder already exists or is not writable.
    """
    from fuxictr_mm.training.checkpoints import describe_features

    check_folder_to_write(out, [HUB_CONFIG, HUB_WEIGHTS], overwrite)
    checkpoint = experiment.find_weights(weights)
    dataset = experiment.load_dataset({}, checkpoint)
    model = experiment.build_model(dataset)
    model.load_weights(checkpoint)
    # The model's own feature map, if it has one: layers write their dims into it, and loading compares with it.
    feature_map = getattr(model, "feature_map", dataset.feature_map)
    # A result is of the experiment's own weights.
    result = None if weights else experiment.finished.result(paths=False)
    if result is None:
        logger.warning(f"{checkpoint}: the metrics of these weights are unknown, so the card has no metrics")
    config = describe_experiment(experiment, result)

    def write(folder: Path) -> None:
        save_safetensors(model.state_dict(), folder / HUB_WEIGHTS)
        (folder / HUB_CONFIG).write_text(_json(config), encoding="utf-8")
        (folder / HUB_FEATURES).write_text(_json(describe_features(feature_map)), encoding="utf-8")
        if dataset.vocabularies:
            dataset.vocabularies.save(folder / VOCABULARY)
        (folder / HUB_CARD).write_text(model_card(config, experiment.config.description), encoding="utf-8")

    write_folder(out, write)


def describe_experiment(experiment: Experiment, result: Result | None) -> dict[str, Any]:
    """Return what ``config.json`` holds: model, versions, settings, and the metrics of the run if there are any."""
    from importlib.metadata import version

    import torch

    from fuxictr_mm.config import LOCAL_KEYS

    return {
        "library_name": "fuxictr-mm",
        "library_version": __version__,
        "fuxictr_version": version("fuxictr"),
        "torch_version": torch.__version__,
        "architectures": [experiment.model_class.__name__],
        "experiment": experiment.config.expid,
        "parameters": {k: v for k, v in experiment.config.to_dict().items() if k not in LOCAL_KEYS},
        "metrics": {} if result is None else {"valid": result.valid, "test": result.test or None},
    }


def save_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict; a table that features share is stored once, with its other names in the metadata.

    ``safetensors.torch.save_model`` does the same, but stores a part or another shape of a tensor as if it were all of
    it, so that another tensor would be read back.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    memories: set[int] = set()
    for name, tensor in state.items():
        view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and view in names:
            aliases[name] = names[view]
            continue
        names[view] = name
        # safetensors refuses tensors that share memory, and a part of one.
        memory = tensor.untyped_storage()
        own = memory.data_ptr() not in memories and memory.nbytes() == tensor.numel() * tensor.element_size()
        kept[name] = tensor.contiguous() if own else tensor.clone(memory_format=torch.contiguous_format)
        memories.add(memory.data_ptr())
    try:
        save_file(kept, path, metadata={"format": "pt", **aliases})
    except SafetensorError as error:  # also a full disk
        raise OSError(str(error)) from error
    path.chmod(0o644)


def model_card(config: Mapping[str, Any], description: str | None) -> str:
    """Return the README of the folder, its metrics in the front matter as the hub reads them."""
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
{dump_yaml(front)}---

# {config["experiment"]}

`{model}` trained on `{parameters["dataset_id"]}` with fuxictr-mm {config["library_version"]}.
{(" ".join(description.split()) + chr(10)) if description else ""}
{table}`{HUB_CONFIG}` has all parameters, `{HUB_FEATURES}` the features and their order. Frozen
embeddings of items are data and not in `{HUB_WEIGHTS}`.

Score a test file with an experiment of the same settings and features in your `model_config.yaml`:

```bash
fuxictr-mm predict --expid {config["experiment"]} --weights FOLDER
```

or, in Python:

```python
import fuxictr_mm as fm

scores = fm.Experiment.load("{config["experiment"]}").predict("test.parquet", weights="FOLDER")
```
"""


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
