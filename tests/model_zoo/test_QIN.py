"""QIN equals a padded re-computation from its formulas with the same state dict."""

import dataclasses
from pathlib import Path

import pytest
import torch
from fuxictr.pytorch.layers import FeatureEmbedding
from torch import nn
from torch.nn import functional as F

from fuxictr_mm.errors import UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.layers import Jagged, MultiHeadTargetAttention
from tests.errors import raises_naming

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [3, 0, 1, 20, 0, 7]


class DenseQIN(nn.Module):
    """Every item embedded where it stands, keys and values of every position, every quadratic map on its own."""

    def __init__(self, model, num_layers, num_row, batch_norm):
        super().__init__()
        self.feature_map, width = model.feature_map, model.item_dim
        self.embedding_layer = FeatureEmbedding(self.feature_map, 16)
        self.attention_layers = nn.Module()
        for name in ("W_q", "W_k", "W_v"):
            self.attention_layers.add_module(name, nn.Linear(width, 2 * width, bias=False))
        self.attention_layers.W_o = nn.Linear(2 * width, width, bias=False)
        self.qnn = nn.Module()
        flat = model.context_dim + 2 * width
        self.qnn.layer = nn.ModuleList(nn.Module() for _ in range(num_layers))
        for layer in self.qnn.layer:
            layer.linear = nn.Sequential(nn.Linear(flat, num_row * flat))
        self.qnn.norm = nn.ModuleList(nn.BatchNorm1d(flat) for _ in range(num_layers if batch_norm else 0))
        self.qnn.activation = nn.ModuleList(nn.PReLU() for _ in range(num_layers))
        self.qnn.fc = nn.Linear(flat, 1)

    def forward(self, context, items, ids, mask):
        columns = {
            name: ids if name == "item_id" else items[name][ids]
            for name, spec in self.feature_map.features.items()
            if spec.get("source") == "item"
        }
        rows, length = mask.shape
        embedded = self.embedding_layer(columns, flatten_emb=True).view(rows, length + 1, -1)
        target, history = embedded[:, -1], embedded[:, :-1]
        a = self.attention_layers
        query, key, value = a.W_q(target), a.W_k(history), a.W_v(history)
        scores = torch.einsum("ba,bla->bl", query, key) / query.shape[1] ** 0.5 * mask
        interest = a.W_o(torch.einsum("bl,bla->ba", scores.clamp(min=0), value)) + target
        x = torch.cat([self.embedding_layer(context, flatten_emb=True), target, interest], dim=-1)
        for index, layer in enumerate(self.qnn.layer):
            crossed = sum(x * part for part in layer.linear(x).split(x.shape[1], dim=1))
            if len(self.qnn.norm):
                crossed = self.qnn.norm[index](crossed)
            x = torch.where(crossed > 0, crossed, self.qnn.activation[index].weight * crossed) + x
        return self.qnn.fc(x)


def pad(batch, lengths, side, padding):
    """Ids of history and target in one line, and the mask; the padding is item 3, not zero."""
    length = max(lengths) + padding
    padded, mask = torch.full((len(lengths), length), 3), torch.zeros(len(lengths), length)
    for row, values in enumerate(batch.history.values.split(lengths)):
        place = slice(length - len(values), None) if side == "left" else slice(len(values))
        padded[row, place], mask[row, place] = values.long(), 1
    return torch.cat([padded, batch.target.long().unsqueeze(1)], dim=1).flatten(), mask


def disturb(model, size):
    """Give every parameter a value of ordinary size: the initial embeddings are nearly zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


@pytest.fixture
def pair(build, make_batch):
    """A model, its dense twin with the same weights, a batch and the dense twin's dataset."""

    def make(dtype, lengths, **settings):
        model, dataset = build("QIN_tiny", net_dropout=0.0, **settings)
        model = model.to(dtype)
        disturb(model, 0.1)
        dense = DenseQIN(model, len(model.qnn.layer), model.qnn.layer[0].num_row, settings.get("batch_norm", True))
        dense.to(dtype).load_state_dict(model.state_dict(), strict=True)
        table = dataset.splits["train"]
        rows = (table.history_offsets.diff() >= 20).nonzero().flatten()[: len(lengths)]
        batch = make_batch(table, rows, lengths)
        return model, dense, dataclasses.replace(batch, label=batch.label.to(dtype)), dataset.items

    return make


@pytest.mark.parametrize(("side", "padding"), [("left", 0), ("left", 9), ("right", 1)])
@pytest.mark.parametrize(
    ("lengths", "settings"),
    [
        (LENGTHS, {}),
        ([0, 0, 0], {"num_layers": 1, "batch_norm": False}),
        ([1, 20], {"num_layers": 3, "num_row": 4}),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_dense_model(pair, float64, side, padding, lengths, settings, training):
    model, dense, batch, items = pair(torch.float64, lengths, **settings)
    model.train(training)
    dense.train(training)
    ids, mask = pad(batch, lengths, side, padding)
    returned = model(batch)
    expected = dense(batch.context, items, ids, mask)
    torch.testing.assert_close(returned["logit"], expected, rtol=1e-9, atol=1e-9)
    label = batch.label.view(-1, 1)
    model.add_loss(returned, label).backward()
    F.binary_cross_entropy_with_logits(expected, label).backward()
    for name, parameter in dense.named_parameters():
        found, wanted = model.get_parameter(name).grad, parameter.grad
        if wanted is None or not wanted.any():
            assert found is None or not found.any(), name
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_equals_the_dense_model_in_float32(pair):
    model, dense, batch, items = pair(torch.float32, LENGTHS)
    returned = model.eval()(batch)
    expected = dense.eval()(batch.context, items, *pad(batch, LENGTHS, "left", 2))
    torch.testing.assert_close(returned["y_pred"], torch.sigmoid(expected), rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("lengths", [[20], [0]])
def test_a_batch_of_one(pair, float64, lengths):
    model, dense, batch, items = pair(torch.float64, lengths)
    expected = dense.eval()(batch.context, items, *pad(batch, lengths, "left", 1))
    torch.testing.assert_close(model.eval()(batch)["logit"], expected, rtol=1e-9, atol=1e-9)


def test_the_order_of_a_history_is_of_no_account(pair, float64):
    model, _, batch, _ = pair(torch.float64, LENGTHS)
    turned = Jagged(torch.cat([v.flip(0) for v in batch.history.values.split(LENGTHS)]), batch.history.offsets)
    assert not torch.equal(turned.values, batch.history.values)
    logits = [model.eval()(dataclasses.replace(batch, history=h))["logit"] for h in (batch.history, turned)]
    torch.testing.assert_close(*logits, rtol=1e-12, atol=1e-12)


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
