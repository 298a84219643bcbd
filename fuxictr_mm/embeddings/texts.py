"""The texts of items, from columns of an item file.

Shape letter: I items.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fuxictr_mm.data.arrow_types import is_list, is_plain_text
from fuxictr_mm.data.ids import AS_IS, Numbering
from fuxictr_mm.embeddings.item_files import require_unique
from fuxictr_mm.embeddings.item_tables import names_of, read_items, table_files
from fuxictr_mm.encoding.text_encodings import UTF8, Encoding
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import StrPath


class ItemTexts:
    """Texts of items, read in the order of the file; row 0, the padding, is left out.

    Parameters
    ----------
    path : str or path
        A Parquet file, the same without ``.parquet``, or a folder of part files; a CSV or JSON lines file.
    template : str
        Names of columns in braces, such as ``"{item_title}. {genres}"``. Lists are joined by commas, nulls are empty.
        Where all columns of a row are empty, the item has no text.
    numbering : Numbering
        Of the items.
    encoding : Encoding
        Of a CSV or JSON lines file.

    Attributes
    ----------
    ids : ndarray
        ``(I,)`` int64.
    padding : str or None
        The text of row 0, which is left out.
    digest : str
        Of all ids and texts.

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

    def __init__(self, path: StrPath, template: str, numbering: Numbering = AS_IS, encoding: Encoding = UTF8) -> None:
        self.path, self._numbering, self._encoding = Path(path), numbering, encoding
        self._parts = parse_template(template)
        self._columns = list(dict.fromkeys(name for _, name in self._parts if name is not None))
        self.padding: str | None = None
        digest, ids = hashlib.sha256(), [np.zeros(0, dtype=np.int64)]
        for some_ids, texts in self._read():
            ids.append(some_ids)
            digest.update(some_ids.tobytes())
            for text in texts:
                digest.update(b"\0" if text is None else b"\1" + text.encode(errors="surrogatepass") + b"\0")
        self.ids, self.digest = np.concatenate(ids), digest.hexdigest()
        if not self.ids.size:
            raise DataError(f"{path}: no items, expected one row per item")
        require_unique(self.ids, str(path), numbering)

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
        for file, _, ids, batch in read_items(self.path, self._columns, self._numbering, encoding=self._encoding):
            columns = [_as_texts(batch.column(name), f"{file}: {name}") for name in self._columns]
            texts = [self._fill(values) for values in zip(*columns, strict=True)]
            for row in np.flatnonzero(ids == 0)[::-1]:
                self.padding = texts.pop(row)
            yield ids[ids != 0], texts

    def _fill(self, values: Sequence[str]) -> str | None:
        if not any(values):
            return None
        by_name = dict(zip(self._columns, values, strict=True))
        return "".join(text + by_name.get(name or "", "") for text, name in self._parts).strip()


def default_template(path: StrPath, encoding: Encoding = UTF8) -> str:
    """Return the template of a file's column ``item_title``, or else ``title``."""
    names = names_of(table_files(path)[0], encoding)
    title = next((name for name in ("item_title", "title") if name in names), None)
    if title is None:
        raise DataError(
            f"{path}: no column 'item_title' or 'title' (columns: {', '.join(names)}); give the columns of "
            "the text, such as --template '{name}. {category}'"
        )
    return f"{{{title}}}"


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Return ``(text, column after it or None)`` pairs.

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
            raise ConfigError(f"template '{template}': '{{{name}}}' is not a column; {expected}")
    if all(name is None for _, name, _, _ in parts):
        raise ConfigError(f"template '{template}': contains no column; {expected}")
    return [(text, name) for text, name, _, _ in parts]


def _as_texts(array: pa.Array, where: str) -> list[str]:
    types, kind = pa.types, array.type
    in_lists = is_list(kind)
    inner = kind.value_type if in_lists else kind
    inner = inner.value_type if types.is_dictionary(inner) else inner
    # Numbers may be in a template (a year, which pandas makes 1995.0 where one is missing), but not an embedding.
    is_number = not in_lists and (types.is_integer(inner) or types.is_floating(inner))
    if not (is_plain_text(inner) or is_number or types.is_null(inner)):
        raise DataError(f"{where}: holds {kind}, expected texts")
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:
        raise DataError(f"{where}: holds bytes that are not UTF-8; write the texts in UTF-8") from None
    if in_lists:
        return [", ".join(str(text) for text in row or () if text is not None).strip() for row in values]
    return [_as_text(value) for value in values]


def _as_text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
