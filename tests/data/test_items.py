import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.data import parquet
from fuxictr_mm.data.items import ItemTable, normalize
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.errors import DataError, MissingFileError
from tests.arrow import skip_unreadable
from tests.errors import raises_naming

TAGS = Feature("tags", "sequence", "item")
VECTOR = Feature("vector", "embedding", "item")
LEVEL = Feature("level", "categorical", "item")
PRICE = Feature("price", "numeric", "item")
CODES = Feature("codes", "sequence", "item", embedded=False)


def item_id(vocab_size=None):
    return Feature("item_id", "categorical", "item", vocab_size=vocab_size)


def write(path, columns, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def read(tmp_path, columns, *features):
    """Write one file of items and read it."""
    return ItemTable.from_parquet(write(tmp_path / "i.parquet", columns), [*features])


def vectors(rows, kind=None):
    return pa.array(rows, pa.list_(kind or pa.float32()))


def test_every_type_of_column_is_placed_by_id(tmp_path):
    columns = {
        "price": [0.5, 2.0, 1.5],
        "item_id": [4, 1, 2],
        "tags": [[0, 0, 7], [1, 2, 3], [0, 5, 6]],
        "vector": vectors([[4, 4.5], [1, 1.5], [2, 2.5]]),
        "level": [9, 7, 8],
    }
    items = read(tmp_path, columns, item_id(6), TAGS, VECTOR, LEVEL, PRICE)
    assert items.num_items == 6
    assert items.known.tolist() == [True, True, True, False, True, False]
    assert items["level"].tolist() == [0, 7, 8, 0, 9, 0]
    assert items["price"].tolist() == [0, 2, 1.5, 0, 0.5, 0]
    assert items["tags"].tolist() == [[0] * 3, [1, 2, 3], [0, 5, 6], [0] * 3, [0, 0, 7], [0] * 3]
    assert items["vector"].tolist() == [[0, 0], [1, 1.5], [2, 2.5], [0, 0], [4, 4.5], [0, 0]]
    assert items["vector"].dtype == torch.float32
    assert not items.state_dict()


def test_rows_looks_ids_up(tmp_path):
    items = read(tmp_path, {"item_id": [2, 1], "level": [20, 10]}, item_id(), LEVEL)
    asked = items.rows(torch.tensor([2, 0, 2, 1]), ["level", "item_id"])
    assert {n: c.tolist() for n, c in asked.items()} == {"level": [20, 0, 20, 10], "item_id": [2, 0, 2, 1]}


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_files_in_chunks_over_row_groups_equal_the_whole(tmp_path, monkeypatch, chunk):
    random = np.random.default_rng(chunk)
    ids = random.permutation(np.arange(1, 12))
    tags = [random.integers(1, 9, random.integers(0, 4)).tolist() for _ in ids]
    rows = random.normal(size=(11, 3)).astype(np.float32)
    columns = {"item_id": ids, "tags": tags, "vector": pa.array(rows.tolist(), pa.list_(pa.float32(), 3))}
    monkeypatch.setattr(parquet, "CHUNK_ROWS", chunk)
    path = write(tmp_path / "i.parquet", columns, row_group_size=4)
    items = ItemTable.from_parquet(path, [item_id(), TAGS, VECTOR])
    width = max(map(len, tags))
    for i, item in enumerate(ids):
        assert items["tags"][item].tolist() == [0] * (width - len(tags[i])) + tags[i]
        np.testing.assert_array_equal(items["vector"][item].numpy(), rows[i])


def test_files_are_joined_and_the_first_that_has_a_column_gives_it(tmp_path):
    first = write(tmp_path / "a.parquet", {"item_id": [1, 2], "level": [1, 2]})
    second = write(tmp_path / "b.parquet", {"item_id": [2, 1], "level": [8, 9], "vector": vectors([[2.0], [1.0]])})
    items = ItemTable.from_parquet([first, second], [item_id(), VECTOR, LEVEL])
    assert items["level"].tolist() == [0, 1, 2]
    assert items["vector"].tolist() == [[0], [1], [2]]
    assert ItemTable.from_parquet([second, first], [item_id(), LEVEL])["level"].tolist() == [0, 9, 8]


def test_a_file_that_is_not_needed_is_not_opened(tmp_path):
    first = write(tmp_path / "a.parquet", {"item_id": [1], "level": [5]})
    missing = str(tmp_path / "missing.parquet")
    assert ItemTable.from_parquet([first, missing], [item_id(), LEVEL])["level"].tolist() == [0, 5]
    assert ItemTable.from_parquet([first, missing], [item_id()]).known.tolist() == [True, True]
    with raises_naming(MissingFileError, "missing.parquet"):
        ItemTable.from_parquet([first, missing], [item_id(), LEVEL, VECTOR])


def test_an_absent_file_is_asked_for_only_if_no_other_has_the_column(tmp_path):
    first = write(tmp_path / "a.parquet", {"item_id": [1], "level": [5]})
    last = write(tmp_path / "c.parquet", {"item_id": [1], "vector": vectors([[2.0]])})
    missing = str(tmp_path / "b.parquet")
    assert ItemTable.from_parquet([first, missing, last], [item_id(), LEVEL, VECTOR])["vector"].tolist() == [[0], [2]]
    for paths in ([missing], [missing, first], [first, missing]):
        with raises_naming(MissingFileError, "b.parquet"):
            ItemTable.from_parquet(paths, [item_id(), LEVEL, VECTOR])


@pytest.mark.parametrize(
    ("feature", "command"), [(CODES, "embed quantize"), (VECTOR, "embed encode, reduce, align or pretrain")]
)
def test_what_writes_a_missing_column_is_named(tmp_path, feature, command):
    path = write(tmp_path / "a.parquet", {"item_id": [1], "level": [5]})
    with raises_naming(DataError, "a.parquet", feature.name, f"fuxictr-mm {command}"):
        ItemTable.from_parquet(path, [item_id(), LEVEL, feature])
    with raises_naming(MissingFileError, "derived", feature.name, f"fuxictr-mm {command}"):
        ItemTable.from_parquet([path, str(tmp_path / "derived")], [item_id(), LEVEL, feature])


def test_rows_missing_in_one_file_get_zeros_and_a_warning(tmp_path, caplog):
    first = write(tmp_path / "a.parquet", {"item_id": [1, 2, 3], "level": [1, 2, 3]})
    second = write(tmp_path / "b.parquet", {"item_id": [1], "vector": vectors([[1.0, 1.0]])})
    with caplog.at_level(logging.WARNING):
        items = ItemTable.from_parquet([first, second], [item_id(), VECTOR, LEVEL])
    assert items["vector"].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]
    (warning,) = caplog.messages
    assert all(part in warning for part in ("b.parquet", "2 of 3", "'vector'", "item_id 2"))


