"""Texts of items: a column of a Parquet file, or several joined by a template.

Shape letters: I items (padding left out).
"""

from __future__ import annotations

import hashlib
import os
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from fuxictr_mm.data import parquet
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.errors import ConfigError, DataError


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
