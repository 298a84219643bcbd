from contextlib import nullcontext
from importlib import import_module

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.layers import DINAttention, Jagged

triton = pytest.importorskip("triton")
tl = triton.language
kernels = import_module("fuxictr_mm.layers.triton_kernels.activation_unit")

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


@triton.jit
def add_rounded_product(a, b, sums, like, PRECISION: tl.constexpr):
    """``_add_product`` for the interpreter, which cannot multiply bfloat16: rounded to it, in float32."""
    dtype = like.dtype.element_ty
    return tl.dot(a.to(dtype).to(tl.float32), b.to(dtype).to(tl.float32), sums)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(kernels, "SPLITS", 2)


@pytest.fixture
def multiplies_bfloat16(monkeypatch):
    """Return a function that lets the interpreter multiply bfloat16."""

    def multiply():
        if not torch.cuda.is_available():
            monkeypatch.setattr(kernels, "_add_product", add_rounded_product)

    return multiply


@pytest.fixture
def check(make_history, assert_same, multiplies_bfloat16):
    def check(lengths, dim, units, dropout=0.0, distinct=4, dtype=torch.float32):
        if dtype == torch.bfloat16:
            multiplies_bfloat16()
        history = make_history(lengths, dim, distinct, dtype)
        sizes = (len(lengths), dim), (len(lengths), units), (distinct, units), (units, dim)
        inputs = [torch.randn(*size, device=history.distinct.device).to(dtype).requires_grad_() for size in sizes]
        target, *parts = inputs
        hidden = kernels.first_layer(target, history, *parts, dropout)
        assert hidden.dtype == dtype

        def dense(target, target_part, items_part, weight, items):
            rows, index = history.rows, history.index
            inner = target_part[rows] + items_part[index] + (target[rows] * items[index]) @ weight.t()
            return inner.relu() * ((hidden != 0) / (1 - dropout) if dropout else 1)

        assert_same(hidden, [*inputs, history.distinct], dense, TOLERANCES[dtype])
        return hidden

    return check


@pytest.mark.parametrize(("dropout", "dtype"), [(0.0, torch.float32), (0.4, torch.float32), (0.4, torch.bfloat16)])
def test_equals_the_formula(monkeypatch, check, dropout, dtype):
    for blocks in (kernels.FORWARD, kernels.OF_INPUTS, kernels.OF_WEIGHT):
        for name in ("BLOCK_N", "BLOCK_D", "BLOCK_A"):
            monkeypatch.setitem(blocks, name, 16)
    check([3, 0, 20, 1], 17, 18, dropout, dtype=dtype)


@pytest.mark.parametrize("lengths", [[0, 0], [1], [70]])
def test_no_items_and_a_single_row(check, lengths):
    check(lengths, 3, 5)


@pytest.mark.slow
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),  # by which a failure is replayed
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.3]), st.integers(1, 5)),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_the_formula_for_all_shapes(check, lengths, seed, sizes):
    torch.manual_seed(seed)
    check(lengths, *sizes)


def test_dropout_keeps_a_fraction_that_the_seed_decides(make_history):
    history = make_history([64], 3)
    device = history.distinct.device
    parts = torch.ones(1, 60, device=device), torch.ones(4, 60, device=device), torch.zeros(60, 3, device=device)

    def hidden(seed):
        torch.manual_seed(seed)
        return kernels.first_layer(torch.ones(1, 3, device=device), history, *parts, 0.25)

    first = hidden(0)
    assert torch.equal(first, hidden(0))
    assert not torch.equal(first, hidden(1))
    # The next layer or step has another mask.
    other = kernels.first_layer(torch.ones(1, 3, device=device), history, *parts, 0.25)
    assert not torch.equal(hidden(1), other)
    assert not kernels.first_layer(torch.ones(1, 3, device=device), history, *parts, 1.0).any()
    assert abs(first.mean() / 2 - 1) < 0.03  # 3,840 entries: three standard deviations, of a fixed seed
    assert set(first.unique().tolist()) == {0.0, first.max().item()}
    assert first[:, 0].unique().numel() == first[0].unique().numel() == 2


