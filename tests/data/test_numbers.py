"""Numeric features are filled and scaled when they are read, by numbers that are kept with the run."""

import dataclasses
import json
import logging
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.data.decoding import decode_numbers
from fuxictr_mm.data.numbers import Moments, apply_scale
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.errors import ConfigError, DataError, Interrupted
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.serving.export import _describe, export
from fuxictr_mm.serving.graph_files import Written
from fuxictr_mm.serving.tables import zoo_parts
from fuxictr_mm.training.run import _warn_of_unscaled
from fuxictr_mm_serving import Export
from fuxictr_mm_serving.features import ContextField
from fuxictr_mm_serving.manifest import FieldEntry
from tests import ids as world
from tests.errors import raises_naming

#: Rows of train, and of valid and test.
ROWS = 300


def numbers_of(seed, count, mean):
    return np.random.default_rng(seed).normal(mean, 400, count)


TEXT = world.KINDS["text"]
AGE = {"name": "age", "dtype": "float", "type": "numeric"}
PRICE = {"name": "price", "dtype": "float", "type": "numeric", "source": "item"}
SCALED = {"normalizer": "StandardScaler"}


@pytest.fixture
def make(tmp_path):
    """Write a dataset with a number of the context and one of the items, other in each split, and with gaps."""

    def write(*columns, gaps=False, text=False, **settings):
        found = world.tables(ROWS)
        if text:
            found = world.with_ids(found, TEXT)
        for seed, name in enumerate(("train", "valid", "test", "items")):
            values = numbers_of(seed, len(found[name]), 1000 * (seed + 1))
            mask = np.arange(len(values)) % 7 == 3 if gaps else None
            column = pa.array(values, mask=mask)
            found[name] = found[name].append_column("price" if name == "items" else "age", column)

        def change(dataset, experiment):
            dataset["feature_cols"] += [dict(column) for column in columns]
            experiment.update(settings)

        return world.write(tmp_path, found, change)

    return write


def load(folder, **splits):
    return Experiment.load("X", folder).load_dataset(splits or {"train": True, "valid": True})


