import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.data import parquet
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.vocabulary import UNKNOWN, Conversion, Vocabularies, Vocabulary
from fuxictr_mm.errors import DataError, MissingFileError, UserError
from tests import ids as world
from tests.errors import raises_naming

TEXTS = ["B07", "a", "A", "ü", "", "x" * 300, "0", "-1"]
BIG = 2**63 + 11


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (TEXTS, pa.string()),
        (TEXTS, pa.large_string()),
        (TEXTS, pa.string_view()),
        (TEXTS, pa.dictionary(pa.int8(), pa.string())),
        ([text.encode() for text in TEXTS], pa.binary()),
        ([b"0123456789abcdef", b"fedcba9876543210"], pa.binary(16)),
        ([5, -3, 0, 2**62, -(2**63)], pa.int64()),
        ([5, 0, BIG, 2**64 - 1], pa.uint64()),
        ([5, -3, 0], pa.int8()),
        ([5.0, -3.0, 2.0**53], pa.float64()),
    ],
)
def test_ids_of_every_type_become_numbers_and_back(values, kind):
    array = pa.array(values, pa.string() if pa.types.is_dictionary(kind) else kind)
    array = array.dictionary_encode() if pa.types.is_dictionary(kind) else array
    vocabulary = Vocabulary.build([array.slice(0, 1), array, array.slice(1)])
    expected = np.arange(1, len(values) + 1)
    assert vocabulary.encode(array).tolist() == expected.tolist()
    assert vocabulary.decode(expected).to_pylist() == values
    assert vocabulary.decode(np.array([0, len(values) + 1])).to_pylist() == [None, None]
    assert vocabulary.encode(pa.nulls(2, array.type)).tolist() == [0, 0]


def test_integers_of_both_signs_and_types_are_told_apart():
    signed, unsigned = Vocabulary.build([pa.array([-5, 7])]), Vocabulary.build([pa.array([7, BIG], pa.uint64())])
    assert unsigned.encode(pa.array([7, BIG - 2**64, -1, 8])).tolist() == [1, UNKNOWN, UNKNOWN, UNKNOWN]
    assert signed.encode(pa.array([7, 2**64 - 5, 8], pa.uint64())).tolist() == [2, UNKNOWN, UNKNOWN]
    assert Vocabulary.build([pa.array([7]), pa.array([BIG], pa.uint64())]).values.to_pylist() == [7, BIG]
    with raises_naming(DataError, "negative", "2**63"):
        Vocabulary.build([pa.array([-7]), pa.array([BIG], pa.uint64())])


@pytest.mark.parametrize(
    ("built", "asked"),
    [
        (pa.array(["7"]), pa.array([7])),
        (pa.array([7]), pa.array(["7"])),
        (pa.array(["7"]), pa.array([b"7"])),
        (pa.array([7]), pa.array([7.5])),
        (pa.array([2**60]), pa.array([2.0**60])),
        (pa.array([7]), pa.array([True])),
    ],
)
def test_ids_of_another_type_are_refused_with_the_column(built, asked):
    with pytest.raises(DataError, match="f: c"):
        Vocabulary.build([built]).encode(asked, "f: c")


def test_texts_with_one_hash_are_two_ids(monkeypatch):
    from fuxictr_mm.data import vocabulary as module

    real = module._keys

    def colliding(values, seed):
        keys = real(values, seed)
        return keys if seed else keys % 2  # the first seed has two keys only

    monkeypatch.setattr(module, "_keys", colliding)
    texts = pa.array([f"t{i}" for i in range(40)])
    assert Vocabulary.build([texts]).encode(texts).tolist() == list(range(1, 41))
    monkeypatch.setattr(module, "_keys", lambda values, seed: np.zeros(len(values), dtype=np.uint64))
    assert Vocabulary(pa.array(["t0"], pa.large_string())).encode(pa.array(["t0", "t1"])).tolist() == [1, UNKNOWN]


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(
        st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2), max_size=9), max_size=5
    ),
    as_text=st.booleans(),
)
def test_numbers_follow_the_first_occurrence(chunks, as_text):
    if as_text:
        chunks = [[None if v is None else str(v) for v in chunk] for chunk in chunks]
    arrays = [pa.array(chunk, pa.string() if as_text else pa.int64()) for chunk in chunks]
    vocabulary = Vocabulary.build(arrays)
    order = list(dict.fromkeys(v for chunk in chunks for v in chunk if v is not None))
    for chunk, array in zip(chunks, arrays, strict=True):
        assert vocabulary.encode(array).tolist() == [0 if v is None else order.index(v) + 1 for v in chunk]
    assert vocabulary.values.to_pylist() == order


