"""A configuration folder."""

import pytest

from tests.config.written import DATASET, MODEL


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory without data, and a configuration folder beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "conf/model_config.yaml").write_text(MODEL)
    (tmp_path / "conf/dataset_config.yaml").write_text(DATASET)
    return tmp_path / "conf"
