"""Labels of files of positive rows belong to the right rows of the log."""

import numpy as np
import polars as pl
import pytest

from fuxictr_mm.datasets.own import positives as positives_module
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.positives import Positives
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, DataError
from tests.datasets.logs import START, make_log, write_source
from tests.errors import raises_naming


def table_of(folder, name, frame):
    """Write a table of texts, and return it."""
    frame.write_csv(folder / f"{name}.csv")
    return Table([folder / f"{name}.csv"], folder / "scratch", name, ["user", "asin", "impression"])


def random_rows(seed, rows, latest):
    random = np.random.default_rng(seed)
    columns = {"user": random.integers(0, 4, rows), "asin": random.integers(0, 5, rows)}
    ids = pl.DataFrame(columns).with_columns(pl.all().cast(pl.String).str.zfill(3))
    return ids.with_columns(time=pl.Series(random.integers(0, latest, rows)))


@pytest.mark.parametrize("within", [None, 7])
def test_a_positive_belongs_to_the_latest_row_before_it(within, tmp_path, monkeypatch):
    monkeypatch.setattr(positives_module, "PART_ROWS", 9)
    shown, clicks = random_rows(1, 90, 60), random_rows(2, 40, 70)
    log = table_of(tmp_path, "log", shown)
    found = Positives("click", table_of(tmp_path, "clicks", clicks), ["user", "asin"], "time", within and str(within))
    expected = np.zeros(90, dtype=bool)
    for user, asin, time in clicks.iter_rows():
        before = [
            (row[2], number)
            for number, row in enumerate(shown.iter_rows())
            if row[:2] == (user, asin) and row[2] <= time <= row[2] + (within or 1000)
        ]
        if before:
            expected[max(before)[1]] = True
    assert 5 < expected.sum() < 40
    assert np.array_equal(found.find(log, "time"), expected)


@pytest.mark.parametrize(("written", "scale"), [("ISO", 1), ("numbers", 1000)])
def test_a_window_is_in_seconds_or_in_the_unit_of_integers(written, scale, tmp_path):
    shown = pl.DataFrame({"user": ["1", "1"], "asin": ["2", "3"], "time": [0, 0]})
    clicks = pl.DataFrame({"user": ["1", "1"], "asin": ["2", "3"], "at": [60, 61]})

    def with_times(frame, name):
        instants = pl.from_epoch(pl.col(name) + START)
        form = instants.dt.strftime("%Y-%m-%dT%H:%M:%S+00:00") if written == "ISO" else pl.col(name) * scale
        return frame.with_columns(form.alias(name))

    clicks = table_of(tmp_path, "clicks", with_times(clicks, "at"))
    log = table_of(tmp_path, "log", with_times(shown, "time"))
    found = Positives("click", clicks, ["user", "asin"], "at", str(60 * scale)).find(log, "time")
    assert found.tolist() == [True, False]


def test_an_id_of_impressions_needs_no_time(tmp_path, caplog):
    shown = pl.DataFrame({"impression": ["7", "007", None, "8"], "time": [5, 6, 7, 8]})
    log = table_of(tmp_path, "log", shown)
    clicks = table_of(tmp_path, "clicks", pl.DataFrame({"impression": ["007", "007", None, "9"], "time": [1, 1, 1, 1]}))
    with caplog.at_level("INFO"):
        assert Positives("click", clicks, ["impression"]).find(log, "time").tolist() == [False, True, False, False]
    assert "2 of 4" in caplog.text  # an example of what belongs to no row
    assert "clicks.csv: row 2" in caplog.text
    again = table_of(tmp_path, "again", pl.concat([shown, shown]))
    with raises_naming(DataError, "again.csv: row 5", "007", "clicks.csv", "--match_on"):
        Positives("click", clicks, ["impression"]).find(again, "time")


