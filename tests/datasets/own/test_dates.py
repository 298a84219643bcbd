"""Dates in the orders of nations: read where all rows agree with one order, else refused with what settles it."""

from datetime import datetime, timedelta, timezone

import polars as pl
import pytest

from fuxictr_mm.datasets.own import dates
from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.columns import choose_columns
from fuxictr_mm.datasets.own.instants import read_times
from fuxictr_mm.datasets.own.positives import Positives
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import DataError
from tests.datasets.shop import rewrite
from tests.errors import raises_naming

MOMENTS = [datetime(2024, 3, 9, 0, 7, tzinfo=timezone.utc) + timedelta(hours=11 * number) for number in range(40)]
FORMS = [
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y, %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
    "%m-%d-%YT%H:%M",
    "%Y/%m/%d %H:%M",
    "%d %b %Y, %H:%M",
    "%b %d, %Y %I:%M\u202f%p",
    "%B %dth, %Y %H:%M",
    "%d/%b/%Y %H:%M",
    "%d-%b-%y %I:%M:%S %p",
    "%Y-%b-%d %H:%M",
]
AMBIGUOUS = ["5/3/2024 14:05", "6/3/2024 14:05"]


def table_of(texts, path, **options):
    path.mkdir(exist_ok=True)
    pl.DataFrame({"at": texts, "item": "a"}).write_csv(path / "log.csv", separator=";")
    return Table([path / "log.csv"], path / "scratch", "interactions", **options)


def times_of(texts, path, **options):
    table = table_of(texts, path, **options)
    return table.frame.select(read_times(table, "at").alias("at")).collect()["at"].to_list()


@pytest.mark.parametrize("form", FORMS)
def test_the_order_that_all_rows_agree_with_is_read(form, tmp_path):
    texts = [moment.strftime(form) for moment in MOMENTS]
    assert times_of(texts, tmp_path) == [int(moment.timestamp() * 1_000_000) for moment in MOMENTS]


@pytest.mark.parametrize(("order", "day"), [("dmy", datetime(2024, 3, 5, 14, 5)), ("mdy", datetime(2024, 5, 3, 14, 5))])
def test_dates_of_two_orders_need_the_option(order, day, tmp_path):
    with raises_naming(DataError, "row 0", "at", "5/3/2024", "--date_order"):
        times_of(AMBIGUOUS, tmp_path)
    found = times_of(AMBIGUOUS, tmp_path, date_order=order)
    assert found[0] == int(day.replace(tzinfo=timezone.utc).timestamp() * 1_000_000)


def test_a_month_by_name_needs_no_order(tmp_path):
    texts = ["5 Mar 2024, 14:05", "March 5, 2024 2:05 PM", "5 SEPT. 2024 14:05", "2024 May 5", "3RD May 2024"]
    days = ["2024-03-05 14:05", "2024-03-05 14:05", "2024-09-05 14:05", "2024-05-05", "2024-05-03"]
    assert times_of(texts, tmp_path, date_order="mdy") == times_of(days, tmp_path / "iso")
    for other in ("5.3.2024", "30 Feb 2024"):
        with raises_naming(DataError, "row 1", "at", other):
            times_of(["5 Mar 2024", other, "6 Mar 2024"], tmp_path / other)


def test_dots_have_no_month_first(tmp_path):
    assert times_of(["05.03.2024"], tmp_path) == times_of(["2024-03-05"], tmp_path)


@pytest.mark.parametrize(
    ("other", "options"),
    [
        ("04/30/2024 10:00", {}),
        ("31/02/2024", {}),
        ("2024-03-30", {}),
        ("noon", {}),
        ("4/3/2024", {"date_order": "mdy"}),
        ("04-03-2024", {}),
    ],
)
def test_the_first_row_of_another_order_is_named(other, options, tmp_path):
    texts = ["30/03/2024 10:00", "29/03/2024 10:00", other]
    with raises_naming(DataError, "row 0" if options else "row 2", "at", "30/03/2024" if options else other):
        times_of(texts, tmp_path, **options)


