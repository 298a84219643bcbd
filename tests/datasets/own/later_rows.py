"""Rows of a prepared folder, with the values of their owner."""

import json

import polars as pl
import pyarrow.parquet as pq


def values(folder, name, key="code", value="value"):
    path = folder / (f"vocabularies/{name}.parquet" if key == "code" else "items.parquet")
    table = pl.read_parquet(path)
    return {0: None, **dict(zip(table[key], table[value], strict=True))}


def read(folder, base, splits=("test",), since=None, labels=True):
    """Return the rows of splits with the owner's values, as the vocabularies and scales of ``base`` have them."""
    facts = json.loads((folder / "manifest.json").read_text())["columns"]
    known = {name: set(values(base, name).values()) for name in ("device", "category", "tags", "age")}
    items = {}
    written = pl.read_parquet(folder / "items.parquet")
    category, tags = values(folder, "category"), values(folder, "tags")
    price = facts["items"]["written"]["price_scaled"]
    for row in written.iter_rows(named=True):
        kept = [tags[tag] if tags[tag] in known["tags"] else None for tag in row["tags"]]
        items[row["item_id"]] = (
            row["source_id"],
            row["title"],
            category[row["category"]],
            kept,
            round(row["price_scaled"] * price["std"] + price["mean"], 1),
        )
    device, age = values(folder, "device"), values(folder, "age")
    basket = facts["interactions"]["written"]["basket_scaled"]
    rows = []
    for split in splits:
        for row in pq.read_table(folder / split).to_pylist():
            if since is not None and row["source_time"] <= since:
                continue
            found = {
                "user": row["source_user"],
                "item": items[row["item_id"]],
                "history": [items[item][0] for item in row["item_seq"]],
                "time": row["source_time"],
                "basket": round(row["basket_scaled"] * basket["std"] + basket["mean"], 1),
            }
            for name, words in (("device", device), ("age", age)):
                found[name] = words[row[name]] if words[row[name]] in known[name] else None
            if labels:
                found["click"] = row["click"]
            rows.append(found)
    return sorted(rows, key=lambda row: json.dumps(row))
