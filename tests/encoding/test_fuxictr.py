"""FuxiCTR's datasets through the loaders: streamed, without a feature map, with items by roles; and what is refused."""

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.vocabulary import Vocabularies, Vocabulary
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from tests.configs import load_any_dataset as load_dataset
from tests.encoding.raw import COLUMNS, LABEL, columns_of, edited, params_of, rows_of, same, write_csv
from tests.errors import raises_naming


def test_streamed_is_as_in_memory(folder):
    params = params_of(folder, group_id="user")
    needs = {"train": True, "test": False}
    memory = load_dataset(params, needs, flat=True)
    streamed = load_dataset({**params, "resident": False}, needs, flat=True)
    assert streamed.feature_map.features == memory.feature_map.features
    assert same(concatenate(streamed.splits["train"].chunks()), memory.splits["train"])


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
