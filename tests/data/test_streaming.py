"""Streaming a file gives what its rows in memory give, in another order and in bounded memory."""

import logging
import shutil
import threading
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.data import item_columns, parquet, streaming
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import InteractionTable, concatenate
from fuxictr_mm.data.loaders import InMemoryLoader
from fuxictr_mm.data.shards import Shard
from fuxictr_mm.data.streaming import StreamingLoader
from fuxictr_mm.data.summary import summarize
from fuxictr_mm.errors import DataError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.training import loop
from fuxictr_mm.training.resume import TrainingCheckpoint
from tests.data.streams import FEATURES, KNOWN, epoch, flat, reading_threads, rows_of, write
from tests.errors import raises_naming
from tests.kills import Killed, kill_at_step
from tests.paths import ROOT, TINY
from tests.tensors import assert_equal_tensors

layouts = given(
    rows=st.integers(1, 60),
    parts=st.integers(1, 4),
    group=st.integers(1, 30),
    chunk=st.integers(1, 30),
    batch_size=st.integers(1, 40),
    buffer_rows=st.integers(1, 120),
    shuffle=st.booleans(),
    data=st.data(),
)


def compare_with_resident(tmp_path, monkeypatch, rows, parts, group, chunk, batch_size, buffer_rows, shuffle, data):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", chunk)
    files = write(tmp_path / "parts", rows, parts, group)
    options = {"shuffle": shuffle, "seed": 3}
    loader = StreamingLoader(files, batch_size, buffer_rows=buffer_rows, **options)
    resident = InMemoryLoader(concatenate(files.chunks()), batch_size, **options)
    batches = epoch(loader)
    assert [len(b) for b in batches] == [len(b) for b in epoch(resident)]
    assert len(batches) == len(loader) == len(resident)
    assert loader.num_samples == rows
    assert sorted(flat(batches)) == list(range(1, rows + 1))
    if not shuffle:
        assert flat(batches) == list(range(1, rows + 1))
    first = data.draw(st.integers(0, len(batches)))
    loader.start_at(0, sum(len(batch) for batch in batches[:first]))
    assert epoch(loader) == batches[first:]
    other_size = StreamingLoader(files, data.draw(st.integers(1, 40)), buffer_rows=buffer_rows, **options)
    row = data.draw(st.integers(0, rows))
    other_size.start_at(0, row)
    assert flat(epoch(other_size)) == flat(batches)[row:]


