"""Vocabularies: external ids (texts, 64-bit hashes, sparse integers) to indices 1 to N, and back.

Number 0 is not an id: padding of a history, a value that is null, or one that training has not seen.

Shape letters: N ids of a vocabulary, M ids that are looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fuxictr_mm.data import arrow_types, parquet
from fuxictr_mm.errors import DataError, MissingFileError, first_line
from fuxictr_mm.files import atomic_path

#: The number of an id that is not in the vocabulary.
UNKNOWN = -1

#: Key of the sizes in the metadata of a file, with the version of its layout.
METADATA, VERSION = b"fuxictr_mm.vocabulary", 1

#: Integers beyond it are not exact as floating-point numbers.
LARGEST_EXACT = 2.0**53


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Distinct ids; the id at position i has the number i + 1.

    Examples
    --------
    >>> vocabulary = Vocabulary.build([pa.array(["B07", "A11"]), pa.array(["A11", "C3"])])
    >>> vocabulary.encode(pa.array(["C3", "B07", None, "new"])).tolist()
    [3, 1, 0, -1]
    >>> vocabulary.decode(np.array([3, 0])).to_pylist()
    ['C3', None]
    """

    #: ``(N,)`` without nulls: texts (``large_string``), bytes (``large_binary``), ``int64`` or ``uint64``.
    values: pa.Array

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def build(cls, chunks: Iterable[pa.Array], where: str = "ids") -> Vocabulary:
        """Number ids in the order in which they come first; nulls are left out.

        Memory is that of the distinct ids, about twice.

        Raises
        ------
        DataError
            Chunks of texts and of integers, or ids of another type.
        """
        held: list[pa.Array] = []
        pending = settled = 0
        for chunk in chunks:
            held.append(pc.unique(plain(chunk, where)).drop_null())
            pending += len(held[-1])
            if pending > settled + parquet.CHUNK_ROWS:
                held = [_join(held, where)]
                pending, settled = 0, len(held[0])
        return cls(_join(held, where))

    def without_padding(self) -> Vocabulary:
        """Return a vocabulary without the integer 0 or the empty text; ids after it move up by one."""
        padding = pa.scalar(0 if self.is_integer else "").cast(self.values.type)
        return Vocabulary(self.values.filter(pc.not_equal(self.values, padding)))

    @property
    def has_zero(self) -> bool:
        """Whether the integer 0 is an id like any other."""
        return self.is_integer and bool((self.encode(pa.array([0])) > 0).all())

    @property
    def is_integer(self) -> bool:
        """Whether the ids are integers, not texts or bytes."""
        return pa.types.is_integer(self.values.type)

    def encode(self, values: pa.Array, where: str = "ids") -> np.ndarray:
        """Return the numbers ``(M,)`` int64 of ids of any type of text or of integers.

        They are 1 to N; 0 for null, and for an empty text or the integer 0 that is not an id; ``UNKNOWN``.
        """
        if values.null_count == len(values):  # the type is any, since writers choose one for a column without values
            return np.zeros(len(values), dtype=np.int64)
        # Ids repeat: each distinct one is looked up once. That is faster than joins and than hash tables made per call.
        encoded = plain(values, where).dictionary_encode()
        numbers = np.append(self._find(encoded.dictionary, where), 0)
        return numbers[arrow_types.numbers(encoded.indices.fill_null(len(encoded.dictionary)))]

    def _find(self, distinct: pa.Array, where: str) -> np.ndarray:
        """Return the numbers of distinct ids without nulls."""
        if self.is_integer != pa.types.is_integer(distinct.type) or (
            not self.is_integer and distinct.type != self.values.type
        ):
            raise DataError(
                f"{where}: holds {_describe(distinct.type)}, but the ids are {_describe(self.values.type)} in the item "
                "files or in training; write both as one type"
            )
        found = np.full(len(distinct), UNKNOWN, dtype=np.int64)
        if len(distinct) == 0:
            return found
        nothing = arrow_types.numbers(pc.equal(distinct, pa.scalar(0 if self.is_integer else "").cast(distinct.type)))
        possible: np.ndarray = np.ones(len(distinct), dtype=bool)
        if distinct.type != self.values.type:  # int64 and uint64 share the integers from 0 to 2**63 - 1
            possible = arrow_types.numbers(distinct).view(np.int64) >= 0
        seed, keys, order = self._index
        if len(keys):
            wanted = _keys(distinct, seed)
            if self.is_integer:
                wanted = wanted.astype(keys.dtype)  # those that change by it are not possible
            ascending = np.argsort(wanted)  # neighbours in the table are found faster one after the other
            places: np.ndarray = np.empty(len(wanted), dtype=np.int64)
            places[ascending] = np.searchsorted(keys, wanted[ascending])
            places = np.minimum(places, len(keys) - 1)
            hit = possible & (keys[places] == wanted)
            if not self.is_integer:  # two texts may have one hash
                rows = order[places[hit]]
                hit[hit] = arrow_types.numbers(
                    pc.equal(self.values.take(pa.array(rows)), distinct.filter(pa.array(hit)))
                )
            found[hit] = order[places[hit]] + 1
        found[nothing & (found == UNKNOWN)] = 0
        return found

    @cached_property
    def _index(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Seed of the hashes, the keys ``(N,)`` ascending, and the position of each."""
        for seed in range(16):  # two texts share a 64-bit hash by one seed in billions
            keys = _keys(self.values, seed)
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            if self.is_integer or not (keys[1:] == keys[:-1]).any():
                return seed, keys, order
        raise ValueError("the values of a vocabulary are not distinct")

    def decode(self, numbers: np.ndarray) -> pa.Array:
        """Return the ids of numbers ``(M,)``; null for 0 and for what is beyond N."""
        inside = (numbers > 0) & (numbers <= len(self))
        return self.values.take(pa.array(np.where(inside, numbers - 1, 0), mask=~inside))


class Vocabularies(dict[str, Vocabulary]):
    """The vocabularies of a dataset by feature.

    Parameters
    ----------
    found : mapping of str to Vocabulary
        Vocabularies of a run; empty if they are built from the data.
    path : Path, optional
        The file of a run. Missing vocabularies are not built, because their numbers would not match the weights.
    """

    def __init__(self, found: Mapping[str, Vocabulary] | None = None, path: Path | None = None) -> None:
        super().__init__(found or {})
        self.path = path
        #: What else decides how columns are read, as JSON holds it; see ``fuxictr_mm.encoding`` and ``data.numbers``.
        self.settings: dict[str, Any] = {}
        #: Those of initial weights, with which vocabularies that are built begin.
        self.earlier: Vocabularies | None = None

    def __bool__(self) -> bool:
        return bool(len(self) or self.settings)

    def of(self, name: str, build: Callable[[], Vocabulary], column: str = "", remedy: str = "") -> Vocabulary:
        """Return the vocabulary of a feature; without a run's vocabularies it is built from the data.

        ``column`` is its name on disk, ``remedy`` what else may be done without one; both are for the error.
        """
        if name not in self:
            if self.path is not None:
                column = column or name
                what = f"holds no vocabulary of '{column}'" if self.path.exists() else "no such file"
                raise MissingFileError(
                    f"{self.path}: {what}, by which the weights number the ids of '{column}'; keep it with the "
                    f"weights, or train again{remedy}"
                )
            self[name] = build()
            if self.earlier is not None and name in self.earlier:
                self[name] = Vocabulary.build([self.earlier[name].values, self[name].values], column or name)
        return self[name]

    def save(self, path: str | Path) -> None:
        """Write all as one Parquet file, atomically: a column each, in which row i holds the id with the number i.

        Row 0 is null, and so are the rows after the last id of a column.
        """
        rows = 1 + max((len(vocabulary) for vocabulary in self.values()), default=0)
        columns = {}
        for name, vocabulary in self.items():
            kind = vocabulary.values.type
            missing = rows - 1 - len(vocabulary)
            columns[name] = pa.concat_arrays([pa.nulls(1, kind), vocabulary.values, pa.nulls(missing, kind)])
        content = {"format": VERSION, "sizes": {name: len(vocabulary) for name, vocabulary in self.items()}}
        if self.settings:
            content["settings"] = self.settings
        table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(content)})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

    def equal_file(self, path: Path) -> bool:
        """Whether a file holds these vocabularies; False for a damaged or missing file."""
        try:
            others = Vocabularies.load(path)
        except DataError:
            return False
        if self.keys() != others.keys() or self.settings != others.settings:
            return False
        return all(self[n].values.equals(others[n].values) for n in self)

    @classmethod
    def load(cls, path: str | Path) -> Vocabularies:
        """Read the vocabularies of a run from its file; return empty ones if there is no file."""
        path = Path(path)
        if not path.exists():
            return cls(path=path)
        remedy = "copy it again from where the weights were trained, or train again"
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            content = json.loads((table.schema.metadata or {})[METADATA])
            if content["format"] != VERSION:
                raise DataError(f"{path}: has the format {content['format']}, expected {VERSION}; train again")
            sizes = {str(name): int(size) for name, size in content["sizes"].items()}
            found = {n: Vocabulary(plain(table[n].combine_chunks(), str(path)).slice(1, s)) for n, s in sizes.items()}
        except DataError:
            raise
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = first_line(error)
            raise DataError(f"{path}: is not a vocabulary of a run, or is damaged ({reason}); {remedy}") from None
        for name, vocabulary in found.items():
            if vocabulary.values.null_count or pc.count_distinct(vocabulary.values).as_py() != sizes[name]:
                raise DataError(
                    f"{path}: '{name}' does not have {sizes[name]} distinct ids, the number in its header; {remedy}"
                )
        vocabularies = cls(found, path)
        vocabularies.settings = content.get("settings", {})
        return vocabularies


@dataclass(frozen=True)
class Conversion:
    """How the columns of the interactions are converted to numbers; by default they are used as they are."""

    #: Names of these columns on disk.
    target: str = "item_id"
    history: str = "item_seq"
    #: By feature; columns of features without one hold numbers.
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    #: So many zeros at an end of histories that all have one length are padding, where 0 is an item as well; see
    #: ``item_columns``.
    zero_ends: int = 1
    #: What is subtracted from a numeric column, and what the result is divided by, by feature.
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def as_text(value: object) -> object:
    """Return an id for JSON and tables: bytes become hexadecimal digits."""
    return value.hex() if isinstance(value, bytes) else value


def is_text(kind: pa.DataType) -> bool:
    """Whether a column, or its lists, hold texts or bytes, also as dictionaries or extension types (UUID)."""
    kind = getattr(kind, "storage_type", kind)
    if pa.types.is_dictionary(kind) or arrow_types.is_list(kind) or pa.types.is_list_view(kind):
        return is_text(kind.value_type)
    return arrow_types.is_plain_text(kind) or arrow_types.is_bytes(kind)


def plain(values: pa.Array, where: str) -> pa.Array:
    """Return ids ``(M,)`` as ``large_string``, ``large_binary``, ``int64`` or ``uint64``; nulls stay."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_decimal(values.type) and values.type.scale <= 0:
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid:
            raise DataError(f"{where}: holds {values.type} beyond int64; write ids as integers or texts") from None
    kind = values.type
    if pa.types.is_null(kind):
        return values.cast(pa.int64())
    if arrow_types.is_plain_text(kind):
        return values.cast(pa.large_string())
    if arrow_types.is_bytes(kind):
        return values.cast(pa.large_binary())
    if pa.types.is_integer(kind):
        return values.cast(pa.uint64() if pa.types.is_uint64(kind) else pa.int64())
    if pa.types.is_floating(kind):
        wrong = pc.fill_null(
            pc.or_(pc.not_equal(values, pc.floor(values)), pc.greater(pc.abs(values), LARGEST_EXACT)), False
        )
        wrong = pc.or_(wrong, pc.fill_null(pc.is_nan(values), False))
        if pc.any(wrong).as_py():
            bad = values.filter(wrong)[0]
            raise DataError(
                f"{where}: holds {bad.as_py()} as {kind}, which is not an exact integer; write ids as integers or texts"
            )
        return values.cast(pa.int64())
    raise DataError(f"{where}: holds {kind}, expected ids: texts or integers")


def _join(arrays: list[pa.Array], where: str) -> pa.Array:
    """Return the distinct values of arrays of ``plain`` in order; integers of both signs share one type."""
    kinds = list(dict.fromkeys(array.type for array in arrays if len(array)))
    if not kinds:
        return arrays[0] if arrays else pa.array([], pa.int64())
    if len(kinds) > 1:
        if not all(map(pa.types.is_integer, kinds)):
            raise DataError(f"{where}: ids are {' and '.join(map(_describe, kinds))}; write all as one type")
        fitting = [kind for kind in kinds if all(_fits(array, kind) for array in arrays)]
        if not fitting:
            raise DataError(f"{where}: ids are negative and beyond 2**63 - 1; write them as texts")
        kinds = fitting
    return pc.unique(pa.concat_arrays([array.cast(kinds[0]) for array in arrays if len(array)]))


def _fits(integers: pa.Array, kind: pa.DataType) -> bool:
    return (
        integers.type == kind or len(integers) == 0 or bool((arrow_types.numbers(integers).view(np.int64) >= 0).all())
    )


def _keys(values: pa.Array, seed: int) -> np.ndarray:
    """Return numbers ``(M,)`` to sort and compare ids by: integers themselves, hashes of texts."""
    if pa.types.is_integer(values.type):
        return arrow_types.numbers(values)
    import polars as pl

    return pl.Series(values).hash(seed).to_numpy()


def _describe(kind: pa.DataType) -> str:
    return {pa.large_string(): "texts", pa.large_binary(): "bytes"}.get(kind, "integers")