def test_part_files_may_differ_in_the_length_of_their_tags(tmp_path):
    write(tmp_path / "parts/0.parquet", {"item_id": [3], "tags": [[1, 2, 3]]})
    write(tmp_path / "parts/1.parquet", {"item_id": [1], "tags": [[4]]})
    items = ItemTable.from_parquet(str(tmp_path / "parts"), [item_id(), TAGS])
    assert items["tags"].tolist() == [[0, 0, 0], [0, 0, 4], [0, 0, 0], [1, 2, 3]]


def test_max_len_widens_tags_on_the_left(tmp_path):
    tags = Feature("tags", "sequence", "item", max_len=3)
    items = read(tmp_path, {"item_id": [1, 2], "tags": [[1], None]}, item_id(), tags)
    assert items["tags"].tolist() == [[0] * 3, [0, 0, 1], [0] * 3]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64(), pa.int32()])
@pytest.mark.parametrize("ids", [[1.0, 2.0], np.array([1, 2], dtype=np.int32)])
def test_vectors_and_ids_of_other_number_types(tmp_path, kind, ids):
    rows = np.array([[1, 2], [3, 4]], dtype=kind.to_pandas_dtype())
    columns = {"item_id": ids, "vector": pa.ListArray.from_arrays([0, 2, 4], pa.array(rows.reshape(-1), kind))}
    items = read(tmp_path, columns, item_id(), VECTOR)
    assert items["vector"].dtype == torch.float32
    assert items["vector"].tolist() == [[0, 0], [1, 2], [3, 4]]


