"""The same data with other ids, or texts in place of numbers, gives the same model."""

import dataclasses
import runpy
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.data import decoding
from fuxictr_mm.data.vocabulary import Vocabularies, Vocabulary
from fuxictr_mm.errors import DataError, Interrupted, MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.model import MultimodalModel
from tests import ids as world
from tests.errors import exits_naming, raises_naming
from tests.paths import ROOT
from tests.tensors import assert_equal_tensors, read_tensors


def fit(folder, found, names=None, resident=True, **changes):
    def change(dataset, experiment):
        dataset.update(changes)
        experiment.update(resident=resident, buffer_rows=200)

    return Experiment.load("X", world.write(folder, found, change, names)).fit()


def assert_same_weights(run, other):
    assert_equal_tensors(read_tensors(run.weights), read_tensors(other.weights))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Runs on ids 1 to N, in memory and streamed, with their predictions."""
    root = tmp_path_factory.mktemp("dense")
    runs = {resident: fit(root / str(resident), world.tables(), resident=resident) for resident in (True, False)}
    return {resident: (run, run.predict()) for resident, run in runs.items()}


@pytest.mark.parametrize(("kind", "resident"), [*((kind, True) for kind in world.KINDS), ("text", False)])
def test_renamed_ids_give_the_same_weights_and_predictions(tmp_path, dense, kind, resident):
    expected, predictions = dense[resident]
    assert not (expected.path / "vocabulary.parquet").exists()
    found = world.with_ids(world.tables(), world.KINDS[kind])
    run = fit(tmp_path, found, world.NAMES, resident)
    assert run.metrics == expected.metrics
    assert_same_weights(run, expected)
    np.testing.assert_array_equal(run.predict(), predictions)
    # In batches of other sizes, which some processors round differently.
    frame = world.renamed(found, world.NAMES)["test"].slice(3, 50)
    np.testing.assert_allclose(run.predict(frame), predictions[3:53], rtol=1e-6)
    if kind != "uuid":  # pandas has no such lists
        np.testing.assert_allclose(run.predict(frame.to_pandas()), predictions[3:53], rtol=1e-6)
    saved = Vocabularies.load(run.path / "vocabulary.parquet")["item_id"]
    assert saved.values.to_pylist() == world.KINDS[kind].slice(1).to_pylist()


@pytest.mark.parametrize("kind", ["text", "uuid", "negative", "sparse"])
def test_padded_histories_give_the_same(tmp_path, dense, kind):
    run = fit(tmp_path, world.with_ids(world.tables(), world.KINDS[kind], padded=20))
    assert_same_weights(run, dense[True][0])


def test_dense_ids_under_other_names_need_no_vocabulary(tmp_path, dense):
    run = fit(tmp_path, world.tables(), world.NAMES)
    assert_same_weights(run, dense[True][0])
    assert not (run.path / "vocabulary.parquet").exists()


def test_dense_ids_give_the_same_with_a_vocabulary(tmp_path, dense):
    run = fit(tmp_path, world.tables(), ids="vocabulary")
    assert_same_weights(run, dense[True][0])
    assert (run.path / "vocabulary.parquet").exists()


def test_the_key_of_the_item_files_may_be_item_id(tmp_path, dense):
    found = world.with_ids(world.tables(), world.KINDS["text"])
    folder = world.write(tmp_path, found, names=world.NAMES)
    table = pq.read_table(folder / "data/items.parquet")
    pq.write_table(table.rename_columns(["item_id", *table.column_names[1:]]), folder / "data/items.parquet")
    assert_same_weights(Experiment.load("X", folder).fit(), dense[True][0])


@pytest.fixture
def text_run(tmp_path):
    found = world.with_ids(world.tables(), world.KINDS["text"])
    return fit(tmp_path, found, world.NAMES), world.renamed(found, world.NAMES), tmp_path


def test_a_reordered_item_file_changes_nothing(text_run):
    run, found, folder = text_run
    before = run.predict()
    order = np.random.default_rng(0).permutation(world.ITEMS)
    pq.write_table(found["items"].take(pa.array(order)), folder / "data/items.parquet")
    np.testing.assert_array_equal(run.predict(), before)


def test_new_items_have_their_features_and_no_embedding_of_their_ids(text_run):
    run, found, folder = text_run
    before = run.predict()
    new = world.put(found["items"].slice(10, 3), "article", pa.array(["new 0", "new 1", "new 2"]))
    pq.write_table(pa.concat_tables([new.slice(0, 1), found["items"], new.slice(1)]), folder / "data/items.parquet")
    np.testing.assert_array_equal(run.predict(), before)
    known = found["items"]["article"][10].as_py()
    rows = found["test"].slice(0, 20)
    as_new = world.put(rows, "article", pa.array(["new 0"] * 20))
    as_known = world.put(rows, "article", pa.array([known] * 20))
    predicted = run.predict(as_new)
    weights = read_tensors(run.weights)
    name = next(name for name in weights if "item_id" in name and name.endswith("weight"))
    number = Vocabularies.load(run.path / "vocabulary.parquet")["item_id"].encode(pa.array([known]))[0]
    assert not np.array_equal(predicted, run.predict(as_known))
    weights[name][number] = 0  # without the embedding of its id, the known item is the new one
    torch.save(weights, run.weights)
    np.testing.assert_array_equal(predicted, run.predict(as_known))
    history = world.put(rows, "clicked", pa.array([["new 1", "new 2"]] * 20))
    assert np.isfinite(run.predict(history)).all()


@pytest.mark.parametrize("model", ["MIND", "DIEN", "Transformer_DCN_Quant"])
def test_new_items_fit_models_with_tables_of_their_own(tmp_path, model):
    found = world.with_ids(world.tables(200), world.KINDS["text"])

    def change(dataset, experiment):
        experiment.update(model=model)
        for key in ("num_heads", "dnn_hidden_units"):
            experiment.pop(key)
        dataset["feature_cols"][-1]["freeze_emb"] = model == "Transformer_DCN_Quant"
        if model == "Transformer_DCN_Quant":
            experiment.update(num_clusters=4, codebook_num=2, top_k=2)

    run = Experiment.load("X", world.write(tmp_path, found, change)).fit()
    before = run.predict()
    new = world.put(found["items"].slice(10, 1), "item_id", pa.array(["new"]))
    pq.write_table(pa.concat_tables([found["items"], new]), tmp_path / "data/items.parquet")
    if model == "Transformer_DCN_Quant":  # its codes are fitted on the items
        with raises_naming(UserError, "1 items"):
            run.predict()
        return
    np.testing.assert_array_equal(run.predict(), before)
    rows = found["test"].slice(0, 9)
    assert np.isfinite(run.predict(world.put(rows, "item_id", pa.array(["new"] * 9)))).all()


@pytest.mark.parametrize("how", ["cut", "missing"])
def test_prediction_needs_the_vocabulary_of_the_run(text_run, how):
    run = text_run[0]
    path = run.path / "vocabulary.parquet"
    content = path.read_bytes()
    path.unlink()  # another link to the file stays as it is
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    with raises_naming((DataError, MissingFileError), "vocabulary.parquet"):
        run.predict()
    experiment = Experiment.of_run(run)
    assert len(experiment.predict()) == 300  # with the weights of the experiment, which have their own


def test_prediction_without_it_is_one_line_and_exit_code_2(text_run, monkeypatch, capsys):
    folder = text_run[2]
    path = folder / "checkpoints/d/X.vocabulary.parquet"
    path.unlink()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["prediction.py", "--config", str(folder), "--expid", "X"])
    with exits_naming(capsys, path):
        runpy.run_path(str(ROOT / "prediction.py"), run_name="__main__")
    assert not (folder / "submission").exists()


def test_a_run_on_ids_from_zero_of_before_is_read_as_it_was(tmp_path):
    found = world.with_ids(world.tables(), world.KINDS["from_zero"])
    found = {name: table.filter(pa.array(table["item_id"].to_numpy() != 0)) for name, table in found.items()}
    zero = found["items"].slice(0, 1)
    found["items"] = pa.concat_tables([world.put(zero, "item_id", pa.array([0])), found["items"]])
    run = fit(tmp_path, found, ids="as_is")
    before = run.predict()
    config = {key: value for key, value in run.config.items() if key != "ids"}
    with pytest.raises(MissingFileError, match="ids: as_is"):
        dataclasses.replace(run, config=config).predict()
    np.testing.assert_array_equal(dataclasses.replace(run, config={**config, "ids": "as_is"}).predict(), before)


def test_another_vocabulary_replaces_the_weights_it_would_misread(text_run, monkeypatch):
    run, found, folder = text_run
    experiment = Experiment.of_run(run)
    pq.write_table(found["items"].take(pa.array(range(999, -1, -1))), folder / "data/items.parquet")
    from fuxictr_mm.training import loop

    monkeypatch.setattr(loop, "fit", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        experiment.fit()
    assert not experiment.paths.weights.exists()
    assert run.weights.exists()
    assert (
        Vocabularies.load(run.path / "vocabulary.parquet")["item_id"].values[0].as_py()
        == world.KINDS["text"][1].as_py()
    )


def test_a_resumed_run_keeps_its_numbers(tmp_path, monkeypatch, dense):
    found = world.with_ids(world.tables(), world.KINDS["text"])
    folder = world.write(tmp_path, found)
    step = MultimodalModel.train_step

    def stop(model, batch):
        signal.raise_signal(signal.SIGINT)
        return step(model, batch)

    monkeypatch.setattr(MultimodalModel, "train_step", stop)
    with pytest.raises(Interrupted):
        Experiment.load("X", folder).fit()
    monkeypatch.setattr(MultimodalModel, "train_step", step)
    assert Experiment.load("X", folder).paths.checkpoint.exists()
    run = Experiment.load("X", folder).fit(resume=True)
    assert_same_weights(run, dense[True][0])


def with_texts(found):
    """Give the context level and the tags of the items as texts."""
    for name in ("train", "valid", "test"):
        level = found[name]["likes_level"].combine_chunks()
        found[name] = world.put(found[name], "likes_level", world.LEVELS.take(level))
    tags = [[f"tag {tag}" for tag in row if tag] for row in found["items"]["item_tags"].to_pylist()]
    found["items"] = world.put(found["items"], "item_tags", pa.array(tags, pa.list_(pa.string())))
    return found


def as_numbers(found):
    """Number level and tags as the vocabularies do."""
    texts = with_texts(dict(found))
    levels = Vocabulary.build([texts["train"]["likes_level"].combine_chunks()])
    tags = Vocabulary.build([decoding.list_entries(texts["items"]["item_tags"].combine_chunks(), "")[0]])
    for name in ("train", "valid", "test"):
        level = levels.encode(texts[name]["likes_level"].combine_chunks())
        found[name] = world.put(found[name], "likes_level", pa.array(np.maximum(level, 0)))
    rows = [tags.encode(pa.array(row, pa.string())).tolist() for row in texts["items"]["item_tags"].to_pylist()]
    found["items"] = world.put(found["items"], "item_tags", pa.array(rows, pa.list_(pa.int64())))
    return found, len(levels) + 1


def test_texts_of_context_and_items_give_the_same_as_their_numbers(tmp_path):
    numbers, size = as_numbers(world.tables())
    columns = {}

    def change(dataset, experiment):
        dataset["feature_cols"][2].update(vocab_size=size)
        columns["numbers"] = dataset["feature_cols"]

    expected = Experiment.load("X", world.write(tmp_path / "numbers", numbers, change)).fit()

    def inferred(dataset, experiment):
        del dataset["feature_cols"][2]["vocab_size"]

    run = Experiment.load("X", world.write(tmp_path / "texts", with_texts(world.tables()), inferred)).fit()
    assert_same_weights(run, expected)
    np.testing.assert_array_equal(run.predict(), expected.predict())
    assert set(Vocabularies.load(run.path / "vocabulary.parquet")) == {"likes_level", "item_tags"}


def test_unseen_values_of_context_have_the_embedding_of_none(tmp_path):
    found = with_texts(world.tables())
    run = fit(tmp_path, found)
    rows = found["test"].slice(0, 30)
    unseen = run.predict(world.put(rows, "likes_level", pa.array(["new"] * 30)))
    none = run.predict(world.put(rows, "likes_level", pa.nulls(30, pa.string())))
    np.testing.assert_array_equal(unseen, none)
    known = run.predict(world.put(rows, "likes_level", pa.array([found["train"]["likes_level"][0].as_py()] * 30)))
    assert not np.array_equal(unseen, known)


def test_a_vocab_size_that_is_too_small_names_the_column_and_the_size(tmp_path):
    found = with_texts(world.tables())
    folder = world.write(tmp_path, found, lambda dataset, _: dataset["feature_cols"][2].update(vocab_size=3))
    with raises_naming(UserError, "likes_level", "vocab_size is 3"):
        Experiment.load("X", folder).fit()


def test_neighbours_of_items_are_ids_of_items(tmp_path):
    order = np.random.default_rng(3).integers(1, world.ITEMS + 1, (world.ITEMS, 4))
    runs = []
    for name, ids in (("dense", None), ("text", world.KINDS["text"])):
        found = world.tables()
        near = order if ids is None else np.array(ids.to_pylist(), dtype=object)[order]
        if ids is not None:
            found = world.with_ids(found, ids)
        found["items"] = found["items"].append_column("near", pa.array(near.tolist()))

        def change(dataset, experiment):
            column = {
                "name": "near",
                "dtype": "str",
                "type": "sequence",
                "source": "item",
                "share_embedding": "item_id",
            }
            dataset["feature_cols"].append(column)

        runs.append(Experiment.load("X", world.write(tmp_path / name, found, change)).fit())
    assert_same_weights(*runs)
