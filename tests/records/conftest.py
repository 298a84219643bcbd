"""Runs on data/tiny_mm, of one epoch each, and predictions with planted differences."""

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def train():
    """Train an experiment into a folder; returns what ``run_experiment`` does."""
    from fuxictr_mm import experiment

    def run(root, expid="DIN_tiny", resume=False, config=ROOT, **settings):
        settings = {"model_root": str(root), "verbose": 0, "epochs": 1, "tensorboard": False, **settings}
        params, model_class = experiment.read_params(config, expid, overrides=settings)
        return experiment.run_experiment(params, model_class, resume=resume)

    return run


@pytest.fixture(scope="session")
def runs_root(train, tmp_path_factory):
    """Three seeds of DIN_tiny, one of them twice, and one run of DIN_MM_none_tiny."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (1, 2, 3, 3):
        train(root, seed=seed)
    train(root, "DIN_MM_none_tiny", seed=1, test_data=str(ROOT / "data" / "tiny_mm" / "test_labelled.parquet"))
    return root


class World:
    """Validation rows of users whose clicks follow a true score, and runs that see it through noise of their own."""

    def __init__(self, seed, rows, users):
        self.generator = np.random.default_rng(seed)
        self.user = np.unique(self.generator.integers(users, size=rows), return_inverse=True)[1]
        self.truth = self.generator.normal(size=rows) + self.generator.normal(size=users)[self.user]
        chance = 1 / (1 + np.exp(1 - self.truth))
        self.label = (self.generator.random(rows) < chance).astype(np.int8)
        #: What every model sees: the truth through an error that they share.
        self.seen = self.truth + 0.5 * self.generator.normal(size=rows)

    def model(self, noise):
        """Return what makes runs of one configuration: its own error on each row, and how noisy its scores are."""
        fixed = noise * self.generator.normal(size=len(self.truth))

        def run(seed_noise=0.25):
            # A seed goes astray as a whole, by a random part of what is noise, and on each row.
            share = 1 + 0.05 * self.generator.normal()
            astray = seed_noise * self.generator.normal(size=len(self.truth))
            return (self.seen + share * fixed + astray).astype(np.float32)

        return run


@pytest.fixture(scope="session")
def world():
    return World
