import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.data import parquet
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.loaders import gather
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.data.summary import summarize
from fuxictr_mm.data.vocabulary import Conversion, Vocabularies
from fuxictr_mm.errors import DataError
from tests.arrow import skip_unreadable
from tests.errors import raises_naming

LEVEL = Feature("level", "categorical", vocab_size=11)
PRICE = Feature("price", "numeric")
FEATURES = [Feature("user_id", "meta"), Feature("item_seq", "meta"), LEVEL, Feature("item_id", "categorical", "item")]
KINDS = [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.float64()), pa.list_(pa.uint16())]

#: Ids 1 to 9 are known, but for 5.
ITEMS = ItemTable({}, torch.tensor([i != 5 for i in range(10)]))


def columns(rows, kind=None):
    """A whole file around the given histories."""
    n = len(rows)
    return {
        "user_id": [100 + i for i in range(n)],
        "item_id": [1 + i % 4 for i in range(n)],
        "item_seq": pa.array(rows, kind or pa.list_(pa.int64())),
        "level": [i % 11 for i in range(n)],
        "label": [i % 2 for i in range(n)],
    }


def write(path, data, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(data), path, **options)
    return path


def read_as(path, features, **options):
    """Read and check all rows."""
    files = InteractionFiles(Path(path), features, ITEMS.known.numpy(), **options)
    table = concatenate(files.chunks())
    summarize(files, [table])
    return table


def read(path, **options):
    return read_as(path, FEATURES, **options)


def histories(table):
    offsets = table.history_offsets.tolist()
    return [table.history_values[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def test_columns_types_and_values(tmp_path):
    data = {**columns([[0, 0, 3], [1, 2, 0], [0, 4, 0]]), "price": [0.5, 1.0, 2.5]}
    path = write(tmp_path / "train.parquet", data)
    table = read_as(path, [*FEATURES, PRICE], group_id="user_id")
    assert len(table) == 3
    assert table.source == str(path)
    assert {n: (c.dtype, c.tolist()) for n, c in table.context.items()} == {
        "level": (torch.int32, [0, 1, 2]),
        "price": (torch.float32, [0.5, 1.0, 2.5]),
    }
    assert (table.target.dtype, table.target.tolist()) == (torch.int32, [1, 2, 3])
    assert (table.label.dtype, table.label.tolist()) == (torch.float32, [0, 1, 0])
    assert (table.group.dtype, table.group.tolist()) == (torch.int64, [100, 101, 102])
    assert (table.history_values.dtype, table.history_values.tolist()) == (torch.int32, [3, 1, 2, 4])
    assert (table.history_offsets.dtype, table.history_offsets.tolist()) == (torch.int64, [0, 1, 3, 4])
    assert table.num_bytes == 3 * 4 * 2 + 3 * 4 + 4 * 4 + 4 * 8 + 3 * 4 + 3 * 8
    moved = table.to("cpu")
    assert histories(moved) == histories(table)
    assert moved.source == table.source


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("with_null", [False, True])
def test_fixed_size_lists_across_row_groups_and_chunks(tmp_path, monkeypatch, chunk, with_null):
    kind = pa.list_(pa.int64(), 4)
    rows = [[0] * (4 - i % 5) + [1 + (i + j) % 4 for j in range(i % 5)] for i in range(13)]
    if with_null:
        skip_unreadable(kind)
        rows[6] = None
    path = write(tmp_path / "x.parquet", columns(rows, kind), row_group_size=5)
    monkeypatch.setattr(parquet, "CHUNK_ROWS", chunk)
    table = read(path, max_len=3, group_id="user_id")
    assert histories(table) == [[i for i in row or [] if i][-3:] for row in rows]
    assert table.group.tolist() == list(range(100, 113))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.none() | st.lists(st.sampled_from([0, 0, 1, 2, 3, 9]), max_size=7), min_size=2, max_size=20),
    kind=st.sampled_from(KINDS),
    max_len=st.none() | st.integers(1, 8),
    chunk=st.integers(1, 6),
    group=st.integers(1, 7),
    split=st.integers(0, 20),
)
def test_reading_equals_a_plain_computation(tmp_path, monkeypatch, rows, kind, max_len, chunk, group, split):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", chunk)
    whole = pa.table(columns(rows, kind))
    for old in (tmp_path / "parts").glob("*.parquet"):
        old.unlink()
    write(tmp_path / "parts/0.parquet", whole.slice(0, split), row_group_size=group)
    write(tmp_path / "parts/1.parquet", whole.slice(split), row_group_size=group)
    table = read(tmp_path / "parts", max_len=max_len, group_id="user_id")
    expected = [[i for i in row or [] if i != 0] for row in rows]
    assert histories(table) == [h if max_len is None else h[-max_len:] for h in expected]
    assert table.target.tolist() == whole["item_id"].to_pylist()
    assert table.label.tolist() == whole["label"].to_pylist()
    assert table.group.tolist() == whole["user_id"].to_pylist()
    assert table.context["level"].tolist() == whole["level"].to_pylist()