@pytest.mark.parametrize("mail", ["ANN@x.org", "dee@x.org"])
def test_ids_in_another_case_are_named(mail, tmp_path, caplog):
    log = table_of(tmp_path, "log", pl.DataFrame({"user": ["ann@x.org", "bob@x.org"], "time": [1, 2]}))
    clicks = table_of(tmp_path, "clicks", pl.DataFrame({"user": [mail, "bob@x.org"], "time": [3, 4]}))
    assert Positives("click", clicks, ["user"], "time").find(log, "time").tolist() == [False, True]
    assert ("lower case" in caplog.text) == (mail == "ANN@x.org")


def test_times_of_other_kinds_are_refused(tmp_path):
    log = table_of(tmp_path, "log", random_rows(1, 9, 60))
    clicks = random_rows(2, 9, 60).with_columns(time=pl.lit("2024-01-01T00:00:00Z"))
    with raises_naming(DataError, "clicks.csv", "log.csv", "time"):
        Positives("click", table_of(tmp_path, "clicks", clicks), ["user", "asin"], "time").find(log, "time")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"positives": ["clicks.csv"]}, ["--positives clicks.csv"]),
        ({"positives": ["click=a.csv", "click=b.csv"]}, ["click=b.csv", "a.csv"]),
        ({"match_on": ["impression"]}, ["--match_on", "--positives"]),
        ({"positives": ["click=a.csv"], "negatives": 1}, ["--negatives", "--positives"]),
        ({"positives": ["click=a.csv"], "labels": ["like"]}, ["click=a.csv", "--labels"]),
        ({"positives": ["click=a.csv"], "types": ["click=numeric"]}, ["--types click"]),
        ({"match_within": "7d"}, ["--match_within", "--positives", "--impressions"]),
    ],
)
def test_options_that_do_not_go_together_are_refused(given, named):
    with raises_naming(ConfigError, *named):
        LogOptions.of(given)


def test_a_log_in_two_files_is_that_of_one(tmp_path, prepare):
    log, items, _ = make_log(3, rows=80)
    log = log.with_row_index("n").with_columns(user=pl.col("user") + (pl.col("n") % 2).cast(pl.String)).drop("n")
    whole = prepare(write_source(tmp_path / "whole", log, items), "whole")
    source = write_source(tmp_path / "two", log.drop("click"), items)
    clicks = log.filter(pl.col("click") == 1).sample(fraction=1, shuffle=True, seed=1)
    clicks.select("user", "asin", "time").write_csv(source / "clicks.csv")
    given = {"labels": None, "positives": ["click=clicks.csv"], "match_on": ["user", "asin", "time"]}
    # Rows of one user, item and time cannot be told apart.
    assert not log.select("user", "asin", "time").is_duplicated().any()
    two = prepare(source, "two", **given)
    for split in ("train", "valid", "test"):
        assert pl.read_parquet(two / split).equals(pl.read_parquet(whole / split))


@pytest.mark.slow
def test_a_later_log_has_a_file_of_its_own(tmp_path, prepare):
    log = make_log(3, rows=80)[0].unique(["user", "asin", "time"], maintain_order=True)
    source, clicks = write_source(tmp_path / "two", log.drop("click")), log.filter(pl.col("click") == 1)
    clicks.select("user", "asin", "time").write_csv(source / "clicks.csv")
    given = {"labels": None, "positives": ["click=clicks.csv"], "match_on": ["user", "asin", "time"]}
    two = prepare(source, "two", **given)
    later = write_source(tmp_path / "later", log.drop("click").with_columns(pl.col("time") + 500))
    assert "click" not in pl.read_parquet_schema(prepare(later, "no_clicks", two) / "test")
    clicks.select("user", "asin", pl.col("time") + 500).write_csv(later / "tuesday.csv")
    rows = pl.read_parquet(prepare(later, "clicks", two, positives=["click=tuesday.csv"]) / "test")
    assert rows["click"].sum() == len(clicks)
    with raises_naming(ConfigError, "buy=tuesday.csv", "click"):
        prepare(later, "wrong", two, positives=["buy=tuesday.csv"])
    (later / "tuesday.csv").rename(later / "clicks.csv")
    with raises_naming(ConfigError, "--match_on"):
        prepare(later, "wrong", two, match_on=["user"])
