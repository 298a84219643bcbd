"""Files and types of columns: what models cannot read is found, and what nobody looks at is named."""

import datetime
import decimal
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.check_data.checks import CHECKS
from fuxictr_mm.check_data.files import SPLITS, DataFile
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming

COUNT = 60
VECTORS = np.random.default_rng(0).standard_normal((COUNT, 16))
WORDS = ["red", "blue", "green"] * (COUNT // 3)
DIGITS = [str(number % 7) for number in range(COUNT)]


def tensors():
    storage = pa.FixedSizeListArray.from_arrays(pa.array((VECTORS / 4).astype(np.float32).ravel()), 16)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [16]), storage)


def as_bytes(dtype):
    return pa.array([row.astype(dtype).tobytes() for row in VECTORS])


def decimals(places):
    return pa.array([decimal.Decimal(number) for number in range(COUNT)], pa.decimal128(20, places))


#: Column, and the severity of what is found in a split and in an item file; "" stands for a column that is not checked.
COLUMNS = {
    "words": (pa.array(WORDS), "", ""),
    "categories": (pa.array(WORDS).dictionary_encode(), "", ""),
    "digits": (pa.array(DIGITS), "warning", "warning"),
    "coded digits": (pa.array(DIGITS).dictionary_encode(), "warning", "warning"),
    "decimals": (decimals(0), None, None),
    "decimal fractions": (decimals(2), None, None),
    "nulls": (pa.nulls(COUNT), "warning", "warning"),
    "lists of digits": (pa.array([[digit] for digit in DIGITS]), "error", "warning"),
    "lists of words": (pa.array([[word] for word in WORDS]), "warning", ""),
    "lists of lists": (pa.array([[[1.0]]] * COUNT), "warning", "warning"),
    "lists of bools": (pa.array([[True, False]] * COUNT), "error", "error"),
    "float32 bytes": (as_bytes("f4"), "error", "error"),
    "float16 bytes": (as_bytes("f2"), "error", "error"),
    "fixed bytes": (as_bytes("f8").cast(pa.binary(128)), "error", "error"),
    "images": (pa.array([b"\xff\xd8" + bytes(number) for number in range(COUNT)]), "", ""),
    "hashes": (pa.array([np.random.default_rng(n).bytes(16) for n in range(COUNT)], pa.binary(16)), "", ""),
    "times": (pa.array([datetime.datetime(2024, 1, 1)] * COUNT), "", ""),
    "structs": (pa.array([{"bytes": b"x"}] * COUNT), "", ""),
    "bools": (pa.array([True, False] * (COUNT // 2)), None, None),
    "tensors": (tensors(), "", None),
    "integer lists": (pa.array([[1, 2]] * COUNT), "", None),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("file", ["train", "item_info"])
def test_types_of_columns(tmp_path, file, name):
    array, in_split, in_items = COLUMNS[name]
    severity = in_split if file == "train" else in_items
    columns = {"item_id": np.arange(1, COUNT + 1), name: array}
    if file == "train":
        columns |= {"user_id": range(COUNT), "label": [0, 1] * (COUNT // 2), "item_seq": [[1]] * COUNT}
    pq.write_table(pa.table(columns), tmp_path / f"{file}.parquet")
    report, layout = check_folder(tmp_path)
    found = [(f.check, f.severity, f.column) for f in report.findings() if f.column == name]
    assert found == ([("column-type", severity, name)] if severity else [])
    named = [text for text in layout.not_checked if text.startswith(f"{file}.parquet: {name} (")]
    assert len(named) == len(layout.not_checked) == (severity == "")


def test_titles_may_be_bytes_or_digits_and_nothing_else(tmp_path):
    titles = {"digits": pa.array(DIGITS), "raw": pa.array(WORDS).cast(pa.binary()), "numbers": pa.array(range(COUNT))}
    pq.write_table(pa.table({"item_id": range(1, COUNT + 1), **titles}), tmp_path / "item_info.parquet")
    for name, wrong in (("digits", False), ("raw", False), ("numbers", True)):
        report, _ = check_folder(tmp_path, ["column-type", "empty-title"], title_column=name)
        found = {f.column for f in report.findings() if f.severity == "error"}
        assert (name in found) == wrong


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(Path(__file__).parents[2] / "data" / "tiny_mm", tmp_path / "data"))


@pytest.fixture
def few_rows(folder):
    """The folder with a few rows of each file."""
    for path in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path).slice(0, 200), path)
    return folder


@pytest.mark.parametrize("file", ["train", "valid", "test", "item_info", "item_feature", "item_emb"])
@pytest.mark.parametrize(
    ("damage", "check"),
    [("text", "column-type"), ("null", "column-type"), ("dropped", "missing-column"), ("no rows", "empty-file")],
)
def test_columns_that_no_check_can_do_without(few_rows, file, damage, check):
    path = few_rows / f"{file}.parquet"
    table = pq.read_table(path)
    index = table.schema.get_field_index("item_id")
    changed = {
        "text": lambda: table.set_column(index, "item_id", pa.array(["7"] * len(table))),
        "null": lambda: table.set_column(index, "item_id", pa.nulls(len(table))),
        "dropped": lambda: table.drop_columns(["item_id"]),
        "no rows": lambda: table.slice(0, 0),
    }
    pq.write_table(changed[damage](), path)
    report, _ = check_folder(few_rows, set(CHECKS) - {"foreign-title", "modalities-disagree", "near-duplicate-vector"})
    assert (check, path.name) in {(f.check, f.file) for f in report.findings() if f.severity == "error"}


def test_columns_of_one_name(folder):
    table = pq.read_table(folder / "valid.parquet")
    pq.write_table(table.append_column("label", table["label"]), folder / "valid.parquet")
    report, _ = check_folder(folder, ["unreadable", "bad-label"])
    assert [(f.check, f.file) for f in report.findings()] == [("unreadable", "valid.parquet")]


def test_rows_of_small_part_files_come_together(tmp_path):
    types = [pa.int64()] * 20 + [pa.int32()] * 20
    for number, kind in enumerate(types):
        table = pa.table({"user_id": pa.array([number, number], kind)})
        pq.write_table(table.slice(0, 0 if number == 5 else 2), tmp_path / f"part-{number}.parquet")
    found = list(DataFile(tmp_path).chunks(["user_id"]))
    assert [row for row, _ in found] == [0, 38]  # where the type changes
    values = [value for _, batch in found for value in batch.column(0).to_pylist()]
    assert values == [number for number in range(40) if number != 5 for _ in range(2)]

    content = (tmp_path / "part-30.parquet").read_bytes()
    (tmp_path / "part-30.parquet").write_bytes(content[:4] + b"\xff" * 16 + content[20:])  # the footer is whole
    chunks = DataFile(tmp_path).chunks(["user_id"])
    assert [next(chunks)[1].num_rows, next(chunks)[1].num_rows] == [38, 20]  # what is before the damage
    with raises_naming(DataError, "part-30.parquet"):
        next(chunks)
    assert DataFile(tmp_path).first_chunk("user_id") is not None


def test_a_part_file_of_another_kind_is_no_traceback(folder):
    table = pq.read_table(folder / "train.parquet")
    (folder / "train.parquet").unlink()
    (folder / "train").mkdir()
    users = pa.array([f"u{user}" for user in table["user_id"].to_pylist()])
    for part, column in enumerate((table["user_id"], users)):
        pq.write_table(
            table.set_column(table.schema.get_field_index("user_id"), "user_id", column),
            folder / "train" / f"part-{part}.parquet",
        )
    report, _ = check_folder(folder)
    found = {(f.check, f.file) for f in report.findings() if f.severity == "error"}
    assert found == {("unreadable", "train")}


def test_lists_of_half_precision_are_read_as_they_are(tmp_path):
    tags = pa.array([[np.float16(row % 9), np.float16(2)] for row in range(60)], pa.list_(pa.float16()))
    pq.write_table(pa.table({"item_id": np.arange(60) + 1, "tags": tags}), tmp_path / "item_info.parquet")
    report, _ = check_folder(tmp_path)
    assert not report.findings()


@pytest.fixture
def prepared(copy, tmp_path):
    """What ``prepare`` writes: another name of the label, ids of the source beside the items, a configuration."""
    folder = copy.write(tmp_path / "shop")
    for path in [folder / f"{split}.parquet" for split in SPLITS]:
        rows = pl.read_parquet(path).head(500).rename({"label": "clicked"}, strict=False)
        rows.with_columns(impression_id=1_000 * pl.int_range(pl.len())).write_parquet(path)
    items = folder / "items.parquet"
    (folder / "item_info.parquet").rename(items)
    (folder / "manifest.json").write_text("{}")
    (folder / "dataset_config.yaml").write_text(
        "shop:\n  feature_cols: [{name: [impression_id], type: categorical}]\n  label_col: {name: clicked}\n"
        "  sample_weight: w\n"
    )
    return folder


@pytest.mark.parametrize("ids", ["integers", "texts"])
def test_what_prepare_writes_is_checked_as_its_configuration_says(ids, prepared):
    items = pl.read_parquet(prepared / "items.parquet")
    numbers = 10**15 + 10**9 * pl.int_range(pl.len())
    items.with_columns(source_id=numbers if ids == "integers" else numbers.cast(pl.String)).write_parquet(
        prepared / "items.parquet"
    )
    for path in [prepared / f"{split}.parquet" for split in SPLITS]:
        sources = {"source_user": pl.lit("u"), "source_time": 10**9 * pl.int_range(pl.len())}
        sources |= {"w": 10.0 ** (pl.int_range(pl.len()) % 9)} if path.stem == "train" else {}
        rows = pl.concat([pl.read_parquet(path).with_columns(**sources)] * 2)
        rows.with_columns(source_row=pl.int_range(pl.len())).write_parquet(path)
    report, layout = check_folder(prepared)
    sources = ("source_id", "source_user", "source_time", "source_row", "w")
    assert not [f for f in report.findings() if f.column in ("label", "clicked", "impression_id", *sources)]
    assert not [name for name in layout.not_checked if "source_" in name or ": w (" in name]
    assert "duplicate-row" in {f.check for f in report.findings()}  # which the number of the row would hide
    (prepared / "dataset_config.yaml").write_text("shop: {}\nanother: {}\n")
    found = {(f.check, f.column): f.expected for f in check_folder(prepared)[0].findings()}
    assert ("unscaled-context", "impression_id") in found
    assert "--label" in found["missing-column", "label"]
    assert "--label" not in str(check_folder(prepared, label="clicked")[0].findings())
