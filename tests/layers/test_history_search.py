"""Search against a loop over rows that sorts every row completely."""

import pytest
import torch

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import (
    EqualCodes,
    InnerProduct,
    SameCategory,
    directions,
    history_search,
    neighbours,
    newest,
    search,
    search_user,
    signs,
    softmax_of_found,
    take,
)

LENGTHS = [5, 0, 1, 40, 3, 12, 0, 100, 40]


def sorted_rows(history, scores, top_k, allowed=None):
    """Sort each row by score and then by recency; return the kept entries of each, oldest first."""
    rows = []
    for row, (start, stop) in enumerate(zip(history.offsets[:-1].tolist(), history.offsets[1:].tolist(), strict=True)):
        entries = [n for n in range(start, stop) if allowed is None or allowed(row, n)]
        entries.sort(key=lambda n, row=row: (scores(row, n), n))
        rows.append(sorted(entries[-top_k:]))
    return rows


def rows_of(found):
    return [part.tolist() for part in found.values.split(found.lengths.tolist())]


@pytest.fixture
def history():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(30, (sum(LENGTHS),), generator=generator)
    return Jagged(torch.randn(30, 6, generator=generator), torch.tensor([0, *LENGTHS]).cumsum(0), index)


@pytest.fixture(params=[(7, 0), (64, 8), (2**16, 8)], ids=["tiny blocks", "small blocks", "one block"])
def blocks(request, monkeypatch):
    """Blocks shorter than a row, of some rows, and of all rows; with and without the dense product."""
    block, dense = request.param
    monkeypatch.setattr(history_search, "BLOCK", block)
    monkeypatch.setattr(history_search, "DENSE", dense)


@pytest.mark.parametrize("top_k", [1, 3, 40, 200])
@pytest.mark.parametrize("negative", [True, False])
def test_inner_products(history, blocks, top_k, negative):
    # Integers, whose products have no rounding: equal scores are equal in any order of summation.
    keys = (2 * history.distinct).round()
    queries = (2 * torch.randn(len(LENGTHS), 6)).round()
    if negative:
        keys, queries = -keys.abs(), queries.abs()
    found = search(history, InnerProduct(keys, queries), top_k)
    expected = sorted_rows(history, lambda row, n: float(keys[history.index[n]] @ queries[row]), top_k)
    assert rows_of(found) == expected
    of_bytes = search(history, InnerProduct(keys.to(torch.int8), queries), top_k)
    assert torch.equal(of_bytes.values, found.values)


def test_hashes_are_compared_by_hamming_distance(history, blocks):
    bits, of_target = torch.randn(30, 16) > 0, torch.randn(len(LENGTHS), 16) > 0
    keys, queries = signs(bits.float() - 0.5), signs(of_target.float() - 0.5)
    found = search(history, InnerProduct(keys, queries), 4)
    expected = sorted_rows(history, lambda row, n: -int((bits[history.index[n]] != of_target[row]).sum()), 4)
    assert rows_of(found) == expected


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 0.25])])
def test_codes(history, blocks, weights):
    codes, of_target = torch.randint(3, (30, 3)), torch.randint(3, (len(LENGTHS), 3))

    def score(row, n):
        equal = (codes[history.index[n]] == of_target[row]) & (codes[history.index[n]] != 0)
        return float((equal * (1 if weights is None else weights)).sum())

    found = search(history, EqualCodes(codes, of_target, weights), 4)
    assert rows_of(found) == sorted_rows(history, score, 4)


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("scored", [True, False])
def test_the_filter(history, blocks, several, scored):
    shape = (2,) if several else ()
    categories, of_target = torch.randint(4, (30, *shape)), torch.randint(4, (len(LENGTHS), *shape))
    sets = [set(row) - {0} for row in categories.view(30, -1).tolist()]
    of_rows = [set(row) for row in of_target.view(len(LENGTHS), -1).tolist()]
    keys, queries = (2 * torch.randn(30, 6)).round(), torch.ones(len(LENGTHS), 6)
    found = search(
        history, InnerProduct(keys, queries) if scored else None, 3, allowed=SameCategory(categories, of_target)
    )
    expected = sorted_rows(
        history,
        lambda row, n: float(keys[history.index[n]].sum()) if scored else 0.0,
        3,
        allowed=lambda row, n: bool(sets[history.index[n]] & of_rows[row]),
    )
    assert rows_of(found) == expected
    assert sum(map(len, expected)) > 10


@pytest.mark.parametrize("top_k", [3, 200])
@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("scored", [True, False])
def test_the_form_of_a_graph_finds_the_same(history, monkeypatch, top_k, filtered, scored):
    """Without equal scores: there an operator of the graph decides, and tests of exports compare it."""
    plain = Jagged(history.values, history.offsets)
    keys, queries = torch.randn(plain.num_values, 6), torch.randn(len(LENGTHS), 6)
    categories = SameCategory(torch.randint(1, 4, (plain.num_values,)), torch.randint(1, 4, (len(LENGTHS),)))
    given = InnerProduct(keys, queries) if scored else None, top_k, categories if filtered else None
    expected = search(plain, *given)
    monkeypatch.setattr(history_search, "is_exporting", lambda: True)
    found = search(plain, *given)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.offsets, expected.offsets)


