"""The cleaned copy: what it fixes, what it keeps, and that it is complete or not there."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.check_data.checks import CHECKS, Action
from fuxictr_mm.cli import main
from tests.arrow import skip_unreadable

TEXT = "txt_emb_BERT"


def dropped_rows(answer, file):
    return {
        row["row"]
        for finding in answer["findings"]
        if finding["file"] == file and finding["severity"] != "info"
        if CHECKS[finding["check"]].action is Action.DROP_ROW
        for row in finding["rows"]
    }


def test_only_what_cleaning_leaves_is_found_in_the_copy(planted):
    folder, _, _ = planted
    report, _ = check_folder(folder.parent / "cleaned")
    left = {f.check for f in report.findings() if f.severity != "info" and f.file != "test.parquet"}
    assert all(CHECKS[check].action is Action.NOTHING for check in left - {"empty-title"})
    assert not [f for f in report.findings() if f.severity == "error"]


def test_the_copy_keeps_schema_order_and_the_rows_of_test(planted):
    folder, _, answer = planted
    for path in folder.glob("*.parquet"):
        old, new = pq.read_table(path), pq.read_table(folder.parent / "cleaned" / path.name)
        assert new.schema == old.schema
        dropped = set() if path.stem == "test" else dropped_rows(answer, path.name)
        kept = [row for row in range(old.num_rows) if row not in dropped]
        assert new["item_id"].to_pylist() == old["item_id"].take(kept).to_pylist()
    assert dropped_rows(answer, "test.parquet")


def test_cleaned_values(planted):
    folder, _, answer = planted
    cleaned = folder.parent / "cleaned"
    items = pq.read_table(cleaned / "item_feature.parquet").to_pydict()
    titles = [items["item_title"][row] for row in range(12, 20)]
    assert titles == [
        "",
        "the dog’s dinner in the kitchen",  # noqa: RUF001
        "Two cats in a kitchen",
        "Two cats on a ta",
        "Two dogs",
        "a bird at the window",
        "",
        "我的猫在厨房里",
    ]
    assert [items["item_title"][row] for row in range(23, 28)] == [
        "Two cats & a dog",
        "Two cafés in a kitchen",
        "Two cats",
        "cat",
        "Two ca\ufffds",
    ]
    assert [items["likes_level"][row] for row in (60, 61, 62)] == [0, 0, 0]
    info, old_info = (pq.read_table(f / "item_info.parquet")["item_tags"].to_pylist() for f in (cleaned, folder))
    for row in range(20, 23):
        assert info[row] == [0, *old_info[row][:-1]]
    for row in range(23, 26):
        assert info[row] == [0, *old_info[row][:-2], old_info[row][-1]]
    for row in (31, 32, 35):
        assert items[TEXT][row] == [0.0] * 32
    lengths = np.linalg.norm(np.array(items[TEXT]), axis=1)
    assert lengths[33] == pytest.approx(np.median(lengths), rel=0.02)
    old = pq.read_table(folder / "item_feature.parquet").to_pydict()
    assert items[TEXT][36:] == old[TEXT][36:]
    assert pq.read_table(cleaned / "item_info.parquet")["item_emb_d16"][0].as_py() == [0.0] * 16

    train = pq.read_table(cleaned / "train.parquet").to_pydict()
    before = pq.read_table(folder / "train.parquet").to_pydict()
    gone = dropped_rows(answer, "train.parquet")
    assert {100, 102, 103, 107, 108, 109, 110, 111} <= gone
    place = {row: new for new, row in enumerate(r for r in range(len(before["item_id"])) if r not in gone)}
    assert train["item_seq"][place[104]] == [0] * 16 + [387, 259, 628, 179]
    assert train["item_seq"][place[112]] == [0] * 20
    assert train["item_seq"][place[113]] == [0, *before["item_seq"][113][:-2], before["item_seq"][113][-1]]
    assert train["item_seq"][place[101]] == [0, *before["item_seq"][101][:-1]]
    for check in ("target-in-history", "future-click"):
        rows = [r["row"] for f in answer["findings"] if f["check"] == check for r in f["rows"]]
        assert len(rows) > 10
        assert all(train["item_seq"][place[row]] == before["item_seq"][row] for row in rows if row in place)
    assert {a["check"] for a in answer["cleaned"]["actions"]} == {
        f["check"] for f in answer["findings"] if f["severity"] != "info"
    }


def clean(folder, *checks):
    with pytest.raises(SystemExit) as ended:
        main(["check-data", str(folder), "--only", *checks, "--clean", str(folder.parent / "out"), "--quiet"])
    return ended.value.code


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def cleaned(folder, file, columns, *checks):
    """Write a file, clean it by some checks and return the copy."""
    pq.write_table(pa.table(columns), folder / f"{file}.parquet")
    assert clean(folder, *checks) == 1
    return pq.read_table(folder.parent / "out" / f"{file}.parquet")


def interactions(histories, target, **others):
    count = len(histories)
    columns = {"user_id": range(count), "item_id": [target] * count, "label": np.arange(1, count + 1) % 2}
    return {**columns, "item_seq": histories, **others}


def write_items(folder, histories):
    """Write the items of histories, but for 9."""
    kind = histories.type.value_type
    ids = {entry for row in histories.to_pylist() for entry in row or () if entry} - {9, b"9", "9"}
    pq.write_table(pa.table({"item_id": pa.array(sorted(ids), kind)}), folder / "item_info.parquet")


def test_null_in_fixed_size_histories_is_set_to_padding(folder):
    skip_unreadable(pa.list_(pa.int64(), 2))
    histories = pa.array([[1, 2], None, [0, 3]] * 20, pa.list_(pa.int64(), 2))
    copy = cleaned(folder, "train", interactions(histories, 10), "null-history")
    assert copy["item_seq"].to_pylist() == [[1, 2], [0, 0], [0, 3]] * 20


@pytest.mark.parametrize(
    ("histories", "expected"),
    [
        (
            [[5, 9, 0, 0], [0, 9, 5, 9], [9, 5, 9, 5], [5, 0, 6, 0]],
            [[5, 0, 0, 0], [0, 0, 0, 5], [5, 5, 0, 0], [5, 6, 0, 0]],
        ),
        # A full history is padded as most others.
        ([[5, 9, 6], [7, 8, 0], [4, 0, 0], [0, 0, 0]], [[5, 6, 0], [7, 8, 0], [4, 0, 0], [0, 0, 0]]),
    ],
)
def test_ids_are_removed_at_the_padded_end(folder, histories, expected):
    write_items(folder, pa.array(histories))
    copy = cleaned(folder, "train", interactions(histories, 9), "unknown-history", "inner-padding")
    assert copy["item_seq"].to_pylist() == expected


def test_lists_without_padding_get_none(folder):
    """Padded lists, whose lengths are equal, keep their length."""
    for histories in ([["a", "b"], ["b", "b", "b"], ["c"]], [["", "a", "b"], ["b", "b", "b"], ["", "", "c"]]):
        items = pa.table({"item_id": ["a", "c"]})
        columns = {"user_id": range(3), "item_id": ["b", "b", "a"], "label": [0, 1, 0], "item_seq": histories}
        pq.write_table(items, folder / "item_info.parquet")
        pq.write_table(pa.table(columns), folder / "train.parquet")
        clean(folder, "unknown-history")
        copy = pq.read_table(folder.parent / "out" / "train.parquet")["item_seq"].to_pylist()
        assert [[item for item in row if item] for row in copy] == [["a"], [], ["c"]]
        assert [len(row) for row in copy] == ([1, 0, 1] if len(histories[0]) == 2 else [3, 3, 3])
        shutil.rmtree(folder.parent / "out")


def test_skipped_faults_of_a_title_stay(folder):
    titles = ["<b>CafÃ©</b>", "plain"]
    copy = cleaned(folder, "item_info", {"item_id": [1, 2], "item_title": titles}, "markup-title")
    assert copy["item_title"].to_pylist() == ["CafÃ©", "plain"]


def test_extension_types_stay(folder):
    matrix = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    matrix[7] *= 1000
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [4]), pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 4)
    )
    copy = cleaned(folder, "item_emb", {"item_id": range(1, 51), "v": tensors}, "norm-outlier")
    assert copy.schema.field("v").type == tensors.type
    vectors = np.array(copy["v"].combine_chunks().storage.to_pylist(), dtype=np.float32)
    assert np.linalg.norm(vectors[7]) < 4
    np.testing.assert_array_equal(np.delete(vectors, 7, 0), np.delete(matrix, 7, 0))


def test_a_copy_that_cannot_be_written_leaves_nothing(folder, monkeypatch):
    pq.write_table(pa.table({"item_id": [1, 1]}), folder / "item_info.parquet")
    monkeypatch.setattr("fuxictr_mm.check_data.clean.pq.ParquetWriter", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["check-data", str(folder), "--clean", str(folder.parent / "out"), "--quiet"])
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("is_padded", [True, False])
def test_a_null_history_becomes_padding_or_empty_as_the_others(folder, is_padded):
    rows = [[0, 1, 2], None, [2, 3, 1] if is_padded else [3]]
    copy = cleaned(folder, "train", interactions(rows, 5), "null-history")
    assert copy["item_seq"].to_pylist() == [rows[0], [0, 0, 0] if is_padded else [], rows[2]]


def write_parts(folder, histories, **users):
    """Write train with a target 9 in each history, as a part file for each of ``users``."""
    (folder / "train").mkdir()
    write_items(folder, histories)
    count = len(histories)
    for name, values in users.items():
        ids = histories.type.value_type
        target = pa.array([9] * count) if pa.types.is_integer(ids) else pa.array([b"9"] * count).cast(ids)
        columns = {"user_id": values, "item_id": target, "label": np.arange(1, count + 1) % 2, "item_seq": histories}
        pq.write_table(pa.table(columns), folder / "train" / f"{name}.parquet")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(1), pa.string()])
def test_ids_of_bytes_are_removed(folder, kind):
    made = [[b"5", b"9"], [b"9", b"6"], [None, b"7"], [b"4", b"3"]]
    histories = pa.array(made, pa.list_(kind))
    write_parts(folder, histories, a=pa.array(range(4)))
    clean(folder, "unknown-history")
    copy = pq.read_table(folder.parent / "out" / "train.parquet")
    cleaned = [[v.encode() if isinstance(v, str) else v for v in row] for row in copy["item_seq"].to_pylist()]
    assert copy["item_seq"].type == histories.type
    assert [[v for v in row if v] for row in cleaned] == [[b"5"], [b"6"], [b"7"], [b"4", b"3"]]


def test_part_files_of_other_integers_and_list_views_are_cleaned(folder):
    kind = pa.list_view(pa.int64())
    skip_unreadable(kind)
    histories = pa.array([[5, 9], [], [9, 6, 7]], kind)
    write_parts(folder, histories, a=pa.array([1, 2, 3], pa.int32()), b=pa.array([2**40, 5, 6]))
    clean(folder, "unknown-history")
    copy = pq.read_table(folder.parent / "out" / "train.parquet")
    assert copy["user_id"].to_pylist() == [1, 2, 3, 2**40, 5, 6]
    assert copy["item_seq"].to_pylist() == [[5], [], [6, 7]] * 2


def test_rows_with_text_views_are_dropped(folder):
    page = pa.array(["a", "b", "c", "d"], pa.string_view())
    columns = interactions([[5, 6]] * 4, 3, label=[0, 1, 7, 1], page=page)
    assert cleaned(folder, "train", columns, "bad-label")["page"].to_pylist() == ["a", "b", "d"]


def test_a_history_column_of_nulls_stays(folder):
    copy = cleaned(folder, "train", interactions(pa.nulls(4), 3), "null-history")
    assert copy["item_seq"].to_pylist() == [None] * 4
