"""The encoding against FuxiCTR's ``FeatureProcessor``, column by column."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuxictr.preprocess import FeatureProcessor
from fuxictr.preprocess.build_dataset import merge_meta_ddf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.data.groups import NO_GROUP
from fuxictr_mm.encoding.vocabulary import TokenVocabulary
from fuxictr_mm.errors import DataError
from tests.configs import load_any_dataset as load_dataset
from tests.encoding.raw import COLUMNS, both_labels, columns_of, params_of, rows_of, same, write_csv
from tests.errors import raises_naming

TEXTS = st.sampled_from(["", "a", "b", "B", "ä", "日本", 'say "x"', "x,y", " a ", "10", "9", "𝄞", "\uffee", "a\nb"])
ROW = st.fixed_dictionaries(
    {
        "user": TEXTS,
        "city": TEXTS,
        "shop": TEXTS,
        "item_id": st.sampled_from(["", "3", "20", "-7", "100"]),
        "price": st.sampled_from(["", "0.5", "-2", "1e3"]),
        "age": st.sampled_from(["", "1.5", "4", "9.25"]),
        "size": st.sampled_from(["", "2", "3.5"]),
        "seen": st.lists(st.sampled_from(["a", "b", "zz", ""]), max_size=5).map("^".join),
        "tags": st.lists(st.sampled_from(["t1", "t2", "", "日"]), max_size=4).map(" | ".join),
        "unused": st.just("x"),
        "clk": st.sampled_from(["0", "1"]),
    }
)


def reference(params, folder):
    """Return FuxiCTR's feature map and its encoded splits."""
    processor = FeatureProcessor(params["feature_cols"], params["label_col"], "d", str(folder / "theirs"))
    options = {"data_format": params["data_format"], "sep": params.get("sep", ",")}
    frames = {
        split: processor.preprocess(processor.read_data(params[f"{split}_data"], **options))
        for split in ("train", "valid", "test")
    }
    processor.fit(
        frames["train"],
        meta_ddf=merge_meta_ddf(processor, frames["train"], frames["valid"], frames["test"]),
        min_categr_count=params["min_categr_count"],
    )
    encoded = {}
    for split, frame in frames.items():
        table = frame.collect()
        encoded[split] = processor.transform({name: table[name].to_numpy() for name in table.columns})
    return processor.feature_map, encoded


def assert_equal(params, folder, names=None):
    loaded = load_dataset(params, {"train": False, "valid": False, "test": False}, flat=True)
    feature_map, encoded = reference(params, folder)
    for name, spec in feature_map.features.items():
        ours = {k: v for k, v in loaded.feature_map.features[name].items() if k not in ("padding", "source")}
        assert ours == {k: v for k, v in spec.items() if k not in ("source", "oov_idx")}, name
        assert loaded.feature_map.features[name]["source"] == spec.get("source", "")
    assert loaded.feature_map.total_features == feature_map.total_features
    for split, columns in encoded.items():
        found = columns_of(loaded, split)
        for name, spec in feature_map.features.items():
            if name == params["group_id"]:  # FuxiCTR makes one group of all rows without one
                theirs, grouped = torch.tensor(columns[name]), found[name] != NO_GROUP
                assert found[name][grouped].tolist() == theirs[grouped].tolist()
                assert not {*theirs[grouped].tolist()} & {*theirs[~grouped].tolist()}
            elif spec["type"] != "meta":
                torch.testing.assert_close(
                    found[name].double(),
                    torch.tensor(columns[name]).double(),
                    rtol=1e-6,
                    atol=1e-6,
                    msg=f"{split} {name}",
                )
        assert found["clk"].tolist() == columns["clk"].tolist()
    return loaded


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    splits=st.tuples(*[st.lists(ROW, min_size=2, max_size=12)] * 3),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    least=st.sampled_from([1, 2]),
)
def test_every_column_equals_that_of_fuxictr(tmp_path_factory, splits, quoting, least):
    folder = tmp_path_factory.mktemp("data")
    for split, rows in zip(("train", "valid", "test"), splits, strict=True):
        write_csv(folder / f"{split}.csv", both_labels(rows), quoting)
    params = params_of(folder, min_categr_count=least, group_id="user")
    try:
        reference(params, folder)
    except IndexError:  # FuxiCTR fails if no value of a column is left; ours must not
        load_dataset(params, {"train": False}, flat=True)
        return
    assert_equal(params, folder)


