"""Logging of a command to the terminal, and of a run to its log files."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from logging.handlers import MemoryHandler
from pathlib import Path

from fuxictr_mm.runs import unwritable
from fuxictr_mm.runtime import is_main

#: Logger of the package: its messages reach the log files whatever the level of the root logger.
_PACKAGE = "fuxictr_mm"
_MOST_RECORDS = 100_000


def set_up_logging() -> None:
    """Log to the terminal, and buffer messages until the log files are opened. For commands, not for notebooks."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if not is_main():
        terminal.setLevel(logging.ERROR)  # the other processes log the same
    logging.basicConfig(level=logging.INFO, handlers=[terminal, _buffer()], force=True)
    # FuxiCTR logs every object that it creates on the root logger; this package logs what matters.
    logging.getLogger("root").addFilter(lambda record: "Set column index" not in record.msg)


class LogFiles:
    """Writes the messages of a ``with`` block to files, including those before they are opened."""

    def __init__(self) -> None:
        self._root = logging.getLogger()
        self._package = logging.getLogger(_PACKAGE)
        self._added: list[logging.Handler] = []
        self._filtered: list[logging.Handler] = []

    def __enter__(self) -> LogFiles:
        self._level, self._shown = self._package.level, self._package.getEffectiveLevel()
        if self._shown > logging.INFO:
            # The files get more messages than the handlers of the program, whose levels stay the same.
            self._package.setLevel(logging.INFO)
            self._filtered = list(self._root.handlers)
            for handler in self._filtered:
                handler.addFilter(self._is_shown)
        if not self._root.handlers:  # a program that has not set up logging sees warnings, as without these handlers
            warnings = logging.StreamHandler()
            warnings.setLevel(logging.WARNING)
            self._add(warnings)
        if not any(isinstance(handler, MemoryHandler) for handler in self._root.handlers):
            self._add(_buffer())
        return self

    def __exit__(self, *_: object) -> None:
        for handler in self._added:
            self._root.removeHandler(handler)
            handler.close()
        for handler in self._filtered:
            handler.removeFilter(self._is_shown)
        self._package.setLevel(self._level)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._shown

    def open(self, paths: Iterable[Path], mode: str) -> None:
        """Open the files, ``mode`` as of ``open``; called when the input has been checked.

        Raises
        ------
        ConfigError
            A file cannot be written.
        """
        if not is_main():
            return
        files = [_open(path, mode) for path in paths]
        for handler in [h for h in self._root.handlers if isinstance(h, MemoryHandler)]:
            for record in handler.buffer:
                for file in files:
                    file.handle(record)
            self._root.removeHandler(handler)
            handler.close()
        for file in files:
            self._add(file)

    def _add(self, handler: logging.Handler) -> None:
        self._root.addHandler(handler)
        self._added.append(handler)


def _buffer() -> MemoryHandler:
    return MemoryHandler(capacity=_MOST_RECORDS, flushLevel=logging.CRITICAL + 1)


def _open(path: Path, mode: str) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, mode=mode, encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return file
