"""Several histories in one row, and sequences along them, from the files to a model."""

import numpy as np
import polars as pl
import pytest
import torch

from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.loaders import gather
from fuxictr_mm.errors import ConfigError, DataError, UserError
from tests.errors import raises_naming
from tests.several_histories import COLUMNS, ITEMS, ROLES, load, per_row, write_world


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
    assert experiment.fit().valid["AUC"] > 0.8
    assert experiment.predict().shape == (60,)


def test_no_other_model_learns_from_them_and_streaming_changes_nothing(tmp_path):
    write_world(tmp_path)
    streamed = load(tmp_path, resident=False, model_root=str(tmp_path / "streamed"), shuffle=False).fit()
    memory = load(tmp_path, model_root=str(tmp_path / "memory"), shuffle=False).fit()
    assert load(tmp_path, "DIN").fit().valid["AUC"] < memory.valid["AUC"] - 0.1
    assert streamed.valid == memory.valid


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
        ({"roles": {**ROLES, "history": {"short": "bought"}}}, ["history", "short", "long"]),
        ({"roles": {**ROLES, "history": {"short": "clicked", "long": "clicked"}}}, ["clicked"]),
        ({"roles": {**ROLES, "history": {"short": None, "long": "clicked"}}}, ["history", "None", "short"]),
        ({"roles": {**ROLES, "history": {"short": ["bought"], "long": "clicked"}}}, ["['bought']", "short"]),
        (
            {"roles": {**ROLES, "history": {"short": "bought", "long": "clicked"}, "short_history": "sold"}},
            ["history", "short_history"],
        ),
    ],
)
def test_wrong_roles(tmp_path, dataset, words):
    with raises_naming(UserError, *words):
        load(write_world(tmp_path, rows=300, **dataset)).load_dataset({"train": True})


def test_a_short_history_that_raw_columns_lack_is_named_by_its_role(tmp_path):
    roles = {"roles": {**ROLES, "histories": [], "history": {"short": "recnt", "long": "clicked"}}}
    columns = [{"name": "shown", "dtype": "str", "type": "categorical"}]
    columns.append({"name": "clicked", "dtype": "str", "type": "sequence", "share_embedding": "shown", "max_len": 3})
    with raises_naming(ConfigError, "short_history", "recnt"):
        load(write_world(tmp_path, "csv", 300, feature_cols=columns, **roles)).load_dataset({"train": True})
