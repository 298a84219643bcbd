"""Errors: what a user's own `except` catches."""

import pytest

from fuxictr_mm.errors import Interrupted


def test_an_interruption_passes_except_exception():
    with pytest.raises(KeyboardInterrupt, match="stopped") as stopped:
        try:
            raise Interrupted("stopped", 15)
        except Exception:
            pass
    assert stopped.value.exit_code == 143
