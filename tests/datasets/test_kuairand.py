"""Rows of KuaiRand are those of a plain reading of its miniature; what is wrong in its files is named."""

import csv

import pyarrow.parquet as pq

from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


def test_kuairand(kuairand, prepare, read_split, values_of):
    folder, summary, _ = prepare("kuairand", kuairand, max_len=4)
    log = []
    for path in sorted(kuairand.rglob("log_standard_*.csv")):
        with path.open() as stream:
            log += [{k: int(v) for k, v in row.items()} for row in csv.DictReader(stream)]
    # 23 days of 20 rows: 3 days are a tenth, 5 days a fifth of the rows.
    tabs = values_of(folder, "tab")
    for split, days in (("train", range(8, 26)), ("valid", range(26, 28)), ("test", range(28, 31))):
        expected = []
        for row in log:
            if row["date"] % 100 in days:
                earlier = [
                    (other["time_ms"], other["video_id"])
                    for other in log
                    if other["user_id"] == row["user_id"] and other["time_ms"] < row["time_ms"] and other["is_click"]
                ]
                # Clicks of one moment have no order.
                times = sorted(time for time, _ in earlier)[-4:]
                expected.append((row["user_id"], row["video_id"], row["is_click"], row["is_like"], row["tab"], times))
        rows = read_split(folder, split)
        clicked: dict[tuple[int, int], list[int]] = {}
        for other in log:
            if other["is_click"]:
                clicked.setdefault((other["user_id"], other["video_id"]), []).append(other["time_ms"])
        assert len(rows) == len(expected)
        found = sorted((r["user_id"], r["item_id"], r["is_click"], r["is_like"], int(tabs[r["tab"]])) for r in rows)
        assert found == sorted(row[:5] for row in expected)
        lengths = sorted((r["user_id"], len(r["item_seq"])) for r in rows)
        assert lengths == sorted((row[0], len(row[5])) for row in expected)
        assert all(clicked.get((row["user_id"], item)) for row in rows for item in row["item_seq"])
    items = pq.read_table(folder / "items.parquet").to_pylist()
    tags = values_of(folder, "tag")
    assert [[tags[tag] for tag in item["tag"]] for item in items[:3]] == [["12", "65"], ["3"], []]
    assert values_of(folder, "fans_user_num_range") == {1: "[100,1k)"}
    assert pq.read_schema(folder / "train" / "part-00000.parquet").names[-8:-7] == ["is_click"]
    assert summary.users == 12


def test_kuairand_names_the_log_and_the_value_that_cannot_be_read(kuairand, prepare):
    path = next(kuairand.rglob("log_standard_4_22*.csv"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1].replace(lines[-1].split(",")[1], "video", 1)]) + "\n")
    with raises_naming(DataError, path.name, "video"):
        prepare("kuairand", kuairand)


def test_tabs_are_those_of_training(kuairand, prepare, read_split, values_of):
    path = next(kuairand.rglob("log_standard_4_22*.csv"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ",14"]) + "\n")
    folder, _, _ = prepare("kuairand", kuairand)
    assert set(values_of(folder, "tab").values()) == {"0", "1", "2"}
    assert 0 in {row["tab"] for row in read_split(folder, "test")}
