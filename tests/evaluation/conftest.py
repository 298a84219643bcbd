"""Predictions with planted differences."""

import numpy as np
import pytest


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