GOOD = {"item_id": [3, 8], "tags": [[1], [2]], "vector": vectors([[1.0, 2.0], [3.0, 4.0]]), "level": [1, 2]}
WIDE = Feature("vector", "embedding", "item", pretrain_dim=3)


@pytest.mark.parametrize(
    ("change", "features", "found"),
    [
        ({"item_id": [3, 3]}, [item_id()], ["item_id 3"]),
        ({"item_id": [3, -8]}, [item_id()], ["item_id", "row 1", "id -8", "0 to 2147483647"]),
        ({"item_id": [3, 2**31]}, [item_id()], ["item_id", "row 1", "id 2147483648", "0 to 2147483647"]),
        ({"item_id": [3, 8]}, [item_id(8)], ["item_id", "row 1", "id 8", "0 to 7", "vocab_size"]),
        ({"item_id": [3, 8.5]}, [item_id()], ["item_id", "row 1", "8.5"]),
        ({"item_id": [3, None]}, [item_id()], ["item_id", "row 1", "null"]),
        ({"item_id": ["a", "b"]}, [item_id()], ["item_id", "string"]),
        ({"level": [1, 5]}, [Feature("level", "categorical", "item", 5)], ["level", "row 1", "id 5", "0 to 4"]),
        ({"tags": [[1], [2, -3]]}, [TAGS], ["tags", "row 1", "id -3"]),
        ({"tags": [[1.0], [2.0, 2.5]]}, [TAGS], ["tags", "row 1", "2.5"]),
        ({"tags": [[1], [2, 4]]}, [Feature("tags", "sequence", "item", 4)], ["tags", "row 1", "id 4", "0 to 3"]),
        (
            {"tags": [[1], [2, 4, 5]]},
            [Feature("tags", "sequence", "item", max_len=2)],
            ["tags", "row 1", "3 ", "max_len 2"],
        ),
        ({"tags": [1, 2]}, [TAGS], ["tags", "int64"]),
        ({"vector": vectors([[1.0, 2.0], [3.0, np.nan]])}, [VECTOR], ["vector", "item_id 8", "nan"]),
        ({"vector": vectors([[-np.inf, 2.0], [3.0, 4.0]])}, [VECTOR], ["vector", "item_id 3", "-inf"]),
        ({"vector": vectors([[1e300, 2.0], [3.0, 4.0]], pa.float64())}, [VECTOR], ["vector", "item_id 3", "inf"]),
        ({}, [WIDE], ["vector", "item_id 3", "dim 2", "pretrain_dim"]),
        (
            {"item_id": [3, 8, 9], "vector": vectors([[1.0, 2], [3.0], [4, 5]]), "tags": [[1]] * 3, "level": [1] * 3},
            [VECTOR],
            ["vector", "item_id 8", "dim 1", "2"],
        ),
        ({"vector": vectors([[], [3.0, 4.0]])}, [VECTOR], ["vector", "item_id 3", "dim 0", "2"]),
        ({"vector": vectors([[], []])}, [VECTOR], ["vector", "item_id 3", "dim 0"]),
        ({"vector": vectors([None, None])}, [VECTOR], ["vector", "null"]),
        ({"vector": [1.0, 2.0]}, [VECTOR], ["vector", "double"]),
        ({}, [Feature("vectors", "embedding", "item")], ["'vectors'", "'vector'"]),
    ],
)
def test_bad_item_files_say_file_column_item_value_and_expectation(tmp_path, change, features, found):
    path = write(tmp_path / "bad.parquet", {**GOOD, **change})
    with raises_naming(DataError, f"{path}: ", *found):
        ItemTable.from_parquet(path, features)


