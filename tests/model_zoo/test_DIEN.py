"""DIEN equals a re-computation row by row and step by step."""

import torch
from torch.nn import functional as F


def gru(layer, items):
    """Return the states ``(n, D)`` of nn.GRU after each item."""
    state, states = items.new_zeros(items.shape[1]), []
    for item in items:
        x = (layer.weight_ih_l0 @ item + layer.bias_ih_l0).chunk(3)
        h = (layer.weight_hh_l0 @ state + layer.bias_hh_l0).chunk(3)
        reset, update = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
        state = (1 - update) * torch.tanh(x[2] + reset * h[2]) + update * state
        states.append(state)
    return torch.stack(states)


def augru(layer, states, weights):
    """Return the last state of the GRU with attentional update gate."""
    state = torch.zeros_like(states[0])
    for item, weight in zip(states, weights, strict=True):
        x, h = layer.input_map(item).chunk(3), layer.state_map(state).chunk(3)
        update = weight * torch.sigmoid(x[0] + h[0])
        state = (1 - update) * state + update * torch.tanh(x[2] + torch.sigmoid(x[1] + h[1]) * h[2])
    return state


def dense(model, p):
    inputs = []
    for context, target, items, _ in p.rows():
        interest = torch.zeros_like(target)
        if len(items):
            states = gru(model.extractor, items)
            interest = augru(model.evolution, states, torch.softmax(states @ model.attention.weight @ target, dim=0))
        inputs.append(torch.cat([context, target, interest]))
    return model.dnn(torch.stack(inputs))


def test_equals_the_dense_model(equals_dense):
    equals_dense("DIEN_tiny", dense, auxiliary_weight=0.0)


def test_the_auxiliary_loss(pair, equals_dense):
    _, batch = pair("DIEN_tiny")
    distinct = torch.cat([batch.history.values.long(), batch.target.long()]).unique()

    def with_auxiliary(model, p):
        drawn = torch.randint(len(distinct), (int(p.mask.sum()),))
        others = model.embed_items(distinct)[drawn]
        terms, place = [], 0
        for _, _, items, _ in p.rows():
            states = gru(model.extractor, items) if len(items) else []
            for n in range(1, len(items)):
                terms.append(F.logsigmoid(states[n - 1] @ items[n]))
                terms.append(F.logsigmoid(-states[n - 1] @ others[place + n]))
            place += len(items)
        return dense(model, p), -0.3 * 2 * sum(terms) / max(len(terms), 1)

    equals_dense("DIEN_tiny", with_auxiliary, auxiliary_weight=0.3)


def test_no_auxiliary_loss_outside_of_training(pair):
    model, batch = pair("DIEN_tiny", auxiliary_weight=0.3)
    model.train()(batch)
    returned, label = model.eval()(batch), batch.label.view(-1, 1)
    expected = F.binary_cross_entropy_with_logits(returned["logit"], label)
    assert torch.equal(model.add_loss(returned, label), expected)


def test_a_single_item_has_no_next_one(pair):
    model, batch = pair("DIEN_tiny", [1, 0, 1], auxiliary_weight=0.3)
    model.train()
    model(batch)
    assert float(model.auxiliary_loss.detach()) == 0.0


def test_the_graph_of_a_batch_ends_with_its_step(pair):
    model, batch = pair("DIEN_tiny", auxiliary_weight=0.3)
    model.train().train_step(batch)
    assert model.auxiliary_loss is None


def test_order_counts(order_counts):
    assert order_counts("DIEN_tiny")