@pytest.mark.parametrize("form", ["%d.%m.%y %H:%M", "%y-%m-%d %H:%M", "%m/%d/%y %I:%M %p"])
def test_years_of_two_digits_are_read_where_one_order_is_left(form, tmp_path, monkeypatch):
    monkeypatch.setattr(dates, "time", MOMENTS[-1].timestamp)
    texts = [moment.strftime(form) for moment in MOMENTS]
    assert times_of(texts, tmp_path) == [int(moment.timestamp() * 1_000_000) for moment in MOMENTS]


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["12.05.11", "13.06.12"], ["row 0", "--date_order dmy", "--date_order ymd"]),  # of 2011 or of 2012
        (["31.05.24", "30.05.2024"], ["row 1", "two digits"]),
        (["30.05.2024", "30.05.2024", "31.05.24"], ["row 2"]),
        (["31.05.66", "30.05.66"], ["row 0", "31.05.66"]),
        (["31.05.24", "30.05.24", "30.05.66"], ["row 2", "30.05.66"]),
        (["31-May-24", "30-May-24", "30-May-65"], ["row 2", "30-May-65"]),
    ],
)
def test_years_of_two_digits_that_may_be_others_are_refused(texts, named, tmp_path):
    with raises_naming(DataError, "at", *named):
        times_of(texts, tmp_path)


@pytest.mark.parametrize("options", [{}, {"date_order": "dmy"}])
def test_years_of_two_digits_are_of_no_future(options, tmp_path, monkeypatch):
    monkeypatch.setattr(dates, "time", datetime(2026, 11, 29, tzinfo=timezone.utc).timestamp)
    days = ["1998-05-31", "1970-01-01", "1996-02-29", "2000-02-29", "2026-11-29"]
    expected = times_of(days, tmp_path / "iso")
    for name, form in (("numbers", "%d.%m.%y"), ("words", "%d/%b/%y")):
        texts = [datetime.fromisoformat(day).strftime(form) for day in days]
        assert times_of(texts, tmp_path / name, **options) == expected
    for other in ("05.05.65", "31.12.69", "01.12.26"):
        with raises_naming(DataError, "row 1", "at", other):
            times_of(["31.05.24", other, "30.05.24"], tmp_path / other, **options)


def test_the_order_of_years_of_two_digits_is_that_of_the_option(tmp_path):
    for order, day in (("dmy", "2011-05-12"), ("mdy", "2011-12-05"), ("ymd", "2012-05-11")):
        assert times_of(["12.05.11"], tmp_path, date_order=order) == times_of([day], tmp_path / order)
    assert table_of(["10-11-12", "10-10-12"], tmp_path / "size").frame.collect()["at"].to_list()[0] == "10-11-12"


def test_the_year_in_front_needs_no_order(tmp_path):
    assert times_of(["2024/3/5"], tmp_path, date_order="dmy") == times_of(["2024-03-05"], tmp_path)


def test_numbers_that_no_date_has_are_categories(tmp_path):
    table = table_of(["12-34-5678", "99-11-1234"] * 9, tmp_path)
    assert [column.kind for column in choose_columns(table, {"item"}, {}, set(), "item_")[0]] == ["categorical"]


def test_positives_of_the_other_order_are_refused(tmp_path):
    log, table = (table_of([text], tmp_path / name) for name, text in (("a", "30/03/2024"), ("b", "03/30/2024")))
    positives = Positives("click", table, ["item"], "at")
    with raises_naming(DataError, "log.csv", "at", "mdy", "dmy"):
        positives.find(log, "at")


@pytest.mark.parametrize("texts", [["1.5.2024", "2.5.2024"], ["01 Jan 2024, 16:12", "Jan 1, 2024 4:12 PM"]])
def test_such_dates_are_no_categories(texts, tmp_path):
    columns, left_out = choose_columns(table_of(texts * 9, tmp_path), {"item"}, {}, set(), "item_")
    assert not columns
    assert set(left_out) == {"at"}


def test_a_later_log_has_the_order_of_the_first(shop, prepare_log):
    at = pl.datetime(2024, 3, 30) + pl.duration(minutes=pl.int_range(pl.len()))
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(time=at.dt.strftime("%d/%m/%Y %H:%M")))
    folder, _, _ = prepare_log(shop)
    assert Base(folder).asked.date_order == "dmy"
