"""The names of images that a column of an item file holds."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

import pyarrow as pa

from fuxictr_mm.data.arrow_types import is_plain_text
from fuxictr_mm.data.ids import numbering
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.embeddings.item_files import Source, key_of, read_ids
from fuxictr_mm.embeddings.item_tables import read_table, table_files
from fuxictr_mm.errors import DataError


class ImageNames:
    """The names of the items' images, in a column of an item file.

    Parameters
    ----------
    path : str or path
        A Parquet, CSV or JSON lines file, or a folder of Parquet files.
    column : str
        Names relative to the folder or in the archive, such as ``covers/a1.jpg``; null or empty without an image.

    Attributes
    ----------
    ids : ndarray
        ``(R,)`` int64, of all items.
    items : dict of str to list of int
        The items by the name of their image.
    where : str
        File and column.

    Raises
    ------
    DataError, MissingFileError
        A column that is missing or holds no texts, an id twice, or a path outside of the folder.
    """

    def __init__(self, path: str | os.PathLike[str], column: str) -> None:
        self.where = f"{path}: {column}"
        self.ids = read_ids(Source("items", Path(path), ITEM_ID))
        self.items: dict[str, list[int]] = {}
        for file in table_files(path):
            key = key_of(file)
            for row, batch in read_table(file, [key, column], key):
                kind = batch.column(column).type
                if not (is_plain_text(kind) or pa.types.is_null(kind)):
                    raise DataError(f"{file}: {column}: holds {kind}, expected names of files")
                numbers = numbering().numbers(batch.column(key), f"{file}: {key}", row)
                names = batch.column(column).to_pylist()
                for place, (item, name) in enumerate(zip(numbers.tolist(), names, strict=True)):
                    if not item or not name:
                        continue
                    if leads_out(name):
                        raise DataError(
                            f"{file}: {column}: row {row + place} holds {name!r}, a path outside of the folder of "
                            "images; expected names relative to it, such as covers/a1.jpg"
                        )
                    self.items.setdefault(PurePosixPath(name.replace("\\", "/")).as_posix(), []).append(item)


def leads_out(name: str) -> bool:
    """Whether a name is absolute, of a drive or with ``..``; backslashes, as Windows writes them, are slashes."""
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or "\0" in name or bool(re.match(r"[A-Za-z]:", name))
