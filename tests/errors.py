"""Errors are checked by what they name, keys, files and values, and not by their sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def check_names(text: str, *parts: object) -> None:
    """Assert that a text is one line that holds every part."""
    missing = [str(part) for part in parts if str(part) not in text]
    assert not missing, f"{missing} not in {text!r}"
    assert "\n" not in text.strip()


@contextmanager
def raises_naming(error: type[BaseException] | tuple[type[BaseException], ...], *parts: object) -> Iterator[Any]:
    """Expect an error of one line that names every part."""
    with pytest.raises(error) as caught:
        yield caught
    check_names(str(caught.value), *parts)


@contextmanager
def exits_naming(capsys: pytest.CaptureFixture[str], *parts: object) -> Iterator[None]:
    """Expect exit code 2 and, as the last line on stderr, an error that names every part."""
    with pytest.raises(SystemExit) as stopped:
        yield
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    check_names(line, *parts)