@pytest.mark.parametrize(
    ("rows", "features", "found"),
    [
        ({"vector": [[1, 2], [3, 4], [5, 6, 7], [8, 9, 10]]}, [VECTOR], ["vector: item_id 7", "dim 3", "2"]),
        # They were padded by NaN, and so became zeros as if they were missing.
        ({"vector": [None, None, [1, 2], [3, 4], [5, 6, 7], [8, 9, 10]]}, [VECTOR], ["vector", "9", "dim 3", "2"]),
        ({"tags": [[1], [], [], [2, 77]]}, [Feature("tags", "sequence", "item", 10)], ["tags: row 3", "77", "0 to 9"]),
    ],
)
def test_what_is_wrong_in_a_later_chunk_names_its_item_or_row(tmp_path, monkeypatch, rows, features, found):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 2)
    ((name, lists),) = rows.items()
    columns = {"item_id": range(5, 5 + len(lists)), name: vectors(lists) if name == "vector" else lists}
    with raises_naming(DataError, "i.parquet", *found):
        read(tmp_path, columns, item_id(), *features)


def test_a_file_without_item_id_and_a_file_without_rows(tmp_path):
    with raises_naming(DataError, "i.parquet", "'item_id'", "'itemid'"):
        read(tmp_path, {"itemid": [1], "level": [1]}, item_id(), LEVEL)
    with raises_naming(DataError, "i.parquet"):
        read(tmp_path, dict.fromkeys(["item_id", "level"], pa.array([], pa.int64())), item_id(), LEVEL)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64())])
def test_a_null_embedding_is_zero_with_a_warning(tmp_path, monkeypatch, caplog, kind):
    skip_unreadable(kind)
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 2)  # a whole chunk of nulls as well
    rows = [[1, 2], None, None, None, [5, 6]]
    with caplog.at_level(logging.WARNING):
        items = read(tmp_path, {"item_id": range(1, 6), "vector": pa.array(rows, kind)}, item_id(), VECTOR)
    assert items["vector"].tolist() == [[0, 0], [1, 2], [0, 0], [0, 0], [0, 0], [5, 6]]
    assert "3 of 5 items" in caplog.text


def test_an_embedding_of_arrows_tensor_type_is_its_storage(tmp_path):
    storage = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, 3, 4], pa.float32()), 2)
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), storage)
    items = read(tmp_path, {"item_id": [1, 2], "vector": tensors}, item_id(), VECTOR)
    assert items["vector"].tolist() == [[0, 0], [1, 2], [3, 4]]


def test_part_files_without_rows_or_of_nulls_are_passed_over(tmp_path, caplog):
    write(tmp_path / "0.parquet", {"item_id": pa.array([], pa.int64()), "vector": pa.nulls(0)})
    write(tmp_path / "1.parquet", {"item_id": [2], "vector": vectors([[1.0, 2.0]])})
    write(tmp_path / "2.parquet", {"item_id": [1], "vector": pa.nulls(1)})
    items = ItemTable.from_parquet(str(tmp_path), [item_id(), VECTOR])
    assert items["vector"].tolist() == [[0, 0], [0, 0], [1, 2]]
    assert "1 of 2 items" in caplog.text


def test_ids_that_are_the_index_of_a_pandas_frame_are_told(tmp_path):
    table = pa.table({"level": [1, 2]}).to_pandas().rename_axis("item_id")
    table.to_parquet(tmp_path / "i.parquet")
    with raises_naming(DataError, "'item_id'", "reset_index"):
        ItemTable.from_parquet(str(tmp_path / "i.parquet"), [item_id(), LEVEL])


