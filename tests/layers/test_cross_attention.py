"""A cross-attention layer beside PyTorch's attention."""

import torch
from torch import nn

from fuxictr_mm.layers import CrossAttentionLayer


def test_equals_pytorchs_attention(make_history, pad, side):
    history = make_history([3, 1, 5], 8)
    layer = CrossAttentionLayer(8, 2, hidden_dim=6).double()
    layer.norm.weight.data = torch.rand(8, dtype=torch.float64)
    query = torch.randn(3, 8, dtype=torch.float64)
    padded, mask = pad(history, side)
    dense = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
    a = layer.attention
    dense.in_proj_weight.data = torch.cat([a.W_q.weight, a.W_k.weight, a.W_v.weight]).detach()
    dense.out_proj.weight.data = a.W_o.weight.data
    keys = layer.norm(padded)
    attended, _ = dense(query.unsqueeze(1), keys, keys, key_padding_mask=~mask.bool())
    expected = layer.norm(query + attended.squeeze(1))
    expected = expected + layer.feed_forward(expected)
    torch.testing.assert_close(layer(query, history), expected, rtol=1e-12, atol=1e-12)


def test_an_empty_history_adds_nothing(make_history):
    layer = CrossAttentionLayer(8, 2, hidden_dim=6, norm_epsilon=0.5).double()
    query = torch.randn(1, 8, dtype=torch.float64)
    alone = query / (query.square().mean() + 0.5).sqrt()
    expected = alone + layer.feed_forward(alone)
    torch.testing.assert_close(layer(query, make_history([0], 8)), expected, rtol=1e-12, atol=1e-12)
