"""Files of text in other encodings than UTF-8."""

import gzip

import polars as pl
import pytest

from fuxictr_mm.encoding.text_encodings import Encoding, convert
from fuxictr_mm.encoding.text_files import scanned, schema_of, separator_in
from fuxictr_mm.errors import ConfigError, DataError
from tests.errors import raises_naming

ITEMS = pl.DataFrame({"id": ["7", "30"], "größe": ["thé, vert", "tasse"]})


def written(path, codec, bom=""):
    """Write the items in an encoding, compressed if the path says so."""
    text = ITEMS.write_ndjson() if ".jsonl" in path.name else ITEMS.write_csv(separator=";")
    content = (bom + text).encode(codec)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["items.csv", "items.csv.gz", "items.jsonl", "items.jsonl.gz"])
@pytest.mark.parametrize("codec", ["cp1252", "gb18030", "utf-16-le", "utf-16-be"])
def test_a_named_encoding_is_read(codec, name, tmp_path):
    # The character of the French text is in all of these.
    path = written(tmp_path / name, codec)
    encoding = Encoding("utf-16" if codec.startswith("utf-16") else codec, "--encoding")
    assert list(schema_of(path, encoding)) == ITEMS.columns
    with scanned(path, tmp_path, encoding=encoding) as rows:
        assert rows.collect().equals(ITEMS)
    assert [file.name for file in tmp_path.iterdir()] == [name]  # the copy is temporary
    assert "csv" not in name or separator_in(path, encoding) == ";"


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "gb18030"])
def test_a_byte_order_mark_has_precedence(codec, tmp_path):
    path = written(tmp_path / "items.csv", codec, bom="\ufeff")
    for encoding in (Encoding(), Encoding("cp1252", "--encoding")):
        assert list(schema_of(path, encoding)) == ITEMS.columns
        with scanned(path, tmp_path, encoding=encoding) as rows:
            assert rows.collect().equals(ITEMS)


@pytest.mark.parametrize(("name", "place"), [("items.csv", "first line"), ("items.jsonl", "line 1")])
def test_what_is_not_in_utf8_is_named_with_the_option(name, place, tmp_path):
    path = written(tmp_path / name, "cp1252")
    with raises_naming(DataError, name, place, "--encoding cp1252"):
        schema_of(path, Encoding(option="--encoding"))
    with raises_naming(DataError, name, place, "UTF-8") as caught:
        schema_of(path)
    assert "--encoding" not in str(caught.value)


@pytest.mark.parametrize("chunk", [3, 2**20])
def test_a_byte_that_is_not_in_the_encoding_is_named(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr("fuxictr_mm.encoding.text_encodings._CHUNK", chunk)
    path = tmp_path / "items.csv"
    path.write_bytes("id\n茶\n7".encode("gb18030") + b"\xff" + "茶\n".encode("gb18030"))
    encoding = Encoding("gb18030", "--encoding")
    with raises_naming(DataError, "items.csv", "byte 7", "line 3", "--encoding"), scanned(path, encoding=encoding):
        pass


def test_utf16_without_zeros_is_refused(tmp_path):
    path = written(tmp_path / "items.csv", "cp1252")
    with raises_naming(DataError, "items.csv", "utf-16", "--encoding"):
        schema_of(path, Encoding("utf-16", "--encoding"))


def test_a_file_in_utf8_that_is_read_otherwise_is_warned_of(tmp_path, caplog):
    for codec, is_warned in (("utf-8", True), ("cp1252", False)):
        caplog.clear()
        path = written(tmp_path / "items.csv", codec)
        with path.open("rb") as stream, (tmp_path / "copy").open("wb") as copy:
            convert(stream, copy, "cp1252", path, Encoding("cp1252", "--encoding"))
        assert ("--encoding utf-8" in caplog.text) == is_warned


@pytest.mark.parametrize("name", ["no-such", "base64", "rot13"])
def test_a_name_that_is_no_encoding_is_refused(name):
    with raises_naming(ConfigError, "--encoding", name):
        Encoding(name, "--encoding")
