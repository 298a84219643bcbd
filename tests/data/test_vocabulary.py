import dataclasses
import json
import runpy
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.data import decoding, parquet
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.data.vocabulary import UNKNOWN, Encoding, Vocabularies, Vocabulary
from fuxictr_mm.errors import DataError, Interrupted, MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.model import MultimodalModel
from tests import ids as world
from tests.errors import exits_naming, raises_naming
from tests.paths import ROOT
from tests.tensors import assert_equal_tensors, read_tensors

TEXTS = ["B07", "a", "A", "ü", "", "x" * 300, "0", "-1"]
BIG = 2**63 + 11


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (TEXTS, pa.string()),
        (TEXTS, pa.large_string()),
        (TEXTS, pa.string_view()),
        (TEXTS, pa.dictionary(pa.int8(), pa.string())),
        ([text.encode() for text in TEXTS], pa.binary()),
        ([b"0123456789abcdef", b"fedcba9876543210"], pa.binary(16)),
        ([5, -3, 0, 2**62, -(2**63)], pa.int64()),
        ([5, 0, BIG, 2**64 - 1], pa.uint64()),
        ([5, -3, 0], pa.int8()),
        ([5.0, -3.0, 2.0**53], pa.float64()),
    ],
)
def test_ids_of_every_type_become_numbers_and_back(values, kind):
    array = pa.array(values, pa.string() if pa.types.is_dictionary(kind) else kind)
    array = array.dictionary_encode() if pa.types.is_dictionary(kind) else array
    vocabulary = Vocabulary.build([array.slice(0, 1), array, array.slice(1)])
    expected = np.arange(1, len(values) + 1)
    assert vocabulary.encode(array).tolist() == expected.tolist()
    assert vocabulary.decode(expected).to_pylist() == values
    assert vocabulary.decode(np.array([0, len(values) + 1])).to_pylist() == [None, None]
    assert vocabulary.encode(pa.nulls(2, array.type)).tolist() == [0, 0]


def test_integers_of_both_signs_and_types_are_told_apart():
    signed, unsigned = Vocabulary.build([pa.array([-5, 7])]), Vocabulary.build([pa.array([7, BIG], pa.uint64())])
    assert unsigned.encode(pa.array([7, BIG - 2**64, -1, 8])).tolist() == [1, UNKNOWN, UNKNOWN, UNKNOWN]
    assert signed.encode(pa.array([7, 2**64 - 5, 8], pa.uint64())).tolist() == [2, UNKNOWN, UNKNOWN]
    assert Vocabulary.build([pa.array([7]), pa.array([BIG], pa.uint64())]).values.to_pylist() == [7, BIG]
    with pytest.raises(DataError):
        Vocabulary.build([pa.array([-7]), pa.array([BIG], pa.uint64())])


@pytest.mark.parametrize(
    ("built", "asked"),
    [
        (pa.array(["7"]), pa.array([7])),
        (pa.array([7]), pa.array(["7"])),
        (pa.array(["7"]), pa.array([b"7"])),
        (pa.array([7]), pa.array([7.5])),
        (pa.array([2**60]), pa.array([2.0**60])),
        (pa.array([7]), pa.array([True])),
    ],
)
def test_ids_of_another_type_are_refused_with_the_column(built, asked):
    with pytest.raises(DataError, match="f: c"):
        Vocabulary.build([built]).encode(asked, "f: c")


