"""FuxiCTR's datasets through the loaders: streamed, without a feature map, with items by roles; and what is refused."""

import bz2
import gzip
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.vocabulary import Vocabularies, Vocabulary
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from tests.configs import load_any_dataset as load_dataset
from tests.encoding.raw import COLUMNS, LABEL, flatten, params_of, rows_of, same, write_csv
from tests.encoding.test_encode import columns_of
from tests.errors import check_names, raises_naming
from tests.paths import ROOT
from tests.tensors import assert_equal_tensors, read_tensors
from tests.two_labels import write_world

DNN = """
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class PlainDNN(BaseModel):
    def __init__(self, feature_map, model_id="PlainDNN", gpu=-1, learning_rate=1e-3, embedding_dim=8, **kwargs):
        super().__init__(feature_map, model_id=model_id, gpu=gpu, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), hidden_units=[9], output_dim=1, output_activation="sigmoid")
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        return {"y_pred": self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))}
"""


def configuration(folder, model="PlainDNN", **dataset):
    """Write a configuration as FuxiCTR's users do, with a checkout's layout of model files."""
    (folder / "zoo" / "PlainDNN" / "src").mkdir(parents=True, exist_ok=True)
    (folder / "zoo" / "PlainDNN" / "src" / "PlainDNN.py").write_text(DNN)
    entry = {k: v for k, v in params_of(folder).items() if k.endswith("_data") or k in ("data_root", "data_format")}
    entry |= {"feature_cols": COLUMNS, "label_col": LABEL, **dataset}
    experiment = {
        "model": model, "dataset_id": "d", "epochs": 1, "batch_size": 32, "embedding_dim": 4, "tensorboard": False,
        "metrics": ["AUC", "gAUC"], "group_id": "user", "model_root": str(folder / "checkpoints"), "verbose": 0,
        "optimizer": "adam", "loss": "binary_crossentropy", "dnn_hidden_units": [8],
    }  # fmt: skip
    (folder / "dataset_config.yaml").write_text(json.dumps({"d": {k: v for k, v in entry.items() if v is not None}}))
    (folder / "model_config.yaml").write_text(json.dumps({"X": experiment}))
    return folder


def test_streamed_is_as_in_memory(folder):
    params = params_of(folder, group_id="user")
    needs = {"train": True, "test": False}
    memory = load_dataset(params, needs, flat=True)
    streamed = load_dataset({**params, "resident": False}, needs, flat=True)
    assert streamed.feature_map.features == memory.feature_map.features
    assert same(concatenate(streamed.splits["train"].chunks()), memory.splits["train"])


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
def test_a_model_of_fuxictr_trains_and_predicts(folder, resident):
    experiment = Experiment.load("X", configuration(folder), model_zoo=folder / "zoo", resident=resident)
    run = experiment.fit()
    assert run.valid.keys() == {"AUC", "gAUC"}
    predictions = experiment.predict()
    assert predictions.shape == (60,)
    raw = pl.read_csv(folder / "test.csv", infer_schema=False)
    raw.head(7).drop("clk").write_csv(folder / "few.csv")
    np.testing.assert_allclose(experiment.predict(folder / "few.csv"), predictions[:7], rtol=1e-6)


@pytest.mark.slow
def test_our_model_takes_target_and_history_by_roles(folder):
    columns = [c for c in COLUMNS if c["name"] != "item_id"]
    config = configuration(folder, "DIN", roles={"target": "shop", "history": "seen"}, feature_cols=columns)
    experiment = Experiment.load("X", config, model_zoo=ROOT / "model_zoo")
    dataset = experiment.load_dataset({"train": True})
    flat = load_dataset(experiment.config.to_dict(), {"train": True}, flat=True)
    plain, table = columns_of(flat, "train"), dataset.splits["train"]
    assert table.target.tolist() == plain["shop"].tolist()
    assert dataset.items.num_items == flat.feature_map.features["shop"]["vocab_size"]
    # FuxiCTR cuts to the first three of four; a history keeps the newest ones, without padding.
    for row, seen in zip(plain["seen"].tolist(), histories(table), strict=True):
        assert seen[: sum(i > 0 for i in row)] == [i for i in row if i]
    assert max(map(len, histories(table))) == 4
    assert {"shop", "seen"}.isdisjoint(dataset.feature_map.features)
    assert experiment.fit().valid["AUC"] >= 0


