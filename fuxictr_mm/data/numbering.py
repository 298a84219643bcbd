"""Digests of the numbering by ``fuxictr-mm prepare``: weights do not fit ids that were numbered again since.

They are in the metadata of its files, and are kept with the vocabularies of a run. A file without them, as other
programs and earlier versions wrote it, is read as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fuxictr_mm.data import parquet
from fuxictr_mm.data.remote import path_of
from fuxictr_mm.data.schema import ITEM_ID, Feature
from fuxictr_mm.data.vocabulary import Vocabularies, Vocabulary
from fuxictr_mm.errors import DataError, MissingFileError
from fuxictr_mm_serving.prepared import ALL_ITEMS, EARLIER_ITEMS, EXTENDS, ITEM_FILE, NUMBERING, base_of_later_log

#: Key in the metadata of files of a later log: how many of its items were numbered before, the digest of which it has.
KNOWN_ITEMS = "fuxictr_mm.known_items"


def digest_of(vocabulary: Vocabulary) -> str:
    """Return a digest of the values in the order of their numbers; integers count as their texts."""
    digest = hashlib.sha256()
    for start in range(0, len(vocabulary), parquet.CHUNK_ROWS):  # the whole would be copied
        chunk = vocabulary.values.slice(start, parquet.CHUNK_ROWS)
        chunk = chunk.cast(pa.large_string()) if vocabulary.is_integer else chunk
        values = [value.as_buffer() for value in chunk.cast(pa.large_binary())]
        digest.update(np.array([value.size for value in values], dtype="<i8").tobytes())
        digest.update(b"".join(values))
    return digest.hexdigest()


def to_metadata(
    digests: Mapping[str, str], extends: Mapping[str, Mapping[str, int]] | None = None
) -> dict[bytes, bytes]:
    """Return the metadata of a file whose columns hold numbers by vocabularies of these digests.

    ``extends`` has by column the digests and sizes of the numberings that these vocabularies begin with.
    """
    metadata = {NUMBERING.encode(): json.dumps(dict(digests)).encode()}
    begun = {name: dict(extends[name]) for name in digests if extends and name in extends}
    return metadata | ({EXTENDS.encode(): json.dumps(begun).encode()} if begun else {})


def extended_in(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, int]]:
    """Return by column the digests and sizes of the numberings that those of a file begin with."""
    extended: dict[str, dict[str, int]] = json.loads(metadata.get(EXTENDS.encode(), b"{}"))
    return extended


def extended_by(
    item_files: str | Sequence[str], row_files: Iterable[tuple[Path, Mapping[bytes, bytes]]]
) -> dict[str, dict[str, int]]:
    """Return ``extended_in`` of all files of a dataset, whose numberings ``check_numbering`` has compared."""
    found: dict[str, dict[str, int]] = {}
    for _, metadata in (*_item_metadata(item_files), *row_files):
        found |= extended_in(metadata)
    return found


def digests_in(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the digests in the metadata of a file by column; none where ``prepare`` did not number it."""
    digests: dict[str, str] = json.loads(metadata.get(NUMBERING.encode(), b"{}"))
    return digests


def to_later_metadata(
    digests: Mapping[str, str], known_items: int, all_items: str, earlier_items: Sequence[str] = ()
) -> dict[bytes, bytes]:
    """Return the metadata of a file of a later log: its new items follow ``known_items``, which the digest is of."""
    metadata = to_metadata({**digests, ALL_ITEMS: all_items})
    metadata[KNOWN_ITEMS.encode()] = str(known_items).encode()
    if earlier_items:
        metadata[EARLIER_ITEMS.encode()] = json.dumps(list(earlier_items)).encode()
    return metadata


def all_items_in(folder: Path) -> dict[str, str]:
    """Return the digest of all items of the folder of a later log, new ones included, as its files have it."""
    digests = digests_in(parquet.metadata_of(folder / ITEM_FILE))
    return {ALL_ITEMS: digests[ALL_ITEMS]} if ALL_ITEMS in digests else {}


def earlier_items_in(folder: Path) -> list[str]:
    """Return the digests of all items of the later logs that the items of a folder continue, the first log first."""
    earlier: list[str] = json.loads(parquet.metadata_of(folder / ITEM_FILE).get(EARLIER_ITEMS.encode(), b"[]"))
    return earlier


