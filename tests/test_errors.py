"""Errors: what a user's own `except` catches."""

import pytest

from fuxictr_mm.errors import Interrupted


def swallow():
    try:
        raise Interrupted("stopped", 15)
    except Exception:
        pass


def test_an_interruption_passes_except_exception():
    with pytest.raises(KeyboardInterrupt, match="stopped") as stopped:
        swallow()
    assert stopped.value.exit_code == 143
