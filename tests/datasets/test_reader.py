"""What every reader of a public dataset does, on its miniature."""

import importlib
import shutil

import pyarrow.parquet as pq
import pytest

from fuxictr_mm.datasets.reader import list_readers
from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.experiment import Experiment
from tests.errors import raises_naming

READERS = ("amazon-electronics", "kuairand", "longctr", "microlens", "mind", "taobao-mm")


@pytest.fixture
def source(request):
    """Give the miniature of a reader by its name."""
    return lambda name: request.getfixturevalue(name.replace("-", "_"))


def test_every_reader_has_a_miniature():
    assert tuple(list_readers()) == tuple(sorted([*READERS, "log"]))  # which test_log.py tests


@pytest.mark.parametrize("name", READERS)
def test_what_is_prepared_trains(name, source, prepare, tmp_path):
    folder, summary, expids = prepare(name, source(name))
    for expid in expids:
        settings = {"epochs": 1, "batch_size": 64, "record": False, "model_root": str(tmp_path / "runs"), "verbose": 0}
        run = Experiment.load(expid, folder, **settings).fit()
        assert 0 <= run.metrics["valid"]["AUC"] <= 1
    rows = sum(len(pq.read_table(folder / split)) for split in summary.splits)
    assert rows == sum(split.rows for split in summary.splits.values())


@pytest.mark.parametrize("name", READERS)
def test_the_user_is_a_feature_where_users_of_valid_are_in_train(name, source, prepare, read_split, monkeypatch):
    monkeypatch.setattr("fuxictr_mm.datasets.experiments.USER_ROWS", 0)
    folder, _, expids = prepare(name, source(name))
    fields = Experiment.load(expids[0], folder).config.dataset.feature_cols
    is_feature = any(field.name == "user_id" and field.type == "categorical" for field in fields)
    assert is_feature == any(expid.startswith("LightFM") for expid in expids) == (name in ("kuairand", "microlens"))
    known = {row["user_id"] for row in read_split(folder, "train")}
    assert not is_feature or all(row["user_id"] in known for row in read_split(folder, "valid"))


@pytest.mark.parametrize("name", READERS)
def test_another_start_continues_and_gives_the_same_rows(name, source, prepare, monkeypatch):
    path = source(name)
    whole, summary, _ = prepare(name, path)
    module = importlib.import_module(f"fuxictr_mm.datasets.{name.replace('-', '_')}")
    for size in ("CHUNK_ROWS", "CHUNK_USERS", "CHUNK_IMPRESSIONS", "BLOCK_BYTES"):
        if hasattr(module, size):
            monkeypatch.setattr(
                module, size, {"CHUNK_ROWS": 19, "CHUNK_USERS": 4, "CHUNK_IMPRESSIONS": 1, "BLOCK_BYTES": 4096}[size]
            )
    written = Writer._write_chunk
    calls = []

    def killed(self, number, chunk):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(number)
        return written(self, number, chunk)

    monkeypatch.setattr(Writer, "_write_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(name, path, folder="again")
    monkeypatch.setattr(Writer, "_write_chunk", written)
    again, summary_again, _ = prepare(name, path, folder="again")
    if name == "microlens":  # negatives are sampled by range of users
        for split in ("valid", "test"):
            summary_again.splits[split].cold = summary.splits[split].cold
    assert summary_again == summary
    for split in summary.splits:
        assert len(list((again / split).iterdir())) >= len(list((whole / split).iterdir()))
        rows = [pq.read_table(folder / split).to_pylist() for folder in (whole, again)]
        if name == "microlens":
            rows = [[row for row in part if row["label"] == 1] for part in rows]
        assert sorted(rows[0], key=str) == sorted(rows[1], key=str)
    others = [file.relative_to(whole) for file in whole.glob("*.parquet")]
    assert all((whole / file).read_bytes() == (again / file).read_bytes() for file in others)
    assert not (again / ".scratch").exists()


@pytest.mark.parametrize("name", READERS)
def test_missing_files_are_named(name, prepare, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MissingFileError, match=str(empty)):
        prepare(name, empty)


@pytest.mark.parametrize("name", READERS)
def test_users_of_all_splits_are_apart(name, source, prepare, read_split):
    folder, summary, _ = prepare(name, source(name))
    users = {split: {row["user_id"] for row in read_split(folder, split)} for split in summary.splits}
    assert all(users.values())
    assert not any(None in known for known in users.values())


@pytest.mark.parametrize("name", READERS)
def test_two_datasets_in_one_folder_are_refused(name, source, prepare, tmp_path):
    path = source(name)
    both = tmp_path / "both"
    for folder in ("one", "two"):
        shutil.copytree(path, both / folder)
    with raises_naming(ConfigError, str(both)):
        prepare(name, both)


def test_hidden_copies_are_no_second_dataset(microlens, prepare):
    (microlens / "__MACOSX").mkdir()
    (microlens / "__MACOSX" / "._MicroLens-100k_pairs.csv").write_bytes(bytes(8))
    assert prepare("microlens", microlens)[1].splits["train"].rows
