"""DIN_MM trained for a few epochs on tiny_mm, once for all tests."""

import copy

import pytest
import torch

from tests.paths import ROOT


def train_model(experiment, dataset, epochs=4):
    """Train and return the model."""
    from fuxictr_mm.training import loop

    torch.manual_seed(experiment.config.seed)
    model = experiment.build_model(dataset)
    train, valid = (dataset.splits[split] for split in ("train", "valid"))
    train = experiment.make_loader(train, model, training=True, shuffle=True)
    loop.fit(model, train, epochs, experiment.make_loader(valid, model))
    return model.eval()


@pytest.fixture(scope="session")
def train():
    """Give ``train_model``."""
    return train_model


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """Load an experiment."""
    from fuxictr_mm import Experiment

    def give(expid, **settings):
        settings = {"model_root": str(tmp_path_factory.mktemp("checkpoints")), "verbose": 0, **settings}
        return Experiment.load(expid, ROOT, model_zoo=ROOT / "model_zoo", **settings)

    return give


@pytest.fixture(scope="session")
def trained(load, tiny_dataset):
    """Give an experiment, its trained model and its dataset; the model is shared, so leave it as it is.

    It was trained in smaller batches than the examples are scored in, all at once.
    """
    experiment = load("DIN_MM_tiny", seed=1)
    dataset = tiny_dataset(experiment.config.to_dict())
    model = train_model(experiment, dataset)
    return experiment.with_settings(batch_size=4096), model, dataset


@pytest.fixture
def faulty(trained):
    """Give an experiment, a copy of its trained model to change, and its dataset."""
    experiment, model, dataset = trained
    broken = copy.deepcopy(model)
    broken.items = broken.feature_map.items
    return experiment, broken, dataset
