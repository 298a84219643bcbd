"""Files of every form give the same rows; a row that cannot be read is named."""

import polars as pl
import pytest

from fuxictr_mm.datasets.own import tables
from fuxictr_mm.datasets.own.amounts import Form
from fuxictr_mm.datasets.own.later import LaterLog
from fuxictr_mm.datasets.own.number_texts import NumberTexts
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.datasets.reader import load_reader
from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.errors import ConfigError, DataError
from tests.datasets.shop import without_time, write_form
from tests.errors import raises_naming

FORMS = ["csv", "tsv", "semicolon and BOM", "decimal commas", "gz", "parquet", "jsonl", "jsonl.gz", "parts"]
TIMES = ["ISO", "zones", "datetimes"]


@pytest.mark.parametrize("form", [*FORMS, *TIMES])
def test_every_form_gives_the_same_rows(form, shop, prepare_log, read_split, tmp_path):
    whole, _, _ = prepare_log(shop, folder="whole")
    source = tmp_path / "other"
    source.mkdir()
    for name in ("interactions", "items", "users"):
        write_form(
            pl.read_csv(shop / f"{name}.csv"),
            source / name,
            form if name == "interactions" or form not in TIMES else "csv",
        )
    folder, _, _ = prepare_log(source, interactions="interactions*")
    for split in ("train", "valid", "test"):  # in the same order: they train to the same metrics
        assert without_time(read_split(whole, split)) == without_time(read_split(folder, split))


@pytest.mark.parametrize("kind", ["from 0", "large", "UUIDs", "zeros in front"])
def test_ids_map_back(kind, tmp_path, prepare_log, read_split):
    make = {
        "from 0": int,
        "large": lambda number: 2**62 + number,
        "UUIDs": lambda number: f"{number:032x}",
        "zeros in front": lambda number: f"{number:03}",
    }[kind]
    rows = [(make(number % 4), make(number % 5), number, number % 2) for number in range(40)]
    frame = pl.DataFrame(rows, schema=["user", "asin", "time", "click"], orient="row")
    for form in ("csv", "parquet"):
        source = tmp_path / form
        source.mkdir()
        getattr(frame, f"write_{form}")(source / f"interactions.{form}")
        folder, summary, _ = prepare_log(source, folder=f"out-{form}")
        found = [row for split in summary.splits for row in read_split(folder, split)]
        known = {(row[0], row[1]) if form == "parquet" else (str(row[0]), str(row[1])) for row in rows}
        assert {(row["user_id"], row["item_id"]) for row in found} == known
        assert (summary.items, summary.users) == (5, 4)  # without --items, those of the log


def test_ids_of_several_types_are_compared_as_texts(shop, prepare_log, tmp_path):
    (shop / "items.csv").unlink()
    log = pl.read_csv(shop / "interactions.csv").with_columns(pl.col("asin").str.slice(1).cast(pl.Int64))
    log.write_parquet(shop / "interactions.parquet")
    log.select(pl.col("asin").cast(pl.String).unique()).write_csv(shop / "items.csv")
    assert prepare_log(shop, interactions="interactions.parquet")[1].items == 30


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"u-1,B001,1700000001,1,phone,2.5,more", ["row 300", "7"]),
        ("u-1,B001,1700000001,1,t\u00e9l\u00e9phone,2.5".encode("latin-1"), ["row 300", "device", "UTF-8"]),
    ],
)
def test_a_row_that_cannot_be_read_is_named(line, named, shop, prepare_log):
    path = shop / "interactions.csv"
    path.write_bytes(path.read_bytes() + line + b"\n")
    with raises_naming(DataError, "interactions.csv", *named):
        prepare_log(shop)


def test_blank_lines_and_spaces_around_ids_do_not_count(shop, prepare_log, read_split, caplog):
    whole, _, _ = prepare_log(shop, folder="whole")
    path = shop / "interactions.csv"
    header, *lines = path.read_text().splitlines()
    lines = [" , ".join(line.split(",", 2)) for line in lines]
    path.write_text("\n".join([header, *lines[:9], "", *lines[9:], lines[0].rpartition(",")[0], "", ""]))
    with caplog.at_level("WARNING"):
        folder, summary, _ = prepare_log(shop)
    assert "interactions.csv: 1 rows" in caplog.text  # the short one
    assert sum(split.rows for split in summary.splits.values()) == 301
    known = {str(row["item_seq"]) for row in read_split(whole, "train")}
    assert {str(row["item_seq"]) for row in read_split(folder, "train")[:20]} <= known


