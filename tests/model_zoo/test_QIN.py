"""QIN equals a padded re-computation from its formulas with the same state dict."""

import pytest
import torch

from fuxictr_mm.errors import UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.layers import Jagged, MultiHeadTargetAttention
from tests.errors import raises_naming
from tests.paths import ROOT


@pytest.mark.parametrize("settings", [{}, {"num_layers": 1, "batch_norm": False}, {"num_layers": 3, "num_row": 4}])
def test_equals_the_dense_model(equals_dense, settings):
    def dense(model, p):
        """Keys and values of every position, every quadratic map on its own."""
        a = model.attention_layers
        query, key, value = a.W_q(p.t), a.W_k(p.s), a.W_v(p.s)
        scores = torch.einsum("ba,bla->bl", query, key) / query.shape[1] ** 0.5 * p.mask
        interest = a.W_o(torch.einsum("bl,bla->ba", scores.clamp(min=0), value)) + p.t
        x = torch.cat([p.c, p.t, interest], dim=-1)
        for layer, norm, activation in zip(model.qnn.layer, model.qnn.norm, model.qnn.activation, strict=True):
            crossed = norm(sum(x * part for part in layer.linear[0](x).split(x.shape[1], dim=1)))
            x = torch.where(crossed > 0, crossed, activation.weight * crossed) + x
        return model.qnn.fc(x)

    equals_dense("QIN_tiny", dense, **settings)


def test_the_order_of_a_history_is_of_no_account(order_counts):
    assert not order_counts("QIN_tiny")


def test_attention_with_fewer_distinct_items_than_rows():
    """Then the items are mapped, else the queries: items that stand in no history decide which."""
    torch.manual_seed(0)
    attention = MultiHeadTargetAttention(6, 12, sparse=True).double()
    target = torch.randn(5, 6, dtype=torch.float64)
    index, offsets = torch.tensor([0, 1, 1, 0, 1, 0, 0]), torch.tensor([0, 2, 2, 4, 5, 7])
    few = torch.randn(2, 6, dtype=torch.float64)
    found = []
    for distinct in (few, torch.cat([few, torch.randn(9, 6, dtype=torch.float64)])):
        interest, weights = attention(target, Jagged(distinct, offsets, index), return_weights=True)
        assert weights.values.shape == (7, 1)
        gradients = torch.autograd.grad(interest.square().sum(), list(attention.parameters()))
        found.append([interest, weights.values, *gradients])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_names_and_shapes_are_those_of_the_published_code(build, tmp_path):
    model, _ = build("QIN_tiny", num_layers=2, num_row=4)
    item, flat = model.item_dim, model.context_dim + 2 * model.item_dim
    table = "embedding_layer.embedding_layer.embedding_layers"
    expected = {f"attention_layers.{name}.weight": (2 * item, item) for name in ("W_q", "W_k", "W_v")}
    expected["attention_layers.W_o.weight"] = (item, 2 * item)
    for layer in ("0", "1"):
        expected[f"qnn.layer.{layer}.linear.0.weight"] = (4 * flat, flat)
        expected[f"qnn.layer.{layer}.linear.0.bias"] = (4 * flat,)
        expected[f"qnn.activation.{layer}.weight"] = (1,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"qnn.norm.{layer}.{name}"] = (flat,)
        expected[f"qnn.norm.{layer}.num_batches_tracked"] = ()
    expected["qnn.fc.weight"], expected["qnn.fc.bias"] = (1, flat), (1,)
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    embeddings = {name for name in found if name.startswith("embedding_layer.")}
    assert {name: shape for name, shape in found.items() if name not in embeddings} == expected
    ids = {f"{table}.{name}.weight" for name in ("likes_level", "views_level", "item_id", "item_tags")}
    assert ids <= embeddings

    published = {name: torch.randn_like(value.float()) for name, value in model.state_dict().items()}
    torch.save(published, tmp_path / "published.model")
    model.load_weights(tmp_path / "published.model")
    assert all(torch.equal(value.float(), published[name].to(value.dtype).float())
               for name, value in model.state_dict().items())  # fmt: skip
    other, _ = build("QIN_tiny", num_layers=2, num_row=3)
    with raises_naming(UserError, "qnn.layer.0.linear.0.weight"):
        other.load_weights(tmp_path / "published.model")


def test_initial_values_are_those_of_the_published_code(build):
    """FuxiCTR's: Xavier-normal matrices, zero biases; slopes of 1/4."""
    model, _ = build("QIN_tiny", num_row=4)
    linear = model.qnn.layer[0].linear[0]
    rows, columns = linear.weight.shape
    assert float(linear.weight.detach().std()) == pytest.approx((2 / (rows + columns)) ** 0.5, rel=0.05)
    assert not linear.bias.any()
    assert model.qnn.activation[0].weight.tolist() == [0.25]


def test_learning_rate_decay(build):
    model, _ = build("QIN_tiny", learning_rate=2e-3)
    assert model.lr_decay() == pytest.approx(1e-3)
    assert build("QIN_tiny", factor=0.25, learning_rate=2e-3)[0].lr_decay() == pytest.approx(5e-4)
    assert build("DIN_tiny", learning_rate=2e-3)[0].lr_decay() == pytest.approx(2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_the_planted_taste(tmp_path, precision):
    settings = {"model_root": str(tmp_path), "verbose": 0, "precision": precision, "epochs": 6}
    assert Experiment.load("QIN_tiny", ROOT, **settings).fit().valid["AUC"] > 0.65