@pytest.mark.parametrize("freeze", [True, False])
def test_the_target_has_embeddings_of_a_file(folder, freeze):
    """As FuxiCTR's models have them; of the history, too."""
    values = np.arange(9, dtype="f4").reshape(3, 3) + 1
    np.savez(folder / "emb.npz", key=np.array(["a", "b", "never seen"]), value=values)
    given = {"pretrained_emb": str(folder / "emb.npz"), "pretrain_dim": 3, "freeze_emb": freeze, "embedding_dim": 3}
    columns = [{**c, "name": c["name"]} for c in COLUMNS if c["name"] not in ("item_id", "seen")]
    columns[1] = {**columns[1], "name": "city"}
    columns += [{**columns[1], "name": "shop", **given}, next(c for c in COLUMNS if c["name"] == "seen")]
    config = configuration(folder, "DIN", roles={"target": "shop", "history": "seen"}, feature_cols=columns)
    experiment = Experiment.load("X", config, model_zoo=ROOT / "model_zoo")
    dataset = experiment.load_dataset({"train": True})
    model = experiment.build_model(dataset)
    words = json.loads((Path(dataset.feature_map.data_dir) / "feature_vocab.json").read_text())["shop"]
    table = dict(model.named_parameters())[
        "embedding_layer.embedding_layer.embedding_layers.item_id.pretrain_embedding.weight"
    ]
    assert table.requires_grad is not freeze
    np.testing.assert_array_equal(table.detach().numpy()[[words[k] for k in ("a", "b", "never seen")]], values)
    experiment.fit()
    expected = experiment.predict()
    (folder / "emb.npz").unlink()  # the weights hold them
    (folder / "train.csv").unlink()
    np.testing.assert_array_equal(experiment.predict(), expected)


def histories(table):
    return [table.slice(i, i + 1).history_values.tolist() for i in range(len(table))]


def encoded(folder):
    """Write integers as FuxiCTR's processor leaves them, with padded sequences."""
    rng = np.random.default_rng(0)
    root = folder / "data" / "d"
    root.mkdir(parents=True)
    features = {
        "user": {"type": "meta"},
        "shop": {"source": "item", "type": "categorical", "padding_idx": 0, "vocab_size": 9},
        "seen": {"source": "", "type": "sequence", "share_embedding": "shop", "padding_idx": 0, "max_len": 4,
                 "vocab_size": 9},
        "price": {"source": "", "type": "numeric"},
    }  # fmt: skip
    for split in ("train", "valid"):
        arrays = {
            "user": rng.integers(0, 5, 40),
            "shop": rng.integers(1, 9, 40),
            "seen": np.sort(rng.integers(0, 9, (40, 4)) * rng.integers(0, 2, (40, 4)), axis=1)[:, ::-1].copy(),
            "price": rng.random(40).astype(np.float32),
            "clk": (np.arange(40) % 2).astype(np.float32),
        }
        np.savez(root / f"{split}.npz", **arrays)
        pl.DataFrame(arrays).write_parquet(root / f"{split}.parquet")
    content = {"dataset_id": "d", "labels": ["clk"], "features": [{k: v} for k, v in features.items()]}
    (root / "feature_map.json").write_text(json.dumps(content))
    return features, arrays


@pytest.mark.parametrize("form", ["parquet", "npz"])
def test_integers_with_a_feature_map(tmp_path, form):
    features, arrays = encoded(tmp_path)
    root = tmp_path / "data"
    params = {
        "dataset_id": "d", "data_root": str(root), "data_format": form, "resident": True, "group_id": "user",
        **{f"{split}_data": str(root / "d" / f"{split}.{form}") for split in ("train", "valid")},
    }  # fmt: skip
    loaded = load_dataset(params, {"train": True, "valid": True}, flat=True)
    assert {n: dict(s) for n, s in loaded.feature_map.features.items() if n != "user"} == {
        n: s for n, s in features.items() if n != "user"
    }
    found = columns_of(loaded, "valid")
    for name, column in arrays.items():
        torch.testing.assert_close(found[name].double(), torch.tensor(column).double(), msg=name)
    items = load_dataset({**params, "roles": {"target": "shop", "history": "seen"}}, {"valid": True}, flat=False)
    assert items.splits["valid"].target.tolist() == arrays["shop"].tolist()
    assert items.splits["valid"].history_values.tolist() == arrays["seen"][arrays["seen"] > 0].tolist()