def test_nan_of_one_row_stays_nan(make_history):
    history = make_history([2, 1], 3)
    device = history.distinct.device
    target_part = torch.tensor([[torch.nan, 1.0], [1.0, 1.0]], device=device, requires_grad=True)
    parts = target_part, torch.zeros(4, 2, device=device), torch.zeros(2, 3, device=device)
    hidden = kernels.first_layer(torch.ones(2, 3, device=device), history, *parts, 0.0)
    assert hidden.isnan().tolist() == [[True, False], [True, False], [False, False]]
    (gradient,) = torch.autograd.grad(hidden, target_part, hidden.detach())
    assert gradient.isnan().tolist() == [[True, False], [False, False]]


def test_the_kernel_is_launched_on_the_device_of_its_inputs(monkeypatch, make_history):
    history = make_history([1], 3)
    target, *parts = (torch.ones(*size, device=history.distinct.device) for size in ((1, 3), (1, 2), (4, 2), (2, 3)))
    seen = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: seen.append(tensor) or nullcontext())
    kernels.first_layer(target, history, *parts, 0.0)
    assert seen == [target]


def test_an_index_with_gaps_between_its_numbers(make_history):
    history = make_history([3, 2], 3)
    device = history.distinct.device
    strided = Jagged(history.distinct, history.offsets, history.index.repeat_interleave(2)[::2])
    parts = torch.randn(2, 5, device=device), torch.randn(4, 5, device=device), torch.randn(5, 3, device=device)
    target = torch.randn(2, 3, device=device)
    found = [kernels.first_layer(target, h, *parts, 0.0) for h in (history, strided)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "autocast"),
    [
        ({}, True),
        ({"attention_units": [9, 5], "use_softmax": True}, False),
        ({"attention_units": [9], "output_activation": "Sigmoid"}, False),
    ],
)
def test_a_fused_layer_gives_what_it_gives_otherwise(
    monkeypatch, always_takes, make_history, multiplies_bfloat16, options, autocast
):
    if autocast:
        multiplies_bfloat16()
    monkeypatch.setattr("fuxictr_mm.layers.din_attention.relu_layers", lambda _: None)  # as on a GPU
    history = make_history([3, 0, 5], 6)
    device = history.distinct.device
    layer = DINAttention(6, **{"attention_units": [7], **options}, hidden_activations="ReLU").to(device)
    target = torch.randn(3, 6, device=device, requires_grad=True)
    found = []
    for fused in (False, True):
        layer.uses_kernels = fused
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = layer(target, history)
        gradients = torch.autograd.grad(output.square().sum(), [target, history.distinct, *layer.parameters()])
        found.append([output, *gradients])
    for x, y in zip(*found, strict=True):
        assert x.dtype == y.dtype
        assert (x - y).norm() <= (6e-2 if autocast else 1e-5) * y.norm()


@pytest.mark.parametrize("options", [{"hidden_activations": "Dice"}, {"batch_norm": True}, {"attention_units": []}])
def test_the_kernel_is_left_out_for_other_layers(always_takes, monkeypatch, make_history, options):
    monkeypatch.setattr(kernels, "first_layer", None)
    monkeypatch.setattr("fuxictr_mm.layers.din_attention.relu_layers", lambda _: None)
    history = make_history([3, 2], 6)
    layer = DINAttention(6, **options).to(history.distinct.device)
    layer.uses_kernels = True
    assert layer(torch.randn(2, 6, device=history.distinct.device), history).shape == (2, 6)


def test_the_kernel_applies_the_only_dropout_of_the_first_layer_and_none_in_eval(
    always_takes, monkeypatch, make_history
):
    monkeypatch.setattr("fuxictr_mm.layers.din_attention.relu_layers", lambda _: None)
    history = make_history([3, 2], 6)
    device = history.distinct.device
    given = []
    monkeypatch.setattr(kernels, "first_layer", lambda *args: given.append(args[-1]) or torch.ones(5, 7, device=device))
    layer = DINAttention(6, [7], dropout_rate=0.5).to(device)
    layer.uses_kernels = True
    layer.attention_layer.mlp[2].register_forward_hook(lambda *_: pytest.fail("dropout twice"))
    layer(torch.randn(2, 6, device=device), history)
    layer.eval()(torch.randn(2, 6, device=device), history)
    assert given == [0.5, 0.0]
