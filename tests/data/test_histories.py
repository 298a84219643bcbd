"""Several histories in one row, and sequences along them, from the files to a model."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.loaders import gather
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.experiment import Experiment
from tests.errors import raises_naming

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
    (folder / "dataset_config.yaml").write_text(json.dumps({"d": entry}))
    experiments = {"Baskets": {"model": "Baskets", **settings}, "DIN": {"model": "DIN", **settings}}
    (folder / "model_config.yaml").write_text(json.dumps(experiments))
    return folder


def load(folder, expid="Baskets", **settings):
    return Experiment.load(expid, folder, model_zoo=folder / "zoo", **settings)


def per_row(column):
    return [part.tolist() for part in column.values.split(column.lengths.tolist())]


@pytest.mark.parametrize("resident", [True, False])
def test_columns_are_those_of_the_file(tmp_path, resident):
    experiment = load(write_world(tmp_path, rows=900), resident=resident, max_len=3)
    table = experiment.load_dataset({"train": True}).splits["train"]
    table = table if resident else concatenate(table.chunks())
    order = torch.randperm(900)[:50]
    batch = gather(table, order)
    rows = pl.read_parquet(tmp_path / "train.parquet")[order.tolist()]
    assert per_row(batch.history) == [row[-3:] for row in rows["clicked"].to_list()]
    for name in ("bought", "kind"):
        assert per_row(batch.context[name]) == [row[-3:] for row in rows[name].to_list()]
    for name in ("price", "when"):
        expected = [np.float32(row[-3:]).tolist() for row in rows[name].to_list()]
        assert per_row(batch.context[name]) == expected


def test_padding_is_dropped_along_with_its_entries(tmp_path):
    write_world(tmp_path, rows=300)
    path = tmp_path / "train.parquet"
    rows = pl.read_parquet(path)
    padded = pl.Series("bought", [[0, 5, 0, 7], *rows["bought"].to_list()[1:]])
    kind = pl.Series("kind", [[3, 1, 2, 0], *rows["kind"].to_list()[1:]])
    price = pl.Series("price", [[9.0, 0.5, 8.0, 0.25], *rows["price"].to_list()[1:]])
    rows.with_columns(padded, kind, price).write_parquet(path)
    context = gather(load(tmp_path).load_dataset({"train": True}).splits["train"], torch.tensor([0])).context
    found = [per_row(context[name])[0] for name in ("bought", "kind", "price")]
    assert found == [[5, 7], [1, 0], [0.5, 0.25]]
    rows.with_columns(padded).write_parquet(path)
    with raises_naming(DataError, f"kind: row 0 has {len(rows['kind'][0])} entries", "4", "bought"):
        load(tmp_path).load_dataset({"train": True})


def test_a_history_has_its_own_length(tmp_path):
    own = {"name": "bought", "dtype": "int", "type": "meta", "max_len": 2}
    columns = [*COLUMNS, own, {"name": "clicked", "dtype": "int", "type": "meta"}]
    columns += [{"name": "shown", "dtype": "int", "type": "categorical", "source": "item", "vocab_size": ITEMS + 1}]
    table = load(write_world(tmp_path, rows=300, feature_cols=columns)).load_dataset({"train": True}).splits["train"]
    assert table.context["bought"].lengths.max() == table.context["price"].lengths.max() == 2
    assert table.context["when"].lengths.max() == 3


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_model_that_asks_learns_from_them(tmp_path, form):
    write_world(tmp_path, form)
    experiment = load(tmp_path)
    run = experiment.fit()
    assert run.valid["AUC"] > 0.8
    assert load(tmp_path, "DIN").fit().valid["AUC"] < run.valid["AUC"] - 0.1
    streamed = load(tmp_path, resident=False, model_root=str(tmp_path / "streamed"), shuffle=False).fit()
    memory = load(tmp_path, model_root=str(tmp_path / "memory"), shuffle=False).fit()
    assert streamed.valid == memory.valid
    assert experiment.predict().shape == (60,)


def test_embeddings_are_those_of_the_items(tmp_path):
    experiment = load(write_world(tmp_path, rows=300))
    dataset = experiment.load_dataset({"train": True})
    model = experiment.build_model(dataset).eval()
    batch = gather(dataset.splits["train"], torch.arange(20))
    e = model.embed(batch, ["bought"])
    table = model.embedding_layer.embedding_layer.embedding_layers["item_id"].weight
    assert torch.equal(e.histories["bought"].values, table[batch.context["bought"].values.long()])
    assert torch.equal(e.history.values, table[batch.history.values.long()])
    plain = model.embed(batch)
    assert torch.equal(plain.target, e.target)
    assert plain.histories == {}
    with raises_naming(ConfigError, "'sold'", "histories: [sold]"):
        model.embed(batch, ["sold"])


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({"roles": {**ROLES, "histories": ["clicked"]}}, ["histories", "clicked"]),
        ({"roles": {**ROLES, "histories": []}}, ["kind", "bought", "clicked"]),
        ({"roles": {**ROLES, "histories": ["bougt"]}}, ["kind", "bought", "bougt"]),
    ],
)
def test_wrong_roles(tmp_path, dataset, words):
    with raises_naming(UserError, *words):
        load(write_world(tmp_path, rows=300, **dataset)).load_dataset({"train": True})
