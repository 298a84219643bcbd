"""Which runs are taken where data was changed between them, and perhaps back."""

from dataclasses import replace
from pathlib import Path

import pytest

from fuxictr_mm.data.fingerprint import hash_files
from fuxictr_mm.runs import Run, differences, different_files, left_out, present_first


@pytest.fixture
def make(tmp_path):
    """Make a run of files with these contents; they lie there as the last run has them."""

    def run(name, train="a", test="a", **others):
        files = {"train_data": train, "test_data": test}
        config, hashes = {}, {}
        for setting, content in files.items():
            path = tmp_path / f"{setting}.parquet"
            path.write_text(content)
            config[setting], hashes[setting] = str(path), hash_files(path)
        return Run(Path(name), name, "X", "d", **{"config": config, "environment": {"data": hashes}, **others})

    return run


def test_runs_of_the_data_as_it_is_now_come_first(make):
    first, other, test = make("first"), make("other", train="b"), make("test", test="b")
    last = make("last")
    newest_first = [other, test, last, first]
    assert present_first(newest_first) == [last, first, test, other]
    note = left_out(newest_first, last)
    assert all(part in note for part in ("other", "test", "train_data", "test_data"))
    make("now", train="b")
    assert present_first(newest_first) == newest_first
    make("now", train="c")
    assert present_first(newest_first) == newest_first
    assert left_out(newest_first, other) == ""


def test_runs_whose_data_is_unknown_come_after_those_of_the_data_as_it_is_now(make):
    older = make("older", environment={})
    known = make("known")
    assert present_first([older, known]) == [known, older]
    make("now", train="b")
    assert present_first([older, known]) == [older, known]
    Path(known.config["train_data"]).unlink()  # of a file that is gone, nothing is known to have changed
    Path(known.config["test_data"]).unlink()
    assert present_first([known, older]) == [known, older]


def test_data_that_is_gone_is_not_the_data_as_it_is_now(make, tmp_path):
    """As of a folder that was deleted after another was taken in its place, whose test file then changed."""
    gone = make("gone")
    folder = tmp_path / "second"
    folder.mkdir()
    paths = {name: str(folder / Path(path).name) for name, path in gone.config.items()}
    for name, path in paths.items():
        Path(path).write_text(f"second {name}")
    hashes = {name: hash_files(path) for name, path in paths.items()}
    kept = make("kept", config=paths, environment={"data": hashes})
    copied = make("copied", config=paths, environment={"data": gone.data})
    Path(gone.config["train_data"]).unlink()
    Path(paths["test_data"]).write_text("new")
    assert present_first([kept, gone]) == present_first([gone, kept]) == [kept, gone]
    assert "train_data" in left_out([gone, kept], kept)
    for path in paths.values():
        Path(path).write_text(Path(gone.config["test_data"]).read_text())  # all files of the fixture are alike
    assert present_first([gone, copied]) == [copied, gone]  # hashes are equal, the files of one are there


def test_the_test_file_orders_runs_of_one_configuration_only(make):
    settings = {"learning_rate": 0.001}
    old = make("old")
    new = [make(name, test="b") for name in ("new", "newer")]
    new = [replace(run, config={**run.config, **settings}) for run in new]
    make("now")
    assert present_first([*new[::-1], old]) == [*new[::-1], old]
    assert left_out([*new[::-1], old], new[1]) == ""
    back = make("back")
    back = replace(back, config={**back.config, **settings})
    assert present_first([new[0], old, back]) == [back, new[0], old]
    assert "(new: test_data" in left_out([new[0], old, back], back)  # without old, of another configuration


def test_files_of_experiments_are_compared_where_both_are_known(make):
    run, test = make("run"), make("test", test="b")
    older, other = make("older", environment={}), make("other", train="b")
    assert different_files({"A": run, "B": test, "C": older}) == []
    (note,) = different_files({"A": run, "B": other, "C": older, "D": test})
    assert f"train_data (A and D: {run.config['train_data']}; B: {run.config['train_data']})" in note
    (note,) = different_files({"A": run, "B": test}, "test")
    assert "test_data (A: " in note
    assert "same order" in note  # labels and groups do not tell rows apart
    valid = [replace(run, environment={"data": {"valid_data": name}}) for name in "ab"]
    assert "same order" in different_files(dict(zip("AB", valid, strict=True)))[0]


def test_what_differs(make):
    runs = [make("a"), make("b", train="b"), make("c", test="b")]
    assert differences(runs) == ["train_data"]  # the test file decides no weights
    assert differences([runs[0], make("d", config={"epochs": 2})]) == ["settings"]
    (unknown,) = differences([runs[0], make("e", environment={})])  # of an older version
    assert "hashes" in unknown