def test_a_dataset_of_all_kinds_of_columns_equals_that_of_fuxictr(folder):
    assert_equal(params_of(folder, min_categr_count=2, group_id="user"), folder)


def test_another_separator(folder):
    for split in ("train", "valid", "test"):
        path = folder / f"{split}.csv"
        pl.read_csv(path, infer_schema=False).write_csv(path, separator="\t")
    assert_equal(params_of(folder, sep="\t"), folder)


def test_spaces_around_numbers_and_truth_values_are_read_as_pandas_does(folder):
    """FuxiCTR's reader refuses them; its columns are those of the files that pandas has read and written."""
    params = params_of(folder)
    paths = [folder / f"{split}.csv" for split in ("train", "valid", "test")]
    for path, (zero, one) in zip(paths, [("False", "True"), (" 0", "1 "), ("false", "TRUE")], strict=True):
        frame = pl.read_csv(path, infer_schema=False)
        numbers = pl.col("item_id", "price", "age", "size")
        truth = pl.when(pl.col("clk") == "1").then(pl.lit(one)).otherwise(pl.lit(zero))
        frame.with_columns(numbers.str.replace("^", " ").str.replace("$", "\t"), clk=truth).write_csv(path)
    ours = load_dataset(params, {"train": False, "valid": False, "test": False}, flat=True)
    for path in paths:
        texts = dict.fromkeys(["user", "city", "shop", "seen", "tags", "unused"], str)
        types = {**texts, "item_id": "Int64"}
        frame = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
        frame.assign(clk=frame["clk"].astype(int)).to_csv(path, index=False)
    theirs = assert_equal(params, folder)
    assert all(same(ours.splits[split], theirs.splits[split]) for split in ours.splits)


def test_raw_parquet_files_with_lists(folder):
    """FuxiCTR 2.3.10 joins lists to texts with ``^``, after a fill of missing values that fails on lists."""
    columns = [c for c in COLUMNS if c["name"] != "tags"]
    columns += [{"name": "tags", "active": True, "dtype": "str", "type": "sequence", "max_len": 3}]
    (folder / "lists").mkdir()
    for split in ("train", "valid", "test"):
        frame = pl.read_csv(folder / f"{split}.csv", schema_overrides={"clk": pl.Float64, "item_id": pl.Int64})
        frame = frame.with_columns(
            pl.col("age", "size", "price").cast(pl.Float64), pl.col("tags").str.replace_all(r" \| ", "^")
        )
        frame.write_parquet(folder / f"{split}.parquet")
        frame.with_columns(pl.col("tags").str.split("^")).write_parquet(folder / "lists" / f"{split}.parquet")
    params = params_of(folder, columns, "parquet", rebuild_dataset=True)
    joined = assert_equal(params, folder)
    lists = load_dataset({**params, "train_data": str(folder / "lists" / "train")}, {"train": True}, flat=True)
    assert same(joined.splits["train"], lists.splits["train"])


def test_part_files_are_one_split(folder):
    rows = rows_of(40)
    write_csv(folder / "parts" / "part.2.csv", rows[:20])
    write_csv(folder / "parts" / "part.10.csv", rows[20:])
    write_csv(folder / "whole.csv", rows)
    tables = [
        load_dataset(params_of(folder, train_data=str(folder / name)), {"train": True}, flat=True).splits["train"]
        for name in ("parts", "whole.csv")
    ]
    assert same(*tables)


