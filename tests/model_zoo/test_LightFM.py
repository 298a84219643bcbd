"""LightFM equals the sums of its features row by row, and its fold scores as it does."""

import pytest
import torch


@pytest.mark.parametrize("history", [True, False])
def test_equals_the_dense_model(equals_dense, history):
    def fields(model, values):
        return torch.stack(values.split(model.embedding_dim))

    def dense(model, p):
        logits = []
        for c, t, s, _ in p.rows():
            user = fields(model, c).sum(dim=0)
            if history and len(s):
                user = user + torch.stack([fields(model, item).sum(dim=0) for item in s]).mean(dim=0)
            item = fields(model, t).sum(dim=0)
            logits.append(user[1:] @ item[1:] + user[0] + item[0] + model.factorization.bias)
        squares = sum((c @ c + t @ t) / len(p.c) for c, t in zip(p.c, p.t, strict=True))
        return torch.stack(logits), model.factor_regularizer * squares

    equals_dense("LightFM_tiny", dense, history=history)


def test_the_loss_holds_the_squares_of_a_batch_in_training_alone(build, make_batch):
    model, dataset = build("LightFM_tiny", factor_regularizer=0.5)
    plain, _ = build("LightFM_tiny", factor_regularizer=0.0)
    plain.load_state_dict(model.state_dict())
    batch = make_batch(dataset.splits["train"], range(16))
    losses = {}
    for mode in (True, False):
        for name, one in (("with", model), ("without", plain)):
            one.train(mode)
            losses[name, mode] = one.add_loss(one(batch), one.get_labels(batch)).item()
    used = [model.embed_context(batch), model.embed_items(batch.target.long())]
    squares = sum(part.square().sum().item() for part in used) / 16
    assert losses["with", True] - losses["without", True] == pytest.approx(0.5 * squares, rel=1e-4)
    assert losses["with", False] == losses["without", False]


def test_the_embeddings_begin_at_their_standard_deviation(build):
    model, _ = build("LightFM_tiny", init_std=0.2)
    table = model.embedding_layer.embedding_layer.embedding_layers["item_id"].weight
    assert table[1:, 1:].std().item() == pytest.approx(0.2, rel=0.05)
    assert not table[:, 0].any()  # else rows are ranked by noise until it is outweighed
