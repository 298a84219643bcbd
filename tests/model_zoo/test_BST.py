"""BST equals a padded re-computation with PyTorch's own attention."""

import torch
from torch import nn
from torch.nn import functional as F


def dense(model, p):
    inputs = []
    for context, target, items, _ in p.rows():
        tokens = torch.cat([items, target.unsqueeze(0)])
        distance = torch.arange(len(tokens) - 1, -1, -1).clamp(max=model.position_embedding.num_embeddings - 1)
        x = torch.cat([tokens, model.position_embedding.weight[distance]], dim=1)
        # PyTorch's attention over the row and seven places of padding.
        mask = torch.arange(len(x) + 7) >= len(x)
        for layer in model.encoder:
            padded = F.pad(x, (0, 0, 0, 7), value=5.0).unsqueeze(0)
            layer.self_attn.dropout = 0.0
            attended, _ = layer.self_attn(padded, padded, padded, key_padding_mask=mask.unsqueeze(0))
            x = layer.norm1(x + attended[0, : len(x)])
            x = layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))
        newest = x.flip(0)[: model.num_outputs].flatten()
        inputs.append(torch.cat([context, newest, newest.new_zeros(model.num_outputs * x.shape[1] - len(newest))]))
    return model.dnn(torch.stack(inputs))


def test_equals_the_dense_model(equals_dense):
    equals_dense("BST_tiny", dense)
    equals_dense("BST_tiny", dense, num_layers=2, num_heads=1, feedforward_dim=7, position_dim=4, num_outputs=9)


def test_far_items_share_a_position(pair, pad):
    model, batch = pair("BST_tiny", num_outputs=21)
    model.position_embedding = nn.Embedding(5, 16, dtype=torch.float64)
    expected = dense(model, pad(model, batch))
    torch.testing.assert_close(model(batch)["logit"], expected, rtol=1e-9, atol=1e-9)


def test_order_counts(order_counts):
    assert order_counts("BST_tiny")
