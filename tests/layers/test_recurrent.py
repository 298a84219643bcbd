"""The order of steps, and the GRU whose update gate is weighed."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fuxictr_mm.layers import AUGRU, Jagged
from fuxictr_mm.layers.recurrent import Steps


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=7))
def test_steps_run_through_every_row_in_order(lengths):
    history = Jagged(torch.arange(sum(lengths)), torch.tensor([0, *lengths]).cumsum(0))
    steps = Steps.of(history)
    assert steps.sizes.tolist() == [sum(n > step for n in lengths) for step in range(max(lengths))]
    assert sorted(steps.rows.tolist()) == [row for row, n in enumerate(lengths) if n]
    packed = steps.pack(history.values)
    for place, row in enumerate(steps.rows.tolist()):
        starts = [0, *steps.sizes.cumsum(0).tolist()[:-1]]
        read = [int(packed.data[s + place]) for s, size in zip(starts, steps.sizes, strict=True) if place < size]
        assert read == history.values[history.offsets[row] : history.offsets[row + 1]].tolist()
    assert torch.equal(steps.unpack(packed.data), history.values)


def test_by_hand():
    """One step from zero: the state is the weight times the update gate times the candidate."""
    layer = AUGRU(1, 1).double()
    layer.input_map.weight.data = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64)
    layer.input_map.bias.data.zero_()
    steps = Steps.of(Jagged(torch.tensor([[2.0]]), torch.tensor([0, 1])))
    x, weight = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64)
    # 0.25 * sigmoid(1 * 2) * tanh(0.5 * 2)
    expected = 0.25 * 0.8807970779778823 * 0.7615941559557649
    torch.testing.assert_close(layer(steps.pack(x), steps.pack(weight)).item(), expected, rtol=1e-12, atol=0)


def test_weight_one_is_a_gru_and_weight_zero_changes_nothing():
    values, ones = torch.randn(6, 3, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    layer, plain, steps = AUGRU(3, 4).double(), nn.GRU(3, 4).double(), Steps.of(rows_of(values, [0, 2, 2, 6]))
    # PyTorch stacks reset, update, new, and its update gate is what is kept of the state.
    for name, ours in (
        ("weight_ih_l0", layer.input_map.weight),
        ("bias_ih_l0", layer.input_map.bias),
        ("weight_hh_l0", layer.state_map.weight),
    ):
        update, reset, new = ours.detach().chunk(3)
        getattr(plain, name).data = torch.cat([reset, -update, new])
    plain.bias_hh_l0.data.zero_()
    inputs = steps.pack(values)
    torch.testing.assert_close(layer(inputs, steps.pack(ones)), plain(inputs)[1][0], rtol=1e-12, atol=1e-12)
    # Without its last three items, the last row is the shorter one.
    none = layer(inputs, steps.pack(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)))
    cut = Steps.of(rows_of(values[:3], [0, 2, 2, 3]))
    assert (steps.rows.tolist(), cut.rows.tolist()) == ([2, 0], [0, 2])
    torch.testing.assert_close(layer(cut.pack(values[:3]), cut.pack(ones[:3])), none.flip(0), rtol=1e-12, atol=1e-12)


def rows_of(values, offsets):
    return Jagged(values, torch.tensor(offsets))