def test_texts_with_one_hash_are_two_ids(monkeypatch):
    from fuxictr_mm.data import vocabulary as module

    real = module._keys

    def colliding(values, seed):
        keys = real(values, seed)
        return keys if seed else keys % 2  # the first seed has two keys only

    monkeypatch.setattr(module, "_keys", colliding)
    texts = pa.array([f"t{i}" for i in range(40)])
    assert Vocabulary.build([texts]).encode(texts).tolist() == list(range(1, 41))
    monkeypatch.setattr(module, "_keys", lambda values, seed: np.zeros(len(values), dtype=np.uint64))
    assert Vocabulary(pa.array(["t0"], pa.large_string())).encode(pa.array(["t0", "t1"])).tolist() == [1, UNKNOWN]


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(
        st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2), max_size=9), max_size=5
    ),
    as_text=st.booleans(),
)
def test_numbers_follow_the_first_occurrence(chunks, as_text):
    if as_text:
        chunks = [[None if v is None else str(v) for v in chunk] for chunk in chunks]
    arrays = [pa.array(chunk, pa.string() if as_text else pa.int64()) for chunk in chunks]
    vocabulary = Vocabulary.build(arrays)
    order = list(dict.fromkeys(v for chunk in chunks for v in chunk if v is not None))
    for chunk, array in zip(chunks, arrays, strict=True):
        assert vocabulary.encode(array).tolist() == [0 if v is None else order.index(v) + 1 for v in chunk]
    assert vocabulary.values.to_pylist() == order


