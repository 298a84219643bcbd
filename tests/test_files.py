"""Outputs are refused before any work where they cannot be written."""

import pytest

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs
from tests.errors import raises_naming


@pytest.fixture
def folder(tmp_path):
    for name in ("read.parquet", "there.json"):
        (tmp_path / name).write_text("kept")
    return tmp_path


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_read_is_never_written(folder, overwrite, monkeypatch):
    monkeypatch.chdir(folder)
    for output in ("read.parquet", folder / "read.parquet", "x/../read.parquet"):
        with raises_naming(ConfigError, "read.parquet"):
            check_outputs([None, output], [None, "read.parquet"], overwrite)
    with raises_naming(ConfigError, "read.parquet"):
        check_outputs(["read.parquet"], ["read"], overwrite)  # the ending may be left out
    for output in ("new.parquet", "dt=1/new.parquet", "dt=1/hour=2/new.parquet"):
        with raises_naming(ConfigError, output):
            check_outputs([folder / output], [folder], overwrite)
    check_outputs([folder / "other" / "dt=1" / "new.parquet"], [folder], overwrite)


def test_two_outputs_of_one_name_folders_and_old_files(folder):
    with raises_naming(ConfigError, folder / "a"):
        check_outputs([folder / "a", folder / "a"], [], True)
    with raises_naming(ConfigError, folder):
        check_outputs([folder], [], True)
    with raises_naming(ConfigError, "there.json", "--overwrite"):
        check_outputs([folder / "there.json"], [], False)
    with raises_naming(ConfigError, "below"):
        check_outputs([folder / "there.json" / "below"], [], False)
    check_outputs([folder / "there.json", folder / "deep" / "new", None], [folder / "read.parquet"], True)
