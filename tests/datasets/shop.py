"""A shop's log in other forms and with changes: the files of the fixture ``shop``."""

import gzip
from datetime import datetime, timedelta, timezone

import polars as pl

ROLES = ["user=user", "target=asin", "time=time"]


def rewrite(path, change):
    """Rewrite a CSV file as a function of its frame."""
    change(pl.read_csv(path)).write_csv(path)


def without_header(shop):
    """Remove the names of the columns of interactions.csv."""
    path = shop / "interactions.csv"
    path.write_text(path.read_text("utf-8").partition("\n")[2], "utf-8")


def without_time(rows):
    """Return rows without their times, which are in the form of the source."""
    return [{name: value for name, value in row.items() if name != "source_time"} for row in rows]


def write_form(frame, path, form):
    """Write a table in some form."""
    times = frame["time"] - frame["time"].min() if "time" in frame.columns else []
    moments = [datetime(2024, 3, 31, 0, 59, tzinfo=timezone.utc) + timedelta(seconds=second) for second in times]
    if form in ("parquet", "jsonl"):
        (frame.write_ndjson if form == "jsonl" else frame.write_parquet)(path.with_suffix(f".{form}"))
    elif form == "datetimes":
        frame.with_columns(time=pl.Series(moments)).write_parquet(path.with_suffix(".parquet"))
    elif form.endswith("gz"):
        text, suffix = (frame.write_ndjson(), ".jsonl.gz") if form == "jsonl.gz" else (frame.write_csv(), ".csv.gz")
        path.with_suffix(suffix).write_bytes(gzip.compress(text.encode()))
    elif form == "parts":
        content = gzip.compress(frame[:10].write_csv().encode())  # parts may be packed in different ways
        path.with_name(f"{path.name}.part-0.csv.gz").write_bytes(content)
        frame[10:].write_csv(path.with_name(f"{path.name}.part-1.csv"))
    else:
        texts = {"ISO": [f"{moment:%Y-%m-%d %H:%M:%S}" for moment in moments]}
        zones = [timezone(timedelta(hours=(5 * number) % 24 - 12)) for number in range(len(moments))]
        # As texts they are in another order.
        texts["zones"] = [moment.astimezone(zone).isoformat() for moment, zone in zip(moments, zones, strict=True)]
        frame = frame.with_columns(time=pl.Series(texts[form])) if form in texts else frame
        dialects = {
            "tsv": {"separator": "\t"},
            "semicolon and BOM": {"separator": ";", "include_bom": True},
            "decimal commas": {"separator": ";", "decimal_comma": True},
        }
        frame.write_csv(path.with_suffix(".tsv" if form == "tsv" else ".csv"), **dialects.get(form, {}))


def with_impressions(shop, rows=3):
    """Add a column of impressions of so many rows each, in the order of time."""
    number = "i" + (pl.int_range(pl.len()) // rows).cast(pl.String)
    rewrite(shop / "interactions.csv", lambda log: log.sort("time").with_columns(impression=number))


def drop_label(shop):
    rewrite(shop / "interactions.csv", lambda log: log.drop("click"))
    return shop


def with_value(column, row, value):
    """Return a change of one value of interactions.csv, all columns as texts."""

    def apply(shop):
        frame = pl.read_csv(shop / "interactions.csv", infer_schema=False)
        values = frame[column].to_list()
        values[row] = value
        frame.with_columns(pl.Series(column, values)).write_csv(shop / "interactions.csv")

    return apply
