"""A factorization beside a model: the mean of two logits, each with a loss and gradients of its own."""

import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.experiment import Experiment
from tests.errors import raises_naming
from tests.paths import ROOT

K = 5
FIELDS = ["likes_level", "item_id", "txt_emb_pca8"]


@pytest.fixture
def beside(build, make_batch, float64):
    """Build DIN_MM with a factorization, one without whose weights are its own, and a batch, all in float64."""

    def make(**settings):
        settings = {"net_dropout": 0.0, **settings}
        model, dataset = build("DIN_MM_tiny", factor_dim=K, factor_features=FIELDS, **settings)
        plain, _ = build("DIN_MM_tiny", **settings)
        model, plain = model.double().train(), plain.double().train()
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        shapes = {name: parameter.shape for name, parameter in plain.named_parameters()}
        shared = {n: v for n, v in model.state_dict().items() if not n.startswith("factorization")}
        plain.load_state_dict({n: first(v, shapes.get(n, v.shape)) for n, v in shared.items()})
        table = dataset.splits["train"]
        rows = (table.history_offsets.diff() >= 20).nonzero().flatten()[:6]
        return model, plain, make_batch(table, rows, [3, 0, 1, 20, 1, 7])

    return make


def first(values, shape):
    """Return the first numbers of every embedding."""
    for dim, size in enumerate(shape):
        values = values.narrow(dim, 0, size)
    return values


def factors_of(model, batch):
    """Return the factors of FIELDS, ``(B, K)`` of the user and ``(B, 2, K)`` of the item, from the tables."""
    layers = model.embedding_layer.embedding_layer
    user = layers.embedding_layers["likes_level"].weight[batch.context["likes_level"].long(), -K:]
    return user, factors_of_items(model, batch.target.long())


def factors_of_items(model, ids):
    """Return the factors of the item's FIELDS, ``(N, 2, K)``, from the tables."""
    layers = model.embedding_layer.embedding_layer
    item_id = layers.embedding_layers["item_id"].weight[ids, -K:]
    content = model.items["txt_emb_pca8"][ids].double()
    projected = content @ layers.feature_encoders["txt_emb_pca8"].weight[-K:].t()
    return torch.stack([item_id, projected], dim=1)


