import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.yaml_files import load_yaml
from tests.datasets.command import run


def test_json_says_what_was_found(mind, tmp_path, capsys):
    assert run("mind", "--source", mind, "--out", tmp_path / "small", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["experiments"] == ["DIN_small", "DIN_MM_small"]
    assert document["splits"]["train"] == {
        "rows": 3, "labelled": 3, "positives": 1, "without_history": 0, "history_items": 6, "left_out": 0,
        "unknown_items": 1, "cold": 0,
    }  # fmt: skip
    assert (document["items"], document["users"], document["trained_items"]) == (4, 3, 2)


def test_summary_names_the_commands_to_go_on_with(microlens, tmp_path, capsys):
    assert run("microlens", "--source", microlens, "--out", tmp_path / "micro") == 0
    text = capsys.readouterr().out
    assert f"fuxictr-mm train --config {tmp_path / 'micro'} --expid DIN_MM_micro" in text
    assert "text_emb: 100.0%" in text


def test_files_of_the_working_directory_are_not_taken_for_those_of_the_dataset(microlens, tmp_path, monkeypatch):
    out = tmp_path / "micro"
    assert run("microlens", "--source", microlens, "--out", out, "--quiet") == 0
    here = tmp_path / "here"
    here.mkdir()
    (here / "items.parquet").write_bytes(b"of others")
    (here / "train").mkdir()
    monkeypatch.chdir(here)
    dataset = Experiment.load("DIN_micro", "../micro").config.dataset
    assert Path(dataset.train_data).resolve() == out / "train"
    assert Path(dataset.item_info[0]).resolve() == out / "items.parquet"


def test_a_changed_configuration_is_kept(microlens, tmp_path):
    arguments = ("microlens", "--source", microlens, "--out", tmp_path / "micro", "--quiet")
    assert run(*arguments) == 0
    (tmp_path / "micro" / "model_config.yaml").write_text("mine: {model: DIN, dataset_id: micro}\n")
    assert run(*arguments) == 0
    assert list(load_yaml(tmp_path / "micro" / "model_config.yaml")) == ["mine"]


def test_overwrite_begins_again(microlens, tmp_path):
    arguments = ("microlens", "--source", microlens, "--out", tmp_path / "micro", "--quiet")
    assert run(*arguments) == 0
    assert run(*arguments, "--max_len", 3) == 2
    assert run(*arguments, "--max_len", 3, "--overwrite") == 0


def test_another_start_reads_nothing_again_unless_something_changed(microlens, tmp_path, monkeypatch, capsys):
    arguments = ("microlens", "--source", microlens, "--out", tmp_path / "micro", "--json")
    assert run(*arguments) == 0
    first = json.loads(capsys.readouterr().out)
    writes = []
    monkeypatch.setattr(Writer, "_write", lambda self, write=Writer._write: writes.append(self) or write(self))
    assert run(*arguments) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert not writes
    (tmp_path / "micro" / "items.parquet").unlink()
    assert run(*arguments) == 0
    assert len(writes) == 1
    assert json.loads(capsys.readouterr().out) == first
    (tmp_path / "micro" / "model_config.yaml").unlink()
    assert run(*arguments) == 0
    assert (tmp_path / "micro" / "model_config.yaml").exists()
    (tmp_path / "micro" / ".finished.json").write_text('{"summary": {')  # as of another version, or cut off
    assert run(*arguments) == 0
    assert len(writes) == 3
    pairs = next(microlens.glob("*_pairs.csv"))
    pairs.write_bytes(pairs.read_bytes() + b"1,2,1683378629553\n")
    assert run(*arguments) == 2
    assert run(*arguments, "--overwrite") == 0
    assert len(writes) == 4


def test_another_start_says_the_same(microlens, tmp_path, capsys):
    arguments = ("microlens", "--source", microlens, "--out", tmp_path / "micro")
    texts = []
    for _ in range(2):
        assert run(*arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "embedding_regularizer" in texts[0]


@pytest.mark.slow
def test_files_that_are_gone_are_written_again_and_changed_ones_are_refused(tmp_path):
    source, out = tmp_path / "logs", tmp_path / "shop"
    source.mkdir()
    rows = "".join(f"{n % 7},{n % 5},{n},{n % 2}\n" for n in range(80))
    (source / "interactions.csv").write_text("user,item,time,click\n" + rows)
    arguments = ("log", "--source", source, "--out", out, "--labels", "click", "--quiet")
    assert run(*arguments) == 0
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    parts = [out / name / "part-00000.parquet" for name in ("train", "valid", "test", "histories")]
    for path in parts:
        path.unlink()
    assert run(*arguments) == 0
    for content in (written[parts[0]][:-9], written[parts[0]] + b"\0"):
        parts[0].write_bytes(content)
        assert run(*arguments) == 2
    parts[0].unlink()
    assert run(*arguments) == 0
    assert {path: path.read_bytes() for path in written} == written


@pytest.mark.parametrize("wrong", ["no source", "source inside"])
def test_overwrite_deletes_nothing_before_the_source_is_there(microlens, tmp_path, wrong):
    out = tmp_path / "micro"
    assert run("microlens", "--source", microlens, "--out", out, "--quiet") == 0
    source = tmp_path / "mistyped"
    if wrong == "source inside":
        source = out / "raw"
        shutil.copytree(microlens, source)
    before = sorted(out.rglob("*"))
    assert run("microlens", "--source", source, "--out", out, "--quiet", "--overwrite") == 2
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["kuairandom"], "kuairand"),
        (["microlens", "--max_len", "0"], "--max_len"),
        (["no_such_module:Reader"], "no_such_module"),
        (["json:loads"], "json:loads"),
        (["microlens", "--labels", "like"], "--labels like"),
    ],
)
def test_bad_arguments_exit_with_2(arguments, named, microlens, tmp_path, capsys):
    assert run(*arguments, "--source", microlens, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "train").exists()


