"""The product of fields, a layer and the loss of the contrastive MLP, by hand."""

import math

import torch

from fuxictr_mm.layers import ContrastiveProduct, ContrastLayer, contrastive_loss


def test_product_by_hand():
    product = ContrastiveProduct(num_fields=2, field_dim=1).double()
    product.kernel.data.fill_(2.0)
    for layer in (product.map_upper, product.map_lower):
        layer.weight.data = torch.tensor([[1.0, 10.0, 100.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    upper, lower = product(torch.tensor([[[3.0], [5.0]]], dtype=torch.float64))
    # All products, twice: 18, 30, 30, 50.
    assert upper.tolist() == lower.tolist() == [[18 + 300 + 5000, 30]]


def test_views_differ_where_the_kernel_is_not_symmetric():
    product = ContrastiveProduct(num_fields=3, field_dim=4)
    product.map_lower.weight.data = product.map_upper.weight.data
    fields = torch.randn(2, 3, 4)
    assert product(fields)[0].shape == (2, 12)
    assert set(product.upper.tolist()) == {0, 1, 2, 4, 5, 8}
    assert set(product.lower.tolist()) == {0, 3, 4, 6, 7, 8}


def test_layer_by_hand():
    layer = ContrastLayer(3, 1, first=False, batch_norm=False, dropout_rate=0.0).double()
    layer.linear.weight.data = torch.eye(3, dtype=torch.float64)
    layer.linear.bias.data.zero_()
    layer.gate.weight.data.fill_(0.0)
    layer.gate.bias.data.fill_(0.0)
    layer.gate_tau.data.fill_(2.0)
    layer.offset.data = torch.tensor([0.25, -8.0], dtype=torch.float64)
    # The gate is sigmoid(0) / 2 = 1/4: 2 * 5/4 + 1/4 + 2, and 3 * 5/4 - 8 + 3 below zero.
    assert layer(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)).tolist() == [[1.0, 4.75, 0.0]]
    assert ContrastLayer(3, 1, first=True, batch_norm=False, dropout_rate=0.0).offset is None


def test_loss_by_hand():
    e = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = contrastive_loss(e, 3 * e, e, temperature=0.5)
    expected = -math.log(math.exp(2) / (math.exp(2) + 1) + 1e-5)
    torch.testing.assert_close(found.item(), expected, rtol=1e-12, atol=0)


def test_loss_of_vectors_of_length_zero_is_finite():
    zero = torch.zeros(2, 3, requires_grad=True)
    loss = contrastive_loss(zero, zero, zero, 0.2)
    loss.backward()
    assert loss.isfinite()
    assert zero.grad.isfinite().all()