@pytest.mark.parametrize("cuts", [[], [0], [3], [2, 2, 7], [1, 2, 3, 4, 5, 6, 7]])
def test_pieces_of_a_table_join_to_the_table(tmp_path, cuts):
    rows = [[1, 2, 3], [], [4], [0, 2], [], [1], [3, 3, 3, 3]]
    # Columns may have any name, also those that the table itself uses.
    data = {**columns(rows), "history": [i / 2 for i in range(7)], "lengths": [6 - i for i in range(7)]}
    features = [*FEATURES, Feature("history", "numeric"), Feature("lengths", "categorical", vocab_size=7)]
    table = read_as(write(tmp_path / "x.parquet", data), features, group_id="user_id")
    joined = concatenate(table.slice(a, b) for a, b in itertools.pairwise([0, *cuts, 7]))
    assert histories(joined) == histories(table) == [[i for i in row if i] for row in rows]
    for name in ("target", "label", "group"):
        assert torch.equal(getattr(joined, name), getattr(table, name))
    assert joined.context.keys() == table.context.keys() == {"level", "history", "lengths"}
    assert all(torch.equal(joined.context[name], column) for name, column in table.context.items())


def test_a_summary_tells_rows_items_and_largest_ids(tmp_path):
    for part in (0, 1):
        write(tmp_path / f"parts/{part}.parquet", {**columns([[1, 2, 3], [0], [4]]), "label": [part] * 3})
    files = InteractionFiles(tmp_path / "parts", FEATURES, ITEMS.known.numpy(), max_len=2)
    assert (len(files), files.present_labels) == (6, ["label"])
    summary = summarize(files)
    assert (summary.num_rows, summary.num_history_items, summary.largest) == (6, 6, {"level": 2})
    assert summarize(files, [concatenate(files.chunks())]) == summary


def test_a_file_without_labels_is_read_where_none_is_needed(tmp_path):
    data = columns([[1], [2]])
    del data["label"]
    path = write(tmp_path / "test.parquet", data)
    assert read(path, needs_label=False).label is None
    with raises_naming(DataError, path, "'label'"):
        read(path)


def test_labels_of_one_class_are_refused_only_where_labels_are_needed(tmp_path):
    path = write(tmp_path / "x.parquet", {**columns([[1], [2], []]), "label": [1.0, 1.0, 1.0]})
    assert read(path, needs_label=False).label.tolist() == [1, 1, 1]
    with raises_naming(DataError, path, "label is 1", "3 rows"):
        read(path)


@pytest.mark.parametrize(
    ("values", "shown"),
    [(pa.nulls(3, pa.float64()), "null"), ([np.nan] * 3, "null"), ([-1] * 3, "-1"), (["?", "?", None], "text")],
)
def test_labels_that_are_none_in_any_row_are_placeholders(tmp_path, caplog, values, shown):
    path = write(tmp_path / "x.parquet", {**columns([[1], [2], []]), "label": values})
    assert read(path, needs_label=False).label is None
    assert f"label is {shown} in all rows" in caplog.text


@pytest.mark.parametrize("kind", [pa.float64(), pa.int8(), pa.bool_()])
def test_several_labels_with_missing_cells(tmp_path, kind):
    like = pa.array([None, 1, 0], pa.int8()).cast(kind)
    path = write(tmp_path / "x.parquet", {**columns([[1], [2], []]), "like": like})
    table = read(path, labels=("like", "label"))
    assert table.label.dtype == torch.float32
    np.testing.assert_array_equal(table.label, [[np.nan, 0], [1, 1], [0, 0]])
    with raises_naming(DataError, "x.parquet: like: row 0"):
        read(path, labels=("like",))
    nan = pa.array([np.nan, 1, 0])
    path = write(tmp_path / "y.parquet", {**columns([[1], [2], []]), "like": nan})
    np.testing.assert_array_equal(read(path, labels=("like", "label")).label[:, 0], [np.nan, 1, 0])


