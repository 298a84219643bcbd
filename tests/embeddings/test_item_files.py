import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.embeddings.item_files import (
    ItemFileWriter,
    JoinedEmbeddings,
    Source,
    code_type,
    embedding_type,
    read_embeddings,
)
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from tests.arrow import skip_unreadable
from tests.errors import raises_naming


def write(path, ids, vectors, kind=None, **options):
    column = pa.array([None if v is None else list(map(float, v)) for v in vectors], kind or pa.list_(pa.float32()))
    pq.write_table(pa.table({"item_id": pa.array(ids, pa.int64()), "vector": column}), path, **options)
    return Source(path.stem, path, "vector")


def read(source):
    """Return {id: embedding}."""
    return {
        i: v for ids, vectors in read_embeddings(source) for i, v in zip(ids.tolist(), vectors.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    ("text", "name", "path", "column"),
    [
        ("text=a/b.parquet:emb", "text", "a/b.parquet", "emb"),
        ("b.parquet:emb", "emb", "b.parquet", "emb"),
        ("a/date=1/b.parquet:emb", "emb", "a/date=1/b.parquet", "emb"),
        ("text=C:\\b.parquet:emb", "text", "C:\\b.parquet", "emb"),
    ],
)
def test_a_source_is_parsed(text, name, path, column):
    source = Source.parse(text)
    assert (source.name, str(source.path), source.column) == (name, path, column)


@pytest.mark.parametrize(
    "text", ["b.parquet", "text=b.parquet:", "C:\\b.parquet", "my text=b.parquet:e", "=b.parquet:e"]
)
def test_a_source_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=text.replace("\\", r"\\")):
        Source.parse(text)


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2)])
def test_chunks_skip_the_padding_and_have_one_size(tmp_path, kind):
    ids = [5, 0, 2, 9, 4, 1]
    source = write(tmp_path / "a.parquet", ids, [[i, i + 0.5] for i in ids], kind, row_group_size=4)
    for rows in (1, 2, 3, 100):
        chunks = list(read_embeddings(source, chunk_rows=rows))
        assert [len(c) for c, _ in chunks] == [min(rows, 5 - start) for start in range(0, 5, rows)]
        assert np.concatenate([c for c, _ in chunks]).tolist() == [5, 2, 9, 4, 1]
        assert np.concatenate([v for _, v in chunks]).tolist() == [[i, i + 0.5] for i in [5, 2, 9, 4, 1]]
        assert all(v.dtype == np.float32 and c.dtype == np.int64 for c, v in chunks)
    assert source.dim == 2


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2)])
def test_a_null_is_a_zero_embedding_and_the_padding_may_hold_anything(tmp_path, kind):
    skip_unreadable(kind)
    padding = [np.nan] * (2 if pa.types.is_fixed_size_list(kind) else 1)
    source = write(tmp_path / "a.parquet", [0, 3, 1, 2], [padding, None, [1, 2], None], kind)
    assert read(source) == {3: [0, 0], 1: [1, 2], 2: [0, 0]}


def test_a_folder_of_part_files_is_one_source(tmp_path):
    write(tmp_path / "0.parquet", [], [])
    write(tmp_path / "1.parquet", [3, 1], [[3], [1]])
    pq.write_table(pa.table({"item_id": [4], "vector": pa.nulls(1)}), tmp_path / "2.parquet")
    storage = pa.FixedSizeListArray.from_arrays(pa.array([2.0], pa.float32()), 1)
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [1]), storage)
    pq.write_table(pa.table({"item_id": [2], "vector": tensor}), tmp_path / "3.parquet")
    assert read(Source("a", tmp_path, "vector")) == {3: [3], 1: [1], 4: [0], 2: [2]}


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        ([1, 2], [[1, 2], [1]], "vector: item_id 2 .* 1, .* 2"),
        ([1, 2], [[1, 2], []], "vector: item_id 2 .* 0, .* 2"),
        ([7], [[]], "vector"),
        ([7], [None], "vector"),
        ([1, 2], [[1, 2], [0, np.nan]], "vector: item_id 2 .*nan.* 1"),
        ([1, 2], [[1, 2], [0, 1e300]], "vector: item_id 2 .*inf"),
        ([4, 3, 4], [[1], [2], [3]], "item_id 4 "),
        ([1, -3], [[1], [2]], "item_id: row 1 .*-3"),
        ([0], [[1]], r"a\.parquet"),
    ],
)
def test_broken_embeddings_are_named(tmp_path, ids, vectors, message):
    source = write(tmp_path / "a.parquet", ids, vectors, pa.list_(pa.float64()))
    with pytest.raises(DataError, match=message) as caught:
        list(read_embeddings(source))
    assert str(tmp_path / "a.parquet") in str(caught.value)


