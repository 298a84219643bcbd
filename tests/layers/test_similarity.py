"""Similarity of target and history against a loop over rows."""

import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import similarity
from fuxictr_mm.layers.similarity import Compared, HistorySimilarity

STATISTICS = ["max", "newest_3", "histogram_4", "mean", "newest_1"]


def by_hand(table, target, histories):
    rows = []
    for item, history in zip(target, histories, strict=True):
        cosines = [float(torch.cosine_similarity(table[item], table[other], dim=0)) for other in history]
        bins = [0] * 4
        for cosine in cosines:
            bins[min(int((cosine + 1) / 2 * 4), 3)] += 1
        newest = cosines[-3:]
        rows.append(
            [max(cosines, default=0.0), sum(newest) / max(len(newest), 1)]
            + [float(torch.tensor(count + 1.0, dtype=torch.float64).log()) for count in bins]
            + [sum(cosines) / max(len(cosines), 1), cosines[-1] if cosines else 0.0]
        )
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [2, 1000])
def test_equals_a_loop_over_rows(monkeypatch, chunk):
    monkeypatch.setattr(similarity, "CHUNK", chunk)
    table = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table[0] = table[4] = 0  # padding, and an item without an embedding
    histories = [[1, 2, 3, 4, 5], [], [4], [6, 6], [7], []]
    target = torch.tensor([1, 2, 3, 6, 4, 8], dtype=torch.int32)
    offsets = torch.tensor([0, *map(len, histories)]).cumsum(0)
    history = Jagged(torch.tensor([item for row in histories for item in row], dtype=torch.int32), offsets)
    found = HistorySimilarity(table, STATISTICS)(table, target, history)
    torch.testing.assert_close(found, by_hand(table, target.tolist(), histories), rtol=1e-12, atol=1e-12)


def test_the_same_item_is_in_the_last_bin():
    table = torch.tensor([[0.0, 0.0], [0.3, 0.7]])
    layer = HistorySimilarity(table, ["histogram_2"])
    history = Jagged(torch.tensor([1, 1]), torch.tensor([0, 2]))
    assert layer(table, torch.tensor([1]), history).expm1().round().tolist() == [[0.0, 2.0]]


def test_only_empty_histories():
    layer = HistorySimilarity(torch.ones(3, 2), STATISTICS)
    empty = Jagged(torch.zeros(0, dtype=torch.int32), torch.zeros(2, dtype=torch.int64))
    assert layer(torch.ones(3, 2), torch.tensor([1]), empty).tolist() == [[0.0] * 8]


def test_a_table_of_8_bits_has_the_cosines_of_its_numbers():
    table = torch.randint(-128, 128, (9, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    history = Jagged(torch.tensor([1, 2, 3]), torch.tensor([0, 3]))
    target = torch.tensor([4])
    found = HistorySimilarity(table, STATISTICS)(table, target, history)
    torch.testing.assert_close(found, HistorySimilarity(table.float(), STATISTICS)(table.float(), target, history))


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 4)])
def test_ids_are_compared_as_vectors_of_their_counts(shape):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, shape, dtype=torch.int32, generator=generator)  # 0 as padding, some ids twice
    ids[0] = ids[3] = 0
    dense = F.one_hot(ids.long().view(7, -1), 4)[:, :, 1:].sum(1).double()
    histories = [[1, 2, 3, 4, 5], [], [6, 6], [3]]
    offsets = torch.tensor([0, *map(len, histories)]).cumsum(0)
    history = Jagged(torch.tensor([item for row in histories for item in row]), offsets)
    target = torch.tensor([1, 2, 6, 5])
    found = HistorySimilarity(ids, STATISTICS)(ids, target, history)
    assert found.abs().sum() > 1
    expected = HistorySimilarity(dense, STATISTICS)(dense, target, history)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_mean_of_ids_is_the_fraction_of_the_history_with_the_category_of_the_target():
    categories = torch.tensor([0, 1, 1, 2, 0])
    history = Jagged(torch.tensor([2, 3, 4, 3]), torch.tensor([0, 3, 3, 4]))
    found = HistorySimilarity(categories, ["mean", "max"])(categories, torch.tensor([1, 1, 4]), history)
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 1.0], [0.0, 0.0], [0.0, 0.0]]))


def test_it_is_no_part_of_the_state_dict():
    assert not HistorySimilarity(torch.ones(3, 2), ["mean"]).state_dict()


@pytest.mark.parametrize("length", [0, 1, 2, 7])
@pytest.mark.parametrize("kind", ["embeddings", "ids", "tags"])
def test_candidates_of_one_history_have_the_statistics_of_rows(kind, length):
    generator = torch.Generator().manual_seed(0)
    shape = {"embeddings": (9, 5), "ids": (9,), "tags": (9, 3)}[kind]
    table = torch.randint(0, 4, shape, generator=generator)
    table = table.double() - 2 if kind == "embeddings" else table
    table[0] = table[4] = 0
    layer = HistorySimilarity(table, STATISTICS)
    candidates, history = torch.arange(9), torch.randint(9, (length,), generator=generator)
    rows = Jagged(history.repeat(9), torch.arange(10) * length)
    items = Compared(table, layer.inverse_lengths)
    found = layer.of_user(items.take(candidates).all_cosines(items.take(history)))
    torch.testing.assert_close(found, layer(table, candidates, rows), rtol=1e-6, atol=1e-6)