@pytest.mark.parametrize("form", ["parquet", "npz"])
def test_settings_of_numbers_have_no_effect_on_encoded_files_and_the_log_says_so(tmp_path, form, caplog):
    _, arrays = encoded(tmp_path)
    root = tmp_path / "data"
    columns = [{"name": ["price"], "type": "numeric", "dtype": "float", "normalizer": "StandardScaler", "fill_na": 3}]
    params = {
        "dataset_id": "d", "data_root": str(root), "data_format": form, "feature_cols": columns, "resident": True,
        "label_col": {"name": "clk"}, "valid_data": str(root / "d" / f"valid.{form}"),
    }  # fmt: skip
    with caplog.at_level("INFO"):
        loaded = load_dataset(params, {"valid": True}, flat=True)
    assert columns_of(loaded, "valid")["price"].tolist() == arrays["price"].tolist()
    for key in ("normalizer", "fill_na"):
        assert [record for record in caplog.records if key in record.message and "price" in record.message]


def test_a_feature_map_is_checked(tmp_path):
    encoded(tmp_path)
    root = tmp_path / "data"
    params = {"dataset_id": "d", "data_root": str(root), "valid_data": str(root / "d" / "valid.parquet")}
    path = root / "d" / "feature_map.json"
    text = path.read_text()
    path.write_text(text.replace('"max_len"', '"feature_encoder": "__import__(\'os\')", "max_len"'))
    with pytest.raises(ConfigError, match="feature_encoder"):
        load_dataset(params, {"valid": True}, flat=True)
    path.write_text(text.replace('"features"', '"feats"'))
    with pytest.raises(DataError, match=r"feature_map\.json"):
        load_dataset(params, {"valid": True}, flat=True)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"feature_map\.json"):
        load_dataset(params, {"valid": True}, flat=True)


def changed(**settings):
    """Return the features with settings of one changed."""
    name = settings.pop("name")
    return [{**c, **settings} if c["name"] == name else c for c in COLUMNS]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            changed(name="price", category_processor="quantile_bucket"),
            ["price", "category_processor", "quantile_bucket"],
        ),
        (changed(name="copy", preprocess="convert_hour"), ["copy", "preprocess", "convert_hour"]),
        (changed(name="item_id", remap=False), ["item_id", "remap"]),
        (changed(name="seen", share_embedding="item_id"), ["seen", "share_embedding", "item_id"]),
        (changed(name="seen", share_embedding="tags"), ["seen", "share_embedding", "tags"]),
        (changed(name="seen", splitter=""), ["seen", "splitter"]),
        (changed(name="age", fill_na="none"), ["age", "fill_na", "none"]),
        (changed(name="age", pretrained_emb="emb.npz"), ["age", "pretrained_emb", "numeric"]),
    ],
)
def test_what_is_not_supported_is_refused(folder, columns, words):
    with raises_naming(ConfigError, *words):
        load_dataset(params_of(folder, columns), {"train": True}, flat=True)


def test_missing_files_are_named(folder):
    params = params_of(folder)
    (folder / "valid.csv").unlink()
    with raises_naming(MissingFileError, "valid.csv"):
        load_dataset(params, {"train": True, "valid": True}, flat=True)
    with raises_naming(MissingFileError, "'copy'", "emb.npz"):
        load_dataset(
            {**params, "feature_cols": changed(name="copy", pretrained_emb="emb.npz")}, {"train": True}, flat=True
        )


def edited(folder, change):
    rows = rows_of(60)
    change(rows)
    write_csv(folder / "train.csv", rows)
    return params_of(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[41].update(price="cheap"), ["train.csv", "price", "row 41", "'cheap'"]),
        (lambda rows: rows[3].update(item_id="4.5"), ["train.csv", "item_id", "row 3", "'4.5'"]),
        (lambda rows: rows[5].update(clk="yes"), ["train.csv", "clk", "row 5", "'yes'"]),
        (lambda rows: rows[5].update(clk=""), ["train.csv", "clk", "row 5", "null"]),
        (lambda rows: rows[5].update(clk="7"), ["train.csv", "clk", "row 5", "7"]),
        (lambda rows: rows[7].update(age="inf"), ["train.csv", "age"]),
        (lambda rows: rows[7].update(price="1e300"), ["train.csv", "price", "row 7", "3.4e38"]),
        (lambda rows: [row.pop("city") for row in rows], ["train.csv", "city"]),
        (lambda rows: [row.pop("clk") for row in rows], ["train.csv", "clk"]),
    ],
)
def test_wrong_data_is_named_with_file_column_row_and_value(folder, change, words):
    with raises_naming(DataError, *words):
        load_dataset(edited(folder, change), {"train": True}, flat=True)


