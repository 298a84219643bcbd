"""DIN_MM trained for a few epochs on tiny_mm, once for all tests."""

import copy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def train_model(params, model_class, dataset, epochs=4):
    """Train and return the model."""
    from fuxictr_mm.experiment import build_model, make_loader
    from fuxictr_mm.training import loop

    torch.manual_seed(params["seed"])
    model = build_model(model_class, dataset, params)
    loaders = [make_loader(dataset.splits[s], model, params, training=s == "train", shuffle=s == "train")
               for s in ("train", "valid")]  # fmt: skip
    loop.fit(model, loaders[0], epochs, loaders[1])
    return model.eval()


@pytest.fixture(scope="session")
def train():
    """Give ``train_model``."""
    return train_model


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """Give the parameters of an experiment and its model class."""
    from fuxictr_mm.experiment import read_params

    def give(expid, **overrides):
        overrides = {"model_root": str(tmp_path_factory.mktemp("checkpoints")), "verbose": 0, **overrides}
        return read_params(ROOT, expid, model_zoo=ROOT / "model_zoo", overrides=overrides)

    return give


@pytest.fixture(scope="session")
def trained(settings, tiny_dataset):
    """Give a trained DIN_MM_tiny, its dataset and its parameters; the model is shared, so leave it as it is."""
    params, model_class = settings("DIN_MM_tiny", seed=1)
    dataset = tiny_dataset(params)
    return train_model(params, model_class, dataset), dataset, params


@pytest.fixture
def faulty(trained):
    """Give a copy of the trained model to change, with dataset and parameters."""
    model, dataset, params = trained
    broken = copy.deepcopy(model)
    broken.items = broken.feature_map.items
    return broken, dataset, params