@pytest.mark.parametrize("factor_history", [False, True])
@pytest.mark.parametrize("interest", ["multi_head", "din", "mean"])
def test_each_logit_has_its_own_loss(beside, interest, factor_history):
    model, plain, batch = beside(interest=interest, factor_history=factor_history)
    label = batch.label.view(-1, 1)
    returned, alone = model(batch), plain(batch)["logit"]
    user, items = factors_of(model, batch)
    item, factorization = items.sum(dim=1), model.factorization
    whole = user
    if factor_history:  # also of a row without a history
        histories = batch.history.values.split(batch.history.lengths.tolist())
        liked = [factors_of_items(model, ids).sum(dim=1) for ids in histories]
        assert min(map(len, liked)) == 0 < max(map(len, liked))
        whole = user + torch.stack([one.mean(dim=0) if len(one) else torch.zeros_like(user[0]) for one in liked])
    logit = (whole[:, 1:] * item[:, 1:]).sum(1) + whole[:, 0] + item[:, 0] + factorization.bias
    torch.testing.assert_close(returned["logit"], (alone + logit.unsqueeze(1)) / 2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(returned["y_pred"], returned["logit"].sigmoid())

    squares = (user.square().sum() + items.square().sum()) / len(label)
    own = F.binary_cross_entropy_with_logits(alone, label)
    expected = own + F.binary_cross_entropy_with_logits(logit, label.flatten()) + 0.02 * squares
    loss = model.add_loss(returned, label)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    loss.backward()
    own.backward()
    # The attention trains as it would alone.
    for name, parameter in plain.named_parameters():
        found = first(model.get_parameter(name).grad, parameter.shape)
        torch.testing.assert_close(found, parameter.grad, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")

    model.eval()
    loss = model.add_loss(model(batch), label)
    expected = F.binary_cross_entropy_with_logits(model(batch)["logit"], label)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)


def test_the_regularizers_leave_the_factors_out(beside):
    model, plain, batch = beside(embedding_regularizer=0.3, net_regularizer="l1(0.1)")
    for one in (model, plain):
        one.batch_loss(batch).backward()
        one.penalty.add_gradients()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(first(model.get_parameter(name).grad, parameter.shape), parameter.grad, msg=name)
    others = {name: parameter for name, parameter in model.named_parameters() if name.startswith("factorization")}
    more = sum(0.1 * parameter.abs().sum() for parameter in others.values())
    torch.testing.assert_close(model.penalty.value(), plain.penalty.value() + more)
    table = model.embedding_layer.embedding_layer.embedding_layers["item_id"].weight
    unused = torch.ones(len(table), dtype=torch.bool)
    unused[batch.target.long()] = False
    assert table.grad[unused, :-K].abs().sum() > 0
    assert table.grad[unused, -K:].abs().sum() == 0


def test_the_factors_of_whole_tables_have_a_regularizer_of_their_own(beside):
    settings = {"embedding_regularizer": 0.3, "factor_regularizer": 0.0}
    without, _, batch = beside(**settings)
    model, plain, _ = beside(**settings, factor_table_regularizer=0.7)
    for one in (without, model):
        one.batch_loss(batch).backward()
        one.penalty.add_gradients()
    squares = torch.zeros((), dtype=torch.float64)
    parts = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        expected = without.get_parameter(name).grad.clone()
        for dim, size in enumerate(parts[name].shape if name in parts else ()):
            if size < parameter.shape[dim]:  # the factors
                factors = parameter.data.narrow(dim, size, K)
                expected.narrow(dim, size, K).add_(0.7 * factors)
                squares += factors.square().sum()
        torch.testing.assert_close(parameter.grad, expected, msg=name)
    assert squares > 0
    torch.testing.assert_close(model.penalty.value(), without.penalty.value() + 0.35 * squares)


def test_the_factors_of_touched_rows_have_that_regularizer(beside):
    touched = {"feature_specs": [{"name": "item_id", "table": "touched"}], "optimizer": "adam"}
    model, _, _ = beside(**touched, embedding_regularizer=None, factor_table_regularizer=0.7)
    table = model.embedding_layer.embedding_layer.embedding_layers["item_id"].weight
    rows = table.data[3:5]
    gradient = model.penalty.of_rows(table, rows, torch.ones(2, 1, dtype=torch.float64), 0.1)
    torch.testing.assert_close(gradient[:, -K:], 0.7 * rows[:, -K:])
    assert gradient[:, :-K].abs().sum() == 0
    assert beside(**touched, embedding_regularizer=None)[0].penalty.of_rows is None


def test_the_factors_of_sharded_tables_have_no_regularizer(build):
    sharded = {"feature_specs": [{"name": "item_id", "table": "sharded"}], "table_optimizer": "rowwise_adagrad"}
    settings = {**sharded, "embedding_regularizer": 0, "factor_table_regularizer": 0.1}
    with raises_naming(ConfigError, "factor_table_regularizer: 0", "sharded"):
        build("DIN_MM_tiny", factor_dim=K, **settings)
    build("DIN_MM_tiny", **settings)  # without factors


def test_all_settings_without_sharded_tables_are_named_before_data_is_read():
    settings = {"feature_specs": [{"name": "item_id", "table": "sharded"}], "factor_table_regularizer": 0.1}
    settings |= {"table_optimizer": "rowwise_adagrad", "embedding_regularizer": 0.2}
    with raises_naming(ConfigError, "embedding_regularizer: 0", "factor_table_regularizer: 0", "table: touched"):
        Experiment.load("DIN_MM_tiny", ROOT, factor_dim=K, **settings)
    Experiment.load("DIN_MM_tiny", ROOT, **{**settings, "embedding_regularizer": 0})


def test_a_table_that_updates_touched_rows(beside):
    model, plain, batch = beside(
        embedding_regularizer=0.3, feature_specs=[{"name": "item_id", "table": "touched"}], optimizer="adam"
    )
    name = "embedding_layer.embedding_layer.embedding_layers.item_id.weight"
    for one in (model, plain):
        one.batch_loss(batch).backward()
        one.penalty.add_gradients()
    found, expected = (one.get_parameter(name).grad.to_dense() for one in (model, plain))
    torch.testing.assert_close(found[:, :-K], expected)


def test_tables_begin_with_both_standard_deviations(build):
    model, _ = build("DIN_MM_tiny", factor_dim=K)
    table = model.embedding_layer.embedding_layer.embedding_layers["item_id"].weight
    assert table[1:, :-K].std().item() == pytest.approx(1e-4, rel=0.1)
    assert table[1:, -K:].std().item() == pytest.approx(model.factor_std, rel=0.1)
    assert table[0].abs().sum() == 0


@pytest.mark.parametrize("names", [["likes_level"], ["item_id"], ["likes_level", "item_id", "title"], []])
def test_fields_of_user_and_item_are_needed(build, names):
    with raises_naming(ConfigError, "factor_features", str(names)):
        build("DIN_MM_tiny", factor_dim=K, factor_features=names)
    build("DIN_MM_tiny", factor_dim=0, factor_features=names)


def test_several_labels_have_a_bias_each(build):
    model, _ = build("DIN_MM_tiny", factor_dim=1)
    assert model.factorization.bias.shape == (1,)
    with raises_naming(ConfigError, "1", "2"):
        type(model.factorization)(1, 2)
