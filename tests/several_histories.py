"""A planted world with two histories in a row, and sequences along them; the label follows what was bought last."""

import numpy as np
import polars as pl

from fuxictr_mm.experiment import Experiment
from tests.projects import write_project

ITEMS = 30


NUMBERS = np.random.default_rng(5).normal(size=(ITEMS + 1, 2))


MODEL = """
import torch
from torch import nn

from fuxictr_mm.model import DNNModel


class Baskets(DNNModel):
    def __init__(self, feature_map, **params):
        super().__init__(feature_map, **params)
        spec = feature_map.along_history["kind"]
        self.kinds = nn.Embedding(spec["vocab_size"], 4)
        self.dnn = self.make_dnn(self.context_dim + 3 * self.item_dim + 5)
        self.build()

    def logits(self, batch):
        e = self.embed(batch, ["bought"])
        kind, price = batch.context["kind"], batch.context["price"]
        along = torch.cat([self.kinds(kind.values.long()), price.values.unsqueeze(1)], dim=1)
        means = [mean(x) for x in (e.history, e.histories["bought"], price.with_values(along))]
        return self.dnn(torch.cat([e.context, e.target, *means], dim=-1))


def mean(x):
    return x.sum() / x.lengths.clamp(min=1).unsqueeze(1)
"""


def rows_of(n, seed):
    """Return rows whose label follows what was bought last, and the price of it, and not what was clicked."""
    generator = np.random.default_rng(seed)
    lengths = {"clicked": generator.integers(0, 4, n), "bought": generator.integers(1, 8, n)}
    lists = {name: [generator.integers(1, ITEMS + 1, k).tolist() for k in found] for name, found in lengths.items()}
    target = generator.integers(1, ITEMS + 1, n)
    kind = [generator.integers(1, 4, k).tolist() for k in lengths["bought"]]
    price = [generator.normal(size=k).round(3).tolist() for k in lengths["bought"]]
    bought = np.array([NUMBERS[items, 0].mean() for items in lists["bought"]])
    paid = np.array([np.mean(values) for values in price])
    label = (generator.random(n) < 1 / (1 + np.exp(-4 * (NUMBERS[target, 1] + 2 * bought + 2 * paid)))).astype(float)
    when = [sorted(generator.integers(0, 99, k).tolist()) for k in lengths["clicked"]]
    return pl.DataFrame(
        {"user": generator.integers(1, 9, n), "shown": target, **lists, "kind": kind, "price": price, "when": when,
         "label": label}
    )  # fmt: skip


COLUMNS = [
    {"name": "user", "dtype": "int", "type": "meta"},
    {"name": "kind", "dtype": "int", "type": "sequence", "history": "bought", "vocab_size": 4},
    {"name": "price", "dtype": "float", "type": "sequence", "history": "bought"},
    {"name": "when", "dtype": "float", "type": "sequence", "history": "clicked"},
]


ROLES = {"target": "shown", "history": "clicked", "user": "user", "histories": ["bought"]}


def write_world(folder, form="parquet", rows=3000, **dataset):
    for seed, (split, n) in enumerate({"train": rows, "valid": rows // 3, "test": 60}.items()):
        frame = rows_of(n, seed)
        if form == "csv":
            frame = frame.with_columns(pl.selectors.list().cast(pl.List(pl.String)).list.join("^"))
            frame.write_csv(folder / f"{split}.csv")
        else:
            frame.write_parquet(folder / f"{split}.parquet", row_group_size=400)
    pl.DataFrame({"shown": range(ITEMS + 1)}).write_parquet(folder / "items.parquet")
    if form == "parquet":
        columns = [*COLUMNS, {"name": "clicked", "dtype": "int", "type": "meta"}]
        columns += [{"name": "shown", "dtype": "int", "type": "categorical", "source": "item", "vocab_size": ITEMS + 1}]
    else:
        columns = [{"name": "shown", "dtype": "str", "type": "categorical"}]
        for name, length in (("clicked", 3), ("bought", 9)):
            share = {"share_embedding": "shown", "max_len": length}
            columns.append({"name": name, "dtype": "str", "type": "sequence", **share})
        columns += [{k: v for k, v in column.items() if k != "vocab_size"} for column in COLUMNS]
    entry = {
        "data_root": str(folder), "data_format": form, "feature_cols": columns, "label_col": {"name": "label"},
        "roles": ROLES, **{f"{split}_data": str(folder / f"{split}.{form}") for split in ("train", "valid", "test")},
        **({"item_info": str(folder / "items.parquet")} if form == "parquet" else {}), **dataset,
    }  # fmt: skip
    (folder / "zoo").mkdir(exist_ok=True)
    (folder / "zoo" / "Baskets.py").write_text(MODEL)
    settings = {
        "dataset_id": "d", "epochs": 4, "batch_size": 100, "embedding_dim": 8, "learning_rate": 0.01, "verbose": 0,
        "dnn_hidden_units": [32], "metrics": ["AUC"], "tensorboard": False, "model_root": str(folder / "checkpoints"),
    }  # fmt: skip
    experiments = {"Baskets": {"model": "Baskets", **settings}, "DIN": {"model": "DIN", **settings}}
    return write_project(folder, experiments, {"d": entry})


def load(folder, expid="Baskets", **settings):
    return Experiment.load(expid, folder, model_zoo=folder / "zoo", **settings)


def per_row(column):
    return [part.tolist() for part in column.values.split(column.lengths.tolist())]