def test_labels_to_train_on(kuairand, tmp_path, capsys):
    options = ("--out", tmp_path / "k", "--quiet", "--labels", "is_click", "is_like")
    arguments = ("kuairand", "--source", kuairand, *options)
    assert run(*arguments) == 0
    experiment = Experiment.load("DIN_k", tmp_path / "k", verbose=0, epochs=1, model_root=str(tmp_path / "ck"))
    assert experiment.config.dataset.label_names == ["is_click", "is_like"]
    assert {"is_click_AUC", "is_like_AUC", "AUC"} <= experiment.fit().valid.keys()
    capsys.readouterr()
    assert run(*arguments[:-1], "long_view") == 2  # the configuration is kept
    assert "dataset_config.yaml" in capsys.readouterr().err
    assert run(*arguments[:-1], "long_view", "--overwrite") == 0
    assert Experiment.load("DIN_k", tmp_path / "k").config.dataset.label_names == ["is_click", "long_view"]


def test_a_reader_of_the_user(tmp_path, monkeypatch, capsys):
    (tmp_path / "shop.py").write_text(
        '''
import polars as pl
from fuxictr_mm.datasets.reader import Reader, Rows

class Shop(Reader):
    """Two users and text ids."""

    def files(self):
        return self.find("clicks.csv")

    def items(self):
        return pl.DataFrame({"item_id": ["B00X", "B00Y"]})

    def values(self, name):
        return pl.Series(["ann", "bob"])

    def chunks(self):
        return ["all"]

    def rows(self, chunk):
        split = pl.when(pl.col("label").is_null()).then(pl.lit("test")).otherwise(pl.lit("train"))
        clicks = pl.read_csv(self.files()[0]).with_columns(split.alias("split"))
        yield Rows(clicks, pl.Series([["B00Y"]] * len(clicks)).to_arrow())
'''
    )
    (tmp_path / "clicks.csv").write_text("user_id,item_id,label\nann,B00X,1\nbob,B00Y,0\nbob,B00Z,1\nann,B00Y,\n")
    monkeypatch.chdir(tmp_path)
    assert run("shop:Shop", "--source", tmp_path, "--out", tmp_path / "out", "--json") == 0
    split = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert (split["rows"], split["left_out"], split["history_items"]) == (2, 1, 2)
    has_label = {split: "label" in pl.read_parquet(tmp_path / "out" / split).columns for split in ("train", "test")}
    assert has_label == {"train": True, "test": False}
