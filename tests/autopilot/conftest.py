"""The dataset of the repository."""

import pytest

from fuxictr_mm.config import ExperimentConfig
from tests.paths import ROOT


@pytest.fixture
def dataset(monkeypatch):
    monkeypatch.chdir(ROOT)
    return ExperimentConfig.load(ROOT, "DIN_tiny").dataset