def test_a_text_among_the_numbers_along_a_history_is_named(folder):
    rows = rows_of(60)
    for row in rows:
        row["waits"] = "^".join("1.5" for _ in row["seen"].split("^"))
    for split in ("valid", "test"):
        write_csv(folder / f"{split}.csv", rows)
    rows[11].update(seen="a^b", waits="1.5^soon")
    write_csv(folder / "train.csv", rows)
    waits = {"name": "waits", "active": True, "dtype": "float", "type": "sequence", "history": "seen", "max_len": 3}
    columns = [*COLUMNS, waits]
    with raises_naming(DataError, "train.csv", "waits", "row 11", "'1.5^soon'"):
        load_dataset(params_of(folder, columns), {"train": True}, flat=True)


def test_a_missing_label_may_be_filled(folder):
    params = edited(folder, lambda rows: rows[5].update(clk=""))
    label = load_dataset({**params, "label_col": {**LABEL, "fill_na": 1}}, {"train": True}, flat=True)
    assert label.splits["train"].label[5] == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"unfinished\n'])
def test_a_damaged_file_is_an_error(folder, content):
    (folder / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv"):
        load_dataset(params_of(folder), {"train": True}, flat=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.encode("utf-16"), ["UTF-16"]),
        (lambda text: text.encode("utf-16-be"), ["UTF-16"]),
        (
            lambda text: gzip.compress(text.encode()),
            ["gunzip"],
        ),  # polars reads it, and blank lines are looked for in it
        (lambda text: zlib.compress(text.encode()), ["zlib"]),
        (lambda text: bz2.compress(text.encode()), ["bunzip2"]),
        (lambda text: b"PAR1" + text.encode() + b"PAR1", ["data_format: parquet"]),
        (lambda text: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + text.encode(), ["Excel"]),
        (lambda text: b"ARROW1\0\0" + text.encode(), ["Feather"]),
        (lambda text: b"\x04\x22\x4d\x18" + text.encode(), ["lz4"]),
        (lambda text: b"\xff\x06\x00\x00sNaPpY" + text.encode(), ["snappy"]),
        (lambda text: b"\n<!DOCTYPE html><html>", ["web page"]),
        (lambda text: text.replace("\n", "\r").encode(), ["end in CR"]),
        (lambda text: text.encode("cp1252", errors="replace"), ["UTF-8"]),
        (lambda text: text.replace(",", ";").encode(), ['sep: ";"']),
        (lambda text: text.replace(",", "\t").encode(), ['sep: "\\t"']),
        (lambda text: (text + text.split("\n")[3].replace(",", ',"', 1)).encode(), ["line 62", '"5"" disk"']),
        (lambda text: text.replace(",city", ",price,city", 1).replace("\n", ",x\n").encode(), ["'price'"]),
    ],
)
def test_a_csv_file_as_a_spreadsheet_leaves_it_says_what_to_change(folder, change, words):
    path = folder / "train.csv"
    path.write_bytes(change(path.read_text()))
    with raises_naming(DataError, "train.csv", *words):
        load_dataset(params_of(folder), {"train": True}, flat=True)


@pytest.mark.parametrize("name", ["PAR1", "BZh", "BZh9", "ARROW1", "PK", "ORC", "BM"])
def test_a_column_may_have_the_name_of_a_format(folder, name):
    rows = [{name: row["city"], **row} for row in rows_of(60)]
    write_csv(folder / "train.csv", rows)
    column = {"name": name, "active": True, "dtype": "str", "type": "categorical"}
    loaded = load_dataset({**params_of(folder), "feature_cols": [column]}, {"train": True}, flat=True)
    assert len(loaded.splits["train"]) == 60