def test_partitions_are_columns(folder):
    rows = rows_of(40)
    pieces = {text: [row for row in rows if row["city"] == text] for text in ("a", "b", "10")}
    for text, piece in pieces.items():
        write_csv(folder / "parts" / f"city={text}" / "part.csv", [{**row, "city": "x"} for row in piece])
        bare = [{name: value for name, value in row.items() if name != "city"} for row in piece]
        write_csv(folder / "bare" / f"city={text}" / "part.csv", bare)
    # In the order of the folders.
    write_csv(folder / "whole.csv", [*pieces["10"], *pieces["a"], *pieces["b"]])
    parts, bare, whole = (
        load_dataset(params_of(folder, train_data=str(folder / name)), {"train": True}, flat=True).splits["train"]
        for name in ("parts", "bare", "whole.csv")
    )
    assert same(bare, whole)
    assert len(set(parts.context["city"].tolist())) == 1  # a column of the file wins


def test_vocabulary_of_pretrained_keys(folder):
    keys = np.array(["a", "new", "b", "new2"])
    np.savez(folder / "emb.npz", key=keys, value=np.arange(8.0).reshape(4, 2))
    columns = [
        {"name": "city", "active": True, "dtype": "str", "type": "categorical", "embedding_dim": 2,
         "pretrained_emb": str(folder / "emb.npz"),
         "freeze_emb": True},
        {"name": "shop", "active": True, "dtype": "str", "type": "categorical"},
    ]  # fmt: skip
    params = params_of(folder, columns)
    loaded = load_dataset(params, {"valid": False}, flat=True)
    feature_map, encoded = reference(params, folder)
    expected = {k: v for k, v in feature_map.features["city"].items() if k != "source"}
    assert {k: v for k, v in loaded.feature_map.features["city"].items() if k != "source"} == expected
    assert columns_of(loaded, "valid")["city"].tolist() == encoded["valid"]["city"]
    where = Path(loaded.feature_map.data_dir)
    theirs = folder / "theirs" / "d"
    ours, expected = (json.loads((f / "feature_vocab.json").read_text()) for f in (where, theirs))
    assert ours == expected
    assert (where / "pretrained_city.npz").read_bytes() == (folder / "emb.npz").read_bytes()


def test_features_that_share_a_vocabulary_know_the_keys_of_both_files(tmp_path):
    columns = []
    for name, key, shared in (("x", "y", {}), ("w", "z", {"share_embedding": "x"})):
        np.savez(tmp_path / f"{name}.npz", key=["a", key], value=np.zeros((2, 4)))
        file = {"pretrained_emb": str(tmp_path / f"{name}.npz"), "pretrain_dim": 4}
        columns.append({"name": name, "active": True, "dtype": "str", "type": "categorical", **file, **shared})
    write_parquet(tmp_path, pl.DataFrame({"x": ["a", "a"], "w": ["a", "a"], "clk": [0.0, 1.0]}))
    pl.DataFrame({"x": ["y", "z"], "w": ["z", "y"], "clk": [0.0, 1.0]}).write_parquet(tmp_path / "valid.parquet")
    params = params_of(tmp_path, columns, "parquet", rebuild_dataset=True)
    context = load_dataset(params, {"valid": True}, flat=True).splits["valid"].context
    assert context["x"].tolist() == [3, 4]  # after a and OOV
    assert context["w"].tolist() == [4, 3]


def test_a_vocabulary_without_values_has_padding_and_oov():
    counts = pl.DataFrame({"value": ["", "x"], "len": [9, 1]})
    vocabulary = TokenVocabulary.of_counts(counts, 2, "")
    assert vocabulary.to_dict() == {"__PAD__": 0, "__OOV__": 1}
    assert pl.DataFrame({"a": ["x", ""]}).select(vocabulary.ids(pl.col("a")))["a"].to_list() == [1, 1]


