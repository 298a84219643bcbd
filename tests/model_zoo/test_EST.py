"""EST equals a re-computation token by token, with the matrix of similarities written out."""

import pytest
import torch
from torch.nn import functional as F

from tests.model_zoo.planted import LENGTH, auc_after_training


def own(layer, x):
    out = torch.stack([token @ weight for token, weight in zip(x, layer.weight, strict=True)])
    return out if layer.bias is None else out + layer.bias


def largest_of_each_row(matrix, count):
    kept = torch.zeros_like(matrix)
    for i, row in enumerate(matrix.tolist()):
        for j in sorted(range(len(row)), key=lambda j, row=row: (row[j], j))[-count:]:
            kept[i, j] = row[j]
    return kept


def dense(model, p):
    inputs, content = [], F.normalize(model.items[model.content], dim=1)
    for context, target, items, ids in p.rows():
        fields = torch.cat([context, target]).view(-1, model.embedding_dim)
        tokens, behaviours = own(model.feature_tokens, fields), model.behaviour(items)
        mixing = largest_of_each_row(content[ids] @ content[ids].T, model.top_k)
        for layer in model.layers:
            normed, heads = layer.norm1(behaviours), []
            parts = (own(layer.query, layer.norm1(tokens)), layer.key(normed), layer.value(normed))
            for q, k, v in zip(*(x.chunk(layer.num_heads, 1) for x in parts), strict=True):
                heads.append(torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=1) @ v)
            tokens = tokens + own(layer.output, torch.cat(heads, dim=1))
            tokens = tokens + own(layer.token_ffn2, F.gelu(own(layer.token_ffn1, layer.norm2(tokens))))
            behaviours = behaviours + mixing @ behaviours
            behaviours = behaviours + layer.ffn(layer.norm2(behaviours))
        mean = behaviours.sum(dim=0) / max(len(behaviours), 1)
        count = len(model.context_fields)
        inputs.append(torch.cat([x.flatten() for x in map(model.norm, (tokens[:count], mean, tokens[count:]))]))
    return model.dnn(torch.stack(inputs))


@pytest.mark.parametrize(
    "settings", [{}, {"num_layers": 3, "num_heads": 1, "top_k": 2}, {"num_layers": 1, "top_k": 30}]
)
def test_equals_the_dense_model(equals_dense, settings):
    equals_dense("EST_tiny", dense, **settings)


def test_settings_reach_the_layers(build):
    model, _ = build("EST_tiny", top_k=3, num_layers=1, token_dim=8, num_heads=2, hidden_factor=3)
    (layer,) = model.layers
    assert (model.top_k, layer.num_heads) == (3, 2)
    assert model.norm.eps == layer.norm1.eps
    assert (layer.token_ffn1.weight.shape[1:], layer.ffn[0].weight.shape) == ((8, 24), (24, 8))


def test_the_order_does_not_matter(order_counts):
    assert not order_counts("EST_tiny")


@pytest.mark.slow
def test_finds_behaviours_of_like_content(build):
    """Half of the histories are pairs of an item and its nearest by content, the others have these of other rows."""
    names = ["likes_level", "views_level", "item_id", "item_emb_d16"]
    own = {"use_features": names, "feature_specs": [{"name": "item_emb_d16", "embedded": False}]}
    found = {}
    for top_k in (1, 2):
        model, dataset = build("EST_tiny", top_k=top_k, learning_rate=1e-2, net_dropout=0.0, **own)
        content = F.normalize(model.items[model.content], dim=1)[1:]
        nearest = (content @ content.T).fill_diagonal_(-1).argmax(dim=1) + 1

        def draw(label, nearest=nearest):
            some, others = torch.randint(len(nearest), (2, len(label), LENGTH // 2))
            items = torch.cat([some + 1, nearest[torch.where(label.bool().unsqueeze(1), some, others)]], dim=1)
            return items.gather(1, torch.rand(items.shape).argsort(dim=1))

        found[top_k] = auc_after_training(model, dataset.splits["train"].context, draw, steps=60)
    assert found[2] > 0.85
    assert found[1] < 0.7  # each behaviour reads itself alone
