import pytest
import torch
from fuxictr.pytorch import layers as fuxictr_layers

from fuxictr_mm.layers import CrossNet, CrossNetMix, CrossNetV2


def test_cross_net_by_hand():
    layer = CrossNet(2, 1)
    layer.load_state_dict(
        {"cross_net.0.weight.weight": torch.tensor([[1.0, 2.0]]), "cross_net.0.bias": torch.tensor([0.5, -0.5])}
    )
    # x0 (w . x0) + b + x0 with x0 = (3, 1): w . x0 = 5
    assert layer(torch.tensor([[3.0, 1.0]])).tolist() == [[18.5, 5.5]]


def test_cross_net_v2_by_hand():
    layer = CrossNetV2(2, 1)
    layer.load_state_dict(
        {
            "cross_layers.0.weight": torch.tensor([[1.0, 2.0], [0.0, 1.0]]),
            "cross_layers.0.bias": torch.tensor([0.5, -0.5]),
        }
    )
    # x0 * (W x0 + b) + x0 with x0 = (3, 1): W x0 + b = (5.5, 0.5)
    assert layer(torch.tensor([[3.0, 1.0]])).tolist() == [[19.5, 1.5]]


def mix(width: int) -> tuple[CrossNetMix, fuxictr_layers.CrossNetMix]:
    torch.manual_seed(1)
    options = {"layer_num": 3, "low_rank": 4, "num_experts": 3}
    theirs = fuxictr_layers.CrossNetMix(width, **options).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = CrossNetMix(width, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_cross_net_mix_equals_fuxictr(assert_same):
    ours, theirs = mix(6)
    inputs = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert_same(ours(inputs), theirs(inputs), [inputs], ours, theirs)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(("batch", "width"), [(1, 6), (4, 1), (1, 1), (3, 6)])
def test_cross_net_mix_equals_the_formula_expert_by_expert(assert_same, batch, width):
    layer, _ = mix(width)
    inputs = torch.randn(batch, width, dtype=torch.float64, requires_grad=True)
    rows = []
    for x_0 in inputs:
        x = x_0
        for U, V, C, b in zip(layer.U_list, layer.V_list, layer.C_list, layer.bias, strict=True):
            gates = torch.cat([gate(x) for gate in layer.gating]).softmax(0)
            experts = [
                x_0 * (U[e] @ torch.tanh(C[e] @ torch.tanh(V[e].t() @ x)) + b.flatten()) for e in range(len(gates))
            ]
            x = sum(gate * expert for gate, expert in zip(gates, experts, strict=True)) + x
        rows.append(x)
    result = layer(inputs)
    assert result.shape == (batch, width)
    assert_same(result, torch.stack(rows), [inputs], layer, layer)


def test_a_row_alone_equals_the_row_in_a_batch():
    layer, _ = mix(6)
    inputs = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(inputs)[2:3], layer(inputs[2:3]), rtol=1e-12, atol=1e-12)