def test_embeddings_of_rows_pass(tmp_path):
    table = {"vector": pa.array([[1.0, 2.0], [3.0, 4.0]]), "word": ["a", "b"], "clk": [0.0, 1.0]}
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    columns = [
        {"name": "vector", "active": True, "dtype": "list", "type": "embedding", "pretrain_dim": 2},
        {"name": "word", "active": True, "dtype": "str", "type": "categorical"},
    ]
    params = params_of(tmp_path, columns, "parquet", rebuild_dataset=True)
    found = columns_of(load_dataset(params, {"train": True}, flat=True), "train")
    assert found["vector"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert found["word"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("normalizer", "value"), [("StandardScaler", "nan"), ("StandardScaler", "-inf"), ("MinMaxScaler", "inf")]
)
def test_a_number_that_is_not_finite_is_named_before_it_scales_others(folder, normalizer, value):
    column = {"name": "age", "active": True, "dtype": "float", "type": "numeric", "normalizer": normalizer}
    for part, rows in enumerate((rows_of(20, 1), rows_of(20, 2))):
        rows[5]["age"] = value if part else ""
        write_csv(folder / "rows" / f"{part}.csv", rows)
    params = params_of(folder, [column], train_data=str(folder / "rows"))
    with raises_naming(DataError, folder / "rows" / "1.csv", "age", "row 5", value):
        load_dataset(params, {"train": True, "valid": True}, flat=True)


@pytest.mark.parametrize("normalizer", ["StandardScaler", "MinMaxScaler"])
def test_a_constant_column_is_shifted_alone(folder, normalizer):
    """Its deviation is not quite 0 by rounding."""
    column = {"name": "age", "active": True, "dtype": "float", "type": "numeric", "normalizer": normalizer}
    write_csv(folder / "train.csv", [{**row, "age": "0.3"} for row in rows_of(1000)])
    write_csv(folder / "valid.csv", [{**row, "age": "0.8"} for row in rows_of(20)])
    loaded = load_dataset(params_of(folder, [column]), {"train": True, "valid": True}, flat=True)
    assert columns_of(loaded, "train")["age"].unique().tolist() == [0]
    assert columns_of(loaded, "valid")["age"].unique().tolist() == [0.5]


def test_numbers_too_large_to_scale_are_named(folder):
    column = {"name": "age", "active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler"}
    write_csv(folder / "train.csv", [{**row, "age": f"{place}e200"} for place, row in enumerate(rows_of(20))])
    with raises_naming(DataError, folder / "train.csv", "age", "inf"):
        load_dataset(params_of(folder, [column]), {"train": True}, flat=True)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("dtype", ["float", "int"])
def test_a_copy_of_numbers_is_of_the_numbers(tmp_path, dtype, active):
    texts = {"float": ["1", "1.0", "1e0", "2", "2.0", ""], "int": ["7", "007", "3", "03", "-5", ""]}[dtype]
    for split in ("train", "valid", "test"):
        write_csv(tmp_path / f"{split}.csv", [{"n": text, "m": "x", "clk": str(i % 2)} for i, text in enumerate(texts)])
    columns = [
        {"name": "n", "active": active, "dtype": dtype, "type": "numeric"},
        {"name": "m", "active": True, "dtype": "str", "type": "categorical"},
        {"name": "copy", "active": True, "dtype": "str", "type": "categorical", "preprocess": "copy_from(n)"},
    ]
    loaded = assert_equal(params_of(tmp_path, columns), tmp_path)
    assert loaded.feature_map.features["copy"]["vocab_size"] == {"float": 4, "int": 5}[dtype]


def write_parquet(folder, frame):
    for split in ("train", "valid", "test"):
        frame.write_parquet(folder / f"{split}.parquet")


def load_parquet(folder, *columns, label=None, **others):
    params = params_of(folder, list(columns), "parquet", rebuild_dataset=True, **others)
    params["label_col"] = label or params["label_col"]
    return load_dataset(params, {"train": True}, flat=True).splits["train"]


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["1", "0", "20"])])
@pytest.mark.parametrize("dtype", ["int", "float"])
def test_categorical_texts_of_numbers_are_the_numbers_and_not_their_codes(tmp_path, kind, dtype):
    texts = pl.Series(["1", "0", "1"], dtype=kind)
    write_parquet(tmp_path, pl.DataFrame({"x": pl.Series(["20", None, "1"], dtype=kind), "clk": texts}))
    numeric = {"name": "x", "active": True, "dtype": dtype, "type": "numeric"}
    table = load_parquet(tmp_path, numeric, label={"name": "clk", "dtype": dtype})
    assert table.label.tolist() == [1, 0, 1]
    assert table.context["x"].tolist() == [20, 0, 1]


