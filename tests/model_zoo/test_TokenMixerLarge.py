"""TokenMixerLarge equals a re-computation token by token, with losses of the layers that a residual ends at."""

import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.experiment import Experiment
from tests.paths import ROOT


def own(layer, tokens):
    return [x @ w + b for x, w, b in zip(tokens, layer.weight, layer.bias, strict=True)]


def gated(mlp, tokens):
    hidden = zip(own(mlp.gate, tokens), own(mlp.first, tokens), strict=True)
    return own(mlp.second, [F.silu(gate) * value for gate, value in hidden])


def mixed(tokens, count):
    return [torch.cat([token.chunk(count, dim=1)[part] for token in tokens], dim=1) for part in range(count)]


def add(tokens, others):
    return [token + other for token, other in zip(tokens, others, strict=True)]


def layers(model, inputs):
    """Return the tokens after each layer, the input first."""
    count = model.tokens.num_tokens
    size = -(-inputs.shape[1] // count)
    slices = F.pad(inputs, (0, count * size - inputs.shape[1])).split(size, dim=1)
    found = [[model.global_token(inputs), *own(model.tokens.linear, slices)]]
    for layer, block in enumerate(model.blocks, 1):
        heads = mixed(found[-1], block.num_mixed)
        heads = add(heads, gated(block.mixed_mlp, [block.norm1(head) for head in heads]))
        back = mixed(heads, len(found[-1]))
        found.append(add(found[-1], gated(block.token_mlp, [block.norm2(token) for token in back])))
        if layer % model.interval == 0 and layer < len(model.blocks):
            found[-1] = add(found[-1], found[layer - model.interval])
    return found


@pytest.mark.parametrize(
    ("settings", "with_loss"),
    [
        ({}, [2]),
        ({"num_layers": 1}, []),
        ({"num_layers": 4, "num_tokens": 2, "token_dim": 12, "num_mixed": 3, "hidden_factor": 1}, [2]),
        ({"num_layers": 5, "auxiliary_weight": 0.7, "labels": ("click", "like")}, [2, 4]),
        ({"num_layers": 5, "residual_interval": 3, "auxiliary_weight": 0.0}, []),
        ({"residual_interval": 1}, [1, 2]),
    ],
)
def test_equals_the_dense_model(equals_dense, target_attention, settings, with_loss):
    def dense(model, p):
        tokens = layers(model, torch.cat([p.c, p.t, target_attention(model.attention, p.t, p.s, p.mask)], dim=1))
        means = [sum(of_layer) / len(of_layer) for of_layer in tokens]
        label = torch.cat([p.label, p.label.roll(1, 0)][: model.num_tasks], dim=1)
        losses = [
            F.binary_cross_entropy_with_logits(linear(means[layer]), label)
            for linear, layer in zip(model.auxiliary, with_loss, strict=True)
        ]
        return model.dnn(means[-1]), model.auxiliary_weight * model.num_tasks * sum(losses)

    equals_dense("TokenMixerLarge_tiny", dense, **settings)


def test_settings_reach_the_layers(build):
    sizes = {"num_tokens": 3, "token_dim": 8, "num_mixed": 2, "hidden_factor": 3}
    model, _ = build("TokenMixerLarge_tiny", num_layers=1, num_heads=2, token_dropout=0.3, **sizes)
    (block,) = model.blocks
    assert (model.attention.num_heads, block.dropout.p) == (2, 0.3)
    assert (block.mixed_mlp.gate.weight.shape, block.token_mlp.gate.weight.shape) == ((2, 12, 36), (3, 8, 24))


def test_losses_of_layers_take_the_weights_of_rows(pair):
    model, batch = pair("TokenMixerLarge_tiny")
    model.train()
    model.row_weights = torch.zeros(len(batch)).double()
    model.row_weights[2] = 1.0
    label = batch.label.view(-1, 1)
    weighted = model.add_loss(model(batch), label)
    logits = model(batch)["logit"], *model.auxiliary_logits
    losses = [F.binary_cross_entropy_with_logits(logit[2], label[2]) for logit in logits]
    torch.testing.assert_close(weighted, losses[0] + model.auxiliary_weight * losses[1])


def test_the_graph_of_a_batch_ends_with_its_step(pair):
    model, batch = pair("TokenMixerLarge_tiny")
    model.train().train_step(batch)
    assert model.auxiliary_logits == []


def test_layers_start_near_the_identity(build):
    tokens = torch.randn(5, 4, 32)
    for block in build("TokenMixerLarge_tiny")[0].blocks:
        assert (block(tokens) - tokens).abs().max() < 0.2


@pytest.mark.slow
def test_learns_the_planted_taste(tmp_path):
    settings = {"model_root": str(tmp_path), "verbose": 0, "epochs": 6, "seed": 1}
    assert Experiment.load("TokenMixerLarge_tiny", ROOT, **settings).fit().valid["AUC"] > 0.7
