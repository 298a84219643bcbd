"""DIN_CrossAttention equals a padded re-computation from its formulas."""

import torch
from torch.nn import functional as F


def rms_norm(layer, x):
    return x / (x.square().mean(dim=-1, keepdim=True) + layer.eps).sqrt() * layer.weight


def test_equals_the_dense_model(equals_dense, din, target_attention):
    def dense(model, p):
        query = p.t
        for layer in model.encoder:
            attended = query + target_attention(layer.attention, query, rms_norm(layer.norm, p.s), p.mask)
            attended = rms_norm(layer.norm, attended)
            first, last = layer.feed_forward[0], layer.feed_forward[3]
            query = attended + last(F.relu(first(attended)))
        return model.dnn(torch.cat([p.c, p.t, din(model.attention_layers, p.t, p.s, p.mask), query], dim=-1))

    equals_dense("DIN_CrossAttention_tiny", dense)
    equals_dense("DIN_CrossAttention_tiny", dense, num_layers=1, num_heads=2, feedforward_dim=5, norm_epsilon=1e-6)


def test_the_order_of_a_history_is_of_no_account(order_counts):
    assert not order_counts("DIN_CrossAttention_tiny")


def test_user_and_levels_are_features(build):
    model, _ = build("DIN_CrossAttention_tiny")
    assert model.context_fields == ["user_id"]
    assert {"likes_level", "views_level"} < set(model.item_fields)
    tables = model.embedding_layer.embedding_layer.embedding_layers
    assert tables["user_id"].weight.shape == (2001, 16)
