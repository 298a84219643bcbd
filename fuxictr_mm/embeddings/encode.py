"""``fuxictr-mm embed encode``: titles and images to vectors, with models of Hugging Face.

Shape letters: I items, n items of a chunk, D width.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import string
import sys
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from fuxictr_mm.cli import add_examples, show
from fuxictr_mm.data import parquet
from fuxictr_mm.data.parquet import MAX_IDS
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.embeddings.command import add_output, flag
from fuxictr_mm.embeddings.encoders import (
    MAX_IMAGE_BYTES,
    POOLINGS,
    PRECISIONS,
    BrokenImage,
    first_line,
    model_stem,
    require_extra,
)
from fuxictr_mm.embeddings.item_files import ItemFileWriter, Source, read_ids, vector_type
from fuxictr_mm.errors import ConfigError, DataError, Interrupted, MissingFileError, UserError
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.terminal import item_bar

if TYPE_CHECKING:
    from fuxictr_mm.embeddings.encoders import ImageEncoder, TextEncoder

#: Names the files that a run was writing from finished chunks.
OUTPUTS = "outputs.json"


def begun_outputs(folder: Path) -> set[Path]:
    """Return the files that a run which was killed had begun to write, or had written, from its finished chunks."""
    noted = folder / OUTPUTS
    return {Path(name) for name in json.loads(noted.read_text(encoding="utf-8"))} if noted.is_file() else set()


class ChunkStore:
    """A folder with a file of vectors per finished chunk, and what they were made of.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    made_of : mapping of str to str
        Model, input and options; chunks of anything else are not taken.
    restart : bool
        Throw away what is there.

    Raises
    ------
    ConfigError
        The folder holds chunks of another model, input or options.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, str], restart: bool = False) -> None:
        self.folder = folder
        manifest = folder / "made_of.json"
        if restart and manifest.is_file():
            self.remove()
        if manifest.is_file():
            self._require_same(json.loads(manifest.read_text(encoding="utf-8")), made_of)
        else:
            # Chunks are only ever written after the manifest: what lies here without one is not ours.
            if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
                raise ConfigError(f"{folder}: is in the way of the finished chunks; move it or name another output")
            write_beside(manifest, lambda stream: stream.write(json.dumps(dict(made_of), indent=1).encode()))
        self.finished = {int(file.stem) for file in folder.glob("*.npy") if re.fullmatch(r"[0-9]+", file.stem)}

    def _require_same(self, there: Mapping[str, str], now: Mapping[str, str]) -> None:
        changed = [
            key
            if len(f"{there.get(key)}{now.get(key)}") > 60
            else f"{key} ({there.get(key)} there, {now.get(key)} now)"
            for key in dict.fromkeys([*now, *there])
            if there.get(key) != now.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{self.folder}: holds finished chunks of a run with another {', '.join(changed)}; "
                "go on with the same model, input and options, or add --restart to throw them away"
            )

    def save(self, number: int, vectors: np.ndarray, broken: Mapping[int, str]) -> None:
        """Keep a chunk: vectors ``(n, D)``, and why an item (by its place in the chunk) has none."""
        reasons = json.dumps({str(place): reason for place, reason in sorted(broken.items())}).encode()
        write_beside(self.folder / f"{number:08d}.json", lambda stream: stream.write(reasons))
        # The vectors come last: where they are, the chunk is whole.
        write_beside(self.folder / f"{number:08d}.npy", lambda stream: np.save(stream, vectors, allow_pickle=False))
        self.finished.add(number)

    def vectors(self, number: int) -> np.ndarray:
        """Return vectors ``(n, D)`` of a finished chunk, mapped from the file."""
        file = self.folder / f"{number:08d}.npy"
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file}: cannot be read ({first_line(error)}); did another run with the same output end? "
                "start again with --restart"
            ) from None

    def broken(self, number: int) -> dict[int, str]:
        """Return for each item of a finished chunk that has no vector its place in the chunk, and why."""
        text = (self.folder / f"{number:08d}.json").read_text(encoding="utf-8")
        return {int(place): reason for place, reason in json.loads(text).items()}

    def begin_outputs(self, outputs: Iterable[Path]) -> None:
        """Note that all chunks are finished and these files are about to be written; a run that goes on may do so."""
        names = json.dumps([str(path.resolve()) for path in outputs]).encode()
        write_beside(self.folder / OUTPUTS, lambda stream: stream.write(names))

    def remove(self) -> None:
        """Remove the folder at once; what is left of a removal that was killed is hidden, and the next one takes it."""
        going = self.folder.with_name(f".{self.folder.name}.removed")
        try:
            if going.exists():
                shutil.rmtree(going)
            if self.folder.exists():
                self.folder.rename(going)
                shutil.rmtree(going)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be removed ({error.strerror}); remove it by hand") from None


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
        self.path, self.template = Path(path), template
        self._parts = parse_template(template)
        self._columns = list(dict.fromkeys(name for _, name in self._parts if name is not None))
        digest, ids = hashlib.sha256(), []
        for some_ids, texts in self._read():
            ids.append(some_ids)
            digest.update(some_ids.tobytes())
            for text in texts:
                digest.update(b"\0" if text is None else b"\1" + text.encode(errors="surrogatepass") + b"\0")
        self.ids = np.concatenate([np.zeros(0, dtype=np.int64), *ids])
        self.digest = digest.hexdigest()
        if not self.ids.size:
            raise DataError(f"{path}: no items, expected one row per item")
        ascending = np.sort(self.ids)
        twice = ascending[1:][ascending[1:] == ascending[:-1]]
        if twice.size:
            raise DataError(f"{path}: {ITEM_ID} {twice[0]} stands more than once, expected once")

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
            for row, batch in parquet.read_chunks(file, [ITEM_ID, *self._columns]):
                ids = parquet.scalars(batch.column(ITEM_ID), f"{file}: {ITEM_ID}", row)
                parquet.check_ids(ids, None, f"{file}: {ITEM_ID}", row)
                real = ids != 0
                if not real.all():
                    batch = batch.filter(pa.array(real))
                values = {name: _as_texts(batch.column(name), f"{file}: {name}") for name in self._columns}
                yield ids[real], [self._fill(values, place) for place in range(batch.num_rows)]

    def _fill(self, values: dict[str, list[str]], place: int) -> str | None:
        if not any(column[place] for column in values.values()):
            return None
        return "".join(text + ("" if name is None else values[name][place]) for text, name in self._parts).strip()


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
    if pa.types.is_dictionary(inner):
        inner = inner.value_type
    is_text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
    # Numbers may stand in a template (a year), but a vector is no text.
    if not is_text and (is_list or not pa.types.is_integer(inner)):
        raise DataError(f"{where}: holds {kind}, expected texts")
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:
        raise DataError(f"{where}: holds bytes that are no UTF-8; write the texts again") from None
    if is_list:
        return [", ".join(str(text) for text in row or () if text is not None).strip() for row in values]
    return ["" if value is None else str(value).strip() for value in values]


