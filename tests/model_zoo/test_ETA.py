"""ETA equals a padded re-computation; of equal distances the newer item is found."""

import torch


def test_equals_the_dense_model(equals_dense, target_attention, newest_mask, best_mask):
    def dense(model, p):
        bits, of_target = p.s @ model.random_rotations[0] > 0, p.t @ model.random_rotations[0] > 0
        distance = (bits != of_target.unsqueeze(1)).sum(dim=2)
        order = torch.arange(p.mask.shape[1]) / p.mask.shape[1]
        found = best_mask(order - distance, p.mask, model.top_k)
        assert found.sum() < p.mask.sum() or not p.mask.any()
        long = target_attention(model.long_attention, p.t, p.s, found)
        short = target_attention(model.short_attention, p.t, p.s, newest_mask(p.mask, model.short_len))
        return model.dnn(torch.cat([p.c, p.t, short, long], dim=-1))

    equals_dense("ETA_tiny", dense)
    equals_dense("ETA_tiny", dense, hash_bits=2, top_k=3, num_heads=4, short_len=1)


def test_with_one_bit_it_finds_the_newest_on_the_side_of_the_target(pair):
    model, batch = pair("ETA_tiny", hash_bits=1, top_k=3)
    model.random_rotations.zero_()  # all on one side
    same = model(batch)["logit"]
    newest = pair("ETA_tiny", [min(n, 3) for n in batch.history.lengths.tolist()], hash_bits=1, top_k=3)[1]
    model.short_len = 3
    assert torch.equal(model(batch)["logit"], model(newest)["logit"])
    assert not torch.equal(model(batch)["logit"], same)
