"""SimCEN equals a padded re-computation from the formulas of its layers and its loss."""

import pytest
import torch
from torch import nn


def normalised(layer, x):
    """Batch norm, if there is one, by the statistics that it uses now."""
    norm = layer.activation[0]
    if not isinstance(norm, nn.BatchNorm1d):
        return x
    mean, var = (x.mean(0), x.var(0, unbiased=False)) if norm.training else (norm.running_mean, norm.running_var)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def contrast(e, a, b, temperature):
    e, a, b = (x / x.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12) for x in (e, a, b))
    losses = []
    for row in range(len(e)):
        near = torch.exp((e[row] @ a[row] + e[row] @ b[row]) / 2 / temperature)
        losses.append(-torch.log(near / sum(torch.exp(a[row] @ other / temperature) for other in b) + 1e-5))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("settings", [{}, {"batch_norm": False, "num_layers": 3, "num_heads": 1}, {"num_layers": 1}])
def test_equals_the_dense_model(equals_dense, target_attention, settings):
    def dense(model, p):
        flat = torch.cat([p.c, p.t, target_attention(model.attention, p.t, p.s, p.mask)], dim=-1)
        x = flat.view(len(flat), -1, model.embedding_dim)
        f = range(x.shape[1])
        m = torch.einsum("bid,de,bje->bij", x, model.product.kernel, x)
        upper = torch.stack([m[:, i, j] for i in f for j in f if i <= j], dim=1)
        lower = torch.stack([m[:, i, j] for i in f for j in f if i >= j], dim=1)
        parts = [flat, model.product.map_upper(upper), model.product.map_lower(lower)]
        for number, layer in enumerate(model.layers):
            e, a, b = layer.linear(torch.cat(parts, dim=1)).chunk(3, dim=1)
            gate = torch.sigmoid(layer.gate(e)) / layer.gate_tau
            a, b = a + gate * a, b + gate * b
            if number:
                offset_a, offset_b = layer.offset.chunk(2)
                a, b = a + offset_a + parts[1], b + offset_b + parts[2]
            parts = list(torch.relu(normalised(layer, torch.cat([e, a, b], dim=1))).chunk(3, dim=1))
        e, a, b = parts[0], parts[1] + parts[0], parts[2] + parts[0]
        more = model.contrast_weight * contrast(e, a, b, model.contrast_temperature)
        return model.fc(torch.cat([e, a, b], dim=1)), more

    equals_dense("SimCEN_tiny", dense, **settings)


def test_the_order_of_a_history_is_of_no_account(order_counts):
    assert not order_counts("SimCEN_tiny")


def test_the_contrast_is_part_of_training_only(pair):
    model, batch = pair("SimCEN_tiny")
    label = batch.label.view(-1, 1)
    plain = nn.functional.binary_cross_entropy_with_logits
    returned = model.train()(batch)
    assert not torch.equal(model.add_loss(returned, label), plain(returned["logit"], label))
    assert model.contrast is None  # a batch's graph ends with its step
    returned = model.eval()(batch)
    assert torch.equal(model.add_loss(returned, label), plain(returned["logit"], label))