@pytest.mark.parametrize("value", [0.5, -0.25, float("nan"), float("inf")])
def test_fractions_are_not_cut_off_to_integers(tmp_path, value):
    column = {"name": "x", "active": True, "dtype": "int", "type": "categorical"}
    write_parquet(tmp_path, pl.DataFrame({"x": [3, 1, 2], "clk": [1.0, value, 0.0]}))
    with raises_naming(DataError, tmp_path / "train.parquet", "clk", "row 1", str(value)):
        load_parquet(tmp_path, column, label={"name": "clk", "dtype": "int"})
    write_parquet(tmp_path, pl.DataFrame({"x": [3.0, None, 2.0], "clk": [1.0, 0.0, 0.0]}))
    assert load_parquet(tmp_path, column).context["x"].tolist() == [3, 1, 2]  # null is 0


@pytest.mark.parametrize("dtype", ["int", "float", "str"])
def test_a_user_that_is_nan_is_none(tmp_path, dtype):
    write_parquet(tmp_path, pl.DataFrame({"user": [7.0, float("nan"), None, 8.0], "clk": [1.0, 0.0, 0.0, 1.0]}))
    user = {"name": "user", "active": True, "dtype": dtype, "type": "meta"}
    assert (load_parquet(tmp_path, user, group_id="user").group == NO_GROUP).tolist() == [False, True, True, False]


def test_a_bad_number_behind_a_sequence_that_copies_numbers_is_named(tmp_path):
    frame = pl.DataFrame({"n": [1.0, 2.0], "m": [1.5, 2.0], "clk": [1.0, 0.0]})
    write_parquet(tmp_path, frame)
    columns = [
        {"name": "n", "active": False, "dtype": "int", "type": "categorical"},
        {"name": "seen", "active": True, "dtype": "str", "type": "sequence", "preprocess": "copy_from(n)"},
        {"name": "m", "active": True, "dtype": "int", "type": "categorical"},
    ]
    with raises_naming(DataError, tmp_path / "train.parquet", "m: ", "row 0", "1.5"):
        load_parquet(tmp_path, *columns)


LARGE = 2**53 + 1


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt64, pl.String])
@pytest.mark.parametrize("type", ["categorical", "meta"])
def test_large_integers_are_not_merged_by_floating_point_numbers(tmp_path, type, kind):
    def load(values, dtype):
        write_parquet(tmp_path, pl.DataFrame({"id": pl.Series(values).cast(kind), "clk": [1.0, 0.0, 1.0]}))
        return load_parquet(tmp_path, {"name": "id", "active": True, "dtype": dtype, "type": type}, group_id="id")

    with raises_naming(DataError, tmp_path / "train.parquet", "id", "row 1", LARGE, "dtype: str"):
        load([7, LARGE, LARGE - 1], "float")
    table = load([7, LARGE, LARGE - 1], "str")
    ids = table.group if type == "meta" else table.context["id"]
    assert len(ids.unique()) == 3
    load([7, 2**53 - 1, 2**53 - 2], "float")


def test_large_texts_of_numbers_that_a_column_copies_are_not_merged(folder):
    write_csv(folder / "train.csv", [{**row, "age": f" {2**60 + place}"} for place, row in enumerate(rows_of(20))])
    age = {"name": "age", "active": True, "dtype": "float", "type": "numeric"}
    load_dataset(params_of(folder, [age]), {"train": True}, flat=True)  # as a number, they are one in float32
    copy = {"name": "copy", "active": True, "dtype": "str", "type": "categorical", "preprocess": "copy_from(age)"}
    with raises_naming(DataError, folder / "train.csv", "age", "row 0", 2**60):
        load_dataset(params_of(folder, [age, copy]), {"train": True}, flat=True)
