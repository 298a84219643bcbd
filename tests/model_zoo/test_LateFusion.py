"""LateFusion equals a padded re-computation, tower by tower."""

import torch


def test_equals_the_dense_model(equals_dense, din):
    def dense(model, p):
        # Fields of 16 each: item_id, item_tags, text, image.
        modalities = {"ids": slice(0, 32), "txt_emb_pca8": slice(32, 48), "img_emb_pca8": slice(48, 64)}
        votes = []
        for name, part in modalities.items():
            target, items = p.t[:, part], p.s[:, :, part]
            interest = din(model.attention[name], target, items, p.mask)
            votes.append(model.dnn[name](torch.cat([p.c, target, interest], dim=-1)).squeeze(1))
        weights = torch.softmax(model.gate(torch.cat([p.c, p.t], dim=-1)), dim=-1)
        return sum(weight * vote for weight, vote in zip(weights.unbind(1), votes, strict=True))

    equals_dense("LateFusion_tiny", dense)


def test_the_order_of_a_history_is_of_no_account(order_counts):
    assert not order_counts("LateFusion_tiny")


def test_one_tower_per_vector_and_one_for_the_ids(build):
    model, _ = build("LateFusion_tiny")
    assert list(model.dnn) == ["ids", "txt_emb_pca8", "img_emb_pca8"]
    model, _ = build("LateFusion_tiny", use_features=["likes_level", "img_emb_pca8"])
    assert list(model.dnn) == ["img_emb_pca8"]
