"""``fuxictr-mm embed encode``: titles and images to embeddings, by pretrained models.

Shape letters: I items, n items of a chunk, D dim.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import signal
import string
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.data import parquet
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.embeddings.command import add_output, flag
from fuxictr_mm.embeddings.encoders import (
    MAX_IMAGE_BYTES,
    POOLINGS,
    PRECISIONS,
    BrokenImage,
    ImageEncoder,
    TextEncoder,
    first_line,
    model_stem,
    require_extra,
)
from fuxictr_mm.embeddings.item_files import ItemFileWriter, Source, embedding_type, key_of, read_ids, require_unique
from fuxictr_mm.embeddings.numbering import numbering
from fuxictr_mm.errors import ConfigError, DataError, Interrupted, MissingFileError, UserError
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.terminal import item_bar, listed

#: Items of a chunk, the most that a killed run has to encode again.
CHUNK_ROWS = 1024

#: Items or files that a message names.
FEW = 5

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

#: How a compressed tar file begins, and what decompresses it.
_COMPRESSIONS: dict[bytes, Any] = {
    rb"\x1f\x8b": gzip.GzipFile,
    rb"BZh[1-9]1AY&SY": bz2.BZ2File,
    rb"\xfd7zXZ": lzma.LZMAFile,
}


@dataclass(frozen=True)
class EncodeReport:
    """The result of an encoding."""

    out: str  #: The file.
    column: str  #: Of the embeddings.
    width: int  #: D.
    items: int  #: Rows, without the padding.
    missing: dict[Any, str]  #: The reason of each zero embedding, by item.
    skipped: list[str] = field(default_factory=list)  #: Files that are no image of a requested item.
    prompt: str = ""  #: Default prompt of the model, put before every text.

    def lines(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        yield f"{self.out}: {self.items} items, {self.column} of dim {self.width}"
        if self.prompt:
            yield f"  each text follows the model's default prompt {self.prompt!r}"
        for reason in sorted(set(self.missing.values())):
            ids = [str(item) for item, why in self.missing.items() if why == reason]
            yield f"  {len(ids)} without an embedding, {reason}: {listed(ids, FEW)}"
        if self.skipped:
            yield f"  {len(self.skipped)} files left out: {listed(self.skipped, FEW)}"


def encode_texts(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str,
    template: str = "{item_title}",
    column: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
    overwrite: bool = False,
    restart: bool = False,
    report: str | os.PathLike[str] | None = None,
    verbose: int = 1,
    **options: Any,
) -> EncodeReport:
    """Encode a text of each item; items without one get zeros and ``txt_missing`` True.

    Parameters
    ----------
    path : str or path
        A Parquet file with ``item_id`` and the template's columns.
    out : str or path
        A Parquet file to write: ``item_id`` ascending from the padding 0, ``txt_emb_MODEL``, ``txt_missing``.
    model : str
        A folder with safetensors, or an id of the Hugging Face hub.
    template : str
        Columns in braces, such as ``"{item_title}. {genres}"``.
    column : str, optional
        Name of the column of embeddings.
    chunk_rows : int
        Items between two checkpoints.
    overwrite : bool
        Replace an existing file.
    restart : bool
        Discard the finished chunks of a run that was killed, instead of resuming.
    report : str or path, optional
        A JSON file to write with all that is missing.
    verbose : int
        0 shows no progress.
    **options
        ``revision``, ``pooling``, ``normalize``, ``max_tokens``, ``batch_size``, ``precision`` and ``gpu`` of
        ``TextEncoder``.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        An option, an input or a model is wrong.
    """
    require_extra("transformers", "sentence_transformers")
    job = _Job(out, [path], column, "txt", model, chunk_rows, overwrite, restart, report, verbose)
    texts = ItemTexts(path, template)
    encoder = TextEncoder(model, **options)

    def encode(chunk: list[str | None], advance: Callable[[int], object]) -> tuple[np.ndarray, dict[int, str]]:
        rows = [row for row, text in enumerate(chunk) if text]
        embeddings = np.zeros((len(chunk), encoder.dim), dtype=np.float32)
        embeddings[rows] = encoder.encode([text for text in chunk if text], advance)
        advance(len(chunk) - len(rows))
        return embeddings, {row: "no text" for row, text in enumerate(chunk) if not text}

    job.open({"input": texts.digest, "template": template, **encoder.settings})
    job.run(texts.ids, texts.chunks(chunk_rows), encode)
    return job.finish(texts.ids, encoder.dim, prompt=encoder.prompt)


def encode_images(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str,
    items: str | os.PathLike[str] | None = None,
    column: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
    overwrite: bool = False,
    restart: bool = False,
    report: str | os.PathLike[str] | None = None,
    verbose: int = 1,
    **options: Any,
) -> EncodeReport:
    """Encode an image of each item; items whose image is broken or missing get zeros and ``img_missing`` True.

    Parameters
    ----------
    path : str or path
        A folder or an archive with ``ID.jpg`` (or .jpeg, .png, .webp) at any depth.
    out : str or path
        A Parquet file to write: ``item_id`` ascending from the padding 0, ``img_emb_MODEL``, ``img_missing``.
    items : str or path, optional
        A Parquet file with the ``item_id`` of the items to write; all that have an image by default.
    model, column, chunk_rows, overwrite, restart, report, verbose
        As for ``encode_texts``.
    **options
        ``revision``, ``pooling``, ``normalize``, ``batch_size``, ``precision``, ``gpu`` and ``workers`` of
        ``ImageEncoder``.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        An option, an input or a model that cannot be used; not for single images.
    """
    require_extra("transformers", "PIL")
    job = _Job(out, [path, items], column, "img", model, chunk_rows, overwrite, restart, report, verbose)
    with ImageFiles(path) as images:
        skipped, without = list(images.others), np.zeros(0, dtype=np.int64)
        if items is not None:
            wanted = read_ids(Source("items", Path(items), ITEM_ID))
            without = np.setdiff1d(wanted, images.ids)
            skipped += [f"{item} (an item that is not in {items})" for item in np.setdiff1d(images.ids, wanted)]
            images.keep(wanted)
            if not images.ids.size:
                raise DataError(f"{path}: holds an image of none of the {wanted.size} items of {items}")
        encoder = ImageEncoder(model, **options)
        starts = range(0, len(images.ids), chunk_rows)
        job.open({"input": images.digest(), **encoder.settings})
        job.run(images.ids, (images.read(start, start + chunk_rows) for start in starts), encoder.encode)
        missing = dict.fromkeys(without.tolist(), "no image file")
        return job.finish(images.ids, encoder.dim, missing, skipped)


class _Job:
    """One output: its finished chunks, its file and its report. A killed run resumes."""

    def __init__(
        self,
        out: str | os.PathLike[str],
        inputs: Iterable[str | os.PathLike[str] | None],
        column: str | None,
        modality: str,
        model: str,
        chunk_rows: int,
        overwrite: bool,
        restart: bool,
        report: str | os.PathLike[str] | None,
        verbose: int,
    ) -> None:
        if chunk_rows < 1:
            raise ConfigError(f"chunk_rows {chunk_rows}, expected 1 or more")
        self.out, self.flag = Path(out), f"{modality}_missing"
        self.column = column or f"{modality}_emb_{model_stem(model)}"
        if self.column in (ITEM_ID, numbering().roles.target, self.flag) or not self.column.isidentifier():
            raise ConfigError(f"column '{self.column}', expected a name of letters, digits and _; give --column")
        self._rows, self._restart, self._verbose = chunk_rows, restart, verbose
        self._outputs = [self.out, *([] if report is None else [Path(report)])]
        self._folder = self.out.with_name(f"{self.out.name}.chunks")
        # A run that was killed while it wrote its outputs may write them again.
        begun = set() if restart else begun_outputs(self._folder)
        new = [path for path in self._outputs if path.resolve() not in begun]
        self._overwrite = overwrite or self.out not in new
        check_outputs(new, inputs, overwrite)  # now, not after hours

    def open(self, settings: Mapping[str, Any]) -> None:
        """Open the chunks of an earlier run with these settings, or a new folder."""
        settings = {key: str(value) for key, value in settings.items()} | {"chunk_rows": str(self._rows)}
        self._store = ChunkStore(self._folder, settings, self._restart)

    def run(
        self,
        ids: np.ndarray,
        chunks: Iterable[Any],
        encode: Callable[[Any, Callable[[int], object]], tuple[np.ndarray, dict[int, str]]],
    ) -> None:
        """Encode the chunks that are not finished."""
        store, numbers = self._store, range(-(-len(ids) // self._rows))
        done = sum(min(self._rows, len(ids) - number * self._rows) for number in numbers if number in store.finished)
        if done and self._verbose:
            print(f"{done} of {len(ids)} items are finished in {store.folder}: resuming", file=sys.stderr)
        try:
            with item_bar(len(ids), self.column, self._verbose, done) as bar:
                for number, chunk in zip(numbers, chunks, strict=True):
                    if number in store.finished:
                        continue
                    embeddings, broken = encode(chunk, bar.update)
                    bad = np.flatnonzero(~np.isfinite(embeddings).all(1))
                    if bad.size:
                        raise DataError(
                            f"{self.column}: the model gives NaN or infinite numbers for item "
                            f"{ids[number * self._rows + bad[0]]}; try --precision fp32 or another model"
                        )
                    store.save(number, embeddings, broken)
        except KeyboardInterrupt:
            kept = f"{len(store.finished)} of {len(numbers)} chunks are kept in {store.folder}"
            raise Interrupted(f"stopped; {kept}: the same command resumes", signal.SIGINT) from None

    def finish(
        self,
        ids: np.ndarray,
        dim: int,
        missing: Mapping[int, str] | None = None,
        skipped: list[str] | None = None,
        prompt: str = "",
    ) -> EncodeReport:
        """Write the file in ascending order of ids, then the report, and remove the chunks."""
        without, missing = dict(missing or {}), dict(missing or {})
        for number in sorted(self._store.finished):
            reasons = self._store.broken(number).items()
            missing.update({int(ids[number * self._rows + row]): reason for row, reason in reasons})
        if len(missing) == len(ids) + len(without):
            item, reason = next(iter(missing.items()))
            raise DataError(f"{self.column}: none of {len(missing)} items has an embedding, first {item} ({reason})")
        items = np.sort(np.concatenate([ids, np.fromiter(without, np.int64, len(without))]))
        flagged = np.fromiter(missing, np.int64, len(missing))
        self._store.begin_outputs(self._outputs)
        schema = {self.column: embedding_type(dim), self.flag: pa.bool_()}
        with ItemFileWriter(self.out, schema, self._overwrite) as writer:
            for start in range(0, len(items), CHUNK_ROWS):
                some = items[start : start + CHUNK_ROWS]
                writer.write(some, {self.column: self._gather(ids, some, dim), self.flag: np.isin(some, flagged)})
        shown = {numbering().show(item): reason for item, reason in sorted(missing.items())}
        done = EncodeReport(str(self.out), self.column, dim, len(items), shown, skipped or [], prompt)
        text = json.dumps(asdict(done), indent=1, ensure_ascii=False)
        for report in self._outputs[1:]:
            write_beside(report, lambda stream: stream.write(text.encode(errors="replace")))
        self._store.remove()
        return done

    def _gather(self, ids: np.ndarray, items: np.ndarray, dim: int) -> np.ndarray:
        """Return the embeddings ``(n, D)`` of some items from the chunks; zeros for an item that is in none."""
        order = np.argsort(ids, kind="stable")
        positions = order[np.searchsorted(ids, items, sorter=order).clip(max=len(ids) - 1)]
        embeddings = np.zeros((len(items), dim), dtype=np.float32)
        numbers = np.where(ids[positions] == items, positions // self._rows, -1)
        for number in np.unique(numbers[numbers >= 0]):
            rows = numbers == number
            embeddings[rows] = self._store.vectors(int(number))[positions[rows] % self._rows]
        return embeddings


def begun_outputs(folder: Path) -> set[Path]:
    """Return the files that a killed run had begun to write from its finished chunks."""
    file = folder / "outputs.json"
    return {Path(name) for name in json.loads(file.read_text(encoding="utf-8"))} if file.is_file() else set()


class ChunkStore:
    """A folder with a file of embeddings per finished chunk, and the settings (model, input, options) of them all.

    Raises ConfigError where the folder holds chunks of other settings, unless ``restart``, or something else.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str], restart: bool = False) -> None:
        self.folder = folder
        manifest = folder / "made_of.json"
        if restart and manifest.is_file():
            self.remove()
        if manifest.is_file():
            self._require_same(json.loads(manifest.read_text(encoding="utf-8")), settings)
        else:
            # Chunks are written after the manifest: a folder without one is not ours.
            if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
                raise ConfigError(f"{folder}: exists and holds no chunks; move it or name another output")
            write_beside(manifest, lambda stream: stream.write(json.dumps(dict(settings), indent=1).encode()))
        self.finished = {int(file.stem) for file in folder.glob("*.npy") if re.fullmatch(r"[0-9]+", file.stem)}

    def _require_same(self, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        changed = [key for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key)]
        texts = {key: f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in changed}
        if changed:
            raise ConfigError(
                f"{self.folder}: holds finished chunks of a run with another "
                f"{', '.join(text if len(text) < 80 else key for key, text in texts.items())}; "
                "resume with the same model, input and options, or add --restart to discard them"
            )

    def save(self, number: int, embeddings: np.ndarray, broken: Mapping[int, str]) -> None:
        """Keep a chunk: embeddings ``(n, D)``, and by its row why an item has none."""
        reasons = json.dumps({str(row): reason for row, reason in sorted(broken.items())}).encode()
        write_beside(self.folder / f"{number:08d}.json", lambda stream: stream.write(reasons))
        # The embeddings come last: where they are, the chunk is complete.
        write_beside(self.folder / f"{number:08d}.npy", lambda stream: np.save(stream, embeddings, allow_pickle=False))
        self.finished.add(number)

    def vectors(self, number: int) -> np.ndarray:
        """Return embeddings ``(n, D)`` of a finished chunk, mapped from the file."""
        file = self.folder / f"{number:08d}.npy"
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file}: cannot be read ({first_line(error)}); did another run with the same output end? "
                "start again with --restart"
            ) from None

    def broken(self, number: int) -> dict[int, str]:
        """Return by its row why an item of a finished chunk has no embedding."""
        text = (self.folder / f"{number:08d}.json").read_text(encoding="utf-8")
        return {int(row): reason for row, reason in json.loads(text).items()}

    def begin_outputs(self, outputs: Iterable[Path]) -> None:
        """Record that all chunks are finished and that these files are written next."""
        names = json.dumps([str(path.resolve()) for path in outputs]).encode()
        write_beside(self.folder / "outputs.json", lambda stream: stream.write(names))

    def remove(self) -> None:
        """Rename the folder, then remove it, so that the rest of a killed removal is not taken for chunks."""
        going = self.folder.with_name(f".{self.folder.name}.removed")
        try:
            if going.exists():
                shutil.rmtree(going)
            if self.folder.exists():
                self.folder.rename(going)
                shutil.rmtree(going)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be removed ({error.strerror}); remove it by hand") from None


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

    Attributes
    ----------
    ids : ndarray
        ``(I,)`` int64, in the order in which images are read fastest.
    others : list of str
        Names of files that are no ``ID.jpg`` (or .jpeg, .png, .webp).

    Raises
    ------
    MissingFileError
        No such folder or file.
    DataError
        Neither a folder nor an archive; a damaged archive, or one with a member whose name is a path outside of it;
        an item with two images; no image at all.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise MissingFileError(f"{path}: no such folder or archive of images")
        if not self.path.is_dir() and not self.path.name.lower().endswith(ARCHIVES):
            raise DataError(f"{path}: expected a folder of images or an archive ({', '.join(ARCHIVES)})")
        self.others: list[str] = []
        self._archive: zipfile.ZipFile | tarfile.TarFile | None = None
        found: dict[int, _Member] = {}
        try:
            for member in self._members():
                item = _item_id(member.name) if numbering().items is None else _item_number(member.name)
                if item is None:
                    self.others.append(member.name)
                elif item in found:
                    names = f"'{found[item].name}' and '{member.name}'"
                    raise DataError(f"{path}: item {numbering().show(item)} has two images, {names}; leave one")
                else:
                    found[item] = member
        except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise DataError(f"{path}: cannot be read as an archive ({first_line(error)})") from None
        if not found:
            other = f" (first of {len(self.others)} other files: '{self.others[0]}')" if self.others else ""
            raise DataError(f"{path}: holds no image named by an item's id, such as 123.jpg{other}")
        self.ids = np.fromiter(found, dtype=np.int64, count=len(found))
        self._found = list(found.values())

    def __enter__(self) -> ImageFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()

    def keep(self, wanted: np.ndarray) -> None:
        """Leave out the images of other items."""
        kept = np.isin(self.ids, wanted)
        self.ids = self.ids[kept]
        self._found = [member for member, keep in zip(self._found, kept, strict=True) if keep]

    def digest(self) -> str:
        """Return a digest of names, sizes and times of change (of a zip file, checksums)."""
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
            # Whatever the archive's decoder raises (a checksum, a password, an unknown compression, a cut file), it
            # means that this one image cannot be used.
            try:
                with member.open() as stream:
                    yield stream.read(MAX_IMAGE_BYTES)
            except Exception as error:
                yield BrokenImage(f"cannot be read ({first_line(error)})")

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
        parts = name.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or "\0" in name or re.match(r"[A-Za-z]:", name):
            raise DataError(
                f"{self.path}: a member is named {name!r}, a path outside of the archive; expected relative names, "
                "such as images/123.jpg: pack it again"
            )
        return "/".join(parts)


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
    found = re.fullmatch(r"([0-9]{1,10})(\.[a-z]+)", re.split(r"[/\\]", name.lower())[-1])
    if found is None or found[2] not in IMAGES or not 0 < int(found[1]) < parquet.MAX_IDS:
        return None
    return int(found[1])