@pytest.mark.parametrize("kind", [pl.UInt64, pl.Decimal(38, 0)])
def test_integers_of_other_types_are_ids(kind, tmp_path, prepare_log, read_split):
    base = 2**63 if kind == pl.UInt64 else 2**60
    ids = pl.Series([base + number % 5 for number in range(40)], dtype=kind)
    log = pl.DataFrame({"user": ids, "asin": ids, "time": range(40), "click": [0, 0, 1, 1] * 10})
    log.write_parquet(tmp_path / "interactions.parquet")
    log.select("asin", color=pl.lit("red")).unique().write_parquet(tmp_path / "items.parquet")
    folder, _, _ = prepare_log(tmp_path)
    assert {row["user_id"] for row in read_split(folder, "train")} == {base + number for number in range(5)}


def test_a_column_twice_is_refused(shop, prepare_log):
    path = shop / "interactions.csv"
    path.write_text(path.read_text().replace("basket", "click", 1))
    with raises_naming(DataError, "interactions.csv", "click"):
        prepare_log(shop)


@pytest.mark.parametrize("name", ["items", "users"])
def test_an_id_twice_is_refused_if_its_rows_differ(name, shop, prepare_log, caplog):
    path = shop / f"{name}.csv"
    before = len(path.read_text().splitlines())
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    _, summary, _ = prepare_log(shop, folder="equal")
    assert summary.items == 30
    assert any(f"{name}.csv: row {before - 1}" in r.message and "1 rows" in r.message for r in caplog.records)
    frame = pl.read_csv(path)
    other = pl.col("age") + 1 if name == "users" else pl.col("price") + 1
    pl.concat([frame, frame[:3].with_columns(other)]).write_csv(path)
    with raises_naming(DataError, f"{name}.csv: row", "again", "3 ids", "keep="):
        prepare_log(shop)


def write_pairs(folder, start=0, triples=0):
    """Write a log, separated by semicolons, with a column of two ids, or of three in the first rows."""
    folder.mkdir()
    rows = [(n % 5, n % 7, start + n, n % 2, f"{n % 3},7" + ",9" * (n < triples)) for n in range(60)]
    frame = pl.DataFrame(rows, schema=["user", "asin", "time", "click", "pair"], orient="row")
    frame.write_csv(folder / "interactions.csv", separator=";")
    return folder


def test_categories_of_two_ids_are_no_decimal_numbers(tmp_path, prepare_log, values_of, caplog):
    source = write_pairs(tmp_path / "source")
    with caplog.at_level("INFO"):
        prepare_log(source, folder="numbers")
    assert any("pair" in record.message and "0,7" in record.message for record in caplog.records)
    folder, _, _ = prepare_log(source, types=["pair=categorical"], folder="texts")
    assert set(values_of(folder, "pair").values()) == {"0,7", "1,7", "2,7"}


def test_a_later_log_has_categories_as_the_earlier_one(tmp_path, prepare_log, read_split, values_of):
    first, _, _ = prepare_log(write_pairs(tmp_path / "source", triples=20), folder="first")
    source, out = write_pairs(tmp_path / "next", start=60), tmp_path / "later"
    reader = LaterLog(source, out / ".scratch", 5)
    reader.configure({"like": first})
    Writer(reader, "log", out, verbose=0).write()
    pairs = values_of(first, "pair")
    assert {pairs.get(row["pair"]) for row in read_split(out, "test")} == {"0,7", "1,7", "2,7"}