ITEMS = {"text": ["i1", "i2", "i3"], "integer": [-4, 2**40, 9], "with zero": [0, 5, -1]}
PADDING = {"text": ["", None], "integer": [0, None], "with zero": [None]}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(), kind=st.sampled_from(list(ITEMS)), max_len=st.none() | st.integers(1, 4), chunk=st.integers(1, 5)
)
def test_jagged_histories_equal_a_plain_computation(tmp_path, monkeypatch, data, kind, max_len, chunk):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", chunk)
    items, padding = ITEMS[kind], PADDING[kind]
    entry = st.sampled_from([*items, *padding])
    rows = data.draw(st.lists(st.none() | st.lists(entry, max_size=6), min_size=2, max_size=9))
    targets = data.draw(st.lists(st.sampled_from(items), min_size=len(rows), max_size=len(rows)))
    kinds = [pa.string(), pa.large_string()] if kind == "text" else [pa.int64()]
    scalar = data.draw(st.sampled_from(kinds))
    wrapped = data.draw(st.sampled_from([pa.list_, pa.large_list]))(scalar)
    n = len(rows)
    table = {
        "target": pa.array(targets, scalar),
        "clicked": pa.array(rows, wrapped),
        "label": [i % 2 for i in range(n)],
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet", row_group_size=data.draw(st.integers(1, 4)))
    vocabularies = Vocabularies({"item_id": Vocabulary.build([pa.array(items)])})
    how = Encoding("target", "clicked", vocabularies, zero_ends=100)
    files = InteractionFiles(tmp_path / "x", [], np.ones(4, bool), max_len=max_len, encoding=how)
    found = concatenate(files.chunks())
    expected = [[items.index(i) + 1 for i in row or [] if i not in padding][-(max_len or 99) :] for row in rows]
    assert [v.tolist() for v in found.history_values.split(found.history_offsets.diff().tolist())] == expected
    assert found.target.tolist() == [items.index(target) + 1 for target in targets]


def read_history(tmp_path, rows, items, zero_ends=1, kind=None):
    table = {"item_id": [items[0]] * len(rows), "item_seq": pa.array(rows, kind), "label": [0, 1] * (len(rows) // 2)}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    vocabularies = Vocabularies({"item_id": Vocabulary.build([pa.array(items)])})
    how = Encoding(vocabularies=vocabularies, zero_ends=zero_ends)
    return concatenate(InteractionFiles(tmp_path / "x", [], np.ones(9, bool), encoding=how).chunks())


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.list_(pa.int64(), 3)])
def test_zeros_that_pad_are_not_taken_for_item_zero(tmp_path, kind):
    for rows in ([[0, 5, 5], [5, 5, 5]], [[5, 0, 0], [5, 5, 5]]):
        with pytest.raises(DataError, match="item_seq"):
            read_history(tmp_path, rows, [5, 0], kind=kind)
    with pytest.raises(DataError, match="item_seq"):
        read_history(tmp_path, [[0, 0, 5], [5, 5, 5]], [5, 0], zero_ends=2, kind=kind)
    assert read_history(tmp_path, [[0, 5, 5], [5, 0, 5]], [5, 0], 2, kind).history_values.tolist() == [2, 1, 1, 1, 2, 1]
    assert read_history(tmp_path, [[5, 0, 5], [5, 5, 5]], [5, 0], 1, kind).history_values.tolist() == [1, 2, 1, 1, 1, 1]
    # Where 0 is no item it pads.
    assert read_history(tmp_path, [[0, 0, 5], [5, 5, 5]], [5, 6], 1, kind).history_values.tolist() == [1, 1, 1, 1]


def test_lists_of_several_lengths_may_hold_item_zero_anywhere(tmp_path):
    kind = pa.list_(pa.int64())
    found = read_history(tmp_path, [[0, 0], [5], [], [0]], [5, 0], kind=kind)
    assert found.history_values.tolist() == [2, 2, 1, 2]


@pytest.mark.parametrize("column", ["item_id", "item_seq"])
def test_an_item_without_a_row_is_refused_with_row_and_id(tmp_path, column):
    table = {"item_id": ["a", "b"], "item_seq": [["a"], ["b", "a"]], "label": [0, 1]}
    table[column][1] = "gone" if column == "item_id" else ["a", "gone"]
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    how = Encoding(vocabularies=Vocabularies({"item_id": Vocabulary.build([pa.array(["a", "b"])])}))
    with raises_naming(DataError, f"{column}: row 1", "'gone'"):
        list(InteractionFiles(tmp_path / "x", [], np.ones(3, bool), encoding=how).chunks())


def test_saved_vocabularies_are_read_as_they_were(tmp_path):
    path = tmp_path / "new" / "v.parquet"
    values = {"item_id": pa.array([-5, 2**40]), "city": pa.array(["x", "", "é"]), "n": pa.array([BIG], pa.uint64())}
    saved = Vocabularies({name: Vocabulary.build([array]) for name, array in values.items()})
    saved.save(path)
    found = Vocabularies.load(path)
    assert {n: v.values.to_pylist() for n, v in found.items()} == {n: a.to_pylist() for n, a in values.items()}
    assert saved.equal_file(path)
    assert not Vocabularies({"city": saved["city"]}).equal_file(path)
    assert pq.read_table(path).column_names == ["item_id", "city", "n"]  # row i holds the id with the number i
    assert pq.read_table(path)["city"].to_pylist() == [None, "x", "", "é"]


def test_an_old_file_stays_where_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "v.parquet"
    saved = Vocabularies({"a": Vocabulary.build([pa.array(["x"])])})
    saved.save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with raises_naming(UserError, path):
        Vocabularies({"a": Vocabulary.build([pa.array(["y"])])}).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["v.parquet"]


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    table = pq.read_table(path)
    path.unlink()  # another link to the file stays as it is
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        if how == "without metadata":
            table = table.replace_schema_metadata(None)
        elif how == "id twice":
            column = table.columns[0].to_pylist()
            table = table.set_column(0, table.column_names[0], pa.array([None, column[1], column[1], *column[3:]]))
        elif how == "newer":
            content = json.dumps({"format": 2, "sizes": {}})
            table = table.replace_schema_metadata({"fuxictr_mm.vocabulary": content})
        pq.write_table(table, path)


@pytest.mark.parametrize("how", ["cut", "empty", "without metadata", "id twice", "newer"])
def test_a_damaged_file_is_named(tmp_path, how):
    path = tmp_path / "v.parquet"
    Vocabularies({"item_id": Vocabulary.build([world.KINDS["text"].slice(1)])}).save(path)
    damaged(path, how)
    with pytest.raises(DataError, match=r"v\.parquet"):
        Vocabularies.load(path)


def test_what_a_run_does_not_have_is_not_built(tmp_path):
    assert not Vocabularies.load(tmp_path / "v.parquet")
    with raises_naming(MissingFileError, "v.parquet", "'city'"):
        Vocabularies.load(tmp_path / "v.parquet").of("city", lambda: Vocabulary.build([]))


# ---- training: other ids of the same items give the same model


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
    path.unlink() if how == "missing" else damaged(path, how)
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

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "fit", fail)
    with pytest.raises(BaseException):  # noqa: B017
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


