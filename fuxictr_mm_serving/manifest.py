"""The manifest of an export: its files, their sizes and their checksums."""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)  # fmt: skip

from fuxictr_mm_serving.errors import ServingError

MANIFEST = "manifest.json"

#: Formats that are read. One is added where a server before it would fail on an export instead of refusing it, and an
#: export has the lowest that it needs: 4 has graphs of candidates that are given ``candidate_codes``, and 5 has
#: vocabularies as arrays.
FORMATS = (3, 4, 5)

#: Larger tables are mapped. Smaller ones are read, so that a file that is cut short while it is served ends no process.
MAPPED_BYTES = 16 * 2**20

#: Bytes of a manifest.
LARGEST = 16 * 2**20


def _plain(name: str) -> str:
    if Path(name).name != name or name == ".." or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a file name without folder")
    return name


#: Numbers that a request gives for a field of the context.
Length = Annotated[int, Field(ge=1, le=10**6)]

#: A file in the folder.
File = Annotated[str, AfterValidator(_plain)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)  # the document is used as it is: "5" is no 5


class TableEntry(_Entry):
    """An embedding table."""

    file: File
    #: Factors of 8-bit integers, of fields of ``dims`` columns each.
    scales: File | None = None
    dims: Annotated[list[int], Field(min_length=1)] | None = None


class ContentEntry(_Entry):
    """An embedding of the item files that a new item can be given."""

    norm: str | None
    scale: float
    dim: int
    file: File | None = None
    start: int = 0
    content_start: int | None = None


class CodesEntry(_Entry):
    """Codes of the items."""

    file: File
    columns: dict[str, int]
    vocab_sizes: dict[str, int] = {}
    #: Columns of which a new item may have fewer, and those that hold ids of items.
    lists: list[str] = []
    of_items: list[str] = []


class Scaling(_Entry):
    """How numbers are filled and scaled."""

    fill_na: float | None = None
    shift: float = 0.0
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class NumberEntry(Scaling):
    """A number of the item files that a new item can be given: a projection of one column."""

    file: File
    start: Annotated[int, Field(ge=0)]


class PreparedEntry(Scaling):
    """A column as ``fuxictr-mm prepare`` wrote it."""

    column: str


class FieldEntry(Scaling):
    """A field of the context, or of ids of the items; a subclass requires what its type reads."""

    name: str
    column: str
    type: str
    table: TableEntry | None = None
    vocab_size: int = 0
    max_len: int = 0
    pretrain_dim: int = 0
    padding: str | None = None
    as_ids: bool = False
    #: Of a field that is computed of the history: what it is.
    computed: str | None = None
    #: How ``fuxictr-mm prepare`` wrote the column, where requests have it as its owner does.
    prepared: PreparedEntry | None = None


class CategoricalEntry(FieldEntry):
    """A field of ids."""

    vocab_size: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _has_table(self) -> CategoricalEntry:
        if self.table is None and not self.as_ids:
            raise ValueError("table: is missing")
        return self


class SequenceEntry(CategoricalEntry):
    """A field of lists of ids."""

    max_len: Length


class EmbeddingEntry(FieldEntry):
    """A field of lists of numbers."""

    pretrain_dim: Length


class IdsEntry(SequenceEntry):
    """A field of ids of the items that a new item can be given."""

    start: Annotated[int, Field(ge=0)]
    dim: Annotated[int, Field(ge=1)]
    pooling: Literal["sum", "mean"]
    items_start: Annotated[int, Field(ge=0)] | None = None


class ItemsEntry(_Entry):
    """The items."""

    target: str
    history: str
    max_len: Annotated[int, Field(ge=1)] | None
    known: File
    table: TableEntry
    #: Columns of the table that each feature fills.
    fields: dict[str, int] = {}
    contents: dict[str, ContentEntry] = {}
    numbers: dict[str, NumberEntry] = {}
    codes: CodesEntry | None = None
    ids: list[IdsEntry] = []
    #: Columns of the item files, the id among them, that hold numbers where the vocabulary has the owner's values.
    prepared: list[str] | None = None


def _kind(entry: Any) -> str:
    """Return which class of ``ContextEntry`` a field of the context is."""
    kind = entry.get("type") if isinstance(entry, dict) else getattr(entry, "type", None)
    return kind if kind in ("numeric", "embedding", "sequence") else "categorical"