def _item_number(name: str) -> int | None:
    """Return the number of the item ID in ``folder/ID.jpg``; None for any other name, and for one that is no item."""
    items = numbering().items
    assert items is not None
    stem, dot, ending = re.split(r"[/\\]", name)[-1].rpartition(".")
    if dot + ending.lower() not in IMAGES:
        return None
    ids = pa.array([stem])
    if pa.types.is_integer(items.values.type):
        if not re.fullmatch(r"-?[0-9]{1,20}", stem):
            return None
        ids = pa.array([int(stem)], pa.uint64() if int(stem) >= 2**63 else pa.int64())
    number = int(items.encode(ids.cast(pa.large_binary()) if items.values.type == pa.large_binary() else ids)[0])
    return number if number > 0 else None


class ItemTexts:
    """Texts of items, read in the order of the file; row 0, the padding, is left out.

    Parameters
    ----------
    path : str or path
        A Parquet file, the same without ``.parquet``, or a folder of part files.
    template : str
        Names of columns in braces, such as ``"{item_title}. {genres}"``. Lists are joined by commas, nulls are empty.
        Where all columns of a row are empty, the item has no text.

    Attributes
    ----------
    ids : ndarray
        ``(I,)`` int64.
    digest : str
        Of all ids and texts.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        A template that names no column, a column that is missing or holds no texts, an id twice or negative.

    Examples
    --------
    >>> import pyarrow.parquet as pq, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "items.parquet"
    >>> columns = {"item_id": [0, 7, 9], "title": ["", "Heat", None], "tags": [[], ["a", "b"], []]}
    >>> pq.write_table(pa.table(columns), path)
    >>> texts = ItemTexts(path, "{title}: {tags}")
    >>> texts.ids.tolist(), list(texts.chunks(10))
    ([7, 9], [['Heat: a, b', None]])
    """

    def __init__(self, path: str | os.PathLike[str], template: str) -> None:
        self.path = Path(path)
        self._parts = parse_template(template)
        self._columns = list(dict.fromkeys(name for _, name in self._parts if name is not None))
        digest, ids = hashlib.sha256(), [np.zeros(0, dtype=np.int64)]
        for some_ids, texts in self._read():
            ids.append(some_ids)
            digest.update(some_ids.tobytes())
            for text in texts:
                digest.update(b"\0" if text is None else b"\1" + text.encode(errors="surrogatepass") + b"\0")
        self.ids, self.digest = np.concatenate(ids), digest.hexdigest()
        if not self.ids.size:
            raise DataError(f"{path}: no items, expected one row per item")
        require_unique(self.ids, str(path))

    def chunks(self, rows: int) -> Iterator[list[str | None]]:
        """Yield the texts, ``rows`` at a time; None for an item without."""
        held: list[str | None] = []
        for _, texts in self._read():
            held += texts
            while len(held) >= rows:
                yield held[:rows]
                held = held[rows:]
        if held:
            yield held

    def _read(self) -> Iterator[tuple[np.ndarray, list[str | None]]]:
        for file in parquet.part_files(self.path):
            key = key_of(file)
            for row, batch in parquet.read_chunks(file, [key, *self._columns]):
                ids = numbering().numbers(batch.column(key), f"{file}: {key}", row)
                batch = batch.filter(pa.array(ids != 0))
                columns = [_as_texts(batch.column(name), f"{file}: {name}") for name in self._columns]
                yield ids[ids != 0], [self._fill(values) for values in zip(*columns, strict=True)]

    def _fill(self, values: Sequence[str]) -> str | None:
        if not any(values):
            return None
        by_name = dict(zip(self._columns, values, strict=True))
        return "".join(text + by_name.get(name or "", "") for text, name in self._parts).strip()


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Return ``(text, column after it or None)`` pairs.

    Raises
    ------
    ConfigError
        No column in braces, or anything but a name in them.

    Examples
    --------
    >>> parse_template("query: {item_title}!")
    [('query: ', 'item_title'), ('!', None)]
    """
    expected = "expected names of columns in braces, such as '{item_title}. {genres}'"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"template '{template}': {error}; {expected}") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name or form or conversion or set(name) & set("[]")):
            raise ConfigError(f"template '{template}': '{{{name}}}' is no column; {expected}")
    if all(name is None for _, name, _, _ in parts):
        raise ConfigError(f"template '{template}': names no column; {expected}")
    return [(text, name) for text, name, _, _ in parts]


def _as_texts(array: pa.Array, where: str) -> list[str]:
    kind = array.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list else kind
    inner = inner.value_type if pa.types.is_dictionary(inner) else inner
    types = pa.types
    is_text = any(is_kind(inner) for is_kind in (types.is_string, types.is_large_string, types.is_string_view))
    # Numbers may be in a template (a year, which pandas makes 1995.0 where one is missing), but not an embedding.
    is_number = not is_list and (types.is_integer(inner) or types.is_floating(inner))
    if not (is_text or is_number or types.is_null(inner)):
        raise DataError(f"{where}: holds {kind}, expected texts")
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:
        raise DataError(f"{where}: holds bytes that are no UTF-8; write the texts again") from None
    if is_list:
        return [", ".join(str(text) for text in row or () if text is not None).strip() for row in values]
    return [_as_text(value) for value in values]


def _as_text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``fuxictr-mm embed encode``."""
    add_examples(
        parser,
        "fuxictr-mm embed encode --texts item_feature.parquet --template '{item_title}' \\",
        "    --model bert-base-multilingual-cased --column txt_emb_BERT --out text.parquet",
        "fuxictr-mm embed encode --images covers.zip --items item_feature.parquet \\",
        "    --model google/siglip-base-patch16-224 --column img_emb_SigLIP --out image.parquet --report image.json",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--texts", metavar="FILE", help="Parquet file with item_id and texts")
    what.add_argument("--images", metavar="PATH", help="folder, .zip or .tar(.gz) of ID.jpg, .jpeg, .png or .webp")
    parser.add_argument("--model", required=True, help="folder with safetensors, or an id of the Hugging Face hub")
    parser.add_argument("--out", required=True, metavar="FILE", help="Parquet file to write")
    parser.add_argument("--column", help="name of the column (default: txt_emb_ or img_emb_ and the model's name)")
    parser.add_argument("--template", help="texts: columns in braces (default: '{item_title}')")
    parser.add_argument("--max-tokens", type=int, help="texts: longest text in tokens (default: the model's limit)")
    parser.add_argument("--items", metavar="FILE", help="images: Parquet file with the items to write")
    parser.add_argument("--workers", type=int, help="images: decoding threads (default: 4)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--pooling", choices=POOLINGS, help="instead of the model's own")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="scale embeddings to length 1 (default: the model's own)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="items per batch (default: 64)")
    parser.add_argument("--chunk-rows", type=int, default=CHUNK_ROWS, help="items between checkpoints (default: 1024)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of matrix products (default: fp32)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of a GPU (default: -1, the CPU)")
    parser.add_argument("--report", metavar="FILE", help="JSON file to write with all items without an embedding")
    parser.add_argument("--restart", action="store_true", help="discard the chunks of a run that was killed")
    add_output(parser)


def main_from_args(parsed: argparse.Namespace) -> None:
    """Run ``fuxictr-mm embed encode``."""
    own = {"texts": ("template", "max_tokens"), "images": ("items", "workers")}
    kind, other = ("texts", "images") if parsed.texts is not None else ("images", "texts")
    for name in own[other]:
        if getattr(parsed, name) is not None:
            raise ConfigError(f"{flag(name)} is for --{other}, and --{kind} was given; leave it out")
    shared = ("model", "column", "revision", "pooling", "normalize", "batch_size", "chunk_rows", "precision", "gpu")
    named = {name: getattr(parsed, name) for name in (*shared, "overwrite", "restart", "report", *own[kind])}
    options = {name: value for name, value in named.items() if value is not None}
    encode: Callable[..., EncodeReport] = encode_texts if kind == "texts" else encode_images
    done = encode(getattr(parsed, kind), parsed.out, **options, verbose=0 if parsed.quiet else 1)
    show(parsed, asdict(done), "\n".join(done.lines()))
