"""Files of predictions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fuxictr_mm.files import write_beside

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def write_predictions(
    path: Path,
    *,
    prediction: np.ndarray,
    label: np.ndarray | None = None,
    group: np.ndarray | pa.ChunkedArray | None = None,
    tasks: Sequence[str] = (),
) -> None:
    """Write predictions ``(rows,)`` and, if they are known, labels and groups, by an atomic write.

    Groups are integers, of which ``NO_GROUP`` becomes null, or texts.

    Of T ``tasks``, predictions and labels are ``(rows, T)``, NaN for a label that is missing, and written as columns
    ``prediction_TASK`` and ``label_TASK``.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fuxictr_mm.data.arrow_types import from_numbers
    from fuxictr_mm.data.groups import NO_GROUP

    columns = {"label": None if label is None or tasks else compact(label), "prediction": prediction}
    arrays: dict[str, pa.Array] = {}
    for index, task in enumerate(tasks):
        if label is not None:
            missing = np.isnan(label[:, index])
            arrays[f"label_{task}"] = pa.array(compact(np.where(missing, 0, label[:, index])), mask=missing)
        arrays[f"prediction_{task}"] = from_numbers(np.ascontiguousarray(prediction[:, index]))
    for name, column in columns.items():
        if column is not None and not tasks:
            arrays[name] = from_numbers(column)
    if isinstance(group, np.ndarray):
        without = group == NO_GROUP if group.dtype.kind == "i" else np.zeros(len(group), bool)
        group = pa.array(group, mask=without) if without.any() or group.dtype.kind in "OU" else from_numbers(group)
    if group is not None:
        arrays["group"] = group
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer)
    write_beside(path, lambda stream: stream.write(buffer.getbuffer()))


def compact(label: np.ndarray) -> np.ndarray:
    """Return labels as int8 if they are all 0 or 1, else as float32, those of a regression."""
    import numpy as np

    return label.astype(np.int8 if np.isin(label, (0, 1)).all() else np.float32)


def _groups_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return the groups of predictions: integers, texts, or objects with None."""
    import numpy as np
    import pyarrow as pa

    if not column.null_count and pa.types.is_integer(column.type):
        return column.to_numpy()
    groups = np.array(column.to_pylist(), dtype=object)
    return groups if column.null_count else groups.astype(str)


def _problem_of_rows(label: np.ndarray | None, prediction: np.ndarray, is_regression: bool) -> str:
    """Return the problem of predictions, empty if none."""
    import numpy as np

    if not len(prediction):
        return "there are no rows"
    if label is not None:
        if label.dtype.kind not in "biuf" or not np.isfinite(label).all():
            return "labels are not numbers"
        if not is_regression and not np.isin(label, (0, 1)).all():
            return "labels are not 0 and 1"
    if prediction.dtype.kind not in "iuf":
        return f"predictions are {prediction.dtype}, expected numbers"
    strange = int((~np.isfinite(prediction)).sum())
    return f"{strange} predictions are not finite" if strange else ""
