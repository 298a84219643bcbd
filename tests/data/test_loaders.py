import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.loaders import InMemoryLoader, gather, history_sizes


def make_table(histories, labelled=True):
    n = len(histories)
    return InteractionTable(
        context={"level": torch.arange(n, dtype=torch.int32) % 7, "price": torch.arange(n) / 4},
        target=torch.arange(1, n + 1, dtype=torch.int32),
        history_values=torch.tensor([i for h in histories for i in h], dtype=torch.int32),
        history_offsets=torch.tensor([0, *(len(h) for h in histories)]).cumsum(0),
        label=(torch.arange(n) % 2).float() if labelled else None,
        group=100 + torch.arange(n) if labelled else None,
    )


def rows_of(jagged):
    offsets = jagged.offsets.tolist()
    return [jagged.values[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def epoch(loader):
    """Targets of one epoch, batch by batch."""
    return [batch.target.tolist() for batch in loader]


HISTORIES = st.lists(st.lists(st.integers(1, 99), max_size=5), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(histories=HISTORIES, data=st.data())
def test_gather_equals_plain_python(histories, data):
    rows = data.draw(st.lists(st.integers(0, len(histories) - 1), min_size=1, max_size=15))
    batch = gather(make_table(histories), torch.tensor(rows))
    assert len(batch) == len(rows)
    assert rows_of(batch.history) == [histories[r] for r in rows]
    assert batch.history.values.dtype == torch.int32
    assert batch.target.tolist() == [r + 1 for r in rows]
    assert batch.context["level"].tolist() == [r % 7 for r in rows]
    assert batch.context["price"].tolist() == [r / 4 for r in rows]
    assert batch.label.tolist() == [r % 2 for r in rows]
    assert batch.group.tolist() == [100 + r for r in rows]


def test_gather_does_not_change_the_table():
    table = make_table([[1, 2], [], [3]])
    before = table.history_offsets.clone(), table.history_values.clone()
    gather(table, torch.tensor([2, 0, 1, 2]))
    assert torch.equal(table.history_offsets, before[0])
    assert torch.equal(table.history_values, before[1])


def test_without_labels_and_groups_and_with_nothing_but_empty_histories():
    batch = gather(make_table([[], [], []], labelled=False), torch.tensor([2, 0]))
    assert batch.label is None
    assert batch.group is None
    assert rows_of(batch.history) == [[], []]
    assert batch.to("cpu").history.num_rows == 2


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), batch_size=st.integers(1, 12), shuffle=st.booleans())
def test_every_row_comes_once_and_len_is_the_number_of_batches(rows, batch_size, shuffle):
    loader = InMemoryLoader(make_table([[i] for i in range(rows)]), batch_size, shuffle=shuffle, seed=3)
    batches = epoch(loader)
    assert len(loader) == len(batches)
    assert loader.num_samples == rows
    targets = [t for batch in batches for t in batch]
    assert sorted(targets) == list(range(1, rows + 1))
    sizes = [len(b) for b in batches]
    joins = shuffle and rows > batch_size and rows % batch_size == 1
    assert all(size == batch_size for size in sizes[:-1])
    assert sizes[-1] == (batch_size + 1 if joins else rows % batch_size or batch_size)
    if not shuffle:
        assert targets == list(range(1, rows + 1))


def test_the_order_depends_on_seed_and_epoch_alone():
    table = make_table([[i] for i in range(50)])
    loader = InMemoryLoader(table, 8, shuffle=True, seed=1)
    torch.manual_seed(0)
    first, second = epoch(loader), epoch(loader)
    torch.manual_seed(99)
    torch.rand(7)
    again = InMemoryLoader(table, 8, shuffle=True, seed=1)
    assert [epoch(again), epoch(again)] == [first, second]
    assert first != second
    assert epoch(InMemoryLoader(table, 8, shuffle=True, seed=2)) not in (first, second)
    other_size = epoch(InMemoryLoader(table, 50, shuffle=True, seed=1))
    assert other_size[0] == [t for batch in first for t in batch]


def test_an_epoch_can_be_repeated_by_its_number():
    loader = InMemoryLoader(make_table([[i] for i in range(50)]), 8, shuffle=True)
    epochs = [epoch(loader) for _ in range(3)]
    assert loader.epoch == 3
    loader.epoch = 1
    assert epoch(loader) == epochs[1]


def test_shuffling_leaves_the_global_generator_alone():
    loader = InMemoryLoader(make_table([[]] * 9), 4, shuffle=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    epoch(loader)
    assert torch.equal(torch.rand(3), expected)


def test_a_view_is_applied_to_every_batch():
    loader = InMemoryLoader(make_table([[1], [], [2, 3]]), 2, view=lambda batch: rows_of(batch.history))
    assert list(loader) == [[[1], []], [[2, 3]]]


@settings(max_examples=30, deadline=None)
@given(histories=HISTORIES, batch=st.integers(1, 7))
def test_sizes_of_the_histories_of_an_epoch(histories, batch):
    """With them, gathering a batch does not wait for a GPU."""
    table = make_table(histories)
    parts = torch.arange(len(histories)).flip(0).split(batch)
    sizes = history_sizes(table, parts)
    assert sizes == [sum(len(histories[row]) for row in rows.tolist()) for rows in parts]
    for rows, size in zip(parts, sizes, strict=True):
        assert rows_of(gather(table, rows, size).history) == rows_of(gather(table, rows).history)
