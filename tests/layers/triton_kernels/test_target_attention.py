from contextlib import nullcontext
from importlib import import_module
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.layers import Jagged, MultiHeadTargetAttention

pytest.importorskip("triton")
kernels = import_module("fuxictr_mm.layers.triton_kernels.target_attention")

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.fixture
def check(make_history, assert_same):
    def check(lengths, heads, dim, sparse, distinct=4, dtype=torch.float32):
        history = make_history(lengths, dim, distinct, dtype)
        queries = torch.randn(len(lengths), heads, dim, device=history.distinct.device).to(dtype).requires_grad_()

        def row_by_row(queries, items):
            pooled = []
            for q, (start, end) in zip(queries, pairwise(history.offsets.tolist()), strict=True):
                s = items[history.index[start:end]]
                scores = s @ q.t()
                pooled.append((scores.relu() if sparse else scores.softmax(0)).t() @ s)
            return torch.stack(pooled)

        pooled = kernels.target_attention(queries, history, sparse)
        assert pooled.dtype == dtype
        assert_same(pooled, [queries, history.distinct], row_by_row, TOLERANCES[dtype])

    return check


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("heads", "dim", "dtype"), [(1, 16, torch.float32), (3, 5, torch.float32), (3, 5, torch.bfloat16)]
)
def test_equals_the_formula_row_by_row(monkeypatch, check, heads, dim, sparse, dtype):
    monkeypatch.setattr(kernels, "LARGEST_QUERY", 64)  # blocks of four or two entries
    check([3, 0, 9, 1], heads, dim, sparse, distinct=8, dtype=dtype)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("lengths", [[0, 0], [2]])
def test_no_entries_and_a_single_row(check, lengths, sparse):
    check(lengths, 2, 3, sparse)


@pytest.mark.slow
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),  # by which a failure is replayed
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(1, 5)),
    block=st.sampled_from([1, 32, 256]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_the_formula_for_all_shapes(monkeypatch, check, lengths, seed, sizes, block):
    torch.manual_seed(seed)
    monkeypatch.setattr(kernels, "LARGEST_QUERY", block)
    check(lengths, *sizes)


def test_scores_beyond_the_range_of_exponentials(make_history):
    history = make_history([40], 1, distinct=2)
    history.distinct.data = torch.tensor([[1.0], [2.0]], device=history.distinct.device)
    for factor in (-400.0, 400.0):
        queries = torch.full((1, 1, 1), factor, device=history.distinct.device, requires_grad=True)
        pooled = kernels.target_attention(queries, history, False)
        assert pooled.item() == (1.0 if factor < 0 else 2.0)
        (gradient,) = torch.autograd.grad(pooled.sum(), queries)
        assert gradient.item() == 0.0


@pytest.mark.parametrize("sparse", [False, True])
def test_nan_of_one_row_stays_nan(make_history, sparse):
    history = make_history([2, 1], 3)
    queries = torch.ones(2, 1, 3, device=history.distinct.device)
    queries[0] = torch.nan
    pooled = kernels.target_attention(queries.requires_grad_(), history, sparse)
    assert pooled.isnan().any(2).tolist() == [[True], [False]]
    (gradient,) = torch.autograd.grad(pooled.square().sum(), queries)
    assert gradient.isnan().any(2).tolist() == [[True], [False]]


def test_the_kernel_is_launched_on_the_device_of_its_inputs(monkeypatch, make_history):
    history = make_history([1], 3)
    queries = torch.ones(1, 1, 3, device=history.distinct.device)
    seen = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: seen.append(tensor) or nullcontext())
    kernels.target_attention(queries, history, False)
    assert seen == [queries]


def test_an_index_with_gaps_between_its_numbers(make_history):
    history = make_history([3, 2], 3)
    strided = Jagged(
        history.distinct, history.offsets.repeat_interleave(2)[::2], history.index.repeat_interleave(2)[::2]
    )
    queries = torch.randn(2, 2, 3, device=history.distinct.device)
    assert torch.equal(*(kernels.target_attention(queries, h, False) for h in (history, strided)))


@pytest.mark.parametrize(("heads", "sparse", "autocast"), [(1, False, False), (2, False, True), (2, True, False)])
def test_a_fused_layer_gives_what_it_gives_otherwise(always_takes, make_history, heads, sparse, autocast):
    history = make_history([3, 0, 5], 6)
    device = history.distinct.device
    layer = MultiHeadTargetAttention(6, 8, heads, sparse=sparse).to(device)
    target = torch.randn(3, 6, device=device, requires_grad=True)
    found = []
    for fused in (False, True):
        layer.uses_kernels = fused
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = layer(target, history)
        gradients = torch.autograd.grad(output.float().square().sum(), [target, history.distinct, *layer.parameters()])
        found.append([output, *gradients])
    for x, y in zip(*found, strict=True):
        assert x.dtype == y.dtype
        assert (x - y).norm() <= (3e-2 if autocast else 1e-5) * y.norm()


def test_the_kernel_is_left_out_where_the_weights_are_needed(always_takes, monkeypatch, make_history):
    history = make_history([3, 0, 5], 6)
    target = torch.randn(3, 6, device=history.distinct.device)
    calls = []
    monkeypatch.setattr(kernels, "target_attention", lambda q, *_: calls.append(q) or torch.zeros_like(q))

    def is_called(layer, **options):
        calls.clear()
        layer.to(target.device)(target, history, **options)
        return bool(calls)

    def fused(**options):
        layer = MultiHeadTargetAttention(6, 6, 2, **options)
        layer.uses_kernels = True
        return layer

    assert is_called(fused())
    assert not is_called(fused(), return_weights=True)
    assert not is_called(fused(use_qkvo=False))
    assert not is_called(fused(dropout_rate=0.5))
    assert is_called(fused(dropout_rate=0.5).eval())
    assert not is_called(MultiHeadTargetAttention(6, 6, 2))
    layer = fused()
    with layer.dropout.register_forward_hook(lambda *_: None):
        assert not is_called(layer)
    assert is_called(layer)
