"""The predictions of a run for the rows of a split: one class for their file, their labels and their groups.

Shape letters: n rows, T labels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fuxictr_mm.errors import ConfigError, DataError, nearest
from fuxictr_mm.files import write_beside

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


class _Columns(NamedTuple):
    label: np.ndarray | None
    prediction: np.ndarray
    group: np.ndarray | None


class Predictions(_Columns):
    """Predictions of the rows of a split, in the order of its file: ``label, prediction, group``.

    Parameters
    ----------
    label : ndarray or None
        ``(n,)``: int8 of classes, float32 of a regression, float64 with NaN where some rows do not have the label. None
        without labels.
    prediction : ndarray
        ``(n,)`` float32.
    group : ndarray or None
        ``(n,)``, integers or texts; where some rows have none, objects with None for these. None without groups.
    """

    @classmethod
    def read(cls, path: Path, task: str | None = None, *, is_regression: bool = False) -> Predictions:
        """Read a file of ``write``, of one label.

        Parameters
        ----------
        path : Path
            The file, in the folder of a run.
        task : str, optional
            The label, for a file of several.
        is_regression : bool
            Whether labels other than 0 and 1 are right.

        Raises
        ------
        ConfigError
            The file does not have the label, or has several and none is named.
        DataError
            It is damaged, labels are not 0 and 1, or predictions are not finite numbers.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            suffix = _suffix_of(path, table.column_names, task)
            label, group = f"label{suffix}", "group"
            found = cls(
                table[label].to_numpy() if label in table.column_names else None,
                table[f"prediction{suffix}"].to_numpy(),
                _groups_of(table[group]) if group in table.column_names else None,
            )
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"{path}: is not a file of predictions of a run ({error}); train it again") from error
        labels = found.label
        if suffix and labels is not None:  # those of a column with nulls are NaN
            labels = labels[labels == labels]
            found = found if len(labels) else cls(None, *found[1:])
        if problem := _problem_of_rows(labels, found.prediction, is_regression):
            raise DataError(f"{path}: {problem}; train it again")
        return found

    def write(self, path: Path, tasks: Sequence[str] = ()) -> None:
        """Write label, prediction and group, those that are known, by an atomic write.

        Groups are integers, of which ``NO_GROUP`` becomes null, texts, or a column of Arrow.

        Of T ``tasks``, predictions and labels are ``(n, T)``, NaN for a label that is missing, and written as columns
        ``prediction_TASK`` and ``label_TASK``.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        from fuxictr_mm.data.arrow_types import from_numbers

        label, prediction, group = self
        arrays: dict[str, Any] = {}
        for index, name in enumerate(tasks):
            if label is not None:
                missing = np.isnan(label[:, index])
                arrays[f"label_{name}"] = pa.array(_compact(np.where(missing, 0, label[:, index])), mask=missing)
            arrays[f"prediction_{name}"] = from_numbers(prediction[:, index])
        if not tasks:
            arrays |= {} if label is None else {"label": from_numbers(_compact(label))}
            arrays["prediction"] = from_numbers(prediction)
        if group is not None:
            arrays["group"] = _column_of(group)
        buffer = io.BytesIO()
        pq.write_table(pa.table(arrays), buffer)
        write_beside(path, lambda stream: stream.write(buffer.getbuffer()))

    @property
    def of_known_labels(self) -> Predictions:
        """Those of the rows that have the label, with a label of its smallest type; all where there is no label."""
        label, prediction, group = self
        if label is None or (known := label == label).all():
            return self
        return Predictions(_compact(label[known]), prediction[known], None if group is None else group[known])

    @cached_property
    def keys(self) -> np.ndarray | None:
        """The groups as ``group_keys`` returns them."""
        from fuxictr_mm.data.groups import group_keys

        return None if self.group is None else group_keys(self.group)

    @cached_property
    def partition(self) -> np.ndarray | None:
        """The groups, numbered by their first rows."""
        from fuxictr_mm.data.groups import partition_of

        return None if self.keys is None else partition_of(self.keys)

    def difference_of_rows(self, other: Predictions) -> str:
        """Return how the rows differ from those of others; an empty text if nothing known of both differs."""
        import numpy as np

        if len(self.prediction) != len(other.prediction):
            return f"{len(self.prediction)} against {len(other.prediction)}"
        if self.label is not None and other.label is not None and not np.array_equal(self.label, other.label):
            return f"labels differ, first in row {int(np.argmax(self.label != other.label))}"
        if self.partition is None or other.partition is None or np.array_equal(self.partition, other.partition):
            return ""
        return f"groups differ, first in row {int(np.argmax(self.partition != other.partition))}"


def _suffix_of(path: Path, columns: Sequence[str], task: str | None) -> str:
    """Return what follows ``label`` and ``prediction`` in the names of a label's columns; nothing of a single label."""
    tasks = [name.removeprefix("prediction_") for name in columns if name.startswith("prediction_")]
    if not tasks:
        return ""
    if task not in tasks:
        found = "has" if task is None else f"has no label '{task}'{nearest(task, tasks)}; it has"
        raise ConfigError(
            f"{path.parent}: the run {found} the labels {', '.join(tasks)}; name one (compare --label {tasks[0]}); "
            "ensembles and calibration need runs with one label"
        )
    return f"_{task}"


def _compact(label: np.ndarray) -> np.ndarray:
    """Return labels as int8 if they are all 0 or 1, else as float32, those of a regression."""
    import numpy as np

    return label.astype(np.int8 if np.isin(label, (0, 1)).all() else np.float32)


def _column_of(group: np.ndarray | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    import numpy as np
    import pyarrow as pa

    from fuxictr_mm.data.arrow_types import from_numbers
    from fuxictr_mm.data.groups import NO_GROUP

    if not isinstance(group, np.ndarray):
        return group
    without = group == NO_GROUP if group.dtype.kind == "i" else np.zeros(len(group), bool)
    return pa.array(group, mask=without) if without.any() or group.dtype.kind in "OU" else from_numbers(group)


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
