import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm import jagged as module
from fuxictr_mm import sparse_products
from fuxictr_mm.jagged import multi_query_products, segment_products, weighted_sum
from fuxictr_mm.layers import Jagged
from fuxictr_mm.sparse_products import sums_by

LENGTHS = st.lists(st.integers(0, 4), min_size=1, max_size=5)
SIDES = st.sampled_from(["left", "right"])
KERNELS = pytest.mark.parametrize("kernels", ["matrix", "small", "gpu"])
few = settings(max_examples=30, deadline=None)


def choose(monkeypatch: pytest.MonkeyPatch, kernels: str) -> None:
    """Let products be those with a sparse matrix, those of a small batch, or those of a GPU."""
    monkeypatch.setattr(sparse_products, "SMALL", 0 if kernels == "matrix" else 2**17)
    monkeypatch.setattr(module, "has_sparse_kernels", lambda _: kernels != "gpu")


def jagged(lengths: list[int], *shape: int, dtype: torch.dtype = torch.float64) -> Jagged:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Jagged(torch.randn(int(offsets[-1]), *shape, dtype=dtype), offsets)


def rows_of(history: Jagged) -> list[torch.Tensor]:
    return list(history.values.split(history.lengths.tolist()))


@few
@given(LENGTHS, SIDES, st.integers(0, 5))
def test_padded_rows_one_by_one(lengths, side, longest):
    history = jagged(lengths, 3)
    padded, mask = history.to_padded(longest, side=side)
    assert padded.shape == (len(lengths), longest, 3)
    for row, entries in enumerate(rows_of(history)):
        last = entries[max(len(entries) - longest, 0) :]
        padding = torch.zeros(longest - len(last), 3, dtype=torch.float64)
        expected = torch.cat([padding, last] if side == "left" else [last, padding])
        assert torch.equal(padded[row], expected)
        ones, zeros = [True] * len(last), [False] * len(padding)
        assert mask[row].tolist() == (zeros + ones if side == "left" else ones + zeros)


def test_the_mask_is_that_of_padding_on_the_right():
    for lengths in ([2, 0, 3], [0, 0], []):
        history = jagged(lengths, 4)
        assert torch.equal(history.mask, history.to_padded(side="right")[1])
        assert history.mask is history.mask  # by which calls with one history are known


def test_padded_length_defaults_to_the_longest_row():
    assert jagged([2, 0, 3], 4).to_padded()[0].shape == (3, 3, 4)
    assert jagged([0, 0], 4).to_padded()[0].shape == (2, 0, 4)


@few
@given(LENGTHS, st.sampled_from([(), (3,)]), st.sampled_from([1.0, 1e3]))
def test_softmax_is_the_dense_masked_softmax(lengths, heads, size):
    scores = jagged(lengths, *heads)
    scores = scores.with_values((scores.values * size).requires_grad_())
    weights = scores.softmax()
    expected = [entries.softmax(dim=0) for entries in rows_of(scores)]
    torch.testing.assert_close(weights.values, torch.cat(expected), rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(weights.values)
    ours = torch.autograd.grad(weights.values, scores.values, direction)[0]
    dense = torch.autograd.grad(torch.cat(expected), scores.values, direction)[0]
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-10)


def test_softmax_of_half_precision_is_taken_in_float32():
    scores = jagged([300, 2], dtype=torch.bfloat16)
    weights = scores.softmax()
    assert weights.values.dtype == torch.float32
    torch.testing.assert_close(weights.sum(), torch.ones(2))


@few
@given(LENGTHS)
def test_nested_rows(lengths):
    history = jagged(lengths, 2)
    nested = history.to_nested()
    for row, entries in zip(nested.unbind(), rows_of(history), strict=True):
        assert torch.equal(row, entries)


@few
@given(LENGTHS, st.integers(1, 4))
def test_map_on_distinct_items_equals_map_on_values(lengths, num_distinct):
    num_values = sum(lengths)
    index = torch.randint(num_distinct, (num_values,))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    distinct = torch.randn(num_distinct, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, dtype=torch.float64)
    history = Jagged(distinct, offsets, index)
    mapped = history.map(lambda entries: (entries @ weight).tanh())
    expected = torch.tanh(distinct[index] @ weight)
    torch.testing.assert_close(mapped.values, expected, rtol=1e-12, atol=1e-12)
    assert mapped.num_values == num_values
    # The gradient of an item gathers that of each place where it stands.
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad(mapped.values, distinct, direction)[0]
    dense = torch.autograd.grad(expected, distinct, direction)[0]
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)


def test_a_look_without_gradients_does_not_cut_off_later_ones():
    distinct = torch.ones(2, 1, requires_grad=True)
    history = Jagged(distinct, torch.tensor([0, 2]), torch.tensor([1, 1]))
    with torch.no_grad():
        assert history.sum().item() == 2.0
    for _ in range(2):
        history.sum().sum().backward()
    assert distinct.grad.flatten().tolist() == [0.0, 4.0]


