"""Weights are refused the files of a folder that was prepared again with other numbers."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fuxictr_mm as fm
from fuxictr_mm.cli import main
from fuxictr_mm.data.numbering import check_numbering, digest_of, to_metadata
from fuxictr_mm.data.vocabulary import Vocabularies, Vocabulary
from fuxictr_mm.errors import DataError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.yaml_files import dump_yaml, load_yaml
from fuxictr_mm_serving.prepared import NUMBERING
from tests.datasets.command import run
from tests.errors import exits_naming, raises_naming

ITEMS = [f"B{number:03}" for number in range(30)]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "exports"
    folder.mkdir()
    rows = range(300)
    log = {
        "user": [f"u-{7 * row % 12}" for row in rows],
        "asin": [ITEMS[11 * row % 30] for row in rows],
        "time": [1_700_000_000 + row for row in rows],
        "click": [int(row % 7 < 3) for row in rows],
    }
    pl.DataFrame(log).write_csv(folder / "interactions.csv")
    pl.DataFrame({"asin": ITEMS, "kind": ["tea", "books", "mugs"] * 10}).write_csv(folder / "items.csv")
    return folder


@pytest.fixture
def prepare(source, tmp_path):
    def prepare_into(name="shop", change=None):
        """Prepare a folder, after a change of the item file."""
        if change is not None:
            change(pl.read_csv(source / "items.csv")).write_csv(source / "items.csv")
        out = tmp_path / name
        roles = ("--roles", "user=user", "target=asin", "time=time", "--labels", "click")
        assert run("log", "--source", source, "--out", out, *roles, "--overwrite", "--quiet") == 0
        return out

    return prepare_into


@pytest.fixture
def load(tmp_path):
    def load_from(folder, **settings):
        options = {"epochs": 1, "swa_start": None, "model_root": str(tmp_path / "runs"), "verbose": 0, **settings}
        return Experiment.load("DIN_shop", folder, **options)

    return load_from


def strip(folder):
    """Take the digests from all files, as an earlier version wrote them."""
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != NUMBERING.encode()}
        pq.write_table(table.replace_schema_metadata(metadata), path)


def shuffled(items):
    return items.sample(fraction=1, shuffle=True, seed=3)


def test_items_that_were_numbered_again_are_refused(prepare, load, tmp_path, capsys):
    folder = prepare()
    trained = load(folder).fit()
    expected = trained.predict()
    assert prepare() == folder
    assert (fm.load_run(trained.path).predict() == expected).all()  # of the same source
    prepare(change=shuffled)
    scored = fm.load_run(trained.path)
    for score in (
        scored.predict,
        lambda: scored.predict(folder / "test"),
        load(folder).predict,
        lambda: load(folder).load_dataset({"valid": True}, trained.weights),  # as export and diagnose read it
    ):
        with raises_naming(DataError, folder / "items.parquet", "item_id", "vocabulary.parquet"):
            score()
    with exits_naming(capsys, folder / "items.parquet", "item_id"):
        main(["predict", "--runs", str(trained.path), "--out", str(tmp_path / "scores.csv")])
    strip(folder)
    assert scored.predict().shape == expected.shape  # of an earlier version, or another program
    assert NUMBERING not in load(folder).load_dataset({"train": True}).vocabularies.settings
    assert prepare() == folder
    kept = Vocabularies.load(trained.path / "vocabulary.parquet")
    del kept.settings[NUMBERING]
    kept.save(trained.path / "vocabulary.parquet")
    assert scored.predict().shape == expected.shape  # weights of an earlier version


def test_a_category_that_was_numbered_again_is_refused(prepare, load):
    folder = prepare()
    trained = load(folder).fit()
    swapped = {"tea": "books", "books": "tea"}
    prepare(change=lambda items: items.with_columns(pl.col("kind").replace(swapped)))
    with raises_naming(DataError, folder / "items.parquet", "kind"):
        trained.predict()


def test_rows_are_not_read_with_items_of_another_numbering(prepare, load):
    one, other = prepare(), prepare("other", shuffled)
    with raises_naming(DataError, other / "train", one / "items.parquet", "item_id"):
        load(one, train_data=str(other / "train")).load_dataset({"train": True})


def test_embeddings_of_another_numbering_are_refused(prepare, load, tmp_path, capsys):
    folder, other = prepare(), tmp_path / "vectors.parquet"
    ids = pl.read_parquet(folder / "items.parquet").select("item_id")
    metadata = pq.read_schema(folder / "items.parquet").metadata
    table = ids.with_columns(pl.Series("v", np.eye(len(ids), 4, dtype=np.float32).tolist())).to_arrow()
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "v.parquet")
    words = ["embed", "reduce", f"{tmp_path}/v.parquet:v", "--dim", "2", "--quiet", "--overwrite"]
    main([*words, "--out", str(other)])
    config = folder / "dataset_config.yaml"

    def add_embeddings():
        content = load_yaml(config)
        content["shop"]["item_info"] = ["./items.parquet", str(other)]
        feature = {"name": "item_emb_v", "dtype": "float", "type": "embedding", "source": "item"}
        content["shop"]["feature_cols"].append(feature)
        config.write_text(dump_yaml(content))

    add_embeddings()
    load(folder).load_dataset({"train": True})
    prepare(change=shuffled)
    add_embeddings()
    with raises_naming(DataError, other, folder / "items.parquet", "item_id"):
        load(folder).load_dataset({"train": True})
    with exits_naming(capsys, tmp_path / "v.parquet", folder / "items.parquet", "item_id"):
        sources = [f"a={folder}/items.parquet:item_id", f"b={tmp_path}/v.parquet:v"]
        main(["embed", "reduce", *sources, *words[3:], "--out", str(tmp_path / "x.parquet")])
    strip(tmp_path)  # of another program
    load(folder).load_dataset({"train": True})


def test_digests_are_of_values_and_order():
    texts = pa.array(["1", "2", "30"], pa.large_string())
    behind = pa.array(["x", "1", "2", "30"], pa.large_string()).slice(1)
    assert len({digest_of(Vocabulary(values)) for values in (texts, behind, pa.array([1, 2, 30]))}) == 1
    others = [
        pa.array(v, pa.large_string()) for v in (["2", "1", "30"], ["12", "", "30"], ["1", "2"], ["1", "23", "0"])
    ]
    assert len({digest_of(Vocabulary(values)) for values in (texts, *others)}) == 5


@pytest.mark.parametrize("continues", [True, False])
def test_rows_that_continue_the_items_are_told_from_rows_of_another_order(continues):
    items = to_metadata({"item_id": "1"})
    rows = to_metadata({"item_id": "2"}, {"item_id": {"1": 9}} if continues else None)
    files = [(Path("items.parquet"), items), (Path("rows.parquet"), rows)]
    with raises_naming(DataError, "rows.parquet", "items.parquet", "more numbers" if continues else "another order"):
        check_numbering([], files, [], Vocabularies())
