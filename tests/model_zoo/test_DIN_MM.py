"""DIN_MM equals a padded re-computation by FuxiCTR's own layers with the same state dict."""

import pytest
import torch
from fuxictr.pytorch import layers
from torch import nn
from torch.nn import functional as F

D = 16


class Dense(nn.Module):
    """Histories padded on the left with item 0; fields stacked, one width for all."""

    def __init__(self, model, interest="multi_head", senet=True, cross=None, bilinear=None):
        super().__init__()
        self.feature_map, item_dim = model.feature_map, model.item_dim
        num_fields = len(model.context_fields) + 2 * len(model.item_fields)
        flat, pairs = num_fields * D, num_fields * (num_fields - 1) // 2
        self.embedding_layer = layers.FeatureEmbedding(self.feature_map, D)
        self.attention = None
        if interest == "multi_head":
            self.attention = layers.MultiHeadTargetAttention(item_dim, item_dim, num_heads=4)
        elif interest == "din":
            self.attention = layers.DIN_Attention(item_dim, [64])
        self.senet = layers.SqueezeExcitation(num_fields, 3, "Sigmoid") if senet else None
        self.cross = {
            None: lambda: None,
            "v1": lambda: layers.CrossNet(flat, 2),
            "v2": lambda: layers.CrossNetV2(flat, 2),
            "mix": lambda: layers.CrossNetMix(flat, 2),
        }[cross]()
        self.bilinear = layers.BilinearInteraction(num_fields, D, bilinear) if bilinear else None
        self.dnn = layers.MLP_Block(
            flat + pairs * D if bilinear else flat, output_dim=1, hidden_units=[64, 32], batch_norm=True
        )

    def forward(self, context, items, ids, mask):
        columns = {
            name: ids if name == "item_id" else items[name][ids]
            for name, spec in self.feature_map.features.items()
            if spec.get("source") == "item"
        }
        rows, length = mask.shape
        embedded = self.embedding_layer(columns, flatten_emb=True).view(rows, length + 1, -1)
        target, history = embedded[:, -1], embedded[:, :-1]
        if self.attention is None:
            interest = (history * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        else:
            interest = self.attention(target, history, mask)
        fields = [
            self.embedding_layer(context),
            target.view(rows, -1, D),
            interest.view(rows, -1, D),
        ]
        fields = torch.cat(fields, dim=1)
        if self.senet is not None:
            fields = self.senet(fields)
        flat = fields.flatten(1)
        if self.cross is not None:
            flat = self.cross(flat)
        if self.bilinear is not None:
            flat = torch.cat([flat, self.bilinear(fields).flatten(1)], dim=1)
        return self.dnn(flat)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"interest": "din"},
        {"interest": "mean", "senet": False},
        {"cross": "v1"},
        {"cross": "v2", "bilinear": "field_interaction"},
        {"cross": "mix", "bilinear": "field_all"},
        {"senet": False, "bilinear": "field_each"},
    ],
)
def test_equals_the_dense_model(build, make_batch, float64, padding, settings):
    model, dataset = build("DIN_MM_tiny", net_dropout=0.0, **settings)
    model = model.double().train()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    dense = Dense(model, **settings).double()
    dense.load_state_dict(model.state_dict(), strict=True)

    lengths = [3, 2, 1, 20, 1, 7]
    table = dataset.splits["train"]
    rows = (table.history_offsets.diff() >= 20).nonzero().flatten()[:6]
    batch = make_batch(table, rows, lengths)
    padded, mask = torch.zeros(6, 20 + padding, dtype=torch.int64), torch.zeros(6, 20 + padding)
    for row, values in enumerate(batch.history.values.split(lengths)):
        padded[row, 20 + padding - len(values) :] = values
        mask[row, 20 + padding - len(values) :] = 1
    ids = torch.cat([padded, batch.target.long().unsqueeze(1)], dim=1).flatten()

    ours = model(batch)
    theirs = dense(batch.context, dataset.items, ids, mask.double())
    torch.testing.assert_close(ours["logit"], theirs, rtol=1e-9, atol=1e-9)
    label = batch.label.view(-1, 1)
    loss = model.add_loss(ours, label)
    expected = F.binary_cross_entropy_with_logits(theirs, label)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    loss.backward()
    expected.backward()
    for name, parameter in dense.named_parameters():
        found, wanted = model.get_parameter(name).grad, parameter.grad
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_every_field_has_one_width(build):
    model, _ = build("DIN_MM_tiny")
    assert set(model.field_dims.values()) == {D}
    encoders = model.embedding_layer.embedding_layer.feature_encoders
    for name in ("txt_emb_pca8", "img_emb_pca8"):
        assert encoders[name].weight.shape == (D, 8)


def test_heads_must_divide_the_width(build):
    build("DIN_MM_tiny", num_heads=5, attention_dim=65)
    build("DIN_MM_tiny", num_heads=5, interest="mean")