def change_config(folder, change):
    path = folder / "dataset_config.yaml"
    content = json.loads(path.read_text())
    change(content["d"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("normalizer", ["StandardScaler", "MinMaxScaler"])
def test_a_column_of_the_interactions_is_scaled_by_the_training_split(make, normalizer, resident):
    dataset = load(make({**AGE, "normalizer": normalizer}, resident=resident))
    train, valid = numbers_of(0, ROWS, 1000), numbers_of(1, ROWS // 2, 2000)
    shift, scale = train.mean(), train.std()
    if normalizer == "MinMaxScaler":
        shift, scale = train.min(), np.ptp(train)
    found = dataset.splits["valid"].context["age"].numpy()
    np.testing.assert_array_equal(found, ((valid - shift) / scale).astype(np.float32))
    assert dataset.summaries["train"].numbers["age"].mean == pytest.approx((train.mean() - shift) / scale, abs=1e-6)


def test_a_column_of_the_items_is_scaled_by_the_items(make):
    items = load(make({**PRICE, **SCALED})).items
    values = numbers_of(3, world.ITEMS, 4000)
    expected = ((values - values.mean()) / values.std()).astype(np.float32)
    np.testing.assert_allclose(items["price"].numpy(), [0, *expected], rtol=1e-6)


def test_missing_numbers_become_fill_na_before_the_statistics(make):
    dataset = load(make({**AGE, **SCALED, "fill_na": 5}, {**PRICE, "fill_na": 2.5}, gaps=True))
    train = numbers_of(0, ROWS, 1000)
    train[3::7] = 5
    expected = ((train - train.mean()) / train.std()).astype(np.float32)
    np.testing.assert_allclose(dataset.splits["train"].context["age"].numpy(), expected, rtol=1e-5)
    prices = dataset.items["price"].numpy()
    assert prices[0] == 0
    assert (prices[4::7] == 2.5).all()


def test_nan_and_items_without_a_row_become_fill_na(make, caplog):
    folder = make({**PRICE, "fill_na": -1.0})
    items = pq.read_table(folder / "data" / "items.parquet")
    prices = items.select(["item_id", "price"]).slice(0, 10)
    prices = world.put(prices, "price", pa.array([np.nan, *range(9)]))
    pq.write_table(items.drop(["price"]), folder / "data" / "items.parquet")
    pq.write_table(prices, folder / "data" / "prices.parquet")
    change_config(folder, lambda d: d.update(item_info=[d["item_info"], str(folder / "data" / "prices.parquet")]))
    found = load(folder).items["price"].tolist()
    assert found[:12] == [0, -1, *range(9), -1]
    assert "set to -1" in caplog.text


def test_null_without_fill_na_names_it(make):
    with raises_naming(DataError, "age", "row 3", "fill_na"):
        load(make(AGE, gaps=True))


@pytest.fixture
def trained(make):
    folder = make({**AGE, **SCALED, "fill_na": 900}, {**PRICE, **SCALED, "fill_na": 0}, gaps=True, text=True)
    return folder, Experiment.load("X", folder).fit()


def replace_files(folder):
    """Other training rows and items: the numbers of the run must not follow them."""
    for name, column in (("train", "age"), ("items", "price")):
        path = folder / "data" / f"{name}.parquet"
        table = pq.read_table(path)
        if name == "items":  # further items with huge prices
            more = world.put(table.slice(0, 5), "item_id", pa.array([f"new {n}" for n in range(5)]))
            more = world.put(more, column, pa.array([1e6] * 5))
            table = pa.concat_tables([table, more])
        else:
            table = world.put(table, column, pa.array(numbers_of(9, len(table), -5000)))
        pq.write_table(table, path)


def test_a_prediction_scales_by_the_numbers_of_the_run(trained):
    folder, run = trained
    expected = run.predict()
    test = folder / "data" / "unlabelled.parquet"
    pq.write_table(pq.read_table(folder / "data" / "test.parquet").drop(["label"]), test)
    replace_files(folder)
    np.testing.assert_array_equal(run.predict(test), expected)
    kept = Vocabularies.load(run.path / "vocabulary.parquet").settings
    assert sorted(next(iter(kept.values()))) == ["age", "price"]


def test_a_prediction_without_the_numbers_of_the_run_is_refused(make):
    run = Experiment.load("X", make({**PRICE, **SCALED})).fit()
    (run.path / "vocabulary.parquet").unlink()
    with raises_naming(DataError, "price", "normalizer", "vocabulary.parquet"):
        run.predict()


def test_a_resumed_run_scales_by_the_same_numbers(make, trained, monkeypatch, tmp_path_factory):
    folder, run = trained
    step = MultimodalModel.train_step

    def stop(model, batch):
        signal.raise_signal(signal.SIGINT)
        return step(model, batch)

    options = {"model_root": str(tmp_path_factory.mktemp("other"))}
    monkeypatch.setattr(MultimodalModel, "train_step", stop)
    with pytest.raises(Interrupted):
        Experiment.load("X", folder, **options).fit()
    monkeypatch.setattr(MultimodalModel, "train_step", step)
    resumed = Experiment.load("X", folder, **options).fit(resume=True)
    assert resumed.valid == run.valid


def test_what_serves_scales_as_training_does(trained):
    folder, run = trained
    experiment = Experiment.load("X", folder)
    dataset = experiment.load_dataset({"valid": True}, run.weights)
    parts = zoo_parts(experiment.build_model(dataset).eval(), dataset, experiment)
    manifest = _describe(experiment, parts, dataset, Written(), "fp32")
    entry = next(entry for entry in manifest["context"] if entry["name"] == "age")
    train = np.where(np.arange(ROWS) % 7 == 3, 900, numbers_of(0, ROWS, 1000))
    assert (entry["shift"], entry["scale"]) == pytest.approx((train.mean(), train.std()))
    assert entry["fill_na"] == 900
    field = ContextField("age", entry["column"], entry["type"], None, None, FieldEntry(**entry))
    given = pq.read_table(folder / "data" / "valid.parquet")["age"].to_pylist()
    np.testing.assert_array_equal(field.encode(given, "age"), dataset.splits["valid"].context["age"].numpy())


@pytest.mark.slow
def test_an_export_scales_as_the_model_does(trained, tmp_path):
    pytest.importorskip("onnxscript")
    folder, _ = trained
    out = tmp_path / "export"
    parity = export(Experiment.load("X", folder), out)
    assert parity["largest_difference"] <= 1e-5
    target, seen = TEXT[5].as_py(), [TEXT[7].as_py()]
    row = {"age": [None, 900.0], "likes_level": [1, 1], "item_id": [target] * 2, "item_seq": [seen] * 2}
    scores = Export(out).score_rows(row)
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("column", "changes", "named"),
    [
        ("likes_level", {"normalizer": "StandardScaler"}, ["numeric"]),
        ("likes_level", {"fill_na": 3}, ["numeric"]),
        ("likes_level", {"min_categr_count": 2}, []),
        ("likes_level", {"remap": True}, []),
        ("likes_level", {"preprocess": "copy_from(user_id)"}, []),
        ("likes_level", {"pretrained_emb": "e.npz"}, ["item_info", "embedding"]),
        ("item_tags", {"splitter": "^"}, ["split"]),
        ("item_emb_d16", {"normalizer": "MinMaxScaler"}, ["norm"]),
        ("age", {"fill_na": "none"}, ["number"]),
        ("age", {"normalizer": "StandardScaler", "in_item_dict": True}, ["in_item_dict"]),
    ],
)
def test_settings_of_an_encoding_are_refused_with_item_files(make, column, changes, named):
    folder = make(AGE)
    change_config(folder, lambda d: next(c for c in d["feature_cols"] if c["name"] == column).update(changes))
    with raises_naming(ConfigError, column, *changes, *named):
        load(folder)


def test_settings_of_the_dataset_are_refused_with_item_files(make):
    folder = make()
    change_config(folder, lambda d: d.update(min_categr_count=10))
    with raises_naming(ConfigError, "min_categr_count", "10"):
        load(folder)
    change_config(folder, lambda d: d.update(min_categr_count=1, label_col={"name": "label", "fill_na": 0}))
    with raises_naming(ConfigError, "label", "fill_na"):
        load(folder)


def test_settings_that_change_nothing_are_accepted(make):
    folder = make()
    changes = {"remap": False, "min_categr_count": 1}
    change_config(folder, lambda d: (d["feature_cols"][0].update(changes), d["feature_cols"][2].update(changes)))
    load(folder)


def test_training_warns_of_unscaled_numbers_in_one_line(make, caplog):
    folder = make(AGE, PRICE)
    with caplog.at_level(logging.WARNING):
        Experiment.load("X", folder).fit()
    lines = [record.message for record in caplog.records if "normalizer" in record.message]
    assert len(lines) == 1
    assert "age" in lines[0]
    assert "price" in lines[0]
    caplog.clear()
    change_config(folder, lambda d: [c.update(SCALED) for c in d["feature_cols"] if c["type"] == "numeric"])
    with caplog.at_level(logging.WARNING):
        Experiment.load("X", folder).fit()
    assert not [record for record in caplog.records if "normalizer" in record.message]


def test_a_long_tail_is_warned_of_without_the_normalizer_that_it_has(make, caplog):
    folder = make({**AGE, **SCALED})
    path = folder / "data" / "train.parquet"
    table = pq.read_table(path)
    ages = np.where(np.arange(ROWS * 50) == 7, 1e9, numbers_of(0, ROWS * 50, 0))
    pq.write_table(world.put(pa.concat_tables([table] * 50), "age", pa.array(ages)), path)
    dataset = load(folder)
    with caplog.at_level(logging.WARNING):
        _warn_of_unscaled(dataset, Experiment.load("X", folder).config.dataset)
    (line,) = [record.message for record in caplog.records if "age" in record.message]
    assert "log" in line
    assert "normalizer" not in line


@pytest.mark.parametrize("by", ["row", "time"])
def test_folds_are_scaled_by_all_training_rows(make, by):
    folder = make({**AGE, **SCALED})
    whole = np.concatenate([load(folder).splits[name].context["age"].numpy() for name in ("train", "valid")])
    options = {"fold": {"number": 2, "of": 3, "by": by}, "resident": True}
    found = Experiment.load("X", folder, **options).load_dataset({"train": True, "valid": True})
    assert np.isin(np.concatenate([found.splits[n].context["age"].numpy() for n in ("train", "valid")]), whole).all()
    assert found.vocabularies.settings == load(folder).vocabularies.settings


@pytest.mark.parametrize(
    ("values", "unscaled"),
    [
        ([0, 1, 0, 1], False),
        ([-1, 1, 3, 5], False),
        ([0] * 9999 + [1], False),
        ([1e9, 1e9 + 1], True),
        ([0, 1e3], True),
        ([0, 1e-4], True),
        ([0] * 9999 + [500], True),
    ],
)
def test_what_is_called_unscaled(values, unscaled):
    assert Moments.of(np.array(values, dtype=float)).is_unscaled is unscaled


def test_moments_of_chunks_are_those_of_all():
    values = numbers_of(0, 1000, 1e9)
    found = Moments()
    for chunk in np.split(values, [0, 3, 500]):
        found.add(Moments.of(chunk))
    assert dataclasses.astuple(found)[1:] == pytest.approx(dataclasses.astuple(Moments.of(values))[1:])
    assert found.deviation == pytest.approx(values.std())


@pytest.mark.parametrize("normalizer", ["StandardScaler", "MinMaxScaler"])
@pytest.mark.parametrize("value", [7.0, 0.1, 0.3, 1e9 + 0.1])
def test_a_constant_column_is_shifted_alone(normalizer, value):
    """Also where its mean is not quite the constant by rounding."""
    moments = Moments.of(np.full(2**20 + 7, value))
    assert moments.scale(normalizer, "x") == (value, 1.0)
    assert moments.deviation == 0
    assert moments.is_unscaled is (value > 10)


SCALED_AGE = Feature("age", "numeric", fill_na=0.0, normalizer="StandardScaler")


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_integers_that_no_float_holds_are_filled(kind):
    """Such as nanoseconds since 1970, which are beyond 2**53."""
    found = decode_numbers(pa.array([2**60 + 1, None], kind), "f: age", 0, SCALED_AGE)
    assert found.tolist() == [2.0**60, 0.0]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_number_without_fill_na_names_it(missing):
    with raises_naming(DataError, "f: age", "row 12", "fill_na"):
        decode_numbers(pa.array([1.0, 2.0, missing]), "f: age", 10, Feature("age", "numeric"))


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_too_large_are_refused_without_a_warning():
    for values in ([-1.7e308, 1.7e308, 1e308], [1.7e308, -1.7e308]):
        moments = Moments()
        for value in values:
            moments.add(Moments.of(np.array([value])))
        for found in (Moments.of(np.array(values)), moments):
            with raises_naming(DataError, "x", "normalizer"):
                found.scale("StandardScaler", "x")
    with raises_naming(DataError, "x", "row 5"):
        apply_scale(np.array([-1.7e308]), (1.7e308, 1e-3), "x", 5)


def test_large_integers_keep_their_differences(make):
    """Which float32 does not hold beyond 2**24: they are scaled in float64, of rows and of items."""
    folder = make({**AGE, **SCALED}, {**PRICE, **SCALED})
    exact = {}
    for name, column in (("train", "age"), ("items", "price")):
        path = folder / "data" / f"{name}.parquet"
        table = pq.read_table(path)
        exact[column] = 1_700_000_000 + np.arange(len(table)) % 50
        pq.write_table(world.put(table, column, pa.array(exact[column])), path)
    dataset = load(folder)
    found = {"age": dataset.splits["train"].context["age"].numpy(), "price": dataset.items["price"].numpy()[1:]}
    for column, values in exact.items():
        expected = (values - values.mean()) / values.std()
        np.testing.assert_allclose(found[column], expected, rtol=1e-6, atol=1e-6)