def test_directions():
    found = directions(torch.tensor([[3, 4], [0, 0], [-6, 8]], dtype=torch.int8))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0], [-0.6, 0.8]]))


def test_equal_scores_are_decided_by_recency_whatever_their_sign():
    history = Jagged(torch.tensor([[0.0], [-0.0], [0.0], [-1.0]]), torch.tensor([0, 4]))
    assert search(history, InnerProduct(history.distinct, torch.ones(1, 1)), 2).values.tolist() == [1, 2]


def test_take_newest_and_no_rows(history):
    found = search(history, None, 3)
    assert torch.equal(take(history, found).values, newest(history, 3).values)
    assert torch.equal(take(Jagged(history.values, history.offsets), found).values, newest(history, 3).values)
    empty = Jagged(torch.zeros(0, 6), torch.zeros(3, dtype=torch.int64))
    assert search(empty, InnerProduct(empty.distinct, torch.ones(2, 6)), 3).lengths.tolist() == [0, 0]
    none = Jagged(torch.zeros(0, 6), torch.zeros(1, dtype=torch.int64))
    assert search(none, None, 3).num_rows == 0


def test_memory_is_that_of_a_block(monkeypatch):
    """No keys of all entries are in memory at once, nor those of padding."""
    monkeypatch.setattr(history_search, "BLOCK", 128)
    monkeypatch.setattr(history_search, "DENSE", 0)
    sizes = []

    class Counted(InnerProduct):
        def __call__(self, items, rows):
            sizes.append(items.numel())
            return super().__call__(items, rows)

    lengths = torch.randint(0, 100, (60,))
    lengths[7] = 3000
    history = Jagged(torch.randn(50, 4), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
                     torch.randint(50, (int(lengths.sum()),)))  # fmt: skip
    search(history, Counted(history.distinct, torch.randn(60, 4)), 5)
    assert max(sizes) <= 128
    assert sum(sizes) <= 2 * int(lengths.sum())


@pytest.mark.parametrize("length", [0, 1, 5, 60])
@pytest.mark.parametrize("top_k", [1, 4, 100])
def test_of_one_user_the_same_is_found_as_of_rows(length, top_k):
    """Many scores are equal, of which the newer entry is found."""
    generator = torch.Generator().manual_seed(0)
    codes, of_target = (torch.randint(4, (count, 3), generator=generator) for count in (length, 7))
    weights = torch.tensor([1.0, 0.5, 0.5])
    rows = Jagged(codes, torch.arange(8) * length, torch.arange(length).repeat(7))
    expected = rows_of(search(rows, EqualCodes(codes, of_target, weights), top_k))
    scores = EqualCodes(codes.flip(0), of_target, weights).of_all()
    best, found = search_user(scores, top_k)
    for row in range(7):
        assert found[row].flip(0).nonzero().flatten().tolist() == [n - row * length for n in expected[row]]
        real = best[row][best[row] > -torch.inf]
        assert real.sort().values.tolist() == scores[row][found[row]].sort().values.tolist()


def test_rounding_of_weights_makes_no_other_ties_of_one_user():
    generator = torch.Generator().manual_seed(0)
    codes, of_target = (torch.randint(4, (count, 16), generator=generator) for count in (200, 50))
    score = EqualCodes(codes, of_target, torch.tensor([0.3, 0.7]).repeat_interleave(8))
    assert torch.equal(score.of_all(), score(torch.arange(200).expand(50, 200), torch.arange(50)))


def test_the_weights_of_what_is_not_found_are_zero():
    found = torch.tensor([[True, False, True], [False, False, False]])
    scores = torch.tensor([[1.0, 90.0, 1.0], [-1e30, 0.0, 1e30]])
    assert softmax_of_found(scores, found).tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]


def test_scores_of_all_items_are_those_of_entries():
    codes, of_target = (torch.randint(4, (count, 3)) for count in (20, 7))
    everywhere = torch.arange(20).expand(7, 20), torch.arange(7)
    weighted = EqualCodes(codes, of_target, torch.tensor([1.0, 0.5, 0.25]))
    for score in (weighted, EqualCodes(codes, of_target), SameCategory(codes, of_target)):
        torch.testing.assert_close(score.of_all(), score(*everywhere), check_dtype=False)


@pytest.mark.parametrize("top_k", [1, 3, 40, 200])
def test_neighbours(history, blocks, top_k):
    keys = (2 * history.distinct).round()  # integers, whose products have no rounding
    values, index = keys[history.index], history.index
    entries, products = neighbours(Jagged(keys.requires_grad_(), history.offsets, index), top_k)
    assert not products.requires_grad
    for n, row in enumerate(history.rows.tolist()):
        places = range(int(history.offsets[row]), int(history.offsets[row + 1]))
        score = {m: float(values[n] @ values[m]) for m in places}
        expected = sorted(places, key=lambda m, score=score: (score[m], m), reverse=True)[:top_k]
        assert entries[n, : len(expected)].tolist() == expected
        assert products[n].tolist() == [score[m] for m in expected] + [0.0] * (top_k - len(expected))
        assert all(m in score for m in entries[n].tolist())


def test_neighbours_of_empty_histories():
    entries, products = neighbours(Jagged(torch.randn(3, 2), torch.tensor([0, 0, 0]), torch.zeros(0).long()), 4)
    assert (entries.shape, products.shape) == ((0, 4), (0, 4))
