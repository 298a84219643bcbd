"""How texts in files are encoded: by a byte order mark or a name, and their conversion to UTF-8."""

from __future__ import annotations

import codecs
import gzip
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fuxictr_mm.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

#: Endings of compressed files.
PACKED = (".gz", ".zst")

#: Byte order marks of encodings other than UTF-8, whose own mark polars skips; the longer ones first.
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", "\ufeff".encode("gb18030"): "gb18030"}

#: Bytes that tell UTF-16, whose separators and line breaks have a zero.
_START = 4096

#: Bytes that are converted at a time.
_CHUNK = 2**20


@dataclass(frozen=True)
class Encoding:
    """How the texts of files are encoded; a byte order mark in a file has precedence.

    Parameters
    ----------
    name : str, optional
        A codec of Python; by default UTF-8.
    option : str, optional
        The option that names it, for errors; without one, errors advise to convert the file.

    Raises
    ------
    ConfigError
        There is no such codec of texts.
    """

    name: str | None = None
    option: str = ""

    def __post_init__(self) -> None:
        if self.name is None:
            return
        try:
            "".encode(self.name)
            _decoder(self.name)
        except LookupError:
            raise ConfigError(
                f"{self.option} {self.name}: no encoding of Python has this name; names are utf-8, utf-16, cp1252 "
                "(Western Europe), cp1251 (Cyrillic), gb18030 (Chinese), shift_jis and others"
            ) from None

    def of(self, path: Path) -> str | None:
        """Return what a file is converted from, by its byte order mark or by the name; None if it is in UTF-8."""
        with opened(path) as stream:
            start = stream.read(_START)
        if start.startswith(codecs.BOM_UTF8):
            return None
        marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
        name = "utf-8" if self.name is None else codecs.lookup(self.name).name
        if marked or name in ("utf-8", "utf-8-sig"):
            return marked
        if name.startswith(("utf-16", "utf-32")) and b"\0" not in start:
            raise DataError(f"{path}: is not in {self.name}: its first {len(start)} bytes have no zero; {self.advice}")
        # Python's codec needs the mark.
        if name == "utf-16":
            return "utf-16-be" if start[:1] == b"\0" else "utf-16-le"
        return self.name

    @property
    def advice(self) -> str:
        """What to do with a file that is not in UTF-8."""
        if not self.option:
            return "convert the file to UTF-8"
        return f"name its encoding, such as {self.option} cp1252 (Western Europe), gb18030 (Chinese) or utf-16"


UTF8 = Encoding()


def opened(path: Path) -> Any:
    """Return the bytes of a file, unpacked."""
    if path.suffix == ".zst":
        return pa.input_stream(path, compression="zstd")
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def convert(stream: Any, copy: Any, codec: str, path: Path, encoding: Encoding) -> None:
    """Write bytes in UTF-8, some at a time; warn where they are in UTF-8 already."""
    decoder, utf8 = _decoder(codec), _decoder("utf-8")
    is_utf8, is_ascii, lines, done = True, True, 1, 0
    while True:
        chunk = stream.read(_CHUNK)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            start = done + len(chunk) - len(error.object) + error.start
            line = lines + error.object[: error.start].decode(codec, errors="ignore").count("\n")
            fix = f"correct the file, or give another {encoding.option}" if encoding.option else encoding.advice
            raise DataError(f"{path}: byte {start} (line {line}) is not text in {codec}; {fix}") from None
        if not done:
            text = text.removeprefix("\ufeff")
        is_ascii = is_ascii and chunk.isascii()
        try:
            is_utf8 = is_utf8 and bool(utf8.decode(chunk, final=not chunk) or True)
        except UnicodeDecodeError:
            is_utf8 = False
        copy.write(text.encode("utf-8", errors="replace"))
        done, lines = done + len(chunk), lines + text.count("\n")
        if not chunk:
            break
    if is_utf8 and not is_ascii:
        logger.warning(
            f"{path}: is text in UTF-8 as well as in {codec}; if texts look wrong, use {encoding.option} utf-8"
        )


def _decoder(codec: str) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder(codec)()