@few
@given(LENGTHS)
def test_rows_positions_lengths_and_sum(lengths):
    history = jagged(lengths, 2)
    assert history.num_rows == len(lengths)
    assert history.num_values == sum(lengths)
    assert history.lengths.tolist() == lengths
    assert history.rows.tolist() == [row for row, length in enumerate(lengths) for _ in range(length)]
    assert history.positions.tolist() == [place for length in lengths for place in range(length)]
    expected = torch.stack([entries.sum(dim=0) for entries in rows_of(history)])
    torch.testing.assert_close(history.sum(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("index", [None, torch.tensor([1, 0, 1])])
def test_to_keeps_everything(index):
    history = Jagged(torch.randn(2 if index is not None else 3, 2), torch.tensor([0, 3, 3]), index)
    moved = history.to("cpu", non_blocking=True)
    assert torch.equal(moved.values, history.values)
    assert torch.equal(moved.offsets, history.offsets)


@pytest.mark.parametrize("heads", [None, 1, 2])
@pytest.mark.parametrize("distinct", [7, 3, 2])  # with 2, there are more entries than pairs of a row and an entry
@KERNELS
def test_segment_products_and_their_gradients(monkeypatch, distinct, heads, kernels):
    choose(monkeypatch, kernels)
    monkeypatch.setattr(module, "CHUNK", 3)
    index = None if distinct == 7 else torch.tensor([1, 0, 1, 2, 2, 2, 1]) % distinct
    history = Jagged(torch.randn(distinct, 4, dtype=torch.float64), torch.tensor([0, 2, 2, 7]), index)
    queries = torch.randn(3, 4, dtype=torch.float64).requires_grad_()
    keys = history.distinct.requires_grad_()
    found = segment_products(queries, history, heads)
    products = queries[history.rows] * history.values
    expected = products.sum(1) if heads is None else products.unflatten(1, (heads, -1)).sum(2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn(expected.shape, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, (queries, keys), direction),
        torch.autograd.grad(expected, (queries, keys), direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distinct", [7, 3, 2])
@KERNELS
def test_products_of_several_queries(monkeypatch, distinct, kernels):
    choose(monkeypatch, kernels)
    index = None if distinct == 7 else torch.tensor([1, 0, 1, 2, 2, 2, 1]) % distinct
    history = Jagged(torch.randn(distinct, 4, dtype=torch.float64), torch.tensor([0, 2, 2, 7]), index)
    queries = torch.randn(3, 2, 4, dtype=torch.float64).requires_grad_()
    entries = history.distinct.requires_grad_()
    found = multi_query_products(queries, history)
    expected = torch.einsum("nhd,nd->nh", queries[history.rows], history.values)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    gradients = (torch.autograd.grad(o, (queries, entries), direction) for o in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sums", "products of parts", "products of several queries"])
def test_small_batches_have_the_values_and_gradients_of_the_others(monkeypatch, name, dtype):
    sorts = []
    grouped = sparse_products._grouped
    monkeypatch.setattr(sparse_products, "_grouped", lambda *args: sorts.append(1) or grouped(*args))
    index = torch.arange(30) % 7
    entries = torch.randn(7, 8, dtype=dtype, requires_grad=True)
    other = torch.randn(30, 2, requires_grad=True) if name == "sums" else torch.randn(3, 2, 8, requires_grad=True)
    of_entry = 2 * 8  # multiplications: both heads; parts have half of the width
    if name == "products of parts":
        other, of_entry = torch.randn(3, 8, requires_grad=True), 8
    found = []
    for threshold, uses_matrix in ((30 * of_entry, True), (30 * of_entry + 1, False)):
        monkeypatch.setattr(sparse_products, "SMALL", threshold)
        history = Jagged(entries, torch.tensor([0, 20, 20, 30]), index)
        if name == "sums":
            values = weighted_sum(history, other)
        elif name == "products of parts":
            values = segment_products(other.to(dtype), history, 2)
        else:
            values = multi_query_products(other.to(dtype), history)
        sorts.clear()
        found.append([values, *torch.autograd.grad(values, (entries, other), torch.ones_like(values))])
        assert bool(sorts) is uses_matrix
    for matrix, small in zip(*found, strict=True):
        torch.testing.assert_close(matrix, small)


def test_sums_by_index():
    index = torch.tensor([3, 0, 3, 3, 0])
    values = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    assert [s.flatten().tolist() for s in sums_by(index, [values, -values], 5)] == [
        [18.0, 0.0, 0.0, 13.0, 0.0],
        [-18.0, 0.0, 0.0, -13.0, 0.0],
    ]
    assert sums_by(index[:0], [values[:0]], 2)[0].tolist() == [[0.0], [0.0]]
    many = torch.full((3000, 1), 1.01, dtype=torch.bfloat16)  # added one by one in bfloat16, the sum stops at 256
    (found,) = sums_by(torch.zeros(3000, dtype=torch.int64), [many], 1)
    torch.testing.assert_close(found, many.float().sum(dim=0, keepdim=True).bfloat16(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("rows", [0, 2])
def test_products_without_entries(rows):
    history = Jagged(torch.randn(0, 4, requires_grad=True), torch.zeros(rows + 1, dtype=torch.int64))
    queries = torch.randn(rows, 4, requires_grad=True)
    found = (
        segment_products(queries, history, 2),
        multi_query_products(queries.unflatten(1, (2, 2)), history.map(lambda e: e[:, :2])),
    )
    assert [products.shape for products in found] == [(0, 2), (0, 2)]
    sum(products.sum() for products in found).backward()
    assert queries.grad.shape == (rows, 4)
    assert queries.grad.abs().sum() == 0
    assert weighted_sum(history, torch.ones(0, 2)).shape == (rows, 2, 4)


def test_products_and_sums_of_a_history_share_their_pairs():
    history = Jagged(torch.randn(3, 4), torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2]))
    assert history.pairs(2, split=False) is history.pairs(2, split=False)
    assert history.pairs(2, split=True) is not history.pairs(2, split=False)
    assert history.pairs(1, split=True) is history.pairs(1, split=False)
