"""The cache of encoded splits: ``DATA_ROOT/DATASET_ID/encoded-FINGERPRINT``.

The fingerprint is that of the settings that decide the encoding and of the contents of the files that it was made from
(``fuxictr_mm.data.fingerprint``), so that a change of either is another folder. A folder holds::

    manifest.json               settings, files, lengths and scales; written last: without it, the folder is not used
    vocabulary.parquet          feature, token, id (pad and OOV left out)
    feature_vocab.json, pretrained_NAME.npz     what FuxiCTR's layers read, where a feature has ``pretrained_emb``
    train-FINGERPRINT.parquet   an encoded split; likewise valid and test

Every file is written under another name and then renamed. One process at a time writes below a dataset's folder.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from fuxictr_mm.config import as_json, json_hash
from fuxictr_mm.encoding.encode import Encoding
from fuxictr_mm.encoding.vocabulary import TokenVocabulary
from fuxictr_mm.errors import UserError
from fuxictr_mm.files import atomic_path, read_json, write_json

logger = logging.getLogger(__name__)

#: Raised when the same settings and files are encoded in another way.
VERSION = 3


class Cache:
    """The encoded files of a dataset with one fingerprint.

    Parameters
    ----------
    root : Path
        The dataset's folder.
    made_from : mapping
        Settings and files that decide the encoding.
    """

    def __init__(self, root: Path, made_from: Mapping[str, Any]) -> None:
        self.root = root
        self.made_from = {"version": VERSION, **made_from}
        self.folder = root / f"encoded-{json_hash(self.made_from)[:12]}"

    @classmethod
    def find(cls, root: Path, settings: Mapping[str, Any], any_of_several: bool = False) -> Cache | None:
        """Return the cache with the given settings, whatever files it was made from; None if there is none."""
        found, wanted = [], as_json({"version": VERSION, **settings})
        for path in sorted(root.glob("encoded-*/manifest.json")):
            try:
                made_from = read_json(path).get("made_from")
            except UserError:  # damaged
                continue
            if isinstance(made_from, dict) and wanted.items() <= made_from.items():
                found.append(cls(root, made_from))
        if len(found) > 1 and not any_of_several:
            names = ", ".join(cache.folder.name for cache in found)
            raise UserError(
                f"{root}: {names} have the same settings but different training files; keep only the one "
                "that the weights were trained on"
            )
        return found[0] if found else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes; incomplete files of earlier ones are deleted."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._acquired():
                for left in self.folder.glob(".*"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                yield
        except UserError:
            raise
        except OSError as error:
            raise UserError(
                f"{self.folder}: encoded files could not be written ({error.strerror or error}); set a "
                "data_root that is writable"
            ) from error

    def _acquired(self) -> AbstractContextManager[Any]:
        lock = FileLock(self.root / ".encoded.lock")
        try:
            return lock.acquire(timeout=1)
        except Timeout:
            logger.info(f"{self.root}: another process is writing encoded files there; waiting for it")
            return lock.acquire()

    def split_path(self, split: str, content: str) -> Path:
        """Return where a split is kept, by the ``hash_files`` of the files that it is made from."""
        return self.folder / f"{split}-{content[:12]}.parquet"

    def write(self, path: Path, write: Callable[[Path], None]) -> None:
        """Write a file by ``write`` under a temporary name, then rename it."""
        with atomic_path(path) as temporary:
            write(temporary)

    def load(self) -> Encoding | None:
        """Return the encoding, None if it is missing or incomplete."""
        try:
            manifest = read_json(self.folder / "manifest.json")
            if manifest["made_from"] != as_json(self.made_from):
                return None
            table = pl.read_parquet(self.folder / "vocabulary.parquet")
            tables = {name: rows for (name,), rows in table.partition_by("feature", as_dict=True).items()}
            vocabularies = {
                name: TokenVocabulary(tables.get(name, table.head(0)).sort("id")["token"], oov)
                for name, oov in manifest["oov"].items()
            }
            return Encoding(vocabularies, manifest["lengths"], manifest["scales"])
        except (UserError, KeyError, OSError, pl.exceptions.PolarsError):
            return None

    def save(self, encoding: Encoding) -> None:
        """Write the vocabularies, then the manifest."""
        schema = {"feature": pl.String, "token": pl.String, "id": pl.Int64}
        frames = [pl.DataFrame(schema=schema)]
        for name, words in encoding.vocabularies.items():
            ids = pl.int_range(1, words.size, eager=True)
            columns = {"feature": name, "token": words.tokens, "id": ids.filter(ids != words.oov)}
            frames.append(pl.DataFrame(columns, schema=schema))
        self.write(self.folder / "vocabulary.parquet", pl.concat(frames).write_parquet)
        manifest = {
            "made_from": self.made_from,
            "oov": {name: words.oov for name, words in encoding.vocabularies.items()},
            "lengths": encoding.lengths,
            "scales": encoding.scales,
        }
        write_json(self.folder / "manifest.json", as_json(manifest))
        others = [p for p in self.root.glob("encoded-*") if p != self.folder]
        if others:
            logger.info(
                f"{self.root}: {len(others)} encodings of other settings or files are kept; delete them if unused"
            )