def test_a_column_in_no_file_names_all_files(tmp_path):
    first = write(tmp_path / "a.parquet", {"item_id": [1], "level": [1]})
    second = write(tmp_path / "b.parquet", {"item_id": [1], "vector": vectors([[1.0]])})
    with raises_naming(DataError, f"{first}, {second}", "'vectr'", "'vector'", "item_id, level, vector"):
        ItemTable.from_parquet([first, second], [item_id(), Feature("vectr", "embedding", "item")])


def test_an_item_in_two_part_files_and_vectors_of_two_widths(tmp_path):
    write(tmp_path / "twice/0.parquet", {"item_id": [1, 2], "level": [1, 2]})
    write(tmp_path / "twice/1.parquet", {"item_id": [3, 2], "level": [3, 4]})
    with raises_naming(DataError, "1.parquet: item_id 2"):
        ItemTable.from_parquet(str(tmp_path / "twice"), [item_id(), LEVEL])
    write(tmp_path / "wide/0.parquet", {"item_id": [1], "vector": vectors([[1.0]])})
    write(tmp_path / "wide/1.parquet", {"item_id": [2], "vector": vectors([[1.0, 2.0]])})
    with raises_naming(DataError, "'vector'", "0.parquet 1", "1.parquet 2"):
        ItemTable.from_parquet(str(tmp_path / "wide"), [item_id(), VECTOR])


@pytest.mark.parametrize("level", [3, 0])
def test_features_of_item_zero_are_dropped_with_one_warning(tmp_path, caplog, level):
    columns = {"item_id": [0, 1], "level": [level, 4], "vector": vectors([[level], [2.0]])}
    with caplog.at_level(logging.WARNING):
        items = read(tmp_path, columns, item_id(), LEVEL, VECTOR)
    assert items["level"].tolist() == [0, 4]
    assert ["i.parquet: item_id 0" in warning for warning in caplog.messages] == [True] * (level > 0)


def test_sparse_ids_are_refused_before_anything_is_allocated(tmp_path):
    with raises_naming(DataError, "i.parquet", "2000000000"):
        read(tmp_path, {"item_id": [1, 2_000_000_000], "level": [3, 4]}, item_id(), LEVEL)
    assert read(tmp_path, {"item_id": [1, 900_000], "level": [3, 4]}, item_id(), LEVEL).num_items == 900_001


def stored():
    values = np.random.default_rng(0).normal(3, 2, (7, 5)).astype(np.float32)
    values[0] = values[4] = 0  # padding, and an item without an embedding
    return values


def test_l2_has_one_length():
    lengths = np.linalg.norm(normalize(stored(), "l2", 10), axis=1)
    np.testing.assert_allclose(lengths, [0, 10, 10, 10, 0, 10, 10], rtol=1e-6)


def test_layer_norm_is_that_of_torch():
    found = normalize(stored(), "layer")
    expected = torch.nn.functional.layer_norm(torch.from_numpy(stored()), (5,), eps=1e-12).numpy()
    np.testing.assert_allclose(found[[1, 2, 3, 5, 6]], expected[[1, 2, 3, 5, 6]], rtol=1e-5, atol=1e-6)
    assert not found[[0, 4]].any()


def test_standard_counts_items_with_an_embedding():
    values = stored()
    values[1:, 2] = 7
    values[4] = 0
    found = normalize(values, "standard", 2)
    rows = values[[1, 2, 3, 5, 6]].astype(np.float64)
    expected = 2 * (rows - rows.mean(0)) / np.where(rows.std(0) > 0, rows.std(0), 1)
    np.testing.assert_allclose(found[[1, 2, 3, 5, 6]], expected, rtol=1e-5, atol=1e-6)
    assert not found[[0, 4]].any()
    assert not found[:, 2].any()


