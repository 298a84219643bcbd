"""DIN equals a padded re-computation by FuxiCTR's own layers with the same state dict."""

import pytest
import torch
from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbedding, MLP_Block
from torch import nn
from torch.nn import functional as F


class DenseDIN(nn.Module):
    """Histories padded on the left with item 0, every item embedded where it stands."""

    def __init__(self, feature_map, item_dim, context_dim, softmax, output_activation):
        super().__init__()
        self.feature_map = feature_map
        self.embedding_layer = FeatureEmbedding(feature_map, 16)
        self.attention_layers = DIN_Attention(
            item_dim, [32], "ReLU", output_activation=output_activation, use_softmax=softmax
        )
        self.dnn = MLP_Block(
            context_dim + 2 * item_dim, output_dim=1, hidden_units=[64, 32], hidden_activations="ReLU", batch_norm=True
        )

    def forward(self, context, items, ids, mask):
        columns = {
            name: ids if name == "item_id" else items[name][ids]
            for name, spec in self.feature_map.features.items()
            if spec.get("source") == "item"
        }
        rows, length = mask.shape
        embedded = self.embedding_layer(columns, flatten_emb=True).view(rows, length + 1, -1)
        interest = self.attention_layers(embedded[:, -1], embedded[:, :-1], mask)
        context = self.embedding_layer(context, flatten_emb=True)
        return self.dnn(torch.cat([context, embedded[:, -1], interest], dim=-1))


@pytest.mark.parametrize("padding", [0, 1, 9])
@pytest.mark.parametrize(
    ("softmax", "output_activation", "lengths"),
    [
        (False, None, [3, 0, 1, 20, 0, 7]),
        (False, "Sigmoid", [0, 0, 1, 0, 0, 0]),
        (True, None, [3, 2, 1, 20, 1, 7]),
    ],
)
def test_equals_the_dense_model(build, make_batch, float64, padding, softmax, output_activation, lengths):
    model, dataset = build(
        "DIN_tiny", net_dropout=0.0, din_use_softmax=softmax, attention_output_activation=output_activation
    )
    model = model.double().train()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    dense = DenseDIN(model.feature_map, model.item_dim, model.context_dim, softmax, output_activation).double()
    dense.load_state_dict(model.state_dict(), strict=True)

    table = dataset.splits["train"]
    rows = (table.history_offsets.diff() >= 20).nonzero().flatten()[:6]
    batch = make_batch(table, rows, lengths)
    padded, mask = torch.zeros(6, max(lengths) + padding, dtype=torch.int64), torch.zeros(6, max(lengths) + padding)
    for row, values in enumerate(batch.history.values.split(lengths)):
        padded[row, padded.shape[1] - len(values) :] = values
        mask[row, padded.shape[1] - len(values) :] = 1
    ids = torch.cat([padded, batch.target.long().unsqueeze(1)], dim=1).flatten()

    ours = model(batch)["logit"]
    theirs = dense(batch.context, dataset.items, ids, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    label = batch.label.view(-1, 1)
    loss = model.add_loss(model(batch), label)
    expected = F.binary_cross_entropy(torch.sigmoid(dense(batch.context, dataset.items, ids, mask)), label)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    loss.backward()
    expected.backward()
    for name, parameter in dense.named_parameters():
        found, wanted = model.get_parameter(name).grad, parameter.grad
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
