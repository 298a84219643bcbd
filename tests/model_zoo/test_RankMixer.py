"""RankMixer equals a re-computation token by token."""

import pytest
import torch
from torch.nn import functional as F


@pytest.mark.parametrize("settings", [{}, {"num_tokens": 5, "token_dim": 10, "num_layers": 1, "hidden_factor": 3}])
def test_equals_the_dense_model(equals_dense, target_attention, settings):
    def linear(layer, tokens):
        return [x @ w + b for x, w, b in zip(tokens, layer.weight, layer.bias, strict=True)]

    def dense(model, p):
        x = torch.cat([p.c, p.t, target_attention(model.attention, p.t, p.s, p.mask)], dim=1)
        count = model.tokens.num_tokens
        size = -(-x.shape[1] // count)
        tokens = linear(model.tokens.linear, F.pad(x, (0, count * size - x.shape[1])).split(size, dim=1))
        for layer in model.mixing:
            mixed = [torch.cat([token.chunk(count, dim=1)[head] for token in tokens], dim=1) for head in range(count)]
            tokens = [layer.norm1(token + other) for token, other in zip(tokens, mixed, strict=True)]
            hidden = linear(layer.second, [F.gelu(h) for h in linear(layer.first, tokens)])
            tokens = [layer.norm2(token + other) for token, other in zip(tokens, hidden, strict=True)]
        return model.dnn(sum(tokens) / count)

    equals_dense("RankMixer_tiny", dense, **settings)
