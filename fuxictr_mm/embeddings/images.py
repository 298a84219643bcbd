"""The images of items, in a folder or an archive that is not unpacked.

fsspec reads both as well. It was slower (it seeks back in compressed tar files), and refuses neither names outside of
an archive nor headers that would fill the memory.

Shape letter: I images.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from fuxictr_mm.data import decoding
from fuxictr_mm.data.ids import AS_IS, Numbering
from fuxictr_mm.data.vocabulary import Vocabulary
from fuxictr_mm.embeddings.encoders import MAX_IMAGE_BYTES, BrokenImage
from fuxictr_mm.embeddings.image_names import ImageNames, leads_out
from fuxictr_mm.errors import DataError, MissingFileError, UserError, first_line
from fuxictr_mm.files import StrPath

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

#: How a compressed tar file begins, and what decompresses it.
_COMPRESSIONS: dict[bytes, Any] = {
    rb"\x1f\x8b": gzip.GzipFile,
    rb"BZh[1-9]1AY&SY": bz2.BZ2File,
    rb"\xfd7zXZ": lzma.LZMAFile,
}


class _Member(NamedTuple):
    """A file of a folder or an archive; ``stamp`` changes with its content."""

    name: str
    size: int
    stamp: str
    open: Callable[[], Any]


class ImageFiles:
    """The images of a folder or an archive; an archive is read in its own order and not unpacked.

    Parameters
    ----------
    path : str or path
        A folder, a zip file, or a tar file, compressed or not.
    names : ImageNames, optional
        Which items each file is an image of; by default it is named by its item.
    numbering : Numbering
        Of the items.

    Attributes
    ----------
    ids : ndarray
        ``(I,)`` int64, in the order in which images are read fastest.
    others : list of str
        Names of files that are not ``ID.jpg`` (or .jpeg, .png, .webp), or not in ``names``.
    """

    def __init__(self, path: StrPath, names: ImageNames | None = None, numbering: Numbering = AS_IS) -> None:
        self.path, self._names, self._items = Path(path), names, numbering.items
        if not self.path.exists():
            raise MissingFileError(f"{path}: no such folder or archive of images")
        if not self.path.is_dir() and not self.path.name.lower().endswith(ARCHIVES):
            raise DataError(f"{path}: expected a folder of images or an archive ({', '.join(ARCHIVES)})")
        self.others: list[str] = []
        self._archive: zipfile.ZipFile | tarfile.TarFile | None = None
        found: dict[int, _Member] = {}
        try:
            for member in self._members():
                items = self._items_of(member.name)
                if not items:
                    self.others.append(member.name)
                for item in items:
                    if item in found:
                        both = f"'{found[item].name}' and '{member.name}'"
                        raise DataError(f"{path}: item {numbering.show(item)} has two images, {both}; remove one")
                    found[item] = member
        except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise DataError(f"{path}: cannot be read as an archive ({first_line(error)})") from None
        if not found:
            other = f" (first of {len(self.others)} other files: '{self.others[0]}')" if self.others else ""
            expected = "named by an item's id, such as 123.jpg" if names is None else f"that {names.where} names"
            raise DataError(f"{path}: holds no image {expected}{other}")
        self.ids = np.fromiter(found, dtype=np.int64, count=len(found))
        self._found = list(found.values())

    def __enter__(self) -> ImageFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()

    def keep(self, wanted: np.ndarray) -> None:
        """Drop the images of other items."""
        kept = np.isin(self.ids, wanted)
        self.ids = self.ids[kept]
        self._found = [member for member, keep in zip(self._found, kept, strict=True) if keep]

    def digest(self) -> str:
        """Return a digest of names, items, sizes and times of change (of a zip file, checksums)."""
        digest = hashlib.sha256(b"" if self._names is None else self.ids.tobytes())
        for member in self._found:
            digest.update(f"{member.name}\0{member.size}\0{member.stamp}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> Iterator[bytes | BrokenImage]:
        """Yield the bytes of the images ``start`` to ``stop``, one at a time."""
        for member in self._found[start:stop]:
            if member.size > MAX_IMAGE_BYTES:
                yield BrokenImage(f"{member.size} bytes, more than {MAX_IMAGE_BYTES}")
                continue
            # Whatever the archive's decoder raises (a checksum, a password, an unknown compression, a cut file), it
            # means that this one image cannot be used.
            try:
                with member.open() as stream:
                    yield stream.read(MAX_IMAGE_BYTES)
            except Exception as error:
                yield BrokenImage(f"cannot be read ({first_line(error)})")

    def _items_of(self, name: str) -> Sequence[int]:
        """Return the items that a file is an image of."""
        if self._names is not None:
            return self._names.items.get(PurePosixPath(name).as_posix(), ())
        item = _item_id(name) if self._items is None else _item_number(name, self._items)
        return () if item is None else (item,)

    def _members(self) -> Iterator[_Member]:
        if self.path.is_dir():
            return self._list_folder()
        return self._list_zip() if self.path.name.lower().endswith(".zip") else self._list_tar()

    def _list_folder(self) -> Iterator[_Member]:
        files = [Path(folder, name) for folder, _, names in os.walk(self.path) for name in names if name[0] != "."]
        for file in sorted(files, key=lambda file: (_item_id(file.name) or 0, file)):
            # A link to nothing is listed, and reported as broken when it is read.
            state = file.stat() if file.exists() else file.lstat()
            name, stamp = file.relative_to(self.path).as_posix(), str(state.st_mtime_ns)
            yield _Member(name, state.st_size, stamp, partial(file.open, "rb"))

    def _list_zip(self) -> Iterator[_Member]:
        self._archive = archive = zipfile.ZipFile(self.path)
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            # `filename` is cut at a null byte; the name as stored counts.
            name = self._checked(info.orig_filename)
            if not name.endswith("/"):
                yield _Member(name, info.file_size, str(info.CRC), partial(archive.open, info))

    def _list_tar(self) -> Iterator[_Member]:
        with self.path.open("rb") as file:
            start = file.read(16)
        opened = [opener for magic, opener in _COMPRESSIONS.items() if re.match(magic, start)]
        stream: Any = _BoundedReads(opened[0](self.path) if opened else self.path.open("rb"))
        self._archive = archive = tarfile.TarFile(fileobj=stream)
        for info in archive:
            name = self._checked(info.name)
            if info.isfile():
                yield _Member(name, info.size, str(info.mtime), partial(archive.extractfile, info))
            elif not info.isdir():
                self.others.append(f"{name} (a link or device)")

    def _checked(self, name: str) -> str:
        """Return a member's name with slashes, as archives of Windows may not have them."""
        if leads_out(name):
            raise DataError(
                f"{self.path}: a member is named {name!r}, a path outside of the archive; expected relative names, "
                "such as images/123.jpg: pack it again"
            )
        return name.replace("\\", "/")