#: Items of a chunk, the most that a killed run has to encode again.
CHUNK_ROWS = 1024


#: Items that a message names.
FEW = 5


@dataclass(frozen=True)
class EncodeReport:
    """What an encoding gave.

    Parameters
    ----------
    out : str
        The file.
    column : str
        Of the vectors.
    width : int
        D.
    items : int
        Rows, the padding left out.
    missing : dict of int to str
        Why an item has a zero vector.
    skipped : list of str
        Files that are no image of an item, or of an item that was not asked for.
    """

    out: str
    column: str
    width: int
    items: int
    missing: dict[int, str]
    skipped: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield what to tell the user."""
        yield f"{self.out}: {self.items} items, {self.column} of width {self.width}"
        for reason in sorted(set(self.missing.values())):
            ids = [item for item, why in self.missing.items() if why == reason]
            yield f"  {len(ids)} without a vector, {reason}: {_some(ids)}"
        if self.skipped:
            yield f"  {len(self.skipped)} files left out: {_some(self.skipped)}"


def encode_texts(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str,
    template: str = "{item_title}",
    column: str | None = None,
    revision: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    max_tokens: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    gpu: int = -1,
    chunk_rows: int = CHUNK_ROWS,
    overwrite: bool = False,
    restart: bool = False,
    report: str | os.PathLike[str] | None = None,
    verbose: int = 1,
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
        Name of the column of vectors.
    revision, pooling, normalize, max_tokens, batch_size, precision, gpu
        As for ``TextEncoder``.
    chunk_rows : int
        Items between two savings.
    overwrite : bool
        Replace a file that is there.
    restart : bool
        Throw away the finished chunks of a run that was killed, instead of going on.
    report : str or path, optional
        A JSON file to write with all that is missing.
    verbose : int
        0 shows no progress.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        An option, an input or a model that cannot be used.
    """
    require_extra("transformers")
    from fuxictr_mm.embeddings.encoders import TextEncoder

    job = _Job(out, [path], column, "txt", model, chunk_rows, overwrite, restart, report, verbose)
    texts = ItemTexts(path, template)
    encoder = TextEncoder(
        model,
        revision=revision,
        pooling=pooling,
        normalize=normalize,
        max_tokens=max_tokens,
        batch_size=batch_size,
        precision=precision,
        gpu=gpu,
    )

    def encode(chunk: list[str | None], advance: Callable[[int], object]) -> tuple[np.ndarray, dict[int, str]]:
        places = [place for place, text in enumerate(chunk) if text]
        vectors = np.zeros((len(chunk), encoder.width), dtype=np.float32)
        vectors[places] = encoder.encode([text for text in chunk if text], advance)
        advance(len(chunk) - len(places))
        return vectors, {place: "no text" for place, text in enumerate(chunk) if not text}

    options = {"template": template, "pooling": encoder.pooling, "max_tokens": encoder.max_tokens}
    store = job.open_store(encoder, texts.digest, {**options, "normalize": encoder.normalize})
    job.run(store, texts.ids, texts.chunks(chunk_rows), encode)
    return job.finish(store, texts.ids, {}, encoder.width)


