"""From files to files: inputs, columns, flags, reports, and runs that are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.embeddings import encode as module
from fuxictr_mm.embeddings.encode import ChunkStore, EncodeOptions, EncodeReport
from fuxictr_mm.embeddings.encoders import ImageEncoder, TextEncoder
from fuxictr_mm.errors import ConfigError, DataError, Interrupted
from tests.errors import raises_naming

OPTIONS = {each.name for each in fields(EncodeOptions)}
TITLES = ["heat", "a fox", None, "the lazy dog", "toy story", "   ", "the big red fox runs", "dog", "fox", "story"]
IDS = [30, 4, 7, 0, 12, 5, 1, 9, 22, 3]


@pytest.fixture
def items(tmp_path) -> Path:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": IDS, "item_title": TITLES}), path)
    return path


@pytest.fixture
def posters(tmp_path, picture) -> Path:
    folder = tmp_path / "posters"
    folder.mkdir()
    for item in (4, 30, 12, 9, 77):
        (folder / f"{item}.jpg").write_bytes(picture(item, "JPEG"))
    (folder / "22.png").write_bytes(b"broken")
    (folder / "notes.txt").write_text("x")
    return folder


def encode_texts(path: Path, out: Path, **settings: Any) -> EncodeReport:
    own = {name: settings.pop(name) for name in OPTIONS & settings.keys()}
    return module.encode_texts(path, out, EncodeOptions(**own), **settings)


def encode_images(path: Path, out: Path, **settings: Any) -> EncodeReport:
    own = {name: settings.pop(name) for name in OPTIONS & settings.keys()}
    return module.encode_images(path, out, EncodeOptions(**own), **settings)


def vectors_of(path: Path, column: str) -> np.ndarray:
    return np.array(pq.read_table(path)[column].to_pylist(), dtype=np.float32)


def test_titles_become_a_column_in_order_of_ids(tiny, items, tmp_path):
    out = tmp_path / "out.parquet"
    report = encode_texts(items, out, model=tiny("bert"), chunk_rows=4, batch_size=2, report=tmp_path / "r.json")
    table = pq.read_table(out)
    assert table.column_names == ["item_id", "txt_emb_bert", "txt_missing"]
    ids = table["item_id"].to_pylist()
    assert ids == sorted(IDS)
    assert table.schema.field("txt_emb_bert").type == pa.list_(pa.float32(), 16)
    assert [i for i, missing in zip(ids, table["txt_missing"].to_pylist(), strict=True) if missing] == [5, 7]
    encoder = TextEncoder(tiny("bert"))
    for item, vector in zip(ids, vectors_of(out, "txt_emb_bert"), strict=True):
        title = TITLES[IDS.index(item)]
        expected = np.zeros(16) if item in (0, 5, 7) else encoder.encode([title])[0]
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert report.missing == {0: module.ZERO, 5: "no text", 7: "no text"}  # its row has a title, but 0 is padding
    assert json.loads((tmp_path / "r.json").read_text())["missing"].keys() == {"0", "5", "7"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items.parquet", "out.parquet", "r.json"]


def test_images_become_a_column_with_a_flag(tiny, items, posters, tmp_path, picture, capsys):
    out, report = tmp_path / "out.parquet", tmp_path / "report.json"
    main(
        f"embed encode --images {posters} --items {items} --model {tiny('clip')} --out {out} --column img_emb_X "
        f"--report {report} --chunk-rows 2 --batch-size 2".split()
    )
    table = pq.read_table(out)
    flags = dict(zip(table["item_id"].to_pylist(), table["img_missing"].to_pylist(), strict=True))
    assert flags == {item: item not in (0, 4, 30, 12, 9) for item in sorted(IDS)}
    vectors = dict(zip(flags, vectors_of(out, "img_emb_X"), strict=True))
    expected, _ = ImageEncoder(tiny("clip")).encode([picture(item, "JPEG") for item in (4, 30)])
    np.testing.assert_allclose([vectors[4], vectors[30]], expected, atol=1e-5)
    assert not any(vectors[item].any() for item, missing in flags.items() if missing)
    told = json.loads(report.read_text())
    assert sorted(told["missing"]) == ["1", "22", "3", "5", "7"]
    assert (told["width"], told["items"], len(told["skipped"])) == (12, 9, 2)
    said = capsys.readouterr().out
    assert "9 items, img_emb_X" in said
    assert "1, 3, 5 and 7" in said


def test_images_are_named_by_a_column_of_the_items(tiny, posters, tmp_path, picture):
    items = tmp_path / "items.csv"
    items.write_text("item_id,image\n1,12.jpg\n2,\n3,12.jpg\n4,22.png\n5,gone.jpg\n")
    out = tmp_path / "out.parquet"
    words = f"--image-column image --model {tiny('clip')} --out {out} --column v --quiet"
    main(f"embed encode --images {posters} --items {items} {words}".split())
    table = pq.read_table(out)
    assert table["item_id"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["img_missing"].to_pylist() == [False, False, True, False, True, True]
    expected, _ = ImageEncoder(tiny("clip")).encode([picture(12, "JPEG")])
    np.testing.assert_allclose(vectors_of(out, "v")[[1, 3]], expected[[0, 0]], atol=1e-5)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_columns_are_checked_before_a_library_is_loaded(tmp_path, monkeypatch, ending):
    table, items = pl.DataFrame({"item_id": [1, 2], "titel": ["a", "b"]}), tmp_path / f"items.{ending}"
    {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}[ending](items)
    monkeypatch.setattr(module, "require_extra", lambda *_: pytest.fail("loads a library"))
    with raises_naming(DataError, items, "item_title"):
        encode_texts(items, tmp_path / "out.parquet", model="some/model")
    with raises_naming(DataError, items, "image"):
        encode_images(
            items.parent / "x", tmp_path / "out.parquet", model="some/model", items=items, image_column="image"
        )


def test_a_folder_and_its_archives_give_the_same(tiny, posters, tmp_path):
    with zipfile.ZipFile(tmp_path / "posters.zip", "w") as archive:
        for file in sorted(posters.iterdir(), reverse=True):
            archive.write(file, f"posters\\{file.name}")  # as Windows packs it
    shutil.make_archive(str(tmp_path / "posters"), "gztar", posters)
    found = []
    for source in (posters, tmp_path / "posters.zip", tmp_path / "posters.tar.gz"):
        out = tmp_path / "out.parquet"
        encode_images(source, out, model=tiny("vit"), column="v", chunk_rows=4, overwrite=True, verbose=0)
        assert pq.read_table(out)["item_id"].to_pylist() == [0, 4, 9, 12, 22, 30, 77]
        found.append(vectors_of(out, "v"))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_json_is_one_document_and_quiet_prints_nothing(tiny, items, tmp_path, capsys):
    command = f"embed encode --texts {items} --model {tiny('bert')} --column v --overwrite --out {tmp_path / 'o'}"
    capsys.readouterr()  # of saving the tiny model
    main([*command.split(), "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["missing"].keys() == {"0", "5", "7"}
    main([*command.split(), "--quiet"])
    quiet = capsys.readouterr()
    assert (said.err, quiet.out, quiet.err) == ("", "", "")


class Stop(Exception):
    """In place of a kill."""


def stop_after(monkeypatch, chunks: int, error: type[BaseException] = Stop) -> None:
    """Let an encoding end after so many chunks."""
    save = ChunkStore.save

    def stopping(self, number, vectors, broken) -> None:
        if len(self.finished) == chunks:
            raise error
        save(self, number, vectors, broken)

    monkeypatch.setattr(ChunkStore, "save", stopping)


def record_texts(monkeypatch) -> list[str]:
    """Return a list that fills with the texts that are encoded."""
    seen: list[str] = []
    encode = TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts, *a: (seen.extend(texts), encode(self, texts, *a))[1])
    return seen


def test_finished_chunks_are_not_encoded_again(tiny, items, tmp_path, monkeypatch, capsys):
    options = {"model": tiny("bert"), "column": "v", "chunk_rows": 2, "batch_size": 2}
    encode_texts(items, tmp_path / "whole.parquet", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt)
        with raises_naming(Interrupted, "3 of 5") as caught:
            encode_texts(items, tmp_path / "out.parquet", **options)
    assert caught.value.exit_code == 130
    assert not (tmp_path / "out.parquet").exists()
    seen = record_texts(monkeypatch)
    encode_texts(items, tmp_path / "out.parquet", **options)
    assert seen == ["dog", "fox", "story"]
    assert "6 of 9 items" in capsys.readouterr().err
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize("place", ["file", "rename", "report", "chunks", "half of the chunks"])
def test_a_run_stopped_after_the_last_chunk_ends_without_encoding_again(tiny, items, tmp_path, monkeypatch, place):
    out, report = tmp_path / "out.parquet", tmp_path / "report.json"
    options = {"model": tiny("bert"), "column": "v", "chunk_rows": 2, "batch_size": 2, "verbose": 0}
    encode_texts(items, tmp_path / "whole.parquet", report=tmp_path / "whole.json", **options)
    write_beside = module.write_beside

    def stop(*args, **kwargs):
        raise Stop

    def stop_at_report(path, write):
        return stop() if path == report else write_beside(path, write)

    with monkeypatch.context() as patch:
        where, name, instead = {
            "file": (module.ItemFileWriter, "__enter__", stop),
            "rename": (module.ItemFileWriter, "_flush", stop),
            "report": (module, "write_beside", stop_at_report),
            "chunks": (ChunkStore, "remove", stop),
            "half of the chunks": (shutil, "rmtree", stop),
        }[place]
        patch.setattr(where, name, instead)
        with pytest.raises(Stop):
            encode_texts(items, out, report=report, **options)
    if place == "half of the chunks":  # all is written: what is left is out of the way
        assert not out.with_name("out.parquet.chunks").exists()
        encode_texts(items, out, report=report, overwrite=True, **options)
    else:
        (tmp_path / "other.json").write_text("mine")
        with raises_naming(ConfigError, "other.json"):
            encode_texts(items, out, report=tmp_path / "other.json", **options)
        with monkeypatch.context() as patch:
            seen = record_texts(patch)
            encode_texts(items, out, report=report, **options)
        assert seen == []
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    told, whole = (json.loads(file.read_text()) for file in (report, tmp_path / "whole.json"))
    assert told["missing"] == whole["missing"]
    assert not [file for file in tmp_path.iterdir() if "chunks" in file.name]
    with raises_naming(ConfigError, "--overwrite"):  # now it is a file like any other
        encode_texts(items, out, report=report, **options)


def test_chunks_of_other_options_are_refused_or_discarded(tiny, items, tmp_path, monkeypatch):
    options = {"model": tiny("bert"), "chunk_rows": 4, "batch_size": 4, "verbose": 0, "column": "v"}
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            encode_texts(items, out, **options)
    for change, said in (
        ({"batch_size": 5}, "batch_size .*4.*5.*--restart"),
        ({"pooling": "cls"}, "pooling .*mean.*cls"),
        ({"precision": "bf16"}, "precision .*fp32.*bf16"),
        ({"model": tiny("clip")}, "model"),
        ({"template": "{item_title}!"}, "input, template"),
    ):
        with pytest.raises(ConfigError, match=said):
            encode_texts(items, out, **{**options, **change})
    pq.write_table(pa.table({"item_id": IDS, "item_title": ["other", *TITLES[1:]]}), items)
    with raises_naming(ConfigError, "input"):
        encode_texts(items, out, **options)
    encode_texts(items, out, **options, restart=True)
    fresh = tmp_path / "fresh.parquet"
    encode_texts(items, fresh, **options)
    assert out.read_bytes() == fresh.read_bytes()


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_bit_for_bit_the_same(tiny, tmp_path, picture):
    folder = tmp_path / "posters"
    folder.mkdir()
    for item in range(1, 25):
        (folder / f"{item}.png").write_bytes(picture(item) if item % 7 else b"broken")
    slowly = textwrap.dedent(f"""
        import time
        from fuxictr_mm.embeddings.encode import EncodeOptions, encode_images
        from fuxictr_mm.embeddings.encoders import ImageEncoder
        encode = ImageEncoder.encode
        ImageEncoder.encode = lambda self, *a: (time.sleep(0.3), encode(self, *a))[1]
        options = EncodeOptions(model={tiny("vit")!r}, chunk_rows=3)
        encode_images({str(folder)!r}, {str(tmp_path / "out.parquet")!r}, options)
    """)
    process = subprocess.Popen([sys.executable, "-c", slowly], env={**os.environ, "PYTHONPATH": os.getcwd()})
    chunks = tmp_path / "out.parquet.chunks"
    while process.poll() is None and len(list(chunks.glob("*.npy"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.parquet").exists()
    assert 2 <= len(list(chunks.glob("*.npy"))) < 8
    options = {"model": tiny("vit"), "chunk_rows": 3}
    report = encode_images(folder, tmp_path / "out.parquet", **options)
    whole = encode_images(folder, tmp_path / "whole.parquet", **options)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert report.missing == whole.missing
    assert sorted(report.missing) == [7, 14, 21]
    assert not chunks.exists()


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ("--texts {items} --out {out} --items x", "--items"),
        ("--texts {items} --out {out} --image-column x", "--image-column"),
        ("--images {items} --out {out} --image-column x", "--items"),
        ("--images {items} --out {out} --template x", "--template"),
        ("--texts {items} --out {out} --template x", "template 'x'"),
        ("--texts {items} --out {out} --column item_id", "column 'item_id'"),
        ("--texts {items} --out {items}", "items.parquet"),
        ("--texts {items} --out {items} --overwrite", "items.parquet"),
        ("--texts {items} --out {out} --report {out}", "out.parquet"),
        ("--texts {items} --out {out} --chunk-rows 0", "chunk_rows 0"),
        ("--texts {items}.gone --out {out}", "items.parquet.gone"),
        ("--images {items}.gone --out {out}", "items.parquet.gone"),
        ("--images {items} --out {out}", "items.parquet"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny, items, tmp_path, capsys, flags, value):
    model = tiny("bert")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["embed", "encode", "--model", model, *flags.format(items=items, out=tmp_path / "out.parquet").split()])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert value in said
    assert said.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["items.parquet"]


def test_nothing_to_encode_is_an_error(tiny, items, posters, tmp_path):
    pq.write_table(pa.table({"item_id": [1, 2], "item_title": ["", None]}), items)
    with raises_naming(DataError, "2 items"):
        encode_texts(items, tmp_path / "out.parquet", model=tiny("bert"))
    with raises_naming(DataError, "2 items"):
        encode_images(posters, tmp_path / "out.parquet", model=tiny("clip"), items=items)
    assert not (tmp_path / "out.parquet").exists()


def test_a_file_of_items_that_cannot_be_read_is_named_before_the_images(tmp_path):
    folder, items = tmp_path / "images", tmp_path / "items.csv"
    folder.mkdir()
    (folder / "A-1.jpg").write_bytes(b"")
    items.write_bytes("item_id;title\nA-1;schön\n".encode("cp1252"))
    with raises_naming(DataError, "items.csv", "UTF-8"):
        encode_images(folder, tmp_path / "out.parquet", model="none", items=items)


def test_a_folder_in_the_way_of_the_chunks_is_not_touched(tiny, items, tmp_path):
    (tmp_path / "out.parquet.chunks").mkdir()
    (tmp_path / "out.parquet.chunks/mine").write_text("x")
    for restart in (False, True):
        with raises_naming(ConfigError, "out.parquet.chunks"):
            encode_texts(items, tmp_path / "out.parquet", model=tiny("bert"), restart=restart)
    assert (tmp_path / "out.parquet.chunks/mine").read_text() == "x"


def test_a_model_that_gives_nan_is_stopped(tiny, items, tmp_path, monkeypatch):
    encode = TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts, *a: encode(self, texts, *a) * np.nan)
    with raises_naming(DataError, "item_id 30"):
        encode_texts(items, tmp_path / "out.parquet", model=tiny("bert"))


@pytest.mark.slow
def test_a_hub_id_is_found_in_the_cache_without_a_network(tiny, items, tmp_path):
    repository = tmp_path / "cache/models--someone--tiny-bert"
    (repository / "refs").mkdir(parents=True)
    (tmp_path / "cache/version.txt").write_text("1")
    (repository / "refs/main").write_text("a" * 40)
    shutil.copytree(tiny("bert"), repository / "snapshots" / ("a" * 40))
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = "from fuxictr_mm.cli import main; main()"
    flags = f"embed encode --texts {items} --model someone/tiny-bert --out {tmp_path / 'out.parquet'}".split()
    done = subprocess.run([sys.executable, "-c", command, *flags], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    expected = tmp_path / "local.parquet"
    encode_texts(items, expected, model=tiny("bert"), column="v")
    assert np.array_equal(vectors_of(tmp_path / "out.parquet", "txt_emb_tiny_bert"), vectors_of(expected, "v"))
