"""The rows of each process, in memory and streamed: global batches do not depend on the number of processes."""

import logging

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.data import interleaved, parquet
from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.loaders import InMemoryLoader
from fuxictr_mm.data.shards import Shard, default_streams
from fuxictr_mm.data.streaming import StreamingLoader
from fuxictr_mm.errors import ConfigError
from tests.data.streams import epoch, flat, reading_threads, rows_of, write
from tests.errors import raises_naming


def loader_of(files, resident, batch_size, shard, **options):
    """A loader of the rows that a rank reads, in memory or streamed."""
    options = {"seed": 3, "shard": shard, "shuffle": True, **options}
    if resident:
        options.pop("buffer_rows", None)
        table = concatenate(files.select(shard.train_rows(len(files))).chunks())
        return InMemoryLoader(table, batch_size, num_samples=len(files), **options)
    return (StreamingLoader if shard.streams is None else interleaved.InterleavedLoader)(files, batch_size, **options)


def global_batches(files, resident, batch_size, size, streams, start=0, **options):
    """The rows of every step of all ranks, in the order of their positions, from a position on."""
    loaders = [loader_of(files, resident, batch_size, Shard(r, size, streams), **options) for r in range(size)]
    for loader in loaders:
        loader.start_at(1, start)
    steps = list(zip(*map(epoch, loaders), strict=True))
    assert len(steps) == len(loaders[0].sizes(start)), "as many steps on all ranks, known before the epoch"
    batches, position = [], start
    for parts in steps:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) > 0
        if streams is None:
            batches.append(flat(parts))
        else:
            total = sum(map(len, parts))
            queues = [list(reversed(part)) for part in parts]
            batches.append([queues[p % size].pop() for p in range(position, position + total)])
        position += len(batches[-1])
    return batches


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 12),
    buffer_rows=st.integers(1, 80),
    size=st.integers(1, 4),
    streams=st.sampled_from([None, 12, 24]),
    resident=st.booleans(),
    chunk=st.integers(1, 50),
    data=st.data(),
)
def test_the_global_batches_of_any_number_of_processes_are_the_same(
    tmp_path, monkeypatch, rows, batch_size, buffer_rows, size, streams, resident, chunk, data
):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 7)
    monkeypatch.setattr(interleaved, "CHUNK_ROWS", chunk)
    files = write(tmp_path / "parts", rows, 2, 5)
    if rows < size:
        with raises_naming(ConfigError, rows, size):
            loader_of(files, False, batch_size, Shard(0, size, streams))
        return
    options = {"buffer_rows": buffer_rows}
    whole = flat(global_batches(files, resident, rows, 1, streams, **options))
    assert sorted(whole) == list(range(1, rows + 1))
    start = data.draw(st.integers(0, rows))
    found = global_batches(files, resident, batch_size, size, streams, start, **options)
    assert flat(found) == (whole[start:] if rows - start >= size else [])
    if size > 1 and found:
        assert {len(batch) for batch in found[:-1]} <= {batch_size * size}
    blocks = [files.select([Shard(rank, size).part(rows)]) for rank in range(size)]
    assert flat(flat(epoch(StreamingLoader(block, batch_size))) for block in blocks) == list(range(1, rows + 1))


@pytest.mark.parametrize("rows", [96, 97, 98, 101, 107, 108, 119])
def test_as_many_steps_of_as_many_rows_for_any_number_of_processes(tmp_path, rows):
    """Also where the last batch has fewer rows than some of these numbers."""
    files = write(tmp_path, rows)
    found = [global_batches(files, True, 24 // size, size, 12) for size in (1, 2, 3, 4, 6, 12)]
    assert all(batches == found[0] for batches in found)
    assert len(found[0]) == (4 if rows < 108 else 5)
    alone = InMemoryLoader(concatenate(files.chunks()), 24, shuffle=True)  # without streams, as ever
    assert len(alone) == (4 if rows < 98 else 5)


def test_one_process_without_streams_has_the_batches_of_before(tmp_path):
    """Bit for bit: the number is of an order by version 1.0."""
    files = write(tmp_path, 50, parts=2)
    loader = InMemoryLoader(concatenate(files.chunks()), 8, shuffle=True, seed=3)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3 * 1_000_003))
    assert flat(epoch(loader)) == (order + 1).tolist()
    streams = loader_of(files, True, 8, Shard(0, 1, 24))
    assert epoch(streams) != epoch(loader)
    assert epoch(streams) != epoch(streams), "another order in every epoch"


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("resident", [True, False])
def test_each_process_opens_its_own_row_groups_only(tmp_path, monkeypatch, size, resident):
    files = write(tmp_path, 600, parts=3, group=10)
    opened = []
    read = pq.ParquetFile.iter_batches

    def counted(self, **options):
        opened[-1].update((len(opened), footers.index(self.metadata), g) for g in options["row_groups"])
        return read(self, **options)

    footers = list(files._footers.values())
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for rank in range(size):
        opened.append(set())
        loader = loader_of(files, resident, 50, Shard(rank, size, 12), buffer_rows=120)
        assert sum(map(len, epoch(loader))) == 600 // size
        assert len(opened[-1]) == 60 // size
    assert len({group[1:] for part in opened for group in part}) == 60, "all, none of them twice"


def test_processes_that_do_not_divide_the_streams_are_refused():
    with raises_naming(ConfigError, "streams is 8", "3 processes", "1, 2, 4, 8", "streams: 24"):
        Shard(0, 3, 8)
    assert [default_streams(size) for size in (2, 3, 5, 8, 16, 24, 25)] == [24, 24, 25, 24, 32, 24, 25]


def test_streams_keep_columns_and_histories_and_warn_once_of_large_row_groups(tmp_path, caplog):
    files = write(tmp_path, 333, parts=3, group=20)
    with caplog.at_level(logging.WARNING):
        loader = loader_of(files, False, 7, Shard(0, 1, 6), buffer_rows=60)
    assert caplog.text.count("a row group of 20 rows is larger than the buffer of each stream") == 1
    assert sorted(rows_of(loader)) == sorted(rows_of(InMemoryLoader(concatenate(files.chunks()), 7)))


def test_leaving_streams_early_ends_their_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(interleaved, "CHUNK_ROWS", 20)
    loader = loader_of(write(tmp_path, 500), False, 5, Shard(0, 1, 4), buffer_rows=80)
    for _ in loader:
        assert len(reading_threads()) == 4
        break
    assert not reading_threads()