def encode_images(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str,
    items: str | os.PathLike[str] | None = None,
    column: str | None = None,
    revision: str | None = None,
    pooling: str | None = None,
    normalize: bool = False,
    batch_size: int = 64,
    precision: str = "fp32",
    gpu: int = -1,
    workers: int = 4,
    chunk_rows: int = CHUNK_ROWS,
    overwrite: bool = False,
    restart: bool = False,
    report: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> EncodeReport:
    """Encode an image of each item; items whose image is broken or missing get zeros and ``img_missing`` True.

    Parameters
    ----------
    path : str or path
        A folder or an archive with ``ID.jpg`` (or .jpeg, .png, .webp) at any depth.
    out : str or path
        A Parquet file to write: ``item_id`` ascending from the padding 0, ``img_emb_MODEL``, ``img_missing``.
    items : str or path, optional
        A Parquet file whose ``item_id`` says which items to write; all that have an image by default.
    model, column, revision, chunk_rows, overwrite, restart, report, verbose
        As for ``encode_texts``.
    pooling, normalize, batch_size, precision, gpu, workers
        As for ``ImageEncoder``.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        An option, an input or a model that cannot be used; not for single images.
    """
    require_extra("transformers", "PIL")
    from fuxictr_mm.embeddings.encoders import ImageEncoder

    job = _Job(out, [path, items], column, "img", model, chunk_rows, overwrite, restart, report, verbose)
    images = open_images(path)
    try:
        skipped, without = list(images.others), {}
        if items is not None:
            wanted = read_ids(Source("items", Path(items), "item_id"))
            skipped += [f"{item} (an item that {items} lacks)" for item in np.setdiff1d(images.ids, wanted).tolist()]
            images.keep(wanted)
            without = dict.fromkeys(np.setdiff1d(wanted, images.ids).tolist(), "no image file")
            if not images.ids.size:
                raise DataError(f"{path}: holds an image of none of the {wanted.size} items of {items}")
        encoder = ImageEncoder(
            model,
            revision=revision,
            pooling=pooling,
            normalize=normalize,
            batch_size=batch_size,
            precision=precision,
            gpu=gpu,
            workers=workers,
        )
        starts = range(0, len(images.ids), chunk_rows)
        store = job.open_store(encoder, images.digest(), {"pooling": encoder.pooling, "normalize": normalize})
        job.run(store, images.ids, (images.read(start, start + chunk_rows) for start in starts), encoder.encode)
        return job.finish(store, images.ids, without, encoder.width, skipped)
    finally:
        images.close()


class _Job:
    """One output: its chunks, its file and its report."""

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
        if self.column in ("item_id", self.flag) or not self.column.isidentifier():
            raise ConfigError(f"column '{self.column}', expected a name of letters, digits and _; give --column")
        self._rows, self._restart, self._verbose = chunk_rows, restart, verbose
        self._folder = self.out.with_name(f"{self.out.name}.chunks")
        self._outputs = [self.out, *([] if report is None else [Path(report)])]
        # A run that was killed while it wrote them may go on and write them again.
        begun = set() if restart else begun_outputs(self._folder)
        fresh = [path for path in self._outputs if path.resolve() not in begun]
        self._overwrite = overwrite or self.out not in fresh
        # Now, not after hours.
        check_outputs(fresh, inputs, overwrite)

    def open_store(self, encoder: TextEncoder | ImageEncoder, digest: str, options: Mapping[str, Any]) -> ChunkStore:
        import torch
        import transformers

        made_of = {
            "model": encoder.digest,
            "input": digest,
            **options,
            "batch_size": encoder.batch_size,
            "precision": encoder.precision,
            "chunk_rows": self._rows,
            "device": encoder.device.type,
            "libraries": f"torch {torch.__version__}, transformers {transformers.__version__}",
        }
        return ChunkStore(self._folder, {key: str(value) for key, value in made_of.items()}, self._restart)

    def run(
        self,
        store: ChunkStore,
        ids: np.ndarray,
        chunks: Iterable[Any],
        encode: Callable[[Any, Callable[[int], object]], tuple[np.ndarray, dict[int, str]]],
    ) -> None:
        """Encode the chunks that are not finished."""
        numbers = range(-(-len(ids) // self._rows))
        done = sum(min(self._rows, len(ids) - number * self._rows) for number in numbers if number in store.finished)
        if done and self._verbose:
            print(f"{done} of {len(ids)} items are finished in {store.folder}: going on", file=sys.stderr)
        bar = item_bar(len(ids), self.column, self._verbose, done)
        try:
            with bar:
                for number, chunk in zip(numbers, chunks, strict=True):
                    if number in store.finished:
                        continue
                    vectors, broken = encode(chunk, bar.update)
                    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
                    if bad.size:
                        raise DataError(
                            f"{self.column}: the model gives NaN or infinite numbers for item "
                            f"{ids[number * self._rows + bad[0]]}; try --precision fp32 or another model"
                        )
                    store.save(number, vectors, broken)
        except KeyboardInterrupt:
            said = f"stopped; {len(store.finished)} of {len(numbers)} chunks are kept in {store.folder}: "
            raise Interrupted(said + "the same command goes on", signal.SIGINT) from None

    def finish(
        self,
        store: ChunkStore,
        ids: np.ndarray,
        without: Mapping[int, str],
        width: int,
        skipped: list[str] | None = None,
    ) -> EncodeReport:
        """Write the file in ascending order of ids, then the report, and remove the chunks."""
        missing = dict(without)
        for number in sorted(store.finished):
            missing.update({int(ids[number * self._rows + place]): why for place, why in store.broken(number).items()})
        if len(missing) == len(ids) + len(without):
            raise DataError(f"{self.column}: not one of {len(missing)} items has a vector, first {_first(missing)}")
        order = np.argsort(ids, kind="stable")
        items = np.sort(np.concatenate([ids, np.fromiter(without, np.int64, len(without))]))
        flagged = np.fromiter(missing, np.int64, len(missing))
        schema = {self.column: vector_type(width), self.flag: pa.bool_()}
        store.begin_outputs(self._outputs)
        with ItemFileWriter(self.out, schema, self._overwrite) as writer:
            for start in range(0, len(items), CHUNK_ROWS):
                some = items[start : start + CHUNK_ROWS]
                rows = np.searchsorted(ids, some, sorter=order).clip(max=len(ids) - 1)
                places = order[rows]
                vectors = np.zeros((len(some), width), dtype=np.float32)
                here = ids[places] == some
                for number in np.unique(places[here] // self._rows):
                    taken = here & (places // self._rows == number)
                    vectors[taken] = store.vectors(int(number))[places[taken] % self._rows]
                writer.write(some, {self.column: vectors, self.flag: np.isin(some, flagged)})
        done = EncodeReport(str(self.out), self.column, width, len(items), dict(sorted(missing.items())), skipped or [])
        text = json.dumps(asdict(done), indent=1, ensure_ascii=False)
        for report in self._outputs[1:]:
            write_beside(report, lambda stream: stream.write(text.encode(errors="replace")))
        store.remove()
        return done


def _some(values: list[Any]) -> str:
    return ", ".join(map(str, values[:FEW])) + (", ..." if len(values) > FEW else "")


def _first(missing: Mapping[int, str]) -> str:
    item, reason = next(iter(missing.items()))
    return f"{item} ({reason})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of ``fuxictr-mm embed encode``."""
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
    parser.add_argument("--items", metavar="FILE", help="images: Parquet file that says which items to write")
    parser.add_argument("--workers", type=int, help="images: threads that decode (default: 4)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--pooling", choices=POOLINGS, help="instead of what the model says")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="bring vectors to length 1 (default: as the model says)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="items at once (default: 64)")
    parser.add_argument("--chunk-rows", type=int, default=CHUNK_ROWS, help="items between savings (default: 1024)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the arithmetic (default: fp32)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of a GPU (default: -1, the CPU)")
    parser.add_argument("--report", metavar="FILE", help="JSON file to write with all items that have no vector")
    parser.add_argument("--restart", action="store_true", help="throw away the chunks of a run that was killed")
    add_output(parser)


def main_from_args(parsed: argparse.Namespace) -> None:
    """Run ``fuxictr-mm embed encode``."""
    shared = ("model", "column", "revision", "pooling", "batch_size", "chunk_rows", "precision", "gpu", "overwrite")
    options = {name: getattr(parsed, name) for name in (*shared, "restart", "report")}
    own = {"texts": ("template", "max_tokens"), "images": ("items", "workers")}
    kind, other = ("texts", "images") if parsed.texts is not None else ("images", "texts")
    for name in own[other]:
        if getattr(parsed, name) is not None:
            raise ConfigError(f"{flag(name)} is for --{other}, and --{kind} was given; leave it out")
    for name in (*own[kind], "normalize"):
        if getattr(parsed, name) is not None:
            options[name] = getattr(parsed, name)
    options["verbose"] = 0 if parsed.quiet else 1
    if kind == "texts":
        done = encode_texts(parsed.texts, parsed.out, **options)
    else:
        done = encode_images(parsed.images, parsed.out, **options)
    show(parsed, asdict(done), "\n".join(done.lines()))