def examples(number):
    return settings(max_examples=number, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


test_every_row_once_in_batches_as_of_the_resident_loader = examples(20)(layouts(compare_with_resident))
test_every_row_once_in_more_layouts = pytest.mark.slow(examples(60)(layouts(compare_with_resident)))


def test_row_tells_where_the_handed_out_batches_end(tmp_path):
    loader = StreamingLoader(write(tmp_path, 23), 4, buffer_rows=9, shuffle=True, shard=Shard(1, 2))
    assert [loader.row for _ in loader] == [8, 16, 23]
    loader.start_at(0, 8)
    assert [loader.row for _ in loader] == [16, 23]


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_keep_their_columns_and_histories(tmp_path, shuffle):
    files = write(tmp_path, 333, parts=3, group=20)
    loader = StreamingLoader(files, 7, buffer_rows=50, shuffle=shuffle)
    resident = InMemoryLoader(concatenate(files.chunks()), 7)
    assert sorted(rows_of(loader)) == sorted(rows_of(resident))
    loader.start_at(0, 140)
    assert set(rows_of(loader)) < set(rows_of(resident))


def test_the_order_depends_on_seed_and_epoch_alone(tmp_path):
    files = write(tmp_path, 200, parts=2)

    def make(seed):
        return StreamingLoader(files, 8, buffer_rows=60, shuffle=True, seed=seed)

    loader = make(1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = epoch(loader), epoch(loader)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = make(1)
    assert [epoch(again), epoch(again)] == [first, second]
    assert first != second
    assert epoch(make(2)) not in (first, second)
    again.start_at(1, 24)
    assert epoch(again) == second[3:]
    assert again.epoch == 2
    assert epoch(again) == epoch(loader)


def test_shuffling_reaches_over_part_files_and_mixes_within_the_buffer(tmp_path):
    """Of 20 files of 50 rows and a buffer of 200 rows, each batch of 20 holds rows of several files."""
    files = write(tmp_path, 1000, parts=20, group=50)
    batches = epoch(StreamingLoader(files, 20, buffer_rows=200, shuffle=True))
    origins = [{(item - 1) // 50 for item in batch} for batch in batches]
    assert np.mean([len(o) for o in origins]) > 3
    assert len(set.union(*origins[:10])) > 4
    moved = np.abs(np.argsort(flat(batches)) - np.arange(1000))
    assert moved.mean() > 250  # a third of the rows for a uniform order


def test_a_buffer_of_all_rows_shuffles_all(tmp_path):
    files = write(tmp_path, 600, group=600)
    batches = epoch(StreamingLoader(files, 30, buffer_rows=1200, shuffle=True, seed=5))
    moved = np.abs(np.array(flat(batches)) - 1 - np.arange(600))
    assert 170 < moved.mean() < 230


def test_row_groups_larger_than_the_buffer_are_warned_of(tmp_path, caplog):
    files = write(tmp_path, 100, group=50)
    with caplog.at_level(logging.WARNING):
        StreamingLoader(files, 5, buffer_rows=50, shuffle=True)
        StreamingLoader(files, 5, buffer_rows=10)
        assert not caplog.records
        StreamingLoader(files, 5, buffer_rows=49, shuffle=True)
    assert "a row group of 50 rows is larger than buffer_rows (49)" in caplog.text


@pytest.mark.parametrize("shuffle", [True, False])
def test_memory_is_bounded_by_the_buffer(tmp_path, monkeypatch, shuffle):
    """Rows that are alive at a time: those decoded and those in blocks; the same for a file four times as long."""
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 20)
    lock, alive, most = threading.Lock(), 0, 0

    def count(holder, rows):
        nonlocal alive, most

        def forget():
            nonlocal alive
            with lock:
                alive -= rows

        with lock:
            alive += rows
            most = max(most, alive)
        weakref.finalize(holder, forget)

    decode_target, join = item_columns.decode_target, concatenate

    def counted_decode(*arguments):
        ids = decode_target(*arguments)
        count(ids, len(ids))
        return ids

    def counted_join(chunks):
        table = join(chunks)
        count(table, len(table))
        return table

    monkeypatch.setattr(item_columns, "decode_target", counted_decode)
    monkeypatch.setattr(streaming, "concatenate", counted_join)
    peaks = []
    for rows in (1000, 4000):
        most = 0
        files = write(tmp_path / str(rows), rows, parts=2, group=100)
        loader = StreamingLoader(files, 10, buffer_rows=100, shuffle=shuffle)
        assert sum(len(batch) for batch in loader) == rows
        loader.start_at(0, rows - 20)
        assert sum(len(batch) for batch in loader) == 20
        peaks.append(most)
    assert max(peaks) <= 400  # the buffers of two rounds, the rows of two rounds, their chunks


def test_a_bad_row_far_into_the_file_ends_with_its_message(tmp_path):
    files = write(tmp_path, 100)
    table = pq.read_table(tmp_path / "00.parquet")
    bad = table["item_id"].to_pylist()
    bad[77] = 0
    pq.write_table(table.set_column(1, "item_id", pa.array(bad)), tmp_path / "00.parquet", row_group_size=10)
    files = InteractionFiles(tmp_path, FEATURES, KNOWN, group_id="user_id")
    named = ("00.parquet", "item_id", "row 77", " 0,")
    for shuffle in (False, True):
        with raises_naming(DataError, *named):
            epoch(StreamingLoader(files, 5, buffer_rows=20, shuffle=shuffle))
    with raises_naming(DataError, *named):
        summarize(files)
    assert not reading_threads()


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"PAR1 no more")])
def test_a_file_that_vanishes_or_breaks_amid_an_epoch_says_so(tmp_path, monkeypatch, change):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 20)
    batches = iter(StreamingLoader(write(tmp_path, 400, parts=4), 5))
    next(batches)
    change(tmp_path / "03.parquet")
    with raises_naming(DataError, "03.parquet"):
        list(batches)
    assert not reading_threads()


def test_leaving_early_ends_the_thread(tmp_path):
    loader = StreamingLoader(write(tmp_path, 500), 5, buffer_rows=20, shuffle=True)
    for _ in loader:
        assert len(reading_threads()) == 1
        break
    assert not reading_threads()
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):  # noqa: PT012
            for _ in loader:
                raise error
        assert not reading_threads()
    forgotten = iter(loader)
    next(forgotten)
    del forgotten
    assert not reading_threads()
    assert len(flat(epoch(loader))) == 500
    assert not reading_threads()


def test_two_passes_at_a_time_do_not_disturb_each_other(tmp_path):
    loader = StreamingLoader(write(tmp_path, 60), 7, buffer_rows=20)
    for one, other in zip(loader, loader, strict=True):
        assert torch.equal(one.target, other.target)


def test_a_view_is_applied(tmp_path):
    loader = StreamingLoader(write(tmp_path, 10), 4, view=len)
    assert list(loader) == [4, 4, 2]