def test_a_label_column_of_several_may_be_absent_where_none_is_needed(tmp_path):
    path = write(tmp_path / "x.parquet", columns([[1], [2]]))
    np.testing.assert_array_equal(
        read(path, labels=("like", "label"), needs_label=False).label, [[np.nan, 0], [np.nan, 1]]
    )
    with raises_naming(DataError, "x.parquet", "'like'"):
        read(path, labels=("like", "label"))
    empty = write(tmp_path / "y.parquet", {**columns([[1], [2]]), "like": pa.nulls(2)})
    with raises_naming(DataError, "y.parquet: like", "2 rows"):
        read(empty, labels=("label", "like"))


def test_two_classes_may_lie_in_different_part_files(tmp_path):
    for part in (0, 1):
        write(tmp_path / f"parts/{part}.parquet", {**columns([[1], [2]]), "label": [part, part]})
    assert read(tmp_path / "parts").label.tolist() == [0, 0, 1, 1]


def test_labels_in_only_some_part_files_are_refused(tmp_path):
    data = columns([[1], [2]])
    write(tmp_path / "parts/0.parquet", data)
    del data["label"]
    write(tmp_path / "parts/1.parquet", data)
    with raises_naming(DataError, "parts", "'label'"):
        read(tmp_path / "parts", needs_label=False)


def test_a_regression_takes_any_finite_label(tmp_path):
    path = write(tmp_path / "x.parquet", {**columns([[1], [2]]), "label": [4.5, 4.5]})
    assert read(path, numeric_labels=["label"]).label.tolist() == [4.5, 4.5]
    path = write(tmp_path / "y.parquet", {**columns([[1], [2]]), "label": [4.5, np.inf]})
    with raises_naming(DataError, "label: row 1 holds inf"):
        read(path, numeric_labels=["label"])


def test_a_file_without_rows(tmp_path):
    path = write(tmp_path / "x.parquet", pa.table(columns([[1], [2]])).slice(0, 0))
    with raises_naming(DataError, path):
        read(path)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"item_id": [1, 2, 3, 0]}, ["item_id", "row 3", "id 0"]),
        ({"item_id": [1, 2, 5, 1]}, ["item_id", "row 2", "id 5"]),
        ({"item_id": [1, 2, 3, 10]}, ["item_id", "row 3", "id 10"]),
        ({"item_id": [1, -2, 3, 1]}, ["item_id", "row 1", "id -2"]),
        ({"item_id": [1, None, 3, 1]}, ["item_id", "row 1", "null"]),
        ({"item_id": [1, 2.5, 3, 1]}, ["item_id", "row 1", "2.5"]),
        ({"item_id": [1.0, 2.0, 3.0, 1e30]}, ["item_id", "row 3", "1e+30"]),
        ({"item_id": [1, 2, 3, 2**31]}, ["item_id", "row 3", "id 2147483648"]),
        ({"item_id": [1.0, 2.0, np.nan, 1.0]}, ["item_id", "row 2", "nan"]),
        ({"item_seq": [[1, 2], [], [0, 0], [3, 5, 4]]}, ["item_seq", "row 3", "id 5"]),
        ({"item_seq": [[], [], [0, 99], [1]]}, ["item_seq", "row 2", "id 99"]),
        ({"item_seq": [[1, 1], [-7, 1], [0], [1]]}, ["item_seq", "row 1", "id -7"]),
        ({"item_seq": [[1.0], [1.0], [2.0, 3.0], [1.0, 2.5]]}, ["item_seq", "row 3", "2.5"]),
        ({"item_seq": [[1.0], [], [0.0, np.nan], []]}, ["item_seq", "row 2", "nan"]),
        ({"item_seq": [[1], [], [0, None], [1]]}, ["item_seq", "row 2", "null"]),
        ({"item_seq": pa.array([[1, 2], [2, None]] * 2, pa.list_(pa.int8(), 2))}, ["item_seq", "row 1", "null"]),
        ({"item_seq": [1, 2, 3, 4]}, ["item_seq", "int64"]),
        ({"item_seq": [["1"], [], [], ["2"]]}, ["item_seq", "string"]),
        ({"label": [0, 1, 0, 2]}, ["label", "row 3 is 2"]),
        ({"label": [0, 1, 0.5, 1]}, ["label", "row 2 is 0.5"]),
        ({"label": [0, 1, None, 1]}, ["label", "row 2", "null"]),
        ({"label": [0.0, 1.0, np.nan, 1.0]}, ["label", "row 2", "nan"]),
        ({"label": ["0", "1", "0", "1"]}, ["label", "string"]),
        ({"label": [[0], [1], [0], [1]]}, ["label", "list<"]),
        ({"label": [0.0, 1.0, -np.inf, 1.0]}, ["label", "row 2", "-inf"]),
        ({"level": [0, 1, 2, 11]}, ["level", "row 3", "id 11", "0 to 10", "vocab_size"]),
        ({"level": [0, 1, -1, 1]}, ["level", "row 2", "id -1", "0 to 10"]),
    ],
)
def test_bad_rows_say_file_column_row_and_value(tmp_path, monkeypatch, chunk, change, found):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", chunk)
    path = write(tmp_path / "x.parquet", {**columns([[1], [2], [], [3]]), **change}, row_group_size=3)
    with raises_naming(DataError, f"{path}: {found[0]}", *found[1:]):
        read(path, group_id="user_id")


