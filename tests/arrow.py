"""What this version of pyarrow can read."""

import pyarrow as pa
import pytest


def skip_unreadable(kind: pa.DataType) -> None:
    """Skip a test of nulls in fixed-size lists, which pyarrow reads from version 26 on; before, that is an error."""
    if pa.types.is_fixed_size_list(kind) and int(pa.__version__.split(".")[0]) < 26:
        pytest.skip("pyarrow before 26 cannot read nulls in fixed-size lists")
