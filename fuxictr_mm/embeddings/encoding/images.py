"""Images of items: a folder, or a .zip or .tar archive that is read without being unpacked.

Files are named by the item's id (``123.jpg``), at any depth. Shape letters: I images.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from fuxictr_mm.data.parquet import MAX_IDS
from fuxictr_mm.embeddings.encoding.image_decoding import MAX_IMAGE_BYTES, BrokenImage
from fuxictr_mm.embeddings.encoding.pretrained import first_line
from fuxictr_mm.errors import DataError, MissingFileError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Member(NamedTuple):
    """A file of a folder or an archive; ``stamp`` changes where its content does, ``handle`` is for reading it."""

    name: str
    size: int
    stamp: str
    handle: Any


class ImageFiles(ABC):
    """The images of a folder or an archive, in the order in which they are read fastest.

    Parameters
    ----------
    path : Path
        Folder or archive.

    Attributes
    ----------
    ids : ndarray
        ``(I,)`` int64.
    others : list of str
        Names of files that are no ``ID.jpg`` (or .jpeg, .png, .webp).

    Raises
    ------
    DataError
        An item with two images, a member of an archive whose name leads out of it, or a damaged archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.others: list[str] = []
        found: dict[int, Member] = {}
        for member in self._members():
            item = _item_id(member.name)
            if item is None:
                self.others.append(member.name)
            elif item in found:
                raise DataError(
                    f"{path}: item {item} has two images, '{found[item].name}' and '{member.name}'; leave one"
                )
            else:
                found[item] = member
        self.ids = np.fromiter(found, dtype=np.int64, count=len(found))
        self._found = list(found.values())

    def keep(self, wanted: np.ndarray) -> None:
        """Leave the images of other items out."""
        kept = np.isin(self.ids, wanted)
        self.ids = self.ids[kept]
        self._found = [member for member, keep in zip(self._found, kept, strict=True) if keep]

    def digest(self) -> str:
        """Return a digest of names, sizes and times of change (of a zip file, check sums)."""
        digest = hashlib.sha256()
        for member in self._found:
            digest.update(f"{member.name}\0{member.size}\0{member.stamp}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> Iterator[bytes | BrokenImage]:
        """Yield the bytes of the images ``start`` to ``stop``, one at a time."""
        for member in self._found[start:stop]:
            if member.size > MAX_IMAGE_BYTES:
                yield BrokenImage(f"{member.size} bytes, more than {MAX_IMAGE_BYTES}")
                continue
            # Whatever the archive's decoder raises (a check sum, a password, an unknown compression, a cut file), it
            # means that this one image cannot be used.
            try:
                with self._open(member.handle) as stream:
                    yield stream.read(MAX_IMAGE_BYTES)
            except Exception as error:
                yield BrokenImage(f"cannot be read ({first_line(error)})")

    @abstractmethod
    def close(self) -> None:
        """Close the archive."""

    @abstractmethod
    def _members(self) -> Iterator[Member]:
        """Yield the files."""

    @abstractmethod
    def _open(self, handle: Any) -> IO[bytes]:
        """Open one of them."""


class FolderImages(ImageFiles):
    """Images of a folder and its subfolders, in ascending order of ids."""

    def _members(self) -> Iterator[Member]:
        files = []
        for folder, _, names in os.walk(self.path):
            files += [Path(folder, name) for name in names if not name.startswith(".")]
        for file in sorted(files, key=lambda file: (_item_id(file.name) or 0, file)):
            try:
                state = file.stat()
            except OSError:
                # A link to nothing: listed, and reported as broken when it is read.
                yield Member(file.relative_to(self.path).as_posix(), 0, "", file)
                continue
            yield Member(file.relative_to(self.path).as_posix(), state.st_size, str(state.st_mtime_ns), file)

    def _open(self, handle: Path) -> IO[bytes]:
        return handle.open("rb")

    def close(self) -> None:
        """Do nothing: a folder is not open."""


class ZipImages(ImageFiles):
    """Images of a zip file, in the order in which they lie in it."""

    def _members(self) -> Iterator[Member]:
        try:
            self._archive = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{self.path}: cannot be read as a zip file ({first_line(error)})") from None
        for info in sorted(self._archive.infolist(), key=lambda info: info.header_offset):
            # `filename` is cut at a null byte and stripped of the system's separators; the name as stored counts.
            _require_safe(info.orig_filename, self.path)
            if not info.is_dir():
                yield Member(info.filename, info.file_size, str(info.CRC), info)

    def _open(self, handle: zipfile.ZipInfo) -> IO[bytes]:
        return self._archive.open(handle)

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


class TarImages(ImageFiles):
    """Images of a tar file, compressed or not, in the order in which they lie in it: it is only read forward."""

    def _members(self) -> Iterator[Member]:
        try:
            self._archive = tarfile.open(self.path)  # noqa: SIM115 - open as long as images are read
            for info in self._archive:
                _require_safe(info.name, self.path)
                if info.isfile():
                    yield Member(info.name, info.size, str(info.mtime), info)
                elif not info.isdir():
                    self.others.append(f"{info.name} (a link or device)")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{self.path}: cannot be read as a tar file ({first_line(error)})") from None

    def _open(self, handle: tarfile.TarInfo) -> IO[bytes]:
        stream = self._archive.extractfile(handle)
        assert stream is not None  # only plain files are listed
        return stream

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def open_images(path: str | os.PathLike[str]) -> ImageFiles:
    """Open a folder or an archive of images.

    Raises
    ------
    MissingFileError
        No such folder or file.
    DataError
        Neither a folder nor an archive; no image in it; or as ``ImageFiles``.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path}: no such folder or archive of images")
    kind: type[ImageFiles]
    if path.is_dir():
        kind = FolderImages
    elif path.name.lower().endswith(".zip"):
        kind = ZipImages
    elif path.name.lower().endswith(ARCHIVES):
        kind = TarImages
    else:
        raise DataError(f"{path}: expected a folder of images or an archive ({', '.join(ARCHIVES)})")
    images = kind(path)
    if not images.ids.size:
        other = f" (first of {len(images.others)} other files: '{images.others[0]}')" if images.others else ""
        raise DataError(f"{path}: holds no image named by an item's id, such as 123.jpg{other}")
    return images


def _item_id(name: str) -> int | None:
    """Return the id in ``folder/123.jpg``; None for any other name, and for 0, which is padding."""
    found = re.fullmatch(r"([0-9]{1,10})(\.[a-z]+)", PurePosixPath(name).name.lower())
    if found is None or found[2] not in SUFFIXES or not 0 < int(found[1]) < MAX_IDS:
        return None
    return int(found[1])


def _require_safe(name: str, path: Path) -> None:
    parts = re.split(r"[/\\]", name)
    if parts[0] == "" or ".." in parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise DataError(
            f"{path}: a member is named {name!r}, which leads out of the archive; expected plain relative names, "
            "such as images/123.jpg: pack it again"
        )