@pytest.mark.parametrize(
    ("histories", "max_len", "found"),
    [
        ([[1, 2, 3], [1, 1, 1, 1], [0, 4, 5], [1]], 1, ["item_seq: row 2", "5"]),  # counted before items are cut off
        ([[1], [5, 5, 77]], None, ["2 such ids", "8 ids up to 9"]),
    ],
)
def test_unknown_items_are_counted(tmp_path, histories, max_len, found):
    with raises_naming(DataError, *found):
        read(write(tmp_path / "x.parquet", columns(histories)), max_len=max_len)


@pytest.mark.parametrize("name", ["item_id", "item_seq", "level", "user_id", "label"])
def test_a_missing_column_is_named_with_the_nearest(tmp_path, name):
    data = columns([[1], [2]])
    data[name + "s"] = data.pop(name)
    path = write(tmp_path / "x.parquet", data)
    with raises_naming(DataError, path, f"'{name}'", f"'{name}s'"):
        read(path, group_id="user_id")


SEQUENCES = st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=2, max_size=8)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=SEQUENCES, max_len=st.integers(1, 7), side=st.sampled_from(["post", "pre"]))
def test_sequences_of_interactions_are_held_without_padding_and_padded_as_fuxictr_pads(tmp_path, rows, max_len, side):
    from fuxictr.preprocess.tokenizer import pad_sequences

    feature = Feature("words", "sequence", vocab_size=5, max_len=max_len, padding=side)
    data = {**columns([[1]] * len(rows)), "words": pa.array(rows, pa.list_(pa.int64()))}
    table = read_as(write(tmp_path / "x.parquet", data), [feature])
    words = table.context["words"]
    padded, _ = words.to_padded(max_len, side={"post": "right", "pre": "left"}[side])
    assert padded.tolist() == pad_sequences(rows, max_len, padding=side, truncating=side).tolist()
    entries = [words.values[a:b].tolist() for a, b in itertools.pairwise(words.offsets.tolist())]
    assert all(row[-1 if side == "post" else 0] for row in entries if row)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    batch = gather(concatenate([table.slice(0, 1), table.slice(1, len(table))]), order)
    taken = [batch.context["words"].values[a:b].tolist() for a, b in itertools.pairwise(batch.context["words"].offsets)]
    assert taken == [entries[i] for i in order.tolist()]


def test_embeddings_of_interactions(tmp_path):
    path = write(tmp_path / "x.parquet", {**columns([[1], [2]]), "words": [[1.0, 2.0], [3.0, 4.0]]})
    table = read_as(path, [Feature("words", "embedding", pretrain_dim=2)])
    assert table.context["words"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with raises_naming(DataError, "row 0", "2 numbers", "3"):
        read_as(path, [Feature("words", "embedding", pretrain_dim=3)])


@pytest.mark.parametrize(
    ("rows", "row", "found", "expected"),
    [
        ([None, [1.0, 2.0]], 0, 0, 2),
        ([[], []], 0, 0, 1),
        ([[1.0, 2.0], [3.0, 4.0], [5.0]], 2, 1, 2),
        ([[1.0], [2.0], [3.0, 4.0], [5.0, 6.0]], 2, 2, 1),
    ],
)
def test_embeddings_of_several_dims_are_named(tmp_path, monkeypatch, rows, row, found, expected):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 2)
    data = {**columns([[1]] * len(rows)), "words": pa.array(rows, pa.list_(pa.float32()))}
    with raises_naming(DataError, "words", f"row {row}", f"{found} numbers", f"expected {expected}"):
        read_as(write(tmp_path / "x.parquet", data), [Feature("words", "embedding")])