ITEMS = {"text": ["i1", "i2", "i3"], "integer": [-4, 2**40, 9], "with zero": [0, 5, -1]}
PADDING = {"text": ["", None], "integer": [0, None], "with zero": [None]}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(), kind=st.sampled_from(list(ITEMS)), max_len=st.none() | st.integers(1, 4), chunk=st.integers(1, 5)
)
def test_jagged_histories_equal_a_plain_computation(tmp_path, monkeypatch, data, kind, max_len, chunk):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", chunk)
    items, padding = ITEMS[kind], PADDING[kind]
    entry = st.sampled_from([*items, *padding])
    rows = data.draw(st.lists(st.none() | st.lists(entry, max_size=6), min_size=2, max_size=9))
    targets = data.draw(st.lists(st.sampled_from(items), min_size=len(rows), max_size=len(rows)))
    kinds = [pa.string(), pa.large_string()] if kind == "text" else [pa.int64()]
    scalar = data.draw(st.sampled_from(kinds))
    wrapped = data.draw(st.sampled_from([pa.list_, pa.large_list]))(scalar)
    n = len(rows)
    table = {
        "target": pa.array(targets, scalar),
        "clicked": pa.array(rows, wrapped),
        "label": [i % 2 for i in range(n)],
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet", row_group_size=data.draw(st.integers(1, 4)))
    vocabularies = Vocabularies({"item_id": Vocabulary.build([pa.array(items)])})
    how = Conversion("target", "clicked", vocabularies, zero_ends=100)
    files = InteractionFiles(tmp_path / "x", [], np.ones(4, bool), max_len=max_len, conversion=how)
    found = concatenate(files.chunks())
    expected = [[items.index(i) + 1 for i in row or [] if i not in padding][-(max_len or 99) :] for row in rows]
    assert [v.tolist() for v in found.history_values.split(found.history_offsets.diff().tolist())] == expected
    assert found.target.tolist() == [items.index(target) + 1 for target in targets]


def read_history(tmp_path, rows, items, zero_ends=1, kind=None):
    table = {"item_id": [items[0]] * len(rows), "item_seq": pa.array(rows, kind), "label": [0, 1] * (len(rows) // 2)}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    vocabularies = Vocabularies({"item_id": Vocabulary.build([pa.array(items)])})
    how = Conversion(vocabularies=vocabularies, zero_ends=zero_ends)
    return concatenate(InteractionFiles(tmp_path / "x", [], np.ones(9, bool), conversion=how).chunks())


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.list_(pa.int64(), 3)])
def test_zeros_that_pad_are_not_taken_for_item_zero(tmp_path, kind):
    for rows in ([[0, 5, 5], [5, 5, 5]], [[5, 0, 0], [5, 5, 5]]):
        with pytest.raises(DataError, match="item_seq"):
            read_history(tmp_path, rows, [5, 0], kind=kind)
    with pytest.raises(DataError, match="item_seq"):
        read_history(tmp_path, [[0, 0, 5], [5, 5, 5]], [5, 0], zero_ends=2, kind=kind)
    assert read_history(tmp_path, [[0, 5, 5], [5, 0, 5]], [5, 0], 2, kind).history_values.tolist() == [2, 1, 1, 1, 2, 1]
    assert read_history(tmp_path, [[5, 0, 5], [5, 5, 5]], [5, 0], 1, kind).history_values.tolist() == [1, 2, 1, 1, 1, 1]
    # Where 0 is no item it pads.
    assert read_history(tmp_path, [[0, 0, 5], [5, 5, 5]], [5, 6], 1, kind).history_values.tolist() == [1, 1, 1, 1]


def test_lists_of_several_lengths_may_hold_item_zero_anywhere(tmp_path):
    kind = pa.list_(pa.int64())
    found = read_history(tmp_path, [[0, 0], [5], [], [0]], [5, 0], kind=kind)
    assert found.history_values.tolist() == [2, 2, 1, 2]
    # Lists of two are too short for padding by three zeros.
    assert read_history(tmp_path, [[0, 0], [5, 5]], [5, 0], 3, kind).history_values.tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("column", ["item_id", "item_seq"])
def test_an_item_without_a_row_is_refused_with_row_and_id(tmp_path, column):
    table = {"item_id": ["a", "b"], "item_seq": [["a"], ["b", "a"]], "label": [0, 1]}
    table[column][1] = "gone" if column == "item_id" else ["a", "gone"]
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    how = Conversion(vocabularies=Vocabularies({"item_id": Vocabulary.build([pa.array(["a", "b"])])}))
    with raises_naming(DataError, f"{column}: row 1", "'gone'"):
        list(InteractionFiles(tmp_path / "x", [], np.ones(3, bool), conversion=how).chunks())


def test_saved_vocabularies_are_read_as_they_were(tmp_path):
    path = tmp_path / "new" / "v.parquet"
    values = {"item_id": pa.array([-5, 2**40]), "city": pa.array(["x", "", "é"]), "n": pa.array([BIG], pa.uint64())}
    saved = Vocabularies({name: Vocabulary.build([array]) for name, array in values.items()})
    saved.save(path)
    found = Vocabularies.load(path)
    assert {n: v.values.to_pylist() for n, v in found.items()} == {n: a.to_pylist() for n, a in values.items()}
    assert saved.equal_file(path)
    assert not Vocabularies({"city": saved["city"]}).equal_file(path)
    assert pq.read_table(path).column_names == ["item_id", "city", "n"]  # row i holds the id with the number i
    assert pq.read_table(path)["city"].to_pylist() == [None, "x", "", "é"]


def test_an_old_file_stays_where_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "v.parquet"
    saved = Vocabularies({"a": Vocabulary.build([pa.array(["x"])])})
    saved.save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with raises_naming(UserError, path):
        Vocabularies({"a": Vocabulary.build([pa.array(["y"])])}).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["v.parquet"]


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    table = pq.read_table(path)
    path.unlink()  # another link to the file stays as it is
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        if how == "without metadata":
            table = table.replace_schema_metadata(None)
        elif how == "id twice":
            column = table.columns[0].to_pylist()
            table = table.set_column(0, table.column_names[0], pa.array([None, column[1], column[1], *column[3:]]))
        elif how == "newer":
            content = json.dumps({"format": 2, "sizes": {}})
            table = table.replace_schema_metadata({"fuxictr_mm.vocabulary": content})
        pq.write_table(table, path)


@pytest.mark.parametrize("how", ["cut", "empty", "without metadata", "id twice", "newer"])
def test_a_damaged_file_is_named(tmp_path, how):
    path = tmp_path / "v.parquet"
    Vocabularies({"item_id": Vocabulary.build([world.KINDS["text"].slice(1)])}).save(path)
    damaged(path, how)
    with pytest.raises(DataError, match=r"v\.parquet"):
        Vocabularies.load(path)


def test_what_a_run_does_not_have_is_not_built(tmp_path):
    assert not Vocabularies.load(tmp_path / "v.parquet")
    with raises_naming(MissingFileError, "v.parquet", "'city'"):
        Vocabularies.load(tmp_path / "v.parquet").of("city", lambda: Vocabulary.build([]))
