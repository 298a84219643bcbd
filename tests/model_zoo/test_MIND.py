"""MIND equals a re-computation row by row from the formulas of its routing."""

import math

import pytest
import torch


def squash(z):
    length = z.square().sum().sqrt()
    return z if length == 0 else length**2 / (1 + length**2) * z / length


def dense(model, p):
    inputs = []
    for context, target, items, ids in p.rows():
        most = model.capsules.num_capsules
        count = max(1, min(most, int(math.log2(len(items))))) if len(items) else 1
        mapped = items @ model.capsules.item_map.weight.t()
        logits = model.routing_start[ids][:, :count].clone()
        for _ in range(model.capsules.num_rounds):
            weights = torch.softmax(logits, dim=1)
            capsules = torch.stack([squash((weights[:, k, None] * mapped).sum(dim=0)) for k in range(count)])
            logits = logits + (mapped @ capsules.t()).detach()
        interests = torch.relu(model.interest_map(torch.cat([capsules, context.expand(count, -1)], dim=1)))
        agreement = interests @ target
        agreement = agreement.sign() * agreement.abs() ** model.attention_power
        interest = torch.softmax(agreement, dim=0) @ interests
        inputs.append(torch.cat([context, target, interest]))
    return model.dnn(torch.stack(inputs))


@pytest.mark.parametrize("settings", [{}, {"num_capsules": 1}, {"num_capsules": 3, "num_rounds": 1}])
def test_equals_the_dense_model(equals_dense, settings):
    equals_dense("MIND_tiny", dense, **settings)


def test_equals_the_dense_model_without_context(equals_dense):
    features = ["item_id", "item_tags", "item_emb_d16"]
    equals_dense("MIND_tiny", dense, use_features=features, attention_power=1.0)


def test_the_order_of_a_history_is_of_no_account(order_counts):
    assert not order_counts("MIND_tiny")


def test_the_start_of_the_routing_is_saved(build):
    first, second = build("MIND_tiny", seed=1)[0], build("MIND_tiny", seed=2)[0]
    assert not torch.equal(first.routing_start, second.routing_start)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.routing_start, second.routing_start)