def test_new_items_do_not_change_standardised_ones():
    values = stored()
    found = normalize(values, "standard", num_trained=5)
    np.testing.assert_array_equal(found[:5], normalize(values[:5], "standard"))
    rows = values[[1, 2, 3]].astype(np.float64)
    np.testing.assert_allclose(found[6], (values[6] - rows.mean(0)) / rows.std(0), rtol=1e-5)


def test_without_norm_and_scale_nothing_is_copied():
    values = stored()
    assert normalize(values, None) is values
    np.testing.assert_array_equal(normalize(values, None, 2), 2 * stored())


def test_an_embedding_is_normalised_as_it_is_read(tmp_path):
    feature = Feature("vector", "embedding", "item", norm="l2", scale=5.0)
    items = read(tmp_path, {"item_id": [1, 2], "vector": vectors([[3, 4], [0, 0]])}, item_id(), feature)
    assert items["vector"].tolist() == [[0, 0], [3, 4], [0, 0]]


@pytest.mark.parametrize("gap", [False, True])
def test_8_bit_embeddings_stay_8_bits_and_are_scaled_when_read(tmp_path, gap):
    rows = [[127, -127], None if gap else [0, 5], [-128, 1]]
    columns = {"item_id": [1, 2, 3], "vector": vectors(rows, pa.int8())}
    items = read(tmp_path, columns, item_id(), Feature("vector", "embedding", "item", scale=1 / 127))
    expected = torch.tensor([[0, 0], [127, -127], [0, 0] if gap else [0, 5], [-128, 1]]) * (1 / 127)
    # A null has no place among 8-bit integers: then they are float32.
    assert items.get_buffer("column_vector").dtype == (torch.float32 if gap else torch.int8)
    assert torch.equal(items["vector"], expected)
    asked = torch.tensor([3, 0, 3])
    assert torch.equal(items.rows(asked, ["vector"])["vector"], expected[asked])
    assert items.dim("vector") == 2


def test_8_bit_embeddings_of_several_part_files(tmp_path):
    folder = tmp_path / "items"
    for part, (ids, rows) in enumerate([([1, 2], [[1, 2], [3, 4]]), ([3, 4], [None, [5, 6]])]):
        write(folder / f"part-{part}.parquet", {"item_id": ids, "vector": vectors(rows, pa.int8())})
    items = ItemTable.from_parquet(str(folder), [item_id(), VECTOR])
    assert items["vector"].tolist() == [[0, 0], [1, 2], [3, 4], [0, 0], [5, 6]]


@pytest.mark.parametrize("settings", [{"norm": "l2"}, {"freeze_emb": False}])
def test_8_bit_embeddings_that_are_normalised_or_trained_are_float32(tmp_path, settings):
    feature = Feature("vector", "embedding", "item", **settings)
    items = read(tmp_path, {"item_id": [1], "vector": vectors([[3, 4]], pa.int8())}, item_id(), feature)
    assert items.get_buffer("column_vector").dtype == torch.float32
    torch.testing.assert_close(items["vector"][1], torch.tensor([0.6, 0.8] if "norm" in settings else [3.0, 4.0]))


@pytest.mark.parametrize(
    ("tags", "warned"),
    [
        ([[0, 1], [2], [3]], True),  # as numbered by pandas.factorize or Spark's StringIndexer
        ([[], [1, 2, 0], [1]], True),
        ([[0, 1], [0, 2], [1, 2]], False),  # padded
        ([[0], [1, 2], []], False),  # 0 for none
        ([[1], [1, 2], []], False),
    ],
)
def test_an_id_zero_that_is_no_padding_gives_a_warning(tmp_path, caplog, tags, warned):
    read(tmp_path, {"item_id": [1, 2, 3], "tags": tags}, TAGS)
    assert any("tags: row" in record.message for record in caplog.records) == warned
