"""A small dataset of FuxiCTR's layout: CSV files of texts, numbers and sequences."""

import csv

import torch

from fuxictr_mm.data.batch import flat_format
from fuxictr_mm.data.loaders import gather

COLUMNS = [
    {"name": "user", "active": True, "dtype": "str", "type": "meta"},
    {"name": ["city", "shop"], "active": True, "dtype": "str", "type": "categorical", "source": "item"},
    {"name": "item_id", "active": True, "dtype": "int", "type": "categorical", "min_categr_count": 2,
     "embedding_dim": 3},
    {"name": "price", "active": True, "dtype": "float", "type": "numeric", "fill_na": -1.0},
    {"name": "age", "active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler"},
    {"name": "size", "active": True, "dtype": "float", "type": "numeric", "normalizer": "MinMaxScaler"},
    {"name": "seen", "active": True, "dtype": "str", "type": "sequence", "max_len": 3, "share_embedding": "shop"},
    {"name": "tags", "active": True, "dtype": "str", "type": "sequence", "splitter": " | ", "padding": "pre"},
    {"name": "copy", "active": True, "dtype": "str", "type": "categorical", "preprocess": "copy_from(city)",
     "fill_na": "?"},
    {"name": "unused", "active": False, "dtype": "str", "type": "categorical"},
]  # fmt: skip
LABEL = {"name": "clk", "dtype": "float"}


def write_csv(path, rows, quoting=csv.QUOTE_MINIMAL):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), quoting=quoting, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def params_of(folder, columns=COLUMNS, form="csv", **others):
    return {
        "dataset_id": "d",
        "data_root": str(folder / "ours"),
        "data_format": form,
        **{f"{split}_data": str(folder / f"{split}.{form}") for split in ("train", "valid", "test")},
        "feature_cols": columns,
        "label_col": LABEL,
        "min_categr_count": 1,
        "embedding_dim": 4,
        "group_id": None,
        "resident": True,
        **others,
    }


def both_labels(rows):
    return [{**rows[0], "clk": "0"}, *rows[1:-1], {**rows[-1], "clk": "1"}]


def rows_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def pick(values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    texts = ["", "a", "b", "c", "ä", "日本", 'say "x"', "x,y", "10", "9"]
    return both_labels(
        [
            {
                **{name: pick(texts) for name in ("user", "city", "shop")},
                "item_id": pick(["", "3", "20", "-7", "100", str(i)]),
                **{name: pick(["", "0.5", "2", "7.25", "1e3"]) for name in ("price", "age", "size")},
                "seen": "^".join(pick(texts) for _ in range(i % 5)),
                "tags": " | ".join(pick(["t1", "t2", ""]) for _ in range(i % 4)),
                "unused": "x",
                "clk": pick(["0", "1"]),
            }
            for i in range(n)
        ]
    )


def same(a, b):
    columns = [flatten(table) for table in (a, b)]
    return columns[0].keys() == columns[1].keys() and all(torch.equal(v, columns[1][k]) for k, v in columns[0].items())


def flatten(table):
    found = {"label": table.label}
    for name, column in table.context.items():
        found |= (
            {name: column}
            if isinstance(column, torch.Tensor)
            else {f"{name}.v": column.values, f"{name}.o": column.offsets}
        )
    return found


def columns_of(loaded, split):
    """Return the columns of a split as a model of FuxiCTR's gets them."""
    table = loaded.splits[split]
    batch = gather(table, torch.arange(len(table)))
    return flat_format(batch, loaded.feature_map, loaded.items, 100)


def edited(folder, change):
    rows = rows_of(60)
    change(rows)
    write_csv(folder / "train.csv", rows)
    return params_of(folder)
