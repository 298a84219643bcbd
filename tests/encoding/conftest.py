import pytest

from tests.encoding.raw import rows_of, write_csv


@pytest.fixture
def folder(tmp_path):
    for seed, split in enumerate(("train", "valid", "test")):
        write_csv(tmp_path / f"{split}.csv", rows_of(60, seed))
    return tmp_path
