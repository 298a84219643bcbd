"""Data of ``fuxictr-mm prepare`` besides the dataset: the owner's ids, and how numbers were scaled."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fuxictr_mm.data.numbering import digest_of
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.data.vocabulary import Vocabulary, plain
from fuxictr_mm.errors import UserError
from fuxictr_mm.files import read_json
from fuxictr_mm_serving.prepared import ITEM_FILE, MANIFEST, SCALED, SOURCE_ID, VOCABULARIES

if TYPE_CHECKING:
    from fuxictr_mm.data.dataset import Dataset

logger = logging.getLogger(__name__)

#: Column of users, by whose ids a server finds them even if the model does not read it.
USER_ID = "user_id"


@dataclass(frozen=True)
class Prepared:
    """The owner's values of a dataset."""

    #: By the column: items, users, and columns of context and of items that hold codes.
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    #: Mean and standard deviation of each column of numbers of the context, and of the items.
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    item_scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset, item_files: Sequence[str], columns: Mapping[str, int]) -> Prepared | None:
        """Return the data next to a dataset, None for one that was not prepared or has its own vocabularies.

        ``columns`` are those of codes that are read, with the number of codes, 0 included.
        """
        folder = next((folder for folder in map(_folder_of, item_files) if folder is not None), None)
        if folder is None or dataset.items.vocabulary is not None:
            return None
        items = _read(folder / ITEM_FILE, ITEM_ID, SOURCE_ID)
        if items is None or len(items) + 1 < dataset.items.num_items:
            logger.warning(f"{folder / ITEM_FILE}: source_id has no id for each item; requests take the numbers")
            return None
        found = {ITEM_ID: items}
        for name, size in columns.items():
            words = _read(folder / VOCABULARIES / f"{name}.parquet", "code", "value")
            if words is not None and len(words) < size and name not in dataset.vocabularies:
                found[name] = words
        if (users := _read(folder / VOCABULARIES / f"{USER_ID}.parquet", "code", "value")) is not None:
            found.setdefault(USER_ID, users)
        return cls(found, dict(_scales(folder, "interactions", "users")), dict(_scales(folder, "items")))

    def describe(self, manifest: dict[str, Any], columns: Sequence[str]) -> None:
        """Add to the manifest which columns are given as the owner has them, of items those of ``columns``."""
        items = manifest["items"]
        items["prepared"] = [ITEM_ID, *(name for name in columns if name in self.vocabularies)]
        if USER_ID in self.vocabularies:  # by which users are found, whether or not it is that of the training
            manifest["numbering"][USER_ID] = digest_of(self.vocabularies[USER_ID])
        taken = {*(entry["column"] for entry in manifest["context"]), items["target"], items["history"]}
        for entry in manifest["context"]:
            name = entry["name"]
            if entry["type"] in ("categorical", "sequence") and name in self.vocabularies:
                entry["prepared"] = {"column": entry["column"]}
            elif entry["type"] == "numeric" and name in self.scales:
                mean, deviation = self.scales[name]
                entry["prepared"] = {key: entry[key] for key in ("column", "fill_na", "shift", "scale") if key in entry}
                entry["shift"] = mean + deviation * entry.get("shift", 0.0)
                entry["scale"] = deviation * entry.get("scale", 1.0)
                entry["fill_na"] = mean  # what is missing is 0 once it is scaled
                own = name.removesuffix(SCALED)
                if own not in taken:
                    entry["column"] = own
                    taken.add(own)
        items["numbers"] = dict(self._item_numbers(items.get("numbers", {})))

    def _item_numbers(self, written: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the numbers of new items as the owner has them."""
        for name, entry in written.items():
            mean, deviation = self.item_scales.get(name, (0.0, 1.0))
            own = name.removesuffix(SCALED) if name in self.item_scales else name
            scaled = {"shift": mean + deviation * entry["shift"], "scale": deviation * entry["scale"]}
            yield (name if own in written else own), entry | scaled


def _folder_of(item_file: str) -> Path | None:
    """Return the folder of an item file that ``prepare`` wrote."""
    path = Path(item_file)
    manifest = path.parent / MANIFEST
    if path.name != ITEM_FILE or not manifest.is_file():
        return None
    try:
        origin = read_json(manifest).get("origin")
    except UserError:
        return None
    return path.parent if isinstance(origin, Mapping) and "reader" in origin else None


def _read(path: Path, numbers: str, values: str) -> Vocabulary | None:
    """Return the values in the order of their numbers, if these are 1 to N and the values distinct."""
    try:
        table = pq.read_table(path, columns=[numbers, values])
        table = table.sort_by(numbers)
        found = plain(table[values].combine_chunks(), str(path))
    except (OSError, KeyError, pa.ArrowException, UserError):
        return None
    is_numbered = table[numbers].combine_chunks().equals(pa.array(range(1, len(table) + 1), table[numbers].type))
    is_distinct = not found.null_count and pc.count_distinct(found).as_py() == len(found)
    return Vocabulary(found) if is_numbered and is_distinct else None


def _scales(folder: Path, *options: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the columns of numbers of some of the owner's files with mean and standard deviation."""
    facts = read_json(folder / MANIFEST).get("columns") or {}
    for option in options:
        for name, column in (facts.get(option) or {}).get("written", {}).items():
            if column["type"] == "numeric":
                yield name, (float(column["mean"]), float(column["std"]))
