"""The manifest of an export: its files, their sizes and their checksums."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr_mm_serving.errors import ServingError

MANIFEST, FORMAT = "manifest.json", 3


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an export.

    Raises
    ------
    ServingError
        There is none, or one of another version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except FileNotFoundError:
        raise ServingError(f"{path}: no such file; write the folder with fuxictr-mm export") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServingError(f"{path}: is no manifest of an export ({type(error).__name__}); export again") from None
    if version != FORMAT:
        raise ServingError(f"{path}: has the format {version}, expected {FORMAT}; export again with this version")
    return manifest


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
        if Path(name).name != name:
            raise ServingError(f"{folder / MANIFEST}: names the file {name!r}, expected a name without folder")
        try:
            size = (folder / name).stat().st_size
            is_whole = size == manifest["bytes"][name] and (size > largest or checksum(folder / name) == expected)
        except OSError as error:
            raise ServingError(f"{folder / name}: cannot be read ({error.strerror}); export again") from None
        if not is_whole:
            raise ServingError(f"{folder / name}: differs from its checksum in {MANIFEST}; copy or export it again")
