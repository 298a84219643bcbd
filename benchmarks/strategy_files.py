"""The item files of the strategies, made from raw text and image embeddings by the embedding pipeline.

The name of a folder has a hash of settings and raw embeddings, so that others get files and runs of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fuxictr_mm.data import parquet
from fuxictr_mm.embeddings.align import AlignOptions, align
from fuxictr_mm.embeddings.item_files import Source, read_ids, write_embeddings
from fuxictr_mm.embeddings.quantize import QuantizeOptions, quantize
from fuxictr_mm.embeddings.quantize_report import yaml_lines
from fuxictr_mm.embeddings.reduce import reduce_vectors
from fuxictr_mm.embeddings.swing import Clicks, swing
from fuxictr_mm.errors import DataError, MissingFileError
from fuxictr_mm.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the files are made.

    Parameters
    ----------
    dim : int
        Dim of V1 to V4 and of the aligned embeddings.
    levels, codes : int
        Of RQ and PQ; VQ has one level of as many codes.
    neighbors : int
        Nearest items besides VQ's code.
    """

    dim: int
    levels: int = 4
    codes: int = 256
    neighbors: int = 10

    @classmethod
    def for_items(cls, sources: Sequence[Source], **given: int | None) -> Settings:
        """Fill in defaults: dim 128 or half of the smaller raw dim, 256 codes or at most sqrt(items)."""
        items = len(read_ids(sources[0].path, sources[0].numbering))
        codes = 2 ** min(8, max(1, int(items**0.5).bit_length() - 1))
        dim = max(2, min(128, min(source.dim for source in sources) // 2))
        chosen = {"dim": dim, "codes": codes} | {name: value for name, value in given.items() if value is not None}
        return cls(**chosen)


def find_source(name: str, prefix: str, item_files: Sequence[str], column: str | None = None) -> Source:
    """Return a modality's raw embeddings: the named column, or that of largest dim with the ``prefix``.

    Raises
    ------
    DataError, MissingFileError
        No item file has such a column.
    """
    found: list[Source] = []
    seen: list[str] = []
    # A dataset may name files that do not exist yet, for example of codes.
    present = [path for path in item_files if _is_there(path)] or item_files
    for path in present:
        files = parquet.part_files(path)
        columns = [parquet.open_parquet(file).schema_arrow.names for file in files]
        for one in dict.fromkeys(itertools.chain(*columns)):
            seen.append(one)
            if one == column if column else one.startswith(prefix):
                holders = [file for file, names in zip(files, columns, strict=True) if one in names]
                # A folder may hold parts of a table, or files of different columns.
                found.append(Source(name, Path(path) if len(holders) == len(files) else holders[0], one))
    if not found:
        expected = f"column '{column}'" if column else f"column {prefix}*"
        raise DataError(
            f"{', '.join(present)}: no {expected} of raw embeddings (there are: {', '.join(sorted(set(seen)))}); "
            f"name the column with --{name} COLUMN"
        )
    return max(found, key=lambda source: source.dim)


class StrategyFiles:
    """Makes the item file of a strategy when it is asked for, once.

    Parameters
    ----------
    folder : path
        Output folder; the files are in a subfolder named by a hash of settings and inputs.
    sources : sequence of Source
        Text and image.
    train : str
        The training split, which ``aligned`` is trained on; no other is read.
    settings : Settings
        The settings.
    """

    def __init__(self, folder: Path, sources: Sequence[Source], train: str, settings: Settings) -> None:
        self.sources, self.train, self.settings = list(sources), train, settings
        read = [Path(train), *(source.path for source in sources)]
        self.inputs = {
            "settings": dataclasses.asdict(settings),
            "sources": [[s.name, str(s.path), s.column] for s in sources],
            "train": train,
            "files": [_stamp(file) for path in read for file in parquet.part_files(path)],
        }
        key = hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = folder / key

    def make(self, strategy: str) -> tuple[Path | None, list[dict[str, Any]]]:
        """Return the item file of a strategy, made if missing, and its entries for ``feature_cols``.

        Raises
        ------
        UserError
            Embeddings, clicks or settings are wrong.
        """
        if strategy == "none":
            return None, []
        if not (self.folder / "inputs.json").exists():
            write_json(self.folder / "inputs.json", self.inputs)
        if strategy.startswith("V"):
            return self._reduced(strategy) if strategy != "VQ" else self._codes("vq")
        return self._codes(strategy.lower()) if strategy in ("RQ", "PQ") else self._aligned()

    def _reduced(self, strategy: str) -> tuple[Path, list[dict[str, Any]]]:
        name, _, plain = strategy.lower().partition("_")
        stem = "reduced_plain" if plain else "reduced"
        fit: dict[str, Any] = {"balance": False, "strategies": ["v4"]} if plain else {}
        out, report = self.folder / f"{stem}.parquet", self.folder / f"{stem}.json"
        if not report.exists():  # written last
            reduce_vectors(
                self.sources, out, report=report, dim=self.settings.dim, overwrite=True, progress=True, **fit
            )
        return out, [_vector(f"item_emb_{name}")]

    def _codes(self, method: str) -> tuple[Path, list[dict[str, Any]]]:
        levels = 1 if method == "vq" else self.settings.levels
        neighbors = self.settings.neighbors if method == "vq" else 0
        out, report_file = self.folder / f"codes_{method}.parquet", self.folder / f"codes_{method}.json"
        if not report_file.exists():
            options = QuantizeOptions(method=method, levels=levels, codes=self.settings.codes)
            book = self.folder / f"codes_{method}.safetensors"
            report = quantize(self.sources, out, options, save=book, neighbors=neighbors, overwrite=True)
            write_json(report_file, report)
        report = read_json(report_file)
        largest = max(int(read_ids(source.path, source.numbering).max()) for source in self.sources)
        return out, yaml.safe_load("\n".join(yaml_lines(report, neighbors, largest)))

    def _aligned(self) -> tuple[Path, list[dict[str, Any]]]:
        out = self.folder / "aligned.parquet"
        if not out.exists():
            found = swing(Clicks.read(self.train))
            found.write(self.folder / "neighbors.parquet")
            alignment, _ = align(self.sources, found, AlignOptions(dim=self.settings.dim))
            alignment.save(self.folder / "aligned.safetensors")
            write_embeddings(self.sources, alignment, out)
        return out, [_vector("item_emb_aligned")]


def _vector(name: str) -> dict[str, Any]:
    return {"name": name, "active": False, "dtype": "float", "type": "embedding", "source": "item"}


def _is_there(path: str) -> bool:
    try:
        return bool(parquet.part_files(path))
    except MissingFileError:
        return False


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]
