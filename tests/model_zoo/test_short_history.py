"""Models of long histories whose newest items are a column of their own."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from fuxictr_mm.data.loaders import gather
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.serving.export import export
from tests.errors import raises_naming
from tests.projects import write_project
from tests.several_histories import ITEMS, rows_of

SEARCHES = {
    "SIM": {},
    "SIM_hard": {"model": "SIM", "search_by": "hard", "category": "codes"},
    "ETA": {"hash_bits": 8},
    "TWIN": {},
    "MUSE": {"content": "content"},
    "MUSE_code": {"model": "MUSE", "content": "content", "form": "code"},
    "SEMINAR": {"codes": ["codes"], "aligned": ["item_id", "content"]},
}
ROWS = 40


@pytest.fixture
def folder(tmp_path):
    """Write rows whose column ``recent`` has the two newest items of ``bought``."""
    for seed, split in enumerate(("train", "valid", "test")):
        rows = rows_of(ROWS, seed).select("user", "shown", "bought", "clicked", "label")
        rows = rows.with_columns(recent=pl.col("bought").list.tail(2))
        rows.write_parquet(tmp_path / f"{split}.parquet")
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(ITEMS, 4, generator=generator).numpy()
    items = {"shown": range(1, ITEMS + 1), "codes": [i % 4 for i in range(ITEMS)], "content": content}
    pl.DataFrame(items).with_columns(pl.col("content").arr.to_list()).write_parquet(tmp_path / "items.parquet")
    item = {"source": "item"}
    columns = [
        {"name": "user", "dtype": "int", "type": "meta"},
        {"name": "shown", "dtype": "int", "type": "categorical", **item},
        {"name": "content", "dtype": "float", "type": "embedding", "embedding_dim": 8, **item},
        {"name": "codes", "dtype": "int", "type": "categorical", "vocab_size": 5, "embedded": False, **item},
    ]
    entry = {
        "data_root": str(tmp_path), "data_format": "parquet", "item_info": str(tmp_path / "items.parquet"),
        "feature_cols": columns, "label_col": {"name": "label"},
        **{f"{split}_data": str(tmp_path / f"{split}.parquet") for split in ("train", "valid", "test")},
    }  # fmt: skip
    base = {"target": "shown", "user": "user"}
    histories = {"one": "bought", "two": {"short": "recent", "long": "bought"}}
    datasets = {name: {**entry, "roles": {**base, "history": history}} for name, history in histories.items()}
    settings = {
        "batch_size": 10, "epochs": 1, "embedding_dim": 8, "verbose": 0, "dnn_hidden_units": [8], "top_k": 3,
        "short_len": 2, "metrics": ["AUC"], "tensorboard": False, "model_root": str(tmp_path / "checkpoints"),
        "seed": 1,
    }  # fmt: skip
    experiments = {
        f"{name}_{dataset}": {"model": name, "dataset_id": dataset, **settings, **own}
        for name, own in SEARCHES.items()
        for dataset in datasets
    }
    return write_project(tmp_path, experiments, datasets)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_column_of_the_newest_items_is_read_in_their_place(folder, float64, name):
    one, two = (Experiment.load(f"{name}_{dataset}", folder) for dataset in ("one", "two"))
    rows = torch.arange(ROWS)
    scores = {}
    for experiment in (one, two):
        dataset = experiment.load_dataset({"train": True})
        torch.manual_seed(2)
        model = experiment.build_model(dataset).double().eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
        batch = gather(dataset.splits["train"], rows)
        scores[experiment.config.expid] = model(batch)["logit"]
    torch.testing.assert_close(*scores.values(), rtol=1e-9, atol=1e-9)
    recent = batch.context["recent"]
    other = {**batch.context, "recent": recent.with_values(recent.values % ITEMS + 1)}
    moved = model(replace(batch, context=other))["logit"] - scores[two.config.expid]
    assert (moved != 0).all()
    empty = type(recent)(recent.values[:0], torch.zeros_like(recent.offsets))
    assert model(replace(batch, context={**batch.context, "recent": empty}))["logit"].isfinite().all()
    with raises_naming(ConfigError, "'recent'"):
        model(replace(batch, context={}))


def test_from_training_to_predictions_and_no_export(folder):
    streamed, experiment = (Experiment.load("MUSE_two", folder, resident=how, shuffle=False) for how in (False, True))
    assert streamed.fit().valid == experiment.fit().valid
    assert experiment.predict().shape == (ROWS,)
    with raises_naming(ConfigError, "MUSE", "'recent'"):
        export(experiment, folder / "export")