@pytest.mark.parametrize("unused", [True, False])
def test_a_row_with_more_fields_than_the_header_is_named(folder, unused):
    """It would be read shifted, where a column is not used."""
    path = folder / "train.csv"
    header, *lines = path.read_text().split("\n")
    if not unused:
        header, *lines = pl.read_csv(path, infer_schema=False).drop("unused").write_csv().split("\n")
    lines[41] = "red, " + lines[41]
    path.write_text("\n".join([header, "", *lines]))
    with raises_naming(DataError, "train.csv", "row 41", f"expected {header.count(',') + 1}"):
        load_dataset(params_of(folder), {"train": True}, flat=True)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_skipped_and_rows_of_missing_values_are_not(folder, caplog, end):
    """As pandas does; a blank line inside quotes belongs to its field."""
    path, params = folder / "test.csv", params_of(folder)
    header, *lines = path.read_text().split("\n")[:-1]
    lines[7] = '"a\n\nb"' + lines[7][lines[7].index(",") :]
    lines.append("," * header.count(","))

    def columns(*lines):
        path.write_bytes(end.join(lines).encode())
        table = load_dataset(params, {"test": None}, flat=True).splits["test"]
        return {name: column.tolist() for name, column in flatten(table).items() if column is not None}

    expected = columns(header, *lines, "")
    assert len(expected["city"]) == 61
    assert columns("", header, "", *lines[:9], " ", "", *lines[9:], "", "  ") == expected
    assert "test.csv: 5 blank lines are skipped" in caplog.text


def test_rows_with_fewer_fields_than_the_header_are_counted(folder, caplog):
    path, params = folder / "train.csv", params_of(folder)
    frame = pl.read_csv(path, infer_schema=False)
    header, *lines = frame.with_columns(last=pl.lit("1")).write_csv().split("\n")[:-1]
    lines[41], lines[50] = (line.rsplit(",", 1)[0] for line in (lines[41], lines[50]))
    path.write_text("\n".join([header, "", *lines]))
    found = load_dataset(params, {"train": True}, flat=True).summaries["train"]
    assert found.num_rows == len(lines)
    assert [r.message for r in caplog.records if "2 rows" in r.message and "row 41" in r.message]


@pytest.mark.parametrize(
    "roles",
    [
        {"target": "nowhere", "history": "seen"},
        {"target": "shop", "history": "city"},
        {"target": "city", "history": "seen"},
    ],
)
def test_roles_must_name_columns_of_one_vocabulary(folder, roles):
    with pytest.raises(ConfigError, match="roles"):
        load_dataset(params_of(folder, roles=roles), {"train": True}, flat=False)


def test_our_model_without_items_is_told_of_roles(folder):
    with pytest.raises(ConfigError, match="roles"):
        Experiment.load("X", configuration(folder, "DIN"), model_zoo=ROOT / "model_zoo")


@pytest.mark.slow
def test_prediction_writes_a_submission_and_other_commands_ask_for_items(folder):
    configuration(folder)
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    Experiment.load("X", folder, model_zoo=folder / "zoo").fit()
    words = ["--expid", "X", "--config", ".", "--model_zoo", "zoo"]
    command = [sys.executable, str(ROOT / "prediction.py"), *words]
    assert subprocess.run(command, cwd=folder, capture_output=True, env=env).returncode == 0
    assert (folder / "submission" / "X.zip").is_file()
    for name in ("diagnose", "influence"):
        done = subprocess.run(
            [sys.executable, "-m", "fuxictr_mm", name, *words], cwd=folder, capture_output=True, env=env
        )
        assert done.returncode == 2
        assert b"item_info" in done.stderr


