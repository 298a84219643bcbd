"""The names of images that a column of an item file holds."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pyarrow as pa

from fuxictr_mm.data.arrow_types import is_plain_text
from fuxictr_mm.data.ids import AS_IS, Numbering
from fuxictr_mm.embeddings.item_files import read_ids
from fuxictr_mm.embeddings.item_tables import read_items
from fuxictr_mm.encoding.text_encodings import UTF8, Encoding
from fuxictr_mm.errors import DataError
from fuxictr_mm.files import StrPath


class ImageNames:
    """The names of the items' images, in a column of an item file.

    Parameters
    ----------
    path : str or path
        A Parquet, CSV or JSON lines file, or a folder of Parquet files.
    column : str
        Names relative to the folder or in the archive, such as ``covers/a1.jpg``; null or empty without an image.
    numbering : Numbering
        Of the items.
    encoding : Encoding
        Of a CSV or JSON lines file.

    Attributes
    ----------
    ids : ndarray
        ``(R,)`` int64, of all items.
    items : dict of str to list of int
        The items by the name of their image.
    where : str
        File and column.
    """

    def __init__(self, path: StrPath, column: str, numbering: Numbering = AS_IS, encoding: Encoding = UTF8) -> None:
        self.where = f"{path}: {column}"
        self.ids = read_ids(path, numbering, encoding)
        self.items: dict[str, list[int]] = {}
        for file, first, ids, batch in read_items(path, [column], numbering, encoding=encoding):
            kind = batch.column(column).type
            if not (is_plain_text(kind) or pa.types.is_null(kind)):
                raise DataError(f"{file}: {column}: holds {kind}, expected names of files")
            for row, (item, name) in enumerate(zip(ids.tolist(), batch.column(column).to_pylist(), strict=True), first):
                if not item or not name:
                    continue
                if leads_out(name):
                    raise DataError(
                        f"{file}: {column}: row {row} holds {name!r}, a path outside of the folder of images; "
                        "expected names relative to it, such as covers/a1.jpg"
                    )
                self.items.setdefault(PurePosixPath(name.replace("\\", "/")).as_posix(), []).append(item)


def leads_out(name: str) -> bool:
    """Whether a name is absolute, of a drive or with ``..``; backslashes, as Windows writes them, are slashes."""
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or "\0" in name or bool(re.match(r"[A-Za-z]:", name))