# ---- columns of text


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


# ---- which ids are numbered


@pytest.mark.parametrize(
    ("ids", "setting", "numbered"),
    [
        ([1, 2, 3], "auto", False),
        ([0, 1, 2], "auto", True),
        ([-1, 1, 2], "auto", True),
        ([1, 2, 2**31], "auto", True),
        ([1, 2, 5_000_000], "auto", True),
        ([1, 2, 999_999], "auto", False),
        (["1", "2", "3"], "auto", True),
        ([1, 2, 3], "vocabulary", True),
    ],
)
def test_a_vocabulary_is_taken_where_ids_cannot_be_numbers(tmp_path, ids, setting, numbered):
    from fuxictr_mm.data.items import ItemTable

    pq.write_table(pa.table({"item_id": ids, "price": [1.5, 2.5, 3.5]}), tmp_path / "i.parquet")
    features = [Feature("item_id", "categorical", "item"), Feature("price", "numeric", "item")]
    vocabularies = Vocabularies()
    items = ItemTable.from_parquet(str(tmp_path / "i.parquet"), features, ids=setting, vocabularies=vocabularies)
    assert ("item_id" in vocabularies) == numbered
    assert items.num_items == (4 if numbered else max(ids) + 1)


def test_a_row_zero_without_features_is_padding(tmp_path):
    from fuxictr_mm.data.items import ItemTable

    table = {
        "item_id": [0, -7, 9],
        "price": [0.0, 2.5, 3.5],
        "v": pa.array([None, [1.0], [2.0]], pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(table), tmp_path / "i.parquet")
    features = [Feature("item_id", "categorical", "item"), Feature("price", "numeric", "item")]
    features.append(Feature("v", "embedding", "item"))
    vocabularies = Vocabularies()
    items = ItemTable.from_parquet(str(tmp_path / "i.parquet"), features, ids="auto", vocabularies=vocabularies)
    assert vocabularies["item_id"].values.to_pylist() == [-7, 9]
    assert items["price"].tolist() == [0, 2.5, 3.5]


@pytest.mark.parametrize(
    ("ids", "setting", "expected"),
    [
        (["a", "a", "b"], "auto", ["a occurs", "2"]),
        (["a", "", "b"], "auto", ["row 1"]),
        (["a", None, "b"], "auto", ["row 1"]),
        (["a", "c", "b"], "as_is", ["string"]),
        ([1, 2**63 + 1, 3], "as_is", ["9223372036854775809"]),
    ],
)
def test_bad_keys_are_named(tmp_path, ids, setting, expected):
    from fuxictr_mm.data.items import ItemTable

    kind = pa.uint64() if ids[0] == 1 else None
    pq.write_table(pa.table({"article": pa.array(ids, kind)}), tmp_path / "i.parquet")
    features = [Feature("item_id", "categorical", "item")]
    with raises_naming(DataError, "i.parquet: article", *expected):
        ItemTable.from_parquet(str(tmp_path / "i.parquet"), features, target="article", ids=setting)


def test_a_null_among_keys_of_text_is_named(tmp_path):
    from fuxictr_mm.data.items import ItemTable

    pq.write_table(pa.table({"item_id": ["a", None]}), tmp_path / "i.parquet")
    with raises_naming(DataError, "item_id", "row 1", "null") as caught:
        ItemTable.from_parquet(str(tmp_path / "i.parquet"), [Feature("item_id", "categorical", "item")], ids="auto")
    assert "number" not in str(caught.value)