def test_missing_columns_and_files_are_named(tmp_path):
    source = write(tmp_path / "a.parquet", [1], [[1]])
    with raises_naming(DataError, "'vectr'", "'vector'"):
        Source("a", source.path, "vectr").dim  # noqa: B018
    with raises_naming(MissingFileError, "aa", "'a.parquet'"):
        read(Source("a", tmp_path / "aa.parquet", "vector"))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_joined_embeddings_equal_a_dense_join(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("join")
    sources, dense = [], {}
    for name, width in (("a", 2), ("b", 3)):
        ids = data.draw(st.lists(st.integers(1, 12), min_size=1, unique=True))
        rows = np.random.default_rng(len(ids)).normal(size=(len(ids), width)).astype(np.float32)
        dense[name] = dict(zip(ids, rows.tolist(), strict=True))
        sources.append(write(folder / f"{name}.parquet", ids, rows, row_group_size=3))
    with JoinedEmbeddings(sources) as joined:
        assert joined.dims == {"a": 2, "b": 3}
        for chunk_rows in (1, 4):
            seen = []
            for ids, vectors in joined.chunks(chunk_rows):
                seen += ids.tolist()
                for name, width in joined.dims.items():
                    assert vectors[name].tolist() == [dense[name].get(i, [0] * width) for i in ids.tolist()]
            assert seen == joined.ids.tolist()
            assert sorted(seen) == sorted({*dense["a"], *dense["b"]})


def test_sorted_copies_are_removed_also_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    one = write(tmp_path / "a.parquet", [1, 2], [[1], [2]])
    with JoinedEmbeddings([one, write(tmp_path / "b.parquet", [2, 1], [[1], [2]])]):
        assert len(list((tmp_path / "tmp").iterdir())) == 1
    joined = JoinedEmbeddings([one, write(tmp_path / "c.parquet", [3, 1], [[1], [np.nan]])])
    with pytest.raises(DataError, match="nan"), joined:
        pass
    assert not list((tmp_path / "tmp").iterdir())


def test_two_sources_of_one_name_are_refused(tmp_path):
    source = write(tmp_path / "a.parquet", [1], [[1]])
    for sources, named in (([source, source], f"'{source.name}'"), ([], "no source")):
        with raises_naming(ConfigError, named):
            JoinedEmbeddings(sources)


def test_what_is_written_is_an_item_file(tmp_path):
    path = tmp_path / "new" / "items.parquet"
    schema = {"v": embedding_type(2), "codes": code_type(3), "title": pa.string(), "known": pa.bool_(), "n": pa.int64()}
    with ItemFileWriter(path, schema) as writer:
        for ids in ([4], [1, 3]):
            column = np.array(ids)
            vectors, codes = np.stack([column, column / 2], axis=1), np.stack([column] * 3, axis=1).astype(np.int32)
            titles = [f"t{i}" for i in ids]
            writer.write(ids, {"v": vectors, "codes": codes, "title": titles, "known": column > 1, "n": column})
        writer.write([], {})
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ["items.parquet"]
    assert pq.read_table(path).slice(0, 2).to_pylist() == [
        {"item_id": 0, "v": [0, 0], "codes": [0, 0, 0], "title": "", "known": False, "n": 0},
        {"item_id": 4, "v": [4, 2], "codes": [4, 4, 4], "title": "t4", "known": True, "n": 4},
    ]
    features = [Feature("v", "embedding", "item"), Feature("codes", "sequence", "item")]
    items = ItemTable.from_parquet(str(path), features)
    assert items["v"].tolist() == [[0, 0], [1, 0.5], [0, 0], [3, 1.5], [4, 2]]
    assert items["codes"][4].tolist() == [4, 4, 4]


def test_many_small_writes_make_few_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("fuxictr_mm.embeddings.item_files.CHUNK_ROWS", 10)
    with ItemFileWriter(tmp_path / "a.parquet", {"n": pa.int64()}) as writer:
        for i in range(1, 25):
            writer.write([i], {"n": [i]})
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.read().column("n").to_pylist() == list(range(25))
    assert file.metadata.num_row_groups == 3


@pytest.mark.parametrize(
    ("ids", "columns", "error"),
    [
        ([0], {"v": np.zeros((1, 2))}, DataError),
        ([1, 1], {"v": np.zeros((2, 2))}, DataError),
        ([1], {"v": np.zeros((1, 3))}, ValueError),
        ([1], {"v": np.zeros((2, 2))}, ValueError),
        ([1], {"w": np.zeros((1, 2))}, ValueError),
    ],
)
def test_a_wrong_write_leaves_nothing(tmp_path, ids, columns, error):
    with pytest.raises(error), ItemFileWriter(tmp_path / "a.parquet", {"v": embedding_type(2)}) as writer:
        writer.write(ids, columns)
    assert not list(tmp_path.iterdir())


def test_an_older_file_stays_unless_overwritten(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("old")
    with raises_naming(ConfigError, "--overwrite"):
        ItemFileWriter(path, {"n": pa.int64()})

    def write_and_stop():
        with ItemFileWriter(path, {"n": pa.int64()}, overwrite=True) as writer:
            writer.write([1], {"n": [1]})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert path.read_text() == "old"
    with ItemFileWriter(path, {"n": pa.int64()}, overwrite=True) as writer:
        writer.write([1], {"n": [1]})
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
    assert pq.read_table(path).column("n").to_pylist() == [0, 1]


def test_a_path_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught, ItemFileWriter(tmp_path / "file" / "a.parquet", {}):
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        ItemFileWriter(tmp_path, {})
