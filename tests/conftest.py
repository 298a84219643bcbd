"""Models on data/tiny_mm."""

import copy
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.experiment import Experiment
from tests.fuxictr_models import MODEL
from tests.paths import ROOT, TINY
from tests.projects import write_project
from tests.torchrun import DYING, start

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Take away the handlers that a command leaves, whose streams end with its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def tiny_dataset() -> Callable[[dict[str, Any]], Any]:
    """Give the dataset of an experiment's parameters, read once, safe to change."""
    from tests.configs import load_dataset

    read: dict[str, Any] = {}

    def give(params: dict[str, Any]) -> Any:
        decisive = ("use_features", "feature_cols", "feature_specs", "embedding_dim", "max_len")
        key = str([params[name] for name in decisive])
        if key not in read:
            read[key] = load_dataset(params, {"train": True, "valid": True})
        dataset = read[key]
        return replace(dataset, feature_map=copy.deepcopy(dataset.feature_map), items=copy.deepcopy(dataset.items))

    return give


@pytest.fixture
def build(tiny_dataset, tmp_path) -> Callable[..., tuple[Any, Any]]:
    """Build the model of an experiment id with a seed; returns it and its dataset."""

    def make(expid: str, *, seed: int = 1, labels: Sequence[str] = (), **settings: Any) -> tuple[Any, Any]:
        settings = {"model_root": str(tmp_path / "checkpoints"), "verbose": 0, **settings}
        experiment = Experiment.load(expid, ROOT, model_zoo=ROOT / "model_zoo", **settings)
        dataset = tiny_dataset(experiment.config.to_dict())
        dataset.feature_map.labels = list(labels) or dataset.feature_map.labels
        torch.manual_seed(seed)
        return experiment.build_model(dataset), dataset

    return make


@pytest.fixture(scope="session")
def train():
    """Train an experiment into a folder; returns the run."""

    def run(root, expid="DIN_tiny", resume=False, config=ROOT, **settings):
        settings = {"model_root": str(root), "verbose": 0, "epochs": 1, "tensorboard": False, **settings}
        return Experiment.load(expid, config, **settings).fit(resume=resume)

    return run


@pytest.fixture(scope="session")
def runs_root(train, tmp_path_factory):
    """Three seeds of DIN_tiny, one of them twice, and one run of DIN_MM_none_tiny."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (1, 2, 3, 3):
        train(root, seed=seed, batch_size=512)
    time.sleep(1)  # names of runs have seconds: on a fast machine the next would have that of the first
    train(root, "DIN_MM_none_tiny", seed=1, batch_size=512, test_data=str(TINY / "test_labelled.parquet"))
    return root


@pytest.fixture
def float64(monkeypatch) -> None:
    """Keep FuxiCTR's feature embedding from rounding to float32."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Gather rows of a table into a batch; ``lengths`` cuts each history to its last items."""
    from fuxictr_mm.data.loaders import gather
    from fuxictr_mm.jagged import Jagged

    def make(table: Any, rows: Sequence[int], lengths: Sequence[int] | None = None) -> Batch:
        batch = gather(table, torch.as_tensor(rows))
        history = batch.history
        if lengths is not None:
            kept = [
                v[len(v) - n :] for v, n in zip(history.values.split(history.lengths.tolist()), lengths, strict=True)
            ]
            history = Jagged(torch.cat(kept), torch.tensor([0, *map(len, kept)]).cumsum(0))
        return replace(batch, history=history, label=batch.label.double())

    return make


@pytest.fixture
def load_model_file(tmp_path):
    """Write a model file and load its experiment, with the settings given."""

    write_project(
        tmp_path,
        "Plain_tiny: {model: Plain, dataset_id: tiny_mm, epochs: 1, embedding_dim: 4, max_len: 20, batch_size: 1000,"
        " use_features: [likes_level, item_id, item_tags]}",
    )

    def read(model=MODEL, **settings):
        (tmp_path / "Plain.py").write_text(model)
        sys.modules.pop("fuxictr_mm.model_zoo.Plain", None)
        settings = {"model_root": str(tmp_path), "verbose": 0, **settings}
        return Experiment.load("Plain_tiny", tmp_path, model_zoo=tmp_path, **settings)

    return read


@pytest.fixture
def dying(tmp_path):
    """A folder with an experiment whose process 1 dies while there is a file `die`; returns what runs it."""
    (tmp_path / "model_zoo").mkdir()
    zoo = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
    (tmp_path / "model_zoo" / "Dying.py").write_text(zoo + DYING)
    (tmp_path / "model_of_the_package.py").write_text((ROOT / "model_zoo" / "DIN_MM.py").read_text())
    text = (ROOT / "model_config.yaml").read_text().replace("model: DIN_MM\n", "model: Dying\n")
    text = text.replace("epochs: 12", "epochs: 2\n    eval_steps: 8").replace("verbose: 1", "verbose: 0")
    write_project(tmp_path, text)

    def run(*flags, processes=2):
        arguments = ("--config", str(tmp_path), "--expid", "DIN_MM_tiny", *flags)
        return start(ROOT / "run_expid.py", *arguments, processes=processes, cwd=tmp_path)

    return tmp_path, run
