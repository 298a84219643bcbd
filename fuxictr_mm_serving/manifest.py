"""The manifest of an export: its files, their sizes and their checksums."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from fuxictr_mm_serving.errors import ServingError

MANIFEST, FORMAT = "manifest.json", 3


def _plain(name: str) -> str:
    if Path(name).name != name or "\\" in name:
        raise ValueError(f"{name!r} is no file name without folder")
    return name


#: A file in the folder.
File = Annotated[str, AfterValidator(_plain)]


class _Table(BaseModel):
    file: File
    scales: File | None = None


class _Content(BaseModel):
    norm: str | None
    scale: float
    dim: int
    file: File | None = None
    start: int = 0
    content_start: int | None = None


class _Codes(BaseModel):
    file: File
    columns: dict[str, int]


class _Items(BaseModel):
    target: str
    history: str
    max_len: int | None
    known: File
    table: _Table
    contents: dict[str, _Content] = {}
    codes: _Codes | None = None


class _Field(BaseModel):
    name: str
    column: str
    type: str
    table: _Table | None = None


class _Categorical(_Field):
    vocab_size: int
    table: _Table


class _Sequence(_Categorical):
    max_len: int


class _Embedding(_Field):
    pretrain_dim: int


#: What a field of the context must have, by its type.
FIELDS: dict[str, type[_Field]] = {"numeric": _Field, "embedding": _Embedding, "sequence": _Sequence}


def _field(entry: dict[str, Any]) -> _Field:
    return FIELDS.get(entry.get("type", ""), _Categorical).model_validate(entry)


class _Manifest(BaseModel):
    """What is read of a manifest; it may hold more."""

    experiment: str
    model: str
    created: str
    precision: str
    labels: Annotated[list[str], Field(min_length=1)]
    graphs: dict[str, File]
    items: _Items
    context: list[Annotated[dict[str, Any], AfterValidator(_field)]]
    vocabulary: File | None
    bytes: dict[str, int]
    sha256: dict[File, str]


def read_manifest(folder: Path, *, any_graphs: bool = False) -> dict[str, Any]:
    """Return the manifest of an export.

    Parameters
    ----------
    folder : Path
        The export.
    any_graphs : bool
        Whether graphs may be of another format than ONNX.

    Raises
    ------
    ServingError
        There is none, one of another version, or one that is not complete: every file that it names is in the folder
        and has a checksum; graphs that are not of ONNX.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except FileNotFoundError:
        raise ServingError(f"{path}: no such file; write the folder with fuxictr-mm export") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ServingError(f"{path}: is no manifest of an export ({type(error).__name__}); export again") from None
    if version != FORMAT:
        raise ServingError(f"{path}: has the format {version!r}, expected {FORMAT}; export again with this version")
    try:
        found = _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ServingError(f"{path}: {where}: {' '.join(first['msg'].split())}; export again") from None
    if wrong := [name for name in _files(found) if name not in found.sha256 or name not in found.bytes]:
        raise ServingError(f"{path}: names the file {wrong[0]!r} without size and checksum; export again")
    others = [name for name in found.graphs.values() if not name.endswith(".onnx")]
    if others and not any_graphs:
        raise ServingError(f"{folder / others[0]}: is no graph of ONNX; export with --format onnx")
    if "rows" not in found.graphs or ("user" in found.graphs) != ("candidates" in found.graphs):
        raise ServingError(f"{path}: graphs: are {', '.join(found.graphs)}, expected rows, or user and candidates too")
    return manifest


def _files(found: _Manifest) -> list[str]:
    """Return every file that is opened."""
    fields: list[Any] = [*found.context]  # which validation has made objects
    tables = [found.items.table, *(field.table for field in fields if field.table)]
    contents = [content.file for content in found.items.contents.values()]
    codes = found.items.codes.file if found.items.codes else None
    named = [found.items.known, found.vocabulary, codes, *contents, *(f for t in tables for f in (t.file, t.scales))]
    return [*found.graphs.values(), *(name for name in named if name), *found.sha256]


def version_of(folder: Path) -> str:
    """Return what names the export in a folder: the first digits of the checksum of its manifest.

    Raises
    ------
    ServingError
        There is none.
    """
    try:
        return checksum(folder / MANIFEST)[:12]
    except OSError as error:
        raise ServingError(f"{folder / MANIFEST}: cannot be read ({error.strerror}); expected an export") from None


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_files(folder: Path, manifest: Mapping[str, Any], largest: float = math.inf) -> None:
    """Compare files with their sizes, and those of up to ``largest`` bytes with their checksums.

    Raises
    ------
    ServingError
        A file is missing or damaged.
    """
    for name, expected in manifest["sha256"].items():
        try:
            size = (folder / name).stat().st_size
            is_whole = size == manifest["bytes"][name] and (size > largest or checksum(folder / name) == expected)
        except OSError as error:
            raise ServingError(f"{folder / name}: cannot be read ({error.strerror}); export again") from None
        if not is_whole:
            raise ServingError(f"{folder / name}: differs from its checksum in {MANIFEST}; copy or export it again")
