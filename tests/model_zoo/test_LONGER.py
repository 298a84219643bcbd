"""LONGER equals a re-computation group by group and token by token."""

import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.layers import LONGERLayer
from tests.model_zoo.planted import LENGTH, auc_after_training
from tests.sizes import LargestTensor


def merged(merge, items):
    groups, size = [], merge.group_size
    while len(items):
        group, items = items[-size:], items[:-size]
        if (layer := merge.layer) is not None:
            q, k, v = F.linear(group, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, dim=1)
            seen = torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=1) @ v
            group = layer.norm1(group + layer.self_attn.out_proj(seen))
            group = layer.norm2(group + layer.linear2(F.relu(layer.linear1(group))))
        groups.append(F.pad(group.flatten(), (size * group.shape[1] - group.numel(), 0)))
    return groups[::-1]


def dense(model, p):
    inputs = []
    for context, target, items, _ in p.rows():
        items = items[-model.max_len :]
        groups = merged(model.merge, model.item_token(items) + model.position.weight[: len(items)].flip(0))
        tokens = torch.stack([*groups, *model.cls, model.context_token(context), model.target_token(target)])
        for recent, layer in zip(model.recent, model.layers, strict=True):
            count, heads = recent + model.num_global, []
            for q, k, v in zip(
                *(x.chunk(layer.num_heads, 1) for x in layer.qkv(layer.norm1(tokens)).chunk(3, 1)), strict=True
            ):
                scores = q @ k.T / q.shape[1] ** 0.5
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -1e30)
                heads.append((torch.softmax(scores, dim=1) @ v)[-count:])
            tokens = tokens[-count:] + layer.output(torch.cat(heads, dim=1))
            tokens = tokens + layer.ffn(layer.norm2(tokens))
        *user, last = model.norm(tokens)
        inputs.append(torch.cat([context, *user, target, last]))
    return model.dnn(torch.stack(inputs))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_layers": 3, "num_heads": 1, "group_size": 8, "num_recent": 1, "num_cls": 3},
        {"num_layers": 1, "group_size": 1, "inner_transformer": False},
    ],
)
def test_equals_the_dense_model(equals_dense, settings):
    equals_dense("LONGER_tiny", dense, **settings)


def test_settings_reach_the_layers(build):
    sizes = {"token_dim": 8, "num_heads": 2, "hidden_factor": 3, "group_size": 2}
    model, _ = build("LONGER_tiny", num_recent=3, num_cls=4, num_layers=3, inner_transformer=False, **sizes)
    assert (model.recent, len(model.layers), model.cls.shape, model.merge.layer) == ([3, 3, 0], 3, (4, 8), None)
    assert (model.layers[0].num_heads, model.layers[0].ffn[0].weight.shape) == (2, (24, 8))
    assert build("LONGER_tiny", **sizes)[0].merge.layer.linear1.weight.shape == (12, 4)


def test_order_counts(order_counts):
    assert order_counts("LONGER_tiny")


def test_candidates_of_a_long_history_take_memory_of_one_head():
    layer = LONGERLayer(8, 4, 8)
    keys, values = torch.randn(300, 8), torch.randn(300, 8)
    with torch.no_grad(), LargestTensor() as largest:
        layer.attend(torch.randn(5, 2, 8), keys, values)
    assert largest.count == 5 * 2 * (2 + 300)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [True, False])
def test_finds_the_order_of_items_in_different_groups(build, inner):
    """Item 1 is among the older half of the history and item 2 among the newer one, or the other way round."""

    def draw(label):
        items = torch.randint(3, 20, (len(label), LENGTH))
        places = torch.randint(LENGTH // 2, (2, len(label))) + torch.tensor([[0], [LENGTH // 2]])
        rows = torch.arange(len(label))
        items[rows, places[0]], items[rows, places[1]] = 2 - label, 1 + label
        return items

    model, dataset = build("LONGER_tiny", inner_transformer=inner, learning_rate=1e-2, net_dropout=0.0)
    assert auc_after_training(model, dataset.splits["train"].context, draw, steps=60) > 0.9
