import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.datasets.histories import histories_before, partition_by_user

EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 6), st.text(max_size=2), st.booleans()), min_size=0, max_size=40
)


@settings(deadline=None)
@given(events=EVENTS, max_len=st.integers(1, 5))
def test_histories_are_the_earlier_positives_of_the_user(events, max_len):
    events = sorted(events, key=lambda event: event[:2])
    users, times = (np.array([event[place] for event in events], dtype=np.int64) for place in (0, 1))
    items = pa.array([event[2] for event in events], pa.string())
    positive = np.array([event[3] for event in events], dtype=bool)
    found = histories_before(users, times, items, positive, max_len).to_pylist()
    expected = [
        [other[2] for other in events if other[0] == event[0] and other[1] < event[1] and other[3]][-max_len:]
        for event in events
    ]
    assert found == expected


def test_partition_keeps_all_events_of_a_user_together(tmp_path):
    generator = np.random.default_rng(0)
    frames = [pl.DataFrame({"user": generator.integers(-9, 50, size=100), "row": np.arange(100) + 100 * part})
              for part in range(3)]  # fmt: skip
    paths = partition_by_user(frames, "user", tmp_path / "buckets", 4)
    read = [pl.read_parquet(path) for path in paths]
    users = [set(frame["user"]) for frame in read]
    assert sum(map(len, users)) == len(set().union(*users))
    assert sorted(pl.concat(read)["row"]) == list(range(300))
    assert all(frame["row"].is_sorted() for frame in read)  # events of one moment stay in the order of the log
    # A complete folder is used again, whatever the frames.
    assert partition_by_user([], "user", tmp_path / "buckets", 4) == paths


def test_partition_that_was_interrupted_is_written_again(tmp_path):
    def broken():
        yield pl.DataFrame({"user": [1, 2]})
        raise KeyboardInterrupt

    frame = pl.DataFrame({"user": [1, 2, 3]})
    with pytest.raises(KeyboardInterrupt):
        partition_by_user(broken(), "user", tmp_path / "buckets", 2)
    assert not (tmp_path / "buckets").exists()
    paths = partition_by_user([frame], "user", tmp_path / "buckets", 2)
    assert sorted(pl.concat([pl.read_parquet(path) for path in paths])["user"]) == [1, 2, 3]
