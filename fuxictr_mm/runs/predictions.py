"""Files of predictions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fuxictr_mm.files import write_beside

if TYPE_CHECKING:
    import numpy as np


def write_predictions(
    path: Path,
    *,
    prediction: np.ndarray,
    label: np.ndarray | None = None,
    group: np.ndarray | None = None,
    tasks: Sequence[str] = (),
) -> None:
    """Write predictions ``(rows,)`` and, where they are known, labels and groups, by an atomic write.

    Of T ``tasks``, predictions and labels are ``(rows, T)``, NaN for a label that is missing, and written as columns
    ``prediction_TASK`` and ``label_TASK``.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fuxictr_mm.data.parquet import from_numbers

    columns = {"label": label, "prediction": prediction, "group": group}
    arrays: dict[str, pa.Array] = {}
    for index, task in enumerate(tasks):
        if label is not None:
            missing = np.isnan(label[:, index])
            arrays[f"label_{task}"] = pa.array(np.nan_to_num(label[:, index]).astype(np.int8), mask=missing)
        arrays[f"prediction_{task}"] = from_numbers(np.ascontiguousarray(prediction[:, index]))
    for name, column in columns.items():
        if column is not None and (not tasks or name == "group"):
            arrays[name] = from_numbers(column) if column.dtype.kind in "iuf" else pa.array(column)
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer)
    write_beside(path, lambda stream: stream.write(buffer.getbuffer()))


def _problem_of_rows(label: np.ndarray | None, prediction: np.ndarray) -> str:
    """Return the problem of predictions, empty if none."""
    import numpy as np

    if not len(prediction):
        return "there are no rows"
    if label is not None and (label.dtype.kind not in "biuf" or not np.isin(label, (0, 1)).all()):
        return "labels are not 0 and 1"
    if prediction.dtype.kind not in "iuf":
        return f"predictions are {prediction.dtype}, expected numbers"
    strange = int((~np.isfinite(prediction)).sum())
    return f"{strange} predictions are not finite" if strange else ""
