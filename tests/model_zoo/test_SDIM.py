"""SDIM equals a re-computation row by row, hash by hash."""

import pytest
import torch


def long_interest(layer, target, items):
    """Sum what has the target's signs, group by group."""
    total, width = torch.zeros_like(target), layer.powers.numel()
    groups = layer.hyperplanes.split(width, dim=1)
    for hyperplanes in groups:
        alike = ((items @ hyperplanes > 0) == (target @ hyperplanes > 0)).all(dim=1)
        pooled = items[alike].sum(dim=0)
        length = pooled.square().sum().sqrt()
        total = total + (pooled / length if length > 0 else 0 * pooled)
    return total / len(groups)


@pytest.mark.parametrize(
    "settings", [{}, {"num_hashes": 6, "hash_width": 2, "short_len": 30, "num_heads": 2, "attention_dim": 8}]
)
def test_equals_the_dense_model(equals_dense, target_attention, newest_mask, settings):
    def dense(model, p):
        short = target_attention(model.short_attention, p.t, p.s, newest_mask(p.mask, model.short_len))
        long = torch.stack([long_interest(model.long_attention, t, s) for _, t, s, _ in p.rows()])
        return model.dnn(torch.cat([p.c, p.t, long, short], dim=-1))

    equals_dense("SDIM_tiny", dense, **settings)


def test_order_tells_the_newest_items_apart_and_nothing_else(order_counts):
    assert order_counts("SDIM_tiny", short_len=2)
    assert not order_counts("SDIM_tiny", short_len=20)


def test_one_hash_of_width_one_halves_the_items(pair):
    model, batch = pair("SDIM_tiny", num_hashes=1, hash_width=1)
    e = model.embed(batch)
    signatures = model.long_attention.signatures(e.history.distinct)
    assert signatures.shape[1] == 1
    assert set(signatures.flatten().tolist()) <= {0, 1}
