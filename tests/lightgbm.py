"""Whether LightGBM can be loaded: its wheel needs the OpenMP library of the system."""

from importlib.util import find_spec

import pytest


def needs_lightgbm() -> None:
    """Skip the test if LightGBM cannot be loaded."""
    if find_spec("lightgbm") is None:
        pytest.skip("LightGBM is not installed")
    try:
        import lightgbm  # noqa: F401
    except OSError as error:
        pytest.skip(str(error))