@pytest.mark.slow
def test_bad_data_ends_a_command_with_exit_code_2(folder):
    edited(folder, lambda rows: rows[41].update(price="cheap"))
    configuration(folder)
    command = [sys.executable, str(ROOT / "run_expid.py"), "--expid", "X", "--model_zoo", "zoo"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "row 41" in done.stderr


def test_several_labels_of_raw_columns(tmp_path):
    write_world(tmp_path, "csv", rows=1200, epochs=3)
    options = {"model_zoo": tmp_path / "zoo", "model_root": str(tmp_path / "ck"), "shuffle": False}
    memory, streamed = (Experiment.load("Towers", tmp_path, resident=r, **options) for r in (True, False))
    raw = pl.read_csv(tmp_path / "train.csv")
    table = memory.load_dataset({"train": True}).splits["train"]
    expected = raw.select(pl.col("click", "like").cast(pl.Float32)).to_numpy()
    np.testing.assert_array_equal(table.label.numpy(), expected)
    assert np.isnan(expected[:, 1]).sum() == raw["like"].null_count() > 300
    runs = [experiment.fit() for experiment in (memory, streamed)]
    assert runs[0].valid == runs[1].valid
    assert min(runs[0].valid["click_AUC"], runs[0].valid["like_AUC"]) > 0.8
    pl.read_csv(tmp_path / "test.csv").drop("click", "like").write_csv(tmp_path / "unlabelled.csv")
    predictions = memory.predict(tmp_path / "unlabelled.csv")
    assert predictions.shape == (200, 2)
    np.testing.assert_array_equal(predictions, memory.predict())


@pytest.mark.parametrize(("source", "text"), [("price", "0.50"), ("age", "007")])
def test_a_run_that_numbered_copied_numbers_as_texts_is_refused(folder, source, text):
    copy = {
        "name": "copied",
        "active": True,
        "dtype": "str",
        "type": "categorical",
        "preprocess": f"copy_from({source})",
    }
    params, trained = params_of(folder, [*COLUMNS, copy]), Vocabularies()
    load_dataset(params, {"train": True}, trained, flat=True)
    del trained.settings["copied"]  # as an earlier version left it
    trained.save(folder / "run.parquet")
    load_dataset(params, {"valid": True}, Vocabularies.load(folder / "run.parquet"), flat=True)
    name = next(name for name in trained if name.endswith("copied"))
    trained[name] = Vocabulary(pa.array([text, *trained[name].values.to_pylist()[1:]]))
    trained.save(folder / "run.parquet")
    with raises_naming(DataError, "run.parquet", "'copied'", text):
        load_dataset(params, {"valid": True}, Vocabularies.load(folder / "run.parquet"), flat=True)


def test_labels_of_a_feature_map(tmp_path):
    _, arrays = encoded(tmp_path)
    root = tmp_path / "data"
    path = root / "d" / "feature_map.json"
    path.write_text(path.read_text().replace('["clk"]', '["clk", "price"]'))
    params = {"dataset_id": "d", "data_root": str(root), "valid_data": str(root / "d" / "valid.parquet")}
    loaded = load_dataset({**params, "task": "regression"}, {"valid": True}, flat=True)
    assert loaded.feature_map.labels == ["clk", "price"]
    np.testing.assert_array_equal(loaded.splits["valid"].label.numpy(), np.stack([arrays["clk"], arrays["price"]], 1))
    path.write_text(path.read_text().replace('["clk", "price"]', "[]"))
    with raises_naming(DataError, "feature_map.json", "labels"):
        load_dataset(params, {"valid": True}, flat=True)


def test_scoring_needs_no_training_files(tmp_path):
    write_world(tmp_path, "csv", rows=400, epochs=1)
    experiment = Experiment.load("Towers", tmp_path, model_zoo=tmp_path / "zoo")
    run = experiment.fit()
    expected = experiment.predict(tmp_path / "test.csv")
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").unlink()
    np.testing.assert_array_equal(experiment.predict(tmp_path / "test.csv"), expected)
    np.testing.assert_array_equal(run.predict(pl.read_csv(tmp_path / "test.csv").drop("click", "like")), expected)
    np.testing.assert_array_equal(experiment.predict(), expected)
    with pytest.raises(MissingFileError, match=r"train\.csv"):
        experiment.fit()
    write_world(tmp_path, "csv", rows=600, epochs=1)
    experiment.fit()
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").unlink()
    assert len([*(tmp_path / "d").glob("encoded-*")]) == 2
    assert experiment.predict().shape == expected.shape  # the vocabularies are those of the run
    for folder in (tmp_path / "d").glob("encoded-*"):
        (folder / "manifest.json").write_text("{")
    with pytest.raises(MissingFileError, match=r"train\.csv"):
        experiment.predict()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_scores_after_the_training_file_has_changed(folder, form, caplog):
    """The ids, scales and lengths of sequences are those of the run, whose weights were trained on them."""
    options: dict = {}
    if form == "parquet":  # raw columns as well
        options = {"data_format": "parquet", "rebuild_dataset": True}
        for split in ("train", "valid", "test"):
            pl.read_csv(folder / f"{split}.csv", infer_schema=False).write_parquet(folder / f"{split}.parquet")
            options[f"{split}_data"] = str(folder / f"{split}.parquet")
    experiment = Experiment.load("X", configuration(folder, **options), model_zoo=folder / "zoo")
    run = experiment.fit()
    expected = experiment.predict()
    dataset = experiment.load_dataset({"valid": True}, run.weights)
    file = folder / f"train.{form}"
    rows = pl.read_csv(file, infer_schema=False) if form == "csv" else pl.read_parquet(file)
    changed = rows[::-1][:-30].with_columns(pl.lit("11.5").alias("age"))  # other counts, another scale, fewer values
    getattr(changed, f"write_{form}")(file)
    np.testing.assert_array_equal(experiment.predict(), expected)
    np.testing.assert_array_equal(run.predict(folder / f"test.{form}"), expected)
    again = experiment.load_dataset({"valid": True}, run.weights)
    assert again.feature_map.features == dataset.feature_map.features
    (folder / "checkpoints" / "d" / "X.vocabulary.parquet").unlink()  # of an earlier version: the files decide
    caplog.clear()
    assert not np.allclose(experiment.predict(), expected)
    assert any("X.vocabulary.parquet" in r.message for r in caplog.records if r.levelname == "WARNING")


def test_a_killed_run_of_raw_columns_resumes_bit_for_bit(tmp_path):
    write_world(tmp_path, "csv", rows=1200)
    options = {"model_zoo": tmp_path / "zoo", "resident": False, "buffer_rows": 500}

    def fit(folder, die_at=None, resume=False):
        experiment = Experiment.load("Towers", tmp_path, model_root=str(tmp_path / folder), **options)
        build = experiment.build_model

        def build_model(dataset):
            model = build(dataset)
            step = model.train_step

            def train_step(batch):
                if model._total_steps == die_at:
                    raise KeyboardInterrupt
                return step(batch)

            model.train_step = train_step
            return model

        experiment.build_model = build_model
        try:
            experiment.fit(resume=resume)
        except KeyboardInterrupt:
            assert experiment.paths.checkpoint.exists()
            return None
        return read_tensors(experiment.paths.weights)

    expected = fit("whole")
    assert fit("killed", die_at=9) is None
    found = fit("killed", resume=True)
    assert_equal_tensors(found, expected)


def test_labels_and_meta_columns_that_scoring_does_not_need(folder, caplog):
    """Of the dataset's own test file, its labels are read by a later run although a prediction came first."""
    experiment = Experiment.load("X", configuration(folder, test_data=None), model_zoo=folder / "zoo")
    assert list(experiment.fit().metrics) == ["valid"]
    raw = pl.read_csv(folder / "test.csv", infer_schema=False)
    expected = experiment.predict(folder / "test.csv")
    texts, broken = raw.with_columns(clk=pl.lit("?")), raw.with_columns(clk=pl.Series(["x", *raw["clk"][1:]]))
    for frame in (texts, broken, raw.drop("user", "clk")):
        frame.write_csv(folder / "other.csv")
        np.testing.assert_array_equal(experiment.predict(folder / "other.csv"), expected)
    experiment = Experiment.load("X", configuration(folder), model_zoo=folder / "zoo")
    np.testing.assert_array_equal(experiment.predict(), expected)
    assert experiment.fit().test.keys() == {"AUC", "gAUC"}
    texts.write_csv(folder / "test.csv")
    assert list(experiment.fit().metrics) == ["valid"]
    assert "test.csv: clk is text in all rows" in caplog.text
    broken.write_csv(folder / "test.csv")
    with raises_naming(DataError, "test.csv", "clk", "row 0", "'x'"):
        experiment.fit()


@pytest.mark.parametrize(
    ("history", "target", "words"),
    [
        ("{} {}", "{}", ["seen", "splitter"]),
        ("[{}, {}]", "{}", ["seen", "splitter"]),
        ("{}^{}", "{}.0", ["seen", "0.0%"]),
        ("{}^{}", "{}", None),
        ("a b{}^a b{}", "a b{}", None),
    ],
)
def test_histories_of_which_few_entries_are_targets_are_told(tmp_path, caplog, history, target, words):
    rows = [
        {"shop": target.format(n % 7), "seen": history.format(n % 5, n % 6), "clk": str(n % 2)} for n in range(20)
    ] + [{"shop": target.format(1), "seen": "", "clk": "1"}]
    write_csv(tmp_path / "train.csv", rows)
    columns = [
        {"name": "shop", "active": True, "dtype": "str", "type": "categorical"},
        *(column for column in COLUMNS if column["name"] == "seen"),
    ]
    params = params_of(tmp_path, columns, roles={"target": "shop", "history": "seen"})
    load_dataset(params, {"train": True}, flat=True)
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == (words is not None)
    for text in told:
        check_names(text, *words)
