"""OneTrans equals a re-computation token by token, in which left-out tokens take no part in later layers."""

import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.layers import OneTransBlock
from tests.sizes import LargestTensor


def own(layer, x):
    out = torch.stack([token @ weight for token, weight in zip(x, layer.weight, strict=True)])
    return out if layer.bias is None else out + layer.bias


def dense(model, p):
    inputs = []
    for context, target, items, _ in p.rows():
        seq = model.item_token(items) + model.position.weight[: len(items)].flip(0)
        tokens = F.silu(model.feature_tokens(torch.cat([context, target]))).view(-1, seq.shape[1])
        for kept, block in zip(model.kept, model.blocks, strict=True):
            seq = seq[-kept:]
            qkv = torch.cat([block.qkv(block.norm1(seq)), own(block.token_qkv, block.norm1(tokens))])
            heads = []
            for q, k, v in zip(*(x.chunk(block.num_heads, 1) for x in qkv.chunk(3, 1)), strict=True):
                scores = q @ k.T / q.shape[1] ** 0.5
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -1e30)
                heads.append(torch.softmax(scores, dim=1) @ v)
            attended = block.output(torch.cat(heads, dim=1))
            tokens = tokens + attended[len(seq) :]
            first, act, second = block.token_ffn
            tokens = tokens + own(second, act(own(first, block.norm2(tokens))))
            if block.ffn is not None:
                seq = seq + attended[: len(seq)]
                seq = seq + block.ffn(block.norm2(seq))
        inputs.append(model.norm(tokens).flatten())
    return model.dnn(torch.stack(inputs))


@pytest.mark.parametrize(
    "settings", [{}, {"num_layers": 3, "num_tokens": 1, "num_heads": 1, "last_len": 2}, {"num_layers": 1}]
)
def test_equals_the_dense_model(equals_dense, settings):
    equals_dense("OneTrans_tiny", dense, **settings)


def test_the_pyramid(build):
    assert build("OneTrans_tiny", num_layers=3)[0].kept == [20, 12, 4]


def test_order_counts(order_counts):
    assert order_counts("OneTrans_tiny")


def test_candidates_of_a_long_history_take_memory_of_one_head():
    block = OneTransBlock(2, 8, 4, 8, last=True)
    keys, values = torch.randn(300, 8), torch.randn(300, 8)
    with torch.no_grad(), LargestTensor() as largest:
        block.attend(torch.randn(5, 2, 8), keys, values)
    assert largest.count == 5 * 2 * (2 + 300)