class _BoundedReads:
    """A stream that refuses large reads: a header of a compressed tar file may claim any size."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_IMAGE_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)


def _item_id(name: str) -> int | None:
    """Return the id in ``folder/123.jpg``; None for any other name, and for 0, which is padding."""
    found = re.fullmatch(r"0*([0-9]{1,10})(\.[a-z]+)", re.split(r"[/\\]", name.lower())[-1])
    if found is None or found[2] not in IMAGES or not 0 < int(found[1]) < decoding.MAX_IDS:
        return None
    return int(found[1])


def _item_number(name: str, items: Vocabulary) -> int | None:
    """Return the number of the item ID in ``folder/ID.jpg``; None for other names and for ids that are not items."""
    stem, dot, ending = re.split(r"[/\\]", name)[-1].rpartition(".")
    if dot + ending.lower() not in IMAGES:
        return None
    ids = pa.array([stem])
    if pa.types.is_integer(items.values.type):
        if not re.fullmatch(r"-?0*[0-9]{1,20}", stem):
            return None
        ids = pa.array([int(stem)], pa.uint64() if int(stem) >= 2**63 else pa.int64())
    number = int(items.encode(ids.cast(pa.large_binary()) if items.values.type == pa.large_binary() else ids)[0])
    return number if number > 0 else None