ContextEntry = Annotated[
    Annotated[FieldEntry, Tag("numeric")]
    | Annotated[EmbeddingEntry, Tag("embedding")]
    | Annotated[SequenceEntry, Tag("sequence")]
    | Annotated[CategoricalEntry, Tag("categorical")],
    Discriminator(_kind),
]


class Manifest(_Entry):
    """What is read of a manifest; the file may hold more."""

    experiment: str
    model: str
    created: str
    precision: str
    labels: Annotated[list[str], Field(min_length=1)]
    graphs: dict[str, File]
    #: Of the largest array that each graph computes: numbers per scored row and history item.
    numbers_per_pair: dict[str, Annotated[int, Field(ge=1)]] = {}
    #: Of a user: more items would need more memory than a server has for a request; None for any.
    longest_history: Annotated[int, Field(ge=1)] | None = None
    items: ItemsEntry
    context: list[ContextEntry]
    #: Of graphs, by the name of their inputs.
    tables: dict[str, TableEntry] = {}
    #: Digests of the numbers of ``fuxictr-mm prepare`` that the weights were trained with, by the column.
    numbering: dict[str, str] = {}
    #: The same of earlier folders, whose numbers are the first ones of these.
    extends: dict[str, list[str]] = {}
    #: Digests of all items of the later logs that the items of the export, of a log after them, continue.
    earlier_items: list[str] = []
    vocabulary: File | None
    bytes: dict[str, int]
    sha256: dict[File, str]

    @property
    def files(self) -> list[str]:
        """Every file that is opened."""
        items = self.items
        fields = [field.table for field in (*self.context, *items.ids) if field.table]
        contents = [content.file for content in items.contents.values()]
        contents += [number.file for number in items.numbers.values()]
        codes = items.codes.file if items.codes else None
        of_tables = [file for t in (items.table, *fields, *self.tables.values()) for file in (t.file, t.scales)]
        named = [items.known, self.vocabulary, codes, *contents, *of_tables]
        return [*self.graphs.values(), *filter(None, named), *self.sha256]


def read_manifest(folder: Path, *, any_graphs: bool = False, content: bytes | None = None) -> Manifest:
    """Return the manifest of an export.

    Parameters
    ----------
    folder : Path
        The export.
    any_graphs : bool
        Whether graphs may be of another format than ONNX.
    content : bytes, optional
        Of the file, if it has been read.

    Raises
    ------
    ServingError
        There is none, one of another version, or one that is not complete: every file that it names is in the folder
        and has a checksum; graphs that are not of ONNX.
    """
    path = folder / MANIFEST
    try:
        document = json.loads(_read(path, LARGEST) if content is None else content)
        version = document["format"]
    except FileNotFoundError:
        raise ServingError(f"{path}: no such file; write the folder with fuxictr-mm export") from None
    except NotADirectoryError:
        raise ServingError(f"{folder}: is a file; expected a folder that fuxictr-mm export wrote") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ServingError(f"{path}: is not a manifest of an export ({type(error).__name__}); export again") from None
    if version == "triton":
        raise ServingError(f"{folder}: is a model repository for Triton; export with --format onnx into another folder")
    if version not in FORMATS:
        todo = "update fuxictr-mm-serving" if isinstance(version, int) and version > FORMATS[-1] else "export again"
        expected = " or ".join(map(str, FORMATS))
        raise ServingError(f"{path}: has the format {version!r}, expected {expected}; {todo}")
    try:
        found = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ServingError(f"{path}: {where}: {' '.join(first['msg'].split())}; export again") from None
    if wrong := [name for name in found.files if name not in found.sha256 or name not in found.bytes]:
        raise ServingError(f"{path}: names the file {wrong[0]!r} without size and checksum; export again")
    others = [name for name in found.graphs.values() if not name.endswith(".onnx")]
    if others and not any_graphs:
        raise ServingError(f"{folder / others[0]}: is not an ONNX graph; export with --format onnx")
    if "rows" not in found.graphs or ("user" in found.graphs) != ("candidates" in found.graphs):
        raise ServingError(f"{path}: graphs: are {', '.join(found.graphs)}, expected rows, or user and candidates too")
    return found


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def version_of(folder: Path) -> str:
    """Return what names the export in a folder: the first digits of the checksum of its manifest."""
    try:
        return _version(_read(folder / MANIFEST, LARGEST))
    except OSError as error:
        raise ServingError(f"{folder / MANIFEST}: cannot be read ({error.strerror}); expected an export") from None


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