def prepare(folder, expid="DIN_MM_tiny", **settings):
    """Return model, loaders and training checkpoint of an experiment whose training rows are streamed."""
    overrides = {"model_root": str(folder), "verbose": 0, "batch_size": 500, "net_dropout": 0.2}
    overrides |= {"resident": False, "buffer_rows": 2000}
    experiment = Experiment.load(expid, ROOT, **{**overrides, **settings})
    torch.manual_seed(experiment.config.seed)
    dataset = experiment.load_dataset({"train": True, "valid": True})
    assert isinstance(dataset.splits["train"], InteractionFiles)
    assert isinstance(dataset.splits["valid"], InteractionTable)
    model = experiment.build_model(dataset)
    train = experiment.make_loader(dataset.splits["train"], model, shuffle=True)
    valid = experiment.make_loader(dataset.splits["valid"], model)
    assert isinstance(train, StreamingLoader)
    return model, train, valid, TrainingCheckpoint(folder / "run.snapshot", "hash", every_seconds=0)


@pytest.mark.slow
def test_the_same_weights_after_kills(tmp_path):
    model, train, valid, checkpoint = prepare(tmp_path / "whole")
    history = loop.fit(model, train, 2, valid, checkpoint=checkpoint)
    expected = model.state_dict()
    for step in (1, 11, 18):
        model, train, valid, checkpoint = prepare(tmp_path / "killed")
        kill_at_step(model, step)
        with pytest.raises(Killed):
            loop.fit(model, train, 2, valid, checkpoint=checkpoint, resume=True)
        assert not reading_threads()
    torch.manual_seed(999)
    model, train, valid, checkpoint = prepare(tmp_path / "killed")
    assert loop.fit(model, train, 2, valid, checkpoint=checkpoint, resume=True) == history
    assert_equal_tensors(model.state_dict(), expected)


def run(folder, **settings):
    settings = {"model_root": str(folder), "verbose": 0, "epochs": 3, **settings}
    experiment = Experiment.load("DIN_MM_tiny", ROOT, **settings)
    return experiment.fit(), experiment


@pytest.mark.slow
def test_an_experiment_learns_as_well_streamed_as_in_memory(tmp_path):
    resident, _ = run(tmp_path / "resident", resident=True)
    streamed, _ = run(tmp_path / "streamed", resident=False, buffer_rows=3000)
    assert streamed.valid["AUC"] == pytest.approx(resident.valid["AUC"], abs=0.02)
    assert streamed.valid["AUC"] != resident.valid["AUC"]
    assert resident.valid["AUC"] > 0.65


def test_what_does_not_fit_is_streamed_and_scored_in_the_files_order(tmp_path, monkeypatch, caplog):
    _, experiment = run(tmp_path, epochs=1, batch_size=1000)
    scores = experiment.predict()
    monkeypatch.setattr("fuxictr_mm.data.memory.free_memory", lambda device: 1000)
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 300)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(experiment.predict(), scores)
        result, _ = run(tmp_path / "small", epochs=1)
    assert caplog.text.count(": streamed") >= 3
    assert 0.5 < result.valid["AUC"] < 1


def test_a_training_checkpoint_belongs_to_a_streamed_run_or_to_one_in_memory(tmp_path, monkeypatch):
    """What fits may change between two runs of resident: auto, and the order of the rows with it."""
    hashes = []

    def stop(model, train, epochs, valid, norm, checkpoint, *_, **__):
        hashes.append(checkpoint.config_hash)
        raise Killed

    monkeypatch.setattr(loop, "fit", stop)
    for free in (10**9, 1000):
        monkeypatch.setattr("fuxictr_mm.data.memory.free_memory", lambda device, free=free: free)
        for resident in ("auto", free > 1000):
            with pytest.raises(Killed):
                run(tmp_path, resident=resident)
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_the_same(tmp_path):
    files = write(tmp_path, 500, parts=2)
    there, here = (StreamingLoader(files, 8, buffer_rows=60, shuffle=True, device=d) for d in ("cuda", "cpu"))
    assert next(iter(there)).target.device.type == "cuda"
    for loader in (there, here):
        loader.start_at(0, 20)
    assert rows_of(there) == rows_of(here)


def test_bad_rows_of_a_streamed_file_are_found_before_training(tmp_path, monkeypatch):
    data = tmp_path / "tiny_mm"
    shutil.copytree(TINY, data)
    table = pq.read_table(data / "train.parquet")
    label = np.zeros(len(table))
    place = table.schema.get_field_index("label")
    pq.write_table(table.set_column(place, "label", pa.array(label)), data / "train.parquet")
    monkeypatch.setattr(loop, "fit", lambda *_: pytest.fail("training has begun"))
    with raises_naming(DataError, "train.parquet", "label is 0", len(table)):
        run(tmp_path, resident=False, train_data=str(data / "train.parquet"))
    label[-1] = 2
    pq.write_table(table.set_column(place, "label", pa.array(label)), data / "train.parquet")
    with raises_naming(DataError, "train.parquet", "label", f"row {len(table) - 1} is 2"):
        run(tmp_path, resident=False, train_data=str(data / "train.parquet"))
