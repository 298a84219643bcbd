"""Arguments of the autopilot, and what it refuses before it reads a file."""

import argparse
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.commands.autopilot import _seconds
from fuxictr_mm.files import try_lock
from tests.paths import ROOT


def test_time():
    assert [_seconds(text) for text in ("90s", "45m", "1.5h", "30")] == [90, 2700, 5400, 1800]
    for text in ("0m", "-1m", "soon", "3d"):
        with pytest.raises(argparse.ArgumentTypeError):
            _seconds(text)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            {"label_col": [{"name": n, "dtype": "float"} for n in ("click", "like")], "item_info": "items.parquet"},
            "like",
        ),
        ({"data_format": "csv", "roles": {"target": "asin"}}, "item_info"),
        ({"data_format": "parquet", "rebuild_dataset": True}, "item_info"),
        ({"data_format": "parquet", "label_col": None, "roles": {"target": "asin", "history": "seen"}}, "label_col"),
    ],
)
def test_what_it_does_not_take_is_refused_before_a_file_is_read(tmp_path, capsys, change, word):
    columns = [
        {"name": "asin", "dtype": "str", "type": "categorical"},
        {"name": "seen", "dtype": "str", "type": "sequence", "share_embedding": "asin"},
    ]
    entry = {"data_root": "./", "train_data": "./train", "valid_data": "./valid", "feature_cols": columns}
    entry |= {"label_col": {"name": "click", "dtype": "float"}, **change}
    (tmp_path / "dataset_config.yaml").write_text(json.dumps({"shop": entry}))
    with pytest.raises(SystemExit) as stopped:
        main(["autopilot", "--dataset_id", "shop", "--config", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "autopilot: " in error
    assert word in error


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_label_of_numbers_is_refused_before_anything_is_trained(tmp_path, capsys, split):
    entry = {"data_root": "./", "item_info": "items.parquet", "label_col": {"name": "stars", "dtype": "float"}}
    entry |= {f"{name}_data": f"{name}.parquet" for name in ("train", "valid")}
    entry["feature_cols"] = [{"name": "item_id", "dtype": "int", "type": "categorical", "source": "item"}]
    (tmp_path / "dataset_config.yaml").write_text(json.dumps({"shop": entry}))
    for name in ("train", "valid"):
        stars = [0.0, 3.5 if name == split else 1.0]
        pq.write_table(pa.table({"item_id": [1, 2], "stars": stars}), tmp_path / f"{name}.parquet")
    with pytest.raises(SystemExit) as stopped:
        main(["autopilot", "--dataset_id", "shop", "--config", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    for word in (f"{split}.parquet", "stars", "row 1", "3.5", "regression"):
        assert word in error
    assert not list((tmp_path / "out").glob("*/AUTO_*"))


def test_an_unknown_dataset_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main(["autopilot", "--dataset_id", "tiny_m", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "did you mean 'tiny_mm'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_in_use_or_none_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    lock = try_lock(tmp_path / "out" / "tiny_mm" / "lock")
    (tmp_path / "file").touch()
    for out in ("out", "file"):
        with pytest.raises(SystemExit) as stopped:
            main(["autopilot", "--dataset_id", "tiny_mm", "--budget", "1s", "--out", str(tmp_path / out)])
        assert stopped.value.code == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert str(tmp_path / out) in error
    lock.release()
    assert [path.name for path in (tmp_path / "out" / "tiny_mm").iterdir()] == ["lock"]


def test_a_folder_keeps_its_configuration(tmp_path, capsys):
    entry = {"data_root": "./", "train_data": "./train", "valid_data": "./valid", "feature_cols": []}
    entry |= {"label_col": {"name": "click", "dtype": "float"}}
    errors = []
    for name in ("first", "second", "first"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "dataset_config.yaml").write_text(json.dumps({"shop": entry}))
        with pytest.raises(SystemExit) as stopped:
            main(
                ["autopilot", "--dataset_id", "shop", "--config", str(tmp_path / name), "--out", str(tmp_path / "out")]
            )
        assert stopped.value.code == 2
        errors.append(capsys.readouterr().err.strip().splitlines()[-1])
    named = str(tmp_path / "first" / "dataset_config.yaml")
    assert [named in error for error in errors] == [False, True, False]
    (tmp_path / "first").rename(tmp_path / "moved")  # with its file gone, the folder belongs to none
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["autopilot", "--dataset_id", "shop", "--config", str(tmp_path / "moved"), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "shop" / "look" / "dataset_config.yaml").resolve().parent.name == "moved"


@pytest.mark.parametrize("name", ["dataset_config.yaml", "dataset_config"])
def test_a_folder_that_was_copied_with_its_links_followed_goes_on(tmp_path, name, capsys):
    entry = {"data_root": "./", "train_data": "./train", "valid_data": "./valid", "feature_cols": []}
    config = tmp_path / "config" / name
    file = config if config.suffix else config / "shop.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"shop": {**entry, "label_col": {"name": "click", "dtype": "float"}}}))

    def start(out):
        with pytest.raises(SystemExit, match=r"^2$"):
            main(["autopilot", "--dataset_id", "shop", "--config", str(config.parent), "--out", str(tmp_path / out)])
        return capsys.readouterr().err.strip().splitlines()[-1]

    first = start("out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy", symlinks=False)
    assert start("copy").replace(str(tmp_path / "copy"), str(tmp_path / "out")) == first
    assert (tmp_path / "copy" / "shop" / "look" / name).is_symlink()
    shutil.copytree(tmp_path / "out", tmp_path / "other", symlinks=False)
    file.write_text(file.read_text() + "\n")
    assert str(tmp_path / "other" / "shop" / "look" / name) in start("other")
