import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.embeddings import images as module
from fuxictr_mm.embeddings.encoders import BrokenImage
from fuxictr_mm.embeddings.image_names import ImageNames
from fuxictr_mm.embeddings.images import ImageFiles
from fuxictr_mm.errors import DataError, MissingFileError
from tests.errors import raises_naming

FILES = {
    "7.jpg": b"seven",
    "sub/3.PNG": b"three",
    "000000000012.webp": b"",
    "readme.txt": b"x",
    "0.jpg": b"0",
    "a9.jpg": b"9",
}


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    form = {"gz": "w:gz", "z2": "w:bz2", "xz": "w:xz"}.get(path.name[-2:], "w")
    with tarfile.open(path, form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


MAKERS = [
    ("folder", make_folder),
    ("a.zip", make_zip),
    *((name, make_tar) for name in ("a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz")),
]


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_every_kind_holds_the_same(tmp_path, name, make):
    with ImageFiles(make(tmp_path / name, FILES)) as images:
        content = dict(zip(images.ids.tolist(), images.read(0, 10), strict=True))
        assert content == {7: b"seven", 3: b"three", 12: b""}
        assert sorted(images.others) == ["0.jpg", "a9.jpg", "readme.txt"]
        before = images.digest()
        images.keep(np.array([3, 12, 99]))
        assert sorted(images.ids.tolist()) == [3, 12]
        assert images.digest() != before
        assert len(list(images.read(1, 2))) == 1


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_two_images_of_an_item_are_refused_and_backslashes_are_slashes(tmp_path, name, make):
    with ImageFiles(
        make(tmp_path / "one" / name if make is make_folder else tmp_path / name, {"a\\1.jpg": b"1"})
    ) as one:
        assert one.ids.tolist() == [1]
        assert list(one.read(0, 1)) == [b"1"]
    path = make(tmp_path / name, {"a\\1.jpg": b"", "sub/1.png": b""})
    with raises_naming(DataError, "item 1", "sub/1.png"):
        ImageFiles(path)


@pytest.mark.parametrize("bad", ["../1.jpg", "/etc/1.jpg", "a/../../1.jpg", "C:\\1.jpg", "a\\..\\1.jpg"])
@pytest.mark.parametrize(("name", "make"), MAKERS[1:3])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name, make, bad):
    path = make(tmp_path / name, {"2.jpg": b"", bad: b""})
    with raises_naming(DataError, "1.jpg"):
        ImageFiles(path)


def test_links_and_devices_in_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("1.jpg"))
        for number, kind in enumerate([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE], start=2):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with ImageFiles(tmp_path / "a.tar") as images:
        assert images.ids.tolist() == [1]
        assert len(images.others) == 3


def test_a_damaged_member_is_one_broken_image(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.jpg", b"first content")
        archive.writestr("2.jpg", b"second content")
    path.write_bytes(path.read_bytes().replace(b"first content", b"wrong content"))
    with ImageFiles(path) as images:
        first, second = images.read(0, 2)
    assert isinstance(first, BrokenImage)
    assert "CRC" in first.reason
    assert second == b"second content"


def test_large_files_and_links_to_nothing_are_broken_images(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 5)
    make_folder(tmp_path, {"1.jpg": b"123456", "2.jpg": b"12345"})
    (tmp_path / "3.jpg").symlink_to(tmp_path / "nothing")
    with ImageFiles(tmp_path) as images:
        large, fine, gone = images.read(0, 3)
    assert fine == b"12345"
    assert isinstance(large, BrokenImage)
    assert isinstance(gone, BrokenImage)


def test_a_header_of_a_tar_cannot_fill_the_memory(tmp_path):
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    with gzip.open(tmp_path / "a.tar.gz", "wb") as stream:
        stream.write(header.tobuf())
        stream.write(bytes(1 << 20))
    with pytest.raises(DataError, match=str(1 << 30)):
        ImageFiles(tmp_path / "a.tar.gz")


def test_a_changed_file_changes_the_digest(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"one"})
    before = ImageFiles(path).digest()
    assert ImageFiles(make_zip(path, {"1.jpg": b"one"})).digest() == before
    assert ImageFiles(make_zip(path, {"1.jpg": b"two"})).digest() != before


def test_what_is_no_archive_of_images_is_named(tmp_path):
    with raises_naming(MissingFileError, "nothing"):
        ImageFiles(tmp_path / "nothing")
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"no archive at all")
        with pytest.raises(DataError, match=name):
            ImageFiles(tmp_path / name)
    for name in ("b.tar.gz", "b.tar.bz2", "b.tar.xz"):
        files = {f"{i}.jpg": np.random.default_rng(i).bytes(999) for i in range(1, 9)}
        cut = make_tar(tmp_path / name, files)
        cut.write_bytes(cut.read_bytes()[:4000])
        with pytest.raises(DataError, match=name):
            ImageFiles(cut)
    (tmp_path / "1.jpg").write_bytes(b"")
    with raises_naming(DataError, "1.jpg"):
        ImageFiles(tmp_path / "1.jpg")
    with raises_naming(DataError, "x.jpg"):
        ImageFiles(make_folder(tmp_path / "empty", {"x.jpg": b""}))


@pytest.mark.parametrize(("name", "make"), MAKERS[:3])
def test_images_are_named_by_a_column(tmp_path, name, make):
    covers = ["covers/b.gif", "./a.jpg", None, "", "covers\\b.gif", "gone.jpg"]
    pq.write_table(pa.table({"item_id": [5, 0, 7, 8, 9, 3], "cover": covers}), tmp_path / "items.parquet")
    files = {"a.jpg": b"a", "covers/b.gif": b"b", "9.jpg": b"x"}
    with ImageFiles(make(tmp_path / name, files), ImageNames(tmp_path / "items.parquet", "cover")) as images:
        assert dict(zip(images.ids.tolist(), images.read(0, 9), strict=True)) == {5: b"b", 9: b"b"}
        assert sorted(images.others) == ["9.jpg", "a.jpg"]
        digest = images.digest()
    covers[1], covers[4] = None, "a.jpg"
    pq.write_table(pa.table({"item_id": [9, 0, 7, 8, 5, 3], "cover": covers}), tmp_path / "items.parquet")
    with ImageFiles(tmp_path / name, ImageNames(tmp_path / "items.parquet", "cover")) as images:
        assert images.digest() != digest


@pytest.mark.parametrize("bad", ["../1.jpg", "/etc/1.jpg", "a/../../1.jpg", "C:\\1.jpg", "a\\..\\1.jpg"])
def test_a_column_with_a_name_outside_of_the_folder_is_refused(tmp_path, bad):
    pq.write_table(pa.table({"item_id": [1, 2], "cover": ["1.jpg", bad]}), tmp_path / "items.parquet")
    with raises_naming(DataError, tmp_path / "items.parquet", "cover", "row 1", repr(bad)):
        ImageNames(tmp_path / "items.parquet", "cover")


def test_a_column_that_names_no_file_of_the_folder_is_an_error(tmp_path):
    pq.write_table(pa.table({"item_id": [1], "cover": ["https://x.org/1.jpg"]}), tmp_path / "items.parquet")
    path = make_folder(tmp_path / "covers", FILES)
    with raises_naming(DataError, path, "items.parquet", "cover"):
        ImageFiles(path, ImageNames(tmp_path / "items.parquet", "cover"))
