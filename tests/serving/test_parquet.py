"""Rows of a file for scoring: types and values that are taken and refused, as in training."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.errors import UserError
from fuxictr_mm_serving import Export, ServingError
from fuxictr_mm_serving.parquet import read_part, split, to_column
from fuxictr_mm_serving.scoring import score_file
from fuxictr_mm_serving.tables import Ids
from tests.arrow import write_partitions
from tests.errors import raises_naming
from tests.serving.rows import write
from tests.serving.server import ROWS


def scores(path):
    return pq.read_table(path)["score"].to_numpy()


def lists(change):
    return [change(items) for items in pq.read_table(ROWS)["item_seq"].to_pylist()[:20]]


#: Rows that training refuses, and what the error names.
REFUSED = [
    ({"item_id": [*range(1, 20), 99999]}, ["item_id", "99999"]),
    ({"item_seq": [[1, 99999]] * 20}, ["item_seq", "99999"]),
    ({"likes_level": [11] * 20}, ["likes_level", "11"]),
    ({"likes_level": ["x"] * 20}, ["likes_level"]),
    ({"views_level": None}, ["views_level"]),
    ({"item_id": [*range(1, 20), None]}, ["item_id", "19"]),
    ({"item_id": [*range(1, 20), 0]}, ["item_id", "row 19"]),
    ({"item_id": [str(i) for i in range(1, 21)]}, ["item_id", "row 0"]),
    ({"likes_level": [1, None, *[2] * 18]}, ["likes_level", "row 1"]),
    ({"likes_level": ["1"] * 20}, ["likes_level", "row 0"]),
    ({"likes_level": [True, None] * 10}, ["likes_level"]),
    ({"item_seq": [[1]] * 7 + [[2, None]] * 13}, ["item_seq", "row 7"]),
    ({"item_seq": [["1", "2"]] * 20}, ["item_seq", "row 0"]),
    ({"item_seq": [[], [True]] * 10}, ["item_seq"]),
    ({"item_seq": [1] * 20}, ["item_seq"]),
]

#: Rows that training takes.
ACCEPTED = [
    {"likes_level": [i % 2 == 0 for i in range(20)]},
    {"likes_level": [Decimal(i % 5) for i in range(20)]},
    {"likes_level": [Decimal(i % 5).quantize(Decimal("1.00")) for i in range(20)]},
    {"item_id": [float(i) for i in range(1, 21)]},
    {"item_seq": lists(lambda items: [Decimal(item) for item in items])},
    {"item_seq": [None] * 20},
    {"item_seq": [float("nan")] * 20},
    {"item_seq": [""] * 20},
    {"item_seq": pa.array([[]] * 20, pa.list_(pa.string()))},
]


@pytest.mark.parametrize(("columns", "named"), REFUSED)
def test_bad_rows(exported, tmp_path, columns, named):
    with raises_naming(ServingError, *named):
        score_file(exported, write(tmp_path, **columns), tmp_path / "out")


def test_a_file_without_rows(exported, tmp_path):
    pq.write_table(pq.read_table(ROWS).slice(0, 0), tmp_path / "rows.parquet")
    with raises_naming(ServingError, tmp_path / "rows.parquet"):
        score_file(exported, tmp_path / "rows.parquet", tmp_path / "out")


@pytest.mark.parametrize("columns", ACCEPTED)
def test_types_that_training_takes(exported, tmp_path, columns):
    def plain(value):
        if isinstance(value, list):
            return [*map(int, value)]
        return int(value) if isinstance(value, int | float | Decimal) and value == value else []

    score_file(exported, write(tmp_path, **columns), tmp_path / "out")
    found = scores(tmp_path / "out")
    values = {
        name: pa.array(
            [plain(v) for v in pa.array(column).to_pylist()], pa.list_(pa.int64()) if name == "item_seq" else pa.int64()
        )
        for name, column in columns.items()
    }
    score_file(exported, write(tmp_path, **values), tmp_path / "out")
    np.testing.assert_array_equal(found, scores(tmp_path / "out"))


@pytest.mark.slow
def test_prediction_refuses_and_takes_the_same(weights_of, tmp_path):
    experiment, weights = weights_of("DIN_MM_tiny")
    for columns, _ in REFUSED:
        with pytest.raises(UserError):
            experiment.predict(write(tmp_path, **columns), weights=weights)
    for columns in ACCEPTED:
        assert len(experiment.predict(write(tmp_path, **columns), weights=weights)) == 20


IDS = {
    "integer": list(range(1, 1001)),
    "text": [f"i{i}" for i in range(1, 1001)],
    "bytes": [b"%d" % i for i in range(1, 1001)],
}


@pytest.mark.parametrize(
    ("kind", "items", "named"),
    [
        ("integer", [1.0, 2.0, 3.0], None),
        ("integer", ["1", "2", "3"], "row 0"),
        ("integer", [0, 1, 2], "row 0"),
        ("integer", [1, None, 2], "row 1"),
        ("integer", [2.0**60, 1.0, 2.0], "item_id"),
        ("integer", [True, True, True], "item_id"),
        ("text", ["i1", "i2", "i3"], None),
        ("text", ["i1", "", "i3"], "row 1"),
        ("text", [b"i1", b"i2", b"i3"], "row 0"),
        ("text", [1, 2, 3], "item_id"),
        ("bytes", [b"1", b"2", b"3"], None),
        ("bytes", ["1", "2", "3"], "row 0"),
    ],
)
def test_rows_of_items_with_a_vocabulary(exported, kind, items, named):
    export = Export(exported)
    values = [*IDS[kind][:-1], 2**60] if kind == "integer" else IDS[kind]
    export.items = replace(export.items, ids=Ids(values, kind == "integer"))
    rows = {"item_id": pa.array(items), "item_seq": pa.array([[values[4], None, values[5]]] * 3)}
    columns = {name: to_column(column) for name, column in rows.items()}
    columns |= {name: [1, 2, 3] for name in ("likes_level", "views_level")}
    if named is None:
        assert np.isfinite(export.score_rows(columns)).all()
    else:
        with raises_naming(ServingError, named):
            export.score_rows(columns)


def test_a_partition_by_a_column_of_texts(tmp_path):
    table = pq.read_table(ROWS).slice(0, 20)
    write_partitions(table, "likes_level", tmp_path / "rows")
    part = split(tmp_path / "rows", 100)[0]
    value = part.file.parent.name.partition("=")[2]
    for texts, expected in (((), int(value)), ({"likes_level"}, value)):
        assert next(read_part(part, ["likes_level"], texts=texts))["likes_level"][0] == expected


def test_the_row_of_an_error_is_that_of_the_file(exported, tmp_path):
    table = pq.read_table(ROWS).slice(0, 100)
    items = table["item_id"].to_pylist()
    items[70] = 99999
    table = table.set_column(table.column_names.index("item_id"), "item_id", pa.array(items))
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=30)
    with raises_naming(ServingError, "row 70", "99999"):
        score_file(exported, tmp_path / "rows.parquet", tmp_path / "out", part_rows=30)
    pq.write_table(table, tmp_path / "rows.parquet")
    with raises_naming(ServingError, "row 70", "99999"):
        score_file(exported, tmp_path / "rows.parquet", tmp_path / "out", part_rows=30)
