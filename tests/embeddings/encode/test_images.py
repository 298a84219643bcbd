"""Folders and archives of images."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fuxictr_mm.embeddings import encode as module
from fuxictr_mm.embeddings.encode import open_images
from fuxictr_mm.embeddings.encoders import BrokenImage
from fuxictr_mm.errors import DataError, MissingFileError

FILES = {"7.jpg": b"seven", "sub/3.PNG": b"three", "12.webp": b"", "readme.txt": b"x", "0.jpg": b"0", "a9.jpg": b"9"}


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
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


MAKERS = [("folder", make_folder), ("a.zip", make_zip), ("a.tar", make_tar), ("a.tar.gz", make_tar)]


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_every_kind_holds_the_same(tmp_path, name, make):
    images = open_images(make(tmp_path / name, FILES))
    content = dict(zip(images.ids.tolist(), images.read(0, 10), strict=True))
    assert content == {7: b"seven", 3: b"three", 12: b""}
    assert sorted(images.others) == ["0.jpg", "a9.jpg", "readme.txt"]
    before = images.digest()
    images.keep(np.array([3, 12, 99]))
    assert sorted(images.ids.tolist()) == [3, 12]
    assert images.digest() != before
    assert len(list(images.read(1, 2))) == 1
    images.close()


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_two_images_of_an_item_are_refused(tmp_path, name, make):
    path = make(tmp_path / name, {"1.jpg": b"", "sub/1.png": b""})
    with pytest.raises(DataError, match=r"item 1 has two images, '1\.jpg' and 'sub/1\.png'"):
        open_images(path)


@pytest.mark.parametrize("bad", ["../1.jpg", "/etc/1.jpg", "a/../../1.jpg", "C:\\1.jpg", "a\\..\\1.jpg"])
@pytest.mark.parametrize(("name", "make"), MAKERS[1:])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name, make, bad):
    path = make(tmp_path / name, {"2.jpg": b"", bad: b""})
    with pytest.raises(DataError, match="leads out of the archive"):
        open_images(path)


def test_links_and_devices_in_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("1.jpg"))
        for number, kind in enumerate([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE], start=2):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    images = open_images(tmp_path / "a.tar")
    assert images.ids.tolist() == [1]
    assert len(images.others) == 3


def test_a_damaged_member_is_one_broken_image(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.jpg", b"first content")
        archive.writestr("2.jpg", b"second content")
    path.write_bytes(path.read_bytes().replace(b"first content", b"wrong content"))
    first, second = open_images(path).read(0, 2)
    assert isinstance(first, BrokenImage)
    assert "CRC" in first.reason
    assert second == b"second content"


def test_large_files_and_links_to_nothing_are_broken_images(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 5)
    make_folder(tmp_path, {"1.jpg": b"123456", "2.jpg": b"12345"})
    (tmp_path / "3.jpg").symlink_to(tmp_path / "nothing")
    large, fine, gone = open_images(tmp_path).read(0, 3)
    assert large == BrokenImage("6 bytes, more than 5")
    assert fine == b"12345"
    assert isinstance(gone, BrokenImage)


def test_a_changed_file_changes_the_digest(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"one"})
    before = open_images(path).digest()
    assert open_images(make_zip(path, {"1.jpg": b"one"})).digest() == before
    assert open_images(make_zip(path, {"1.jpg": b"two"})).digest() != before


def test_what_is_no_archive_of_images_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="no such folder or archive of images"):
        open_images(tmp_path / "nothing")
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"no archive at all")
        with pytest.raises(DataError, match="cannot be read as a"):
            open_images(tmp_path / name)
    whole = make_tar(tmp_path / "b.tar.gz", {f"{i}.jpg": np.random.default_rng(i).bytes(999) for i in range(1, 9)})
    whole.write_bytes(whole.read_bytes()[:4000])
    with pytest.raises(DataError, match="cannot be read as a tar file"):
        open_images(whole)
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="expected a folder of images or an archive"):
        open_images(tmp_path / "1.jpg")
    with pytest.raises(DataError, match=r"holds no image named by an item's id, .*\(first of 1 other files: 'x\.jpg'"):
        open_images(make_folder(tmp_path / "empty", {"x.jpg": b""}))
