"""Errors: what a user's own `except` catches."""

import pytest

from fuxictr_mm.errors import Interrupted, nearest


def swallow():
    try:
        raise Interrupted("stopped", 15)
    except Exception:
        pass


def test_an_interruption_passes_except_exception():
    with pytest.raises(KeyboardInterrupt, match="stopped") as stopped:
        swallow()
    assert stopped.value.exit_code == 143


@pytest.mark.parametrize(
    ("name", "known", "suggested"),
    [
        ("din_target_field", "dataset_id", False),
        ("batchsize", "batch_size", True),
        ("train", "train_data", True),
        ("user", "user_id", True),
        ("--quiet", "--out", False),
        ("--epid", "--expid", True),
    ],
)
def test_only_near_names_are_suggested(name, known, suggested):
    assert (known in nearest(name, [known])) is suggested