def test_a_number_along_a_history_that_is_not_finite_is_named_with_its_row(tmp_path):
    price = Feature("price", "sequence", history="item_seq", is_number=True)
    prices = [[1.0, 2.0, 3.0], [4.0, float("nan")], [5.0]]
    path = write(tmp_path / "x.parquet", {**columns([[1, 2, 3], [1, 2], [3]]), "price": prices})
    with raises_naming(DataError, path, "price", "row 1 ", "nan"):
        read_as(path, [*FEATURES, price])


def partitioned(tmp_path, data, keys, drop=True):
    """Write as Spark's and pandas' partitionBy do: a folder for each value, and the column in no file."""
    table = pa.table(data)
    values = [tuple(row) for row in zip(*(table[key].to_pylist() for key in keys), strict=True)]
    for number, value in enumerate(dict.fromkeys(values)):
        rows = table.filter(pa.array([row == value for row in values]))
        names = ["__HIVE_DEFAULT_PARTITION__" if v is None else str(v).replace(" ", "%20") for v in value]
        folder = tmp_path.joinpath(*(f"{key}={name}" for key, name in zip(keys, names, strict=True)))
        write(folder / f"part-{number}.parquet", rows.drop_columns(keys) if drop else rows)
    return tmp_path


def test_partitions_are_columns(tmp_path):
    data = columns([[1], [2], [3], [4, 4], []])
    path = partitioned(
        tmp_path / "parts", {**data, "level": [7, 10, 7, 7, 10], "label": [1, 1, 0, 0, 0]}, ["level", "label"]
    )
    files = InteractionFiles(path, FEATURES, ITEMS.known.numpy(), group_id="user_id")
    for table in (read(path, group_id="user_id"), concatenate(files.chunks(files.row_group_ranges(1)))):
        rows = sorted(zip(table.group.tolist(), table.context["level"].tolist(), table.label.tolist(), strict=True))
        assert rows == [(100, 7, 1), (101, 10, 1), (102, 7, 0), (103, 7, 0), (104, 10, 0)]
    assert files.labels_and_groups()[0].sum() == 2


def test_partitions_of_text_have_a_vocabulary_and_a_column_of_the_file_wins(tmp_path):
    city = Feature("city", "categorical")
    data = {**columns([[1], [2], [3]]), "city": ["5", "a b", None]}
    files = InteractionFiles(partitioned(tmp_path / "x", data, ["city"]), [*FEATURES, city], ITEMS.known.numpy())
    assert [feature.name for feature in files.columns_of_ids(False)] == ["city"]
    vocabulary = files.build_vocabulary("city")
    assert vocabulary.encode(pa.array(["5", "a b", "b"]), "x").min() == -1
    assert len(vocabulary) == 2
    inside = partitioned(tmp_path / "y", {**data, "level": [3, 4, 5]}, ["level"], drop=False)
    (inside / "level=4").rename(inside / "level=9")
    assert sorted(read(inside).context["level"].tolist()) == [3, 4, 5]


def test_a_declared_text_is_one_whatever_the_folders_are_named(tmp_path):
    city = Feature("city", "categorical", is_text=True)
    found = []
    for split, names in (("train", ["01", "2", "2"]), ("test", ["1", "2", "b"])):
        path = partitioned(tmp_path / split, {**columns([[1], [2], [3]]), "city": names}, ["city"])
        files = InteractionFiles(path, [*FEATURES, city], ITEMS.known.numpy())
        assert [feature.name for feature in files.columns_of_ids(False)] == ["city"]
        found.append(files)
    vocabulary = found[0].build_vocabulary("city")
    assert sorted(vocabulary.values.to_pylist()) == ["01", "2"]
    how = Conversion(vocabularies=Vocabularies({"city": vocabulary}))
    tables = [concatenate(replace(files, conversion=how).chunks()) for files in found]
    values = [sorted(vocabulary.decode(table.context["city"].numpy()).to_pylist(), key=str) for table in tables]
    assert values == [["01", "2", "2"], ["2", None, None]]


@pytest.mark.parametrize(("value", "found"), [("11", "11"), ("__HIVE_DEFAULT_PARTITION__", "null"), ("a", "string")])
def test_a_bad_value_of_a_partition_is_named_with_its_file(tmp_path, value, found):
    path = partitioned(tmp_path / "x", columns([[1], [2]]), ["level"])
    (path / "level=1").rename(path / f"level={value}")
    with raises_naming(DataError, "level=", "level", found):
        read(path)