def test_categories_of_texts_stay_texts_on_a_day_of_numbers(tmp_path, prepare_log, read_split, values_of):
    """Versions such as 1.10, and words such as none, which are no missing values in a column of texts."""
    columns = {
        "version": ("1.10", "1.1", "1.2.3"), "fit": ("none", "-", "slim"), "count": ("(1)", "1'000", "x"),
        "size": ("1.10", "1.1", "2"),
    }  # fmt: skip

    def write(folder, start, values):
        (tmp_path / folder).mkdir()
        rows = {"user": [n % 5 for n in range(60)], "asin": [n % 7 for n in range(60)]}
        rows |= {"time": [start + n for n in range(60)], "click": [n // 2 % 2 for n in range(60)]}
        rows |= {name: [texts[n % values] for n in range(60)] for name, texts in columns.items()}
        pl.DataFrame(rows).write_csv(tmp_path / folder / "interactions.csv")
        return tmp_path / folder

    first, _, _ = prepare_log(write("source", 0, 3), types=["size=categorical"], folder="first")
    reader = LaterLog(write("next", 60, 2), tmp_path / "later" / ".scratch", 5)
    reader.configure({"like": first})
    Writer(reader, "log", tmp_path / "later", verbose=0).write()
    for name, texts in columns.items():
        known = values_of(first, name)
        assert {known.get(row[name]) for row in read_split(tmp_path / "later", "test")} == set(texts[:2])


@pytest.mark.parametrize(("text", "is_warned"), [("1.234", True), ("1.23", False)])
def test_a_mark_that_a_later_log_has_first_is_named(text, is_warned, tmp_path, caplog):
    pl.DataFrame({"price": [text], "x": 1}).write_csv(tmp_path / "items.csv", separator=";")
    known = {"types": {"price": "numeric"}, "known_forms": {"price": Form()}}
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", **known)
    assert table.frame.collect()["price"].to_list() == [float(text)]
    assert any("price" in record.message for record in caplog.records) == is_warned


def test_numbers_in_parentheses_are_named(tmp_path, caplog):
    """All of them may be counts, as of reviews."""
    pl.DataFrame({"reviews": ["(12)", "(3)"], "x": 1}).write_csv(tmp_path / "items.csv")
    with caplog.at_level("INFO"):
        Table([tmp_path / "items.csv"], tmp_path / "scratch", "items").frame.collect()
    assert any("reviews" in record.message and "(12)" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1.234,50", "12,5", "-", "7", "1.000.000"], [1234.5, 12.5, None, 7.0, 1e6]),
        (["1.234", "12,5"], [1234.0, 12.5]),
        (["1.23", "12,5"], ["1.23", "12,5"]),  # of two forms
        (["1.234", "12"], ["1.234", "12"]),  # of either
        (["1.234", "0.5"], [1.234, 0.5]),
        (["1,234.50", "1,234"], [1234.5, 1234.0]),
        (["1,5e3", "2"], [1500.0, 2.0]),
        (["+491701234567", "+491701234568"], ["+491701234567", "+491701234568"]),
        (["+5", "-3"], [5.0, -3.0]),
        (["1.234,50", "12,5 EUR"], ["1.234,50", "12,5 EUR"]),
        (["1.23,50", "1.234,5"], ["1.23,50", "1.234,5"]),
        (["1'234.50", "7", "n/a", "--"], [1234.5, 7.0, None, None]),
        (["1\u202f234,5", "1\u00a0234\u00a0567"], [1234.5, 1234567.0]),
        (["1'234", "-7"], [1234.0, -7.0]),
        (["1,00,000", "50,000.5", "?"], [1e5, 50000.5, None]),
        (["(12.5)", "3"], [-12.5, 3.0]),
        (["100,200,300", "100"], ["100,200,300", "100"]),  # perhaps ids
        (["100,050,300", "100"], [100050300.0, 100.0]),
        (["N.A.", "3", "5"], [None, 3, 5]),
        (["12,50-", "1.234,00-", "-", "7"], [-12.5, -1234.0, None, 7.0]),  # of SAP
        (["12-", "3"], [-12.0, 3.0]),
        (["18-25", "3"], ["18-25", "3"]),
    ],
)
def test_separators_of_thousands(texts, expected, tmp_path):
    (tmp_path / "items.csv").write_text("asin;price\n" + "\n".join(f"{n};{text}" for n, text in enumerate(texts)))
    frame = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", ["asin"]).frame
    assert frame.collect()["price"].to_list() == expected


def test_rows_that_are_there_twice_are_warned_of(shop, prepare_log, caplog):
    log = pl.read_csv(shop / "interactions.csv").unique(maintain_order=True)
    for rows, is_warned in ((log, False), (pl.concat([log, log[:20]]), True)):
        caplog.clear()
        rows.write_csv(shop / "interactions.csv")
        prepare_log(shop, folder=f"warned-{is_warned}")
        assert any("row 300" in record.message for record in caplog.records) == is_warned, len(log)


@pytest.mark.parametrize(
    ("separator", "texts", "numbers"),
    [
        (";", ["16,24 €", "1.299,00 €", "", "0,99 €"], [16.24, 1299.0, None, 0.99]),
        (";", ["EUR 7", "EUR 12"], [7, 12]),
        (";", ["4,474 kg", "0,5 kg"], [4.474, 0.5]),
        (";", ["12,50- EUR", "12,50 EUR-", "1.299,00 EUR"], [-12.5, -12.5, 1299.0]),
        (",", ["$1,299.00", "$5.50", "-"], [1299.0, 5.5, None]),
        (",", ["12.5%", "3%"], [12.5, 3.0]),
        (",", ["12 €", "12 $"], ["12 €", "12 $"]),
        (",", ["$1,5", "$2,75"], [1.5, 2.75]),
        (",", ["1.299,00 €", "5,99 €", "n/a €"], [1299.0, 5.99, None]),
        (",", ["K1", "K2"], ["K1", "K2"]),
    ],
)
def test_amounts_of_one_unit_are_numbers(separator, texts, numbers, tmp_path):
    pl.DataFrame({"price": texts, "other": "x"}).write_csv(tmp_path / "items.csv", separator=separator)
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items")
    assert table.frame.collect()["price"].to_list() == numbers
    kept = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", types={"price": "categorical"})
    assert kept.frame.collect()["price"].dtype == pl.String


@pytest.mark.parametrize(
    ("texts", "types", "expected", "is_warned"),
    [
        (["1,234", "999"], {}, ["1,234", "999"], True),
        (["1,234.50", "999"], {}, [1234.5, 999.0], False),
        (["12,5", "999"], {}, ["12,5", "999"], False),  # perhaps two ids
        (["12,5", "999"], {"price": "numeric"}, [12.5, 999.0], False),
        (["12,5", "999"], {"price": "categorical"}, ["12,5", "999"], False),
    ],
)
def test_commas_in_numbers_where_commas_separate_columns(texts, types, expected, is_warned, tmp_path, caplog):
    pl.DataFrame({"price": texts, "x": 1}).write_csv(tmp_path / "items.csv")
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", types=types)
    assert table.frame.collect()["price"].to_list() == expected
    assert ("--types price=numeric" in caplog.text) == is_warned


@pytest.mark.parametrize(
    ("texts", "is_warned"),
    [
        ([*map(str, range(40)), "ask us"], True),
        ([*map(str, range(40)), "ask us", "007"], False),  # codes
        (["1", "ask us"], False),
        (["100,200,300", "100"], True),
    ],
)
def test_texts_that_keep_a_column_from_being_numbers_are_named(texts, is_warned, tmp_path, caplog):
    pl.DataFrame({"a price": texts, "x": 1}).write_csv(tmp_path / "items.csv", separator=";")
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items")
    assert table.frame.collect()["a price"].to_list() == texts
    assert ("--types 'a price'=" in caplog.text) == is_warned
    assert [repr(texts[-1 if len(texts) > 2 else 0]) in r.message for r in caplog.records] == [True] * is_warned


@pytest.mark.parametrize(
    ("texts", "is_warned"),
    [
        (["12 kg", "500 g"], True),
        (["0.5", "12 %", "n/a"], True),
        (["3g", "4g"], False),
        (["5 g", "many g"], False),
    ],
)
def test_amounts_of_several_units_are_named(texts, is_warned, tmp_path, caplog):
    pl.DataFrame({"weight": texts, "x": 1}).write_csv(tmp_path / "items.csv")
    assert Table([tmp_path / "items.csv"], tmp_path / "scratch", "items").frame.collect()["weight"].to_list() == texts
    assert any("weight" in record.message for record in caplog.records) == is_warned


def test_columns_of_numbers_are_not_read_again_for_units(tmp_path, monkeypatch):
    monkeypatch.setattr(NumberTexts, "_warn_of_units", lambda *_: pytest.fail("is read again"))
    pl.DataFrame({"age": ["31", "n/a", "7"], "x": ["a", "b", "c"]}).write_csv(tmp_path / "items.csv")
    frame = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items").frame.collect()
    assert frame["age"].to_list() == [31, None, 7]


def test_ids_that_a_spreadsheet_has_rounded_are_named(tmp_path, caplog):
    for name, ids in (("plain", ["12345678901234567", "1e5"]), ("rounded", ["1.23457E+16", "7"])):
        pl.DataFrame({"user": ids, "item": ["a", "b"]}).write_csv(tmp_path / f"{name}.csv")
        table = Table([tmp_path / f"{name}.csv"], tmp_path / name, "interactions", ["user", "item"])
        assert table.frame.collect()["user"].to_list() == ids
        assert ("1.23457E+16" in caplog.text) == (name == "rounded")


def test_codes_and_large_integers_are_categories(tmp_path, caplog):
    from fuxictr_mm.datasets.own.columns import choose_columns

    numbers = range(10_000, 10_300)
    columns = {
        "plz": numbers,
        "ean": numbers,
        "hash": [2**60 + n for n in numbers],
        "phone": [f"+49{n}00" for n in numbers],
        "size": numbers,
        "account": [10_000_000 + 7919 * n for n in numbers],
        "since": [1_600_000_000 + 7919 * n for n in numbers],
        "since_us": [1_600_000_000_000_000 + 7919 * n for n in numbers],
        "won": [1_000_000 + 790 * n for n in numbers],
        "viewCount": [1_000_001 + 797 * n for n in numbers],
        "price_list": [1_000_001 + 797 * (n % 150) for n in numbers],
        "Amount (EUR)": [1_000_001 + 797 * n for n in numbers],
        "amount_code": [1_000_001 + 797 * n for n in numbers],
        "at_minute": [202401010800 + 10**4 * (n % 28) + n % 60 for n in numbers],
    }
    pl.DataFrame({"asin": numbers, **columns}).write_csv(tmp_path / "items.csv")
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", ["asin"])
    found, _ = choose_columns(table, {"asin"}, {}, set(), "item_")
    assert {column.source: column.kind for column in found} == {
        "plz": "categorical", "ean": "categorical", "hash": "categorical", "phone": "text", "size": "numeric",
        "account": "categorical", "since": "numeric", "since_us": "numeric", "won": "numeric", "viewCount": "numeric",
        "price_list": "categorical", "Amount (EUR)": "numeric", "amount_code": "categorical",
    }  # fmt: skip
    assert not [record for record in caplog.records if record.levelname == "WARNING"]  # of marks that phones lack


def test_marks_of_numbers_without_a_unit_are_those_of_the_earlier_log(tmp_path):
    for folder, texts in (("points", ["0.5", "1.25"]), ("commas", ["0,5", "1,25"])):
        (tmp_path / folder).mkdir()
        pl.DataFrame({"price": texts, "x": 1}).write_csv(tmp_path / folder / "a.csv", separator=";")
        form = Table([tmp_path / folder / "a.csv"], tmp_path / folder / "scratch", "items").forms["price"]
        pl.DataFrame({"price": ["1.234"], "x": 1}).write_csv(tmp_path / folder / "b.csv", separator=";")
        known = {"types": {"price": "numeric"}, "known_forms": {"price": form}}
        later = Table([tmp_path / folder / "b.csv"], tmp_path / folder / "later", "items", **known)
        assert later.frame.collect()["price"].to_list() == [1.234 if folder == "points" else 1234.0]


def test_no_option_is_advised_for_columns_of_a_later_log(tmp_path, caplog):
    pl.DataFrame({"size": ["1.234", "2.345"], "price": ["5 €", "7 €"], "x": 1}).write_csv(
        tmp_path / "a.csv", separator=";"
    )
    caplog.set_level("INFO")
    for known_forms in (None, {}):
        caplog.clear()
        table = Table([tmp_path / "a.csv"], tmp_path / f"{known_forms}", "items", known_forms=known_forms)
        assert table.frame.collect()["size"].to_list() == ["1.234", "2.345"]
        assert all((f"--types {name}" in caplog.text) == (known_forms is None) for name in ("size", "price"))


def test_decimal_commas_of_two_columns_with_two_colons(tmp_path):
    (tmp_path / "items.dat").write_text("m1::12,5\nm2::7\n")
    table = Table([tmp_path / "items.dat"], tmp_path / "scratch", "items", ["asin"], header=["asin", "price"])
    assert table.frame.collect().to_dict(as_series=False) == {"asin": ["m1", "m2"], "price": [12.5, 7.0]}


def test_a_file_may_have_the_header_that_others_lack(tmp_path):
    for name, text in (("a", "u,i,1\n"), ("b", "time,item,user\n2,j,v\n"), ("c", "uid,iid,at\nu,i,1\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    given = {"texts": ["user", "item"], "header": ["user", "item", "time"]}
    table = Table([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "scratch", "interactions", **given)
    assert table.frame.select("user", "item", "time").collect().rows() == [("u", "i", 1), ("v", "j", 2)]
    table = Table([tmp_path / "c.csv"], tmp_path / "other", "interactions", **given)
    with raises_naming(DataError, "c.csv: row 0", "user,item,time"):
        table.refuse(pl.col("time") == "at", "time", "a time")


def test_a_file_per_user_is_to_be_moved_into_a_folder(tmp_path):
    paths = []
    for name in ("ann", "bob"):
        paths.append(tmp_path / f"user={name}" / "plays.csv")
        paths[-1].parent.mkdir()
        paths[-1].write_text("track,uts\na,1\n")
    users = Table(paths, tmp_path / "scratch", "interactions", ["user"])
    users.check("user", "--roles user=user")
    assert users.frame.collect()["user"].to_list() == ["ann", "bob"]
    for name, path in zip("ab", paths, strict=True):
        path.rename(tmp_path / f"{name}.csv")
    table = Table([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "other", "interactions")
    with raises_naming(ConfigError, "--roles user=user", "user=VALUE"):
        table.check("user", "--roles user=user")
    with pytest.raises(ConfigError) as caught:
        table.check("clik", "--labels clik")
    assert "VALUE" not in str(caught.value)


def test_the_row_with_another_unit_is_named(tmp_path):
    pl.DataFrame({"weight": ["5 g", "n/a", "1,000 g", "12 kg"], "x": 1}).write_csv(tmp_path / "items.csv")
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", types={"weight": "numeric"})
    with raises_naming(DataError, "items.csv: row 3", "'12 kg'", "'g'"):
        table.refuse_texts("weight", Form("g"), "")


def test_numbers_that_name_a_user_are_no_features(tmp_path):
    from fuxictr_mm.datasets.own.columns import choose_columns

    rows = range(300)
    columns = {"signup": [501 + n for n in rows], "contact": [170_000_000 + 7919 * n for n in rows]}
    columns["income"] = [20_000 + 7919 * n % 90_000 for n in rows]
    pl.DataFrame({"user": rows, **columns}).write_csv(tmp_path / "users.csv")
    table = Table([tmp_path / "users.csv"], tmp_path / "scratch", "users", ["user"])
    found, left_out = choose_columns(table, {"user"}, {}, set(), "user_")
    assert ([column.source for column in found], set(left_out)) == (["income"], {"signup", "contact"})


def test_lists_in_brackets_are_read(tmp_path):
    from fuxictr_mm.datasets.own.columns import choose_columns, split_lists

    lists = {
        "ids": ["[6285, 194]", "[]", None],
        "words": ["['a', 'b c']", '["d, e", "f"]', "[it's]"],
        "arrays": ["[6285  194]", "[ 7]", "['a' 'b c']"],
        "x": ["[a] b", "c", "[d]"],
        "vector": ["[0.5, 1]", "[1. 0.]", "[-1e-3, .5]"],
    }
    pl.DataFrame({"asin": [1, 2, 3], **lists}).write_csv(tmp_path / "items.csv")
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", ["asin"])
    columns, left_out = choose_columns(table, {"asin"}, {}, set(), "item_")
    kinds = dict.fromkeys(("ids", "words", "arrays"), "sequence") | {"x": "categorical"}
    assert ({column.source: column.kind for column in columns}, set(left_out)) == (kinds, {"vector"})
    found = split_lists(table.frame.collect(), columns)
    assert found["ids"].to_list() == [["6285", "194"], [], None]
    assert found["words"].to_list() == [["a", "b c"], ["d, e", "f"], ["it's"]]
    assert found["arrays"].to_list() == [["6285", "194"], ["7"], ["a", "b c"]]


def test_columns_of_json_lines_are_found_once(tmp_path, monkeypatch):
    """Finding them takes a pass over the file."""
    rows = {"user_id": ["a", "b"], "item_id": ["x", "y"], "time": [1, 2], "click": [0, 1]}
    pl.DataFrame(rows).write_ndjson(tmp_path / "interactions.jsonl")
    found, find = [], tables.schema_of
    monkeypatch.setattr(tables, "schema_of", lambda path, *given: found.append(path) or find(path, *given))
    reader = load_reader("log")(tmp_path, tmp_path / "scratch", 5)
    reader.configure({})
    assert reader.files() == found == [tmp_path / "interactions.jsonl"]