def known_items(metadata: Mapping[bytes, bytes]) -> int | None:
    """Return the number of earlier items of a file of a later log; None for other files."""
    found = metadata.get(KNOWN_ITEMS.encode())
    return None if found is None else int(found)


def check_numbering(
    item_files: str | Sequence[str],
    row_files: Iterable[tuple[Path, Mapping[bytes, bytes]]],
    features: Sequence[Feature],
    vocabularies: Vocabularies,
) -> None:
    """Check that files number ids in the same way as each other and as the data that weights were trained with.

    ``row_files`` are files of rows with their metadata. Columns beside ``features`` may be numbered in any way. The
    vocabularies of a run keep its digests; the digests are added to those that are built from the data. Rows to score
    may be of a folder that the one of the run extends: their numbers are the first ones of its own.
    """
    trained = set(_trained(features))
    begun: Mapping[str, Sequence[str]] = vocabularies.settings.get(EXTENDS, {}) if vocabularies.path is not None else {}
    item_metadata, row_files = list(_item_metadata(item_files)), list(row_files)
    found: dict[str, tuple[str, Path]] = {}
    for number, (path, metadata) in enumerate((*item_metadata, *row_files)):
        digests = digests_in(metadata)
        # The new items of a later log have the numbers of others here.
        may_be_earlier = number >= len(item_metadata) and ALL_ITEMS not in digests
        for name, digest in digests.items():
            if may_be_earlier and digest in begun.get(name, ()):
                continue
            first, where = found.setdefault(name, (digest, path))
            if digest != first and name in {ITEM_ID, ALL_ITEMS, *trained}:
                if first in extended_in(metadata).get(name, {}):
                    raise DataError(
                        f"{path}: has more numbers of '{name}' than {where}, which is of a log before it; use weights "
                        "that were trained on it, or prepare it with --like and without --extend"
                    )
                raise DataError(
                    f"{path}: numbers '{name}' in another order than {where}; give files of the same folder"
                )
    if vocabularies.path is None:
        if found:
            vocabularies.settings[NUMBERING] = {name: digest for name, (digest, _) in found.items()}
            if extended := extended_by(item_files, row_files):
                vocabularies.settings[EXTENDS] = {name: sorted(sizes) for name, sizes in extended.items()}
        return
    kept: Mapping[str, Any] = vocabularies.settings.get(NUMBERING, {})
    for name in sorted(trained & found.keys() & kept.keys()):
        digest, where = found[name]
        if digest != kept[name]:
            what, remedy = "was numbered again since the weights were trained", "train again, or prepare the rows of"
            remedy += " another log with fuxictr-mm prepare log --like DIR"
            if ALL_ITEMS in found:
                what = (
                    f"is numbered as in {base_of_later_log(where)}, which this log was prepared --like, not as in the "
                )
                what, remedy = f"{what}data of the weights", "prepare it --like the folder that these are of"
            elif kept[name] in extended_by(item_files, row_files).get(name, {}):
                what = "has more numbers than the weights, which are of a log before it"
                remedy = "use weights that were trained on it, or prepare it with --like and without --extend"
            raise DataError(
                f"{where}: '{name}' {what} (digest {digest[:8]}, expected {str(kept[name])[:8]} of "
                f"{vocabularies.path}); {remedy}"
            )


def _trained(features: Sequence[Feature]) -> Iterator[str]:
    """Yield the columns whose numbers are rows of the model's parameters."""
    for feature in features:
        if feature.share_embedding == ITEM_ID or (feature.is_history and feature.type != "meta"):
            yield ITEM_ID
        if feature.type in ("categorical", "sequence"):
            yield feature.name
        elif feature.is_item and feature.type == "embedding" and not feature.freeze_emb:
            yield ITEM_ID


def _item_metadata(item_files: str | Sequence[str]) -> Iterator[tuple[Path, Mapping[bytes, bytes]]]:
    for path in [item_files] if isinstance(item_files, str) else item_files:
        try:
            files = parquet.part_files(path_of(path))
        except MissingFileError:  # one that no feature needs
            continue
        for file in files:
            yield file, parquet.metadata_of(file)
