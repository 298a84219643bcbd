import gzip
import shutil

import polars as pl
import pyarrow as pa
import pytest

from fuxictr_mm.embeddings.item_tables import names_of, read_table, table_files
from fuxictr_mm.encoding.text_encodings import Encoding
from fuxictr_mm.encoding.text_files import scanned, schema_of
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming

ITEMS = pl.DataFrame({"id": ["7", "30"], "title": ["tea, green", "a\n\nred cup"]})


def packed_by(ending, content):
    if ending == ".gz":
        return gzip.compress(content, mtime=0)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("ending", "separator"), [("csv", ","), ("tsv", "\t"), ("txt", ";"), ("csv", "|"), ("jsonl", ""), ("json", "")]
)
def test_every_form_is_read(ending, separator, packed, tmp_path):
    path = tmp_path / f"items.{ending}"
    text = ITEMS.write_csv(separator=separator) + "\n\n" if separator else ITEMS.write_ndjson()
    path.write_text(text)
    if packed:
        path = path.rename(f"{path}{packed}")
        path.write_bytes(packed_by(packed, text.encode()))
    with scanned(path, tmp_path) as rows:
        assert rows.collect().equals(ITEMS)
    assert schema_of(path) == ITEMS.schema
    assert table_files(path) == [path]
    assert names_of(path) == ITEMS.columns
    [(first, batch)] = read_table(path, ["title", "id"], "id")
    assert first == 0
    assert batch.to_pydict()["title"] == ITEMS["title"].to_list()
    assert batch.to_pydict()["id"] == [7, 30]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'id,title\n7,tea\n30,"green" cup\n', ["line 3", "quote"]),
        (b"id,title\n7,tea\n30,cup, red\n", ["row 1", "3"]),
        (b"id,title\n7,th\xe9\n", ["row 0", "title", "UTF-8"]),
        (b"id,title,id\n7,tea,8\n", ["'id'"]),
        ("id,title\n7,tea\n".encode("utf-16-le"), ["UTF-16"]),
        (b"id,title\r7,tea\r", ["CR"]),
        (b"  \nid,title\n7,tea\n", ["'id'"]),
        (packed_by(".gz", b"id,title\n" + b"7,tea\n" * 10_000)[:-9], ["items.csv"]),
        (packed_by(".zst", b"id,title\n" + b"7,tea\n" * 10_000)[:-9], ["items.csv"]),
    ],
)
def test_what_cannot_be_read_is_named(content, named, tmp_path):
    path = tmp_path / f"items.csv{ {0x1F: '.gz', 0x28: '.zst'}.get(content[0], '') }"
    path.write_bytes(content)
    with raises_naming(DataError, path.name, *named):
        list(read_table(path, ["id", "title"][: 1 + (len(named) > 1)], "id"))


def test_short_rows_are_warned_of(tmp_path, caplog):
    (tmp_path / "items.csv").write_text("id,title,price\n7,tea,1\n8\n9,cup\n")
    with caplog.at_level("WARNING"), scanned(tmp_path / "items.csv", warn=True) as rows:
        assert rows.collect()["title"].to_list() == ["tea", None, "cup"]
    assert "items.csv: 2 rows" in caplog.text
    assert "row 1" in caplog.text


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("encoding", [Encoding(), Encoding("cp1252", "--encoding")])
@pytest.mark.parametrize(("separator", "ending"), [("::", "dat"), ("|", "user"), ("\t", "data"), (",", "csv")])
def test_a_file_without_a_header_has_the_names_given(separator, ending, encoding, packed, tmp_path, monkeypatch):
    rows = [("1", "Café: 1", "a|b:" if separator == "::" else "a"), ("2", "x: y", ""), ("3", "tea", "c")]
    content = "".join(separator.join(row) + "\r\n" for row in rows).encode(encoding.name or "utf-8")
    path = tmp_path / f"items.{ending}{packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setattr(shutil, "COPY_BUFSIZE", 8)  # two colons may be in two parts
    names = ["id", "title", "tags"]
    assert list(schema_of(path, encoding, names)) == names
    with scanned(path, tmp_path, encoding=encoding, names=names) as found:
        assert found.collect().rows() == [tuple(text or None for text in row) for row in rows]
    with raises_naming(DataError, path.name, "3", "2"):
        schema_of(path, encoding, names[:2])


def test_two_colons_inside_a_name_separate_nothing(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("id,item::title\n7,a::b\n")
    with scanned(path, tmp_path) as rows:
        assert rows.collect().rows() == [("7", "a::b")]
    path.write_text("7,a::b\n")
    with scanned(path, tmp_path, names=["id", "item"]) as rows:
        assert rows.collect().rows() == [("7", "a::b")]


def test_two_colons_separate_two_columns_whose_names_are_given(tmp_path):
    path = tmp_path / "users.dat"
    for first in ("18405182", "Piano, The"):
        path.write_text(f"1::{first}\n2::31260677\n")
        with scanned(path, tmp_path, names=["user", "account"]) as rows:
            assert rows.collect().rows() == [("1", first), ("2", "31260677")]