class Files:
    """The files of an export. What is used is what was compared: each is opened once, and read or mapped once.

    Parameters
    ----------
    folder : Path
        The export; a link is followed once, so that all files are of one folder.
    any_graphs : bool
        See ``read_manifest``.
    check_bytes : float
        Tables up to this size are compared with their checksums when they are mapped, larger ones by ``check``.

    Raises
    ------
    ServingError
        No manifest, or one that is not complete; of every method: a file is missing or damaged.
    """

    def __init__(self, folder: Path, *, any_graphs: bool = False, check_bytes: float = math.inf) -> None:
        try:
            self.folder = folder.resolve(strict=True)
            content = _read(self.folder / MANIFEST, LARGEST)
        except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
            self.folder, content = folder, None
        self.manifest = read_manifest(self.folder, any_graphs=any_graphs, content=content)
        self.version = "" if content is None else _version(content)
        self._check_bytes = check_bytes
        self._opened: set[str] = set()
        self._unchecked: dict[str, mmap.mmap | bytes] = {}

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        content = self._read(name)
        self._check(name, content)
        return content

    def array(self, name: str, *, mapped: bool = False) -> np.ndarray:
        """Return a read-only array; with ``mapped``, numbers of a large one are read when they are needed."""
        content = self._map(name) if mapped else self.read(name)
        try:
            return _array(content)
        except (ValueError, TypeError, OverflowError, SyntaxError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ServingError(f"{self.folder / name}: is not an array of numbers ({reason}); export again") from None

    def check_others(self) -> None:
        """Compare what is not opened, by size and, up to ``check_bytes``, by checksum."""
        for name in sorted(self.manifest.sha256.keys() - self._opened):
            if self.manifest.bytes[name] > self._check_bytes:
                os.close(self._open(name))
            else:
                self.read(name)

    def check(self) -> None:
        """Compare the tables that were mapped without."""
        for name in list(self._unchecked):
            self._check(name, self._unchecked[name])
            del self._unchecked[name]

    def _open(self, name: str) -> int:
        try:
            return _open(self.folder / name, self.manifest.bytes[name])
        except OSError as error:
            raise ServingError(f"{self.folder / name}: cannot be read ({error.strerror}); export again") from None
        except ValueError:
            raise self._differs(name) from None

    def _read(self, name: str) -> bytes:
        with open(self._open(name), "rb") as stream:
            return stream.read(self.manifest.bytes[name] + 1)

    def _map(self, name: str) -> mmap.mmap | bytes:
        content = self._read(name) if self.manifest.bytes[name] <= MAPPED_BYTES else self._mapped(name)
        if len(content) <= self._check_bytes:
            self._check(name, content)
        else:
            self._opened.add(name)
            self._unchecked[name] = content
        return content

    def _mapped(self, name: str) -> mmap.mmap:
        descriptor = self._open(name)
        try:
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def _check(self, name: str, content: mmap.mmap | bytes) -> None:
        self._opened.add(name)
        if hashlib.sha256(content).hexdigest() != self.manifest.sha256[name]:
            raise self._differs(name)

    def _differs(self, name: str) -> ServingError:
        return ServingError(f"{self.folder / name}: differs from its checksum in {MANIFEST}; copy or export it again")


def _open(path: Path, size: int | None = None) -> int:
    """Return the descriptor of a file: an OSError if it is none, which could block; a ValueError if of another size."""
    # Windows has no O_NONBLOCK, and its O_BINARY leaves line ends as they are. Python closes all on exec.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError(0, "is not a file")
    if size is not None and found.st_size != size:
        os.close(descriptor)
        raise ValueError
    return descriptor


def _read(path: Path, largest: int) -> bytes:
    with open(_open(path), "rb") as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise OSError(0, f"has more than {largest} bytes")
    return content


def _array(content: mmap.mmap | bytes) -> np.ndarray:
    """Return the array of a ``.npy`` file; its header may claim anything, but not get more than the file has."""
    head = io.BytesIO(content[:4096])
    version = np.lib.format.read_magic(head)
    if version != (1, 0):
        raise ValueError(f"format {version}")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(head)
    if dtype.kind not in "biuf" or not dtype.isnative:
        raise ValueError(f"of {dtype}")
    return np.frombuffer(content, dtype, math.prod(shape), head.tell()).reshape(shape, order="F" if is_fortran else "C")
