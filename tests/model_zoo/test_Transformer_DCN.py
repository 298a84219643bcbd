"""Transformer_DCN, with semantic ids or without, equals a padded re-computation of the published formulas."""

import pytest
import torch
from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
from torch import nn
from torch.nn import functional as F

from benchmarks.reference.Transformer_DCN import PaddedTransformerDCN

K, MAX_LEN = 4, 20
#: No history, shorter and longer than K slots, just as long, all of max_len; some equal.
LENGTHS = [3, 0, 1, 20, 4, 7, 3, 2]
NO_DROPOUT = {"transformer_dropout": 0.0, "net_dropout": 0.0}


class DenseEncoder(nn.Module):
    """Every position through PyTorch's encoder; ``ignored`` ones are seen by none and have no output."""

    def __init__(self, width, num_heads=1, max_pool=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, num_heads, 32, dropout=0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out_linear = nn.Linear(width, width) if max_pool else None

    def forward(self, target, history, ignored):
        tokens = torch.cat([history, target.unsqueeze(1).expand_as(history)], dim=-1)
        encoded = self.transformer_encoder(tokens, src_key_padding_mask=ignored)
        slots = encoded.masked_fill(ignored.unsqueeze(-1), 0.0)[:, -K:]
        missing = slots.new_zeros(slots.shape[0], K - slots.shape[1], slots.shape[2])
        parts = [torch.cat([missing, slots], dim=1).flatten(1)]
        if self.out_linear is not None:
            parts.append(self.out_linear(encoded.masked_fill(ignored.unsqueeze(-1), -1e9).max(dim=1).values))
        return torch.cat(parts, dim=-1)


class Dense(nn.Module):
    """Histories padded with item 0, every item embedded where it stands."""

    def __init__(self, model, history_mask, num_heads=1, max_pool=True):
        super().__init__()
        self.feature_map, self.history_mask = model.feature_map, history_mask
        self.embedding_layer = FeatureEmbedding(self.feature_map, 16)
        self.transformer_encoder = DenseEncoder(2 * model.item_dim, num_heads, max_pool)
        width = model.context_dim + model.item_dim + (K + max_pool) * 2 * model.item_dim
        self.crossnet = CrossNetV2(width, 3)
        self.parallel_dnn = MLP_Block(width, [64, 32])
        self.mlp = MLP_Block(width + 32, [64, 32], output_dim=1)

    def forward(self, context, items, ids, mask):
        columns = {
            name: ids if name == "item_id" else items[name][ids]
            for name, spec in self.feature_map.features.items()
            if spec.get("source") == "item"
        }
        embedded = self.embedding_layer(columns, flatten_emb=True).view(mask.shape[0], mask.shape[1] + 1, -1)
        target, history = embedded[:, -1], embedded[:, :-1]
        # What the published code hands over as "True: ignore" is 1 for a real item.
        ignored = mask.clone() if self.history_mask == "published" else ~mask
        ignored[ignored.all(dim=1), -1] = False
        context = self.embedding_layer(context, flatten_emb=True)
        x = torch.cat([context, target, self.transformer_encoder(target, history, ignored)], dim=-1)
        return self.mlp(torch.cat([self.crossnet(x), self.parallel_dnn(x)], dim=-1))


def pad(batch, lengths, width):
    """Ids ``(B * (width + 1),)`` and mask ``(B, width)`` bool of the histories padded on the left, then the target."""
    padded = torch.zeros(len(lengths), width, dtype=torch.int64)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, values in enumerate(batch.history.values.split(lengths)):
        padded[row, width - len(values) :] = values
        mask[row, width - len(values) :] = True
    return torch.cat([padded, batch.target.long().unsqueeze(1)], dim=1).flatten(), mask


def long_rows(table, number):
    return (table.history_offsets.diff() >= MAX_LEN).nonzero().flatten()[:number]


def disturb(model, std):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += std * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    return model


def assert_equal_models(model, dense, batch, items, lengths, width):
    ids, mask = pad(batch, lengths, width)
    ours, theirs = model(batch)["logit"], dense(batch.context, items, ids, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    label = batch.label.to(ours.dtype).view(-1, 1)
    model.zero_grad()
    dense.zero_grad()
    model.add_loss(model(batch), label).backward()
    F.binary_cross_entropy_with_logits(theirs, label).backward()
    for name, parameter in dense.named_parameters():
        found, wanted = model.get_parameter(name).grad, parameter.grad
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def equals_dense(build, make_batch, float64):
    """Compare a model with its dense form, for histories of these lengths padded to a width."""

    def check(lengths=LENGTHS, width=MAX_LEN, name="Transformer_DCN", mask="corrected", dense=None, **settings):
        model, dataset = build(f"{name}_tiny", history_mask=mask, **settings, **NO_DROPOUT)
        disturb(model.double(), 0.1)
        dense = Dense(model, mask, **(dense or {})).double()
        dense.load_state_dict(model.state_dict(), strict=True)
        batch = make_batch(dataset.splits["train"], long_rows(dataset.splits["train"], len(lengths)), lengths)
        for training in (True, False):
            model.train(training)
            assert_equal_models(model, dense.train(training), batch, model.items, lengths, width)

    return check


@pytest.mark.parametrize(
    ("name", "history_mask", "width"),
    [
        ("Transformer_DCN", "corrected", 20),
        ("Transformer_DCN", "corrected", 21),
        ("Transformer_DCN", "corrected", 40),
        ("Transformer_DCN", "published", MAX_LEN),
        ("Transformer_DCN_Quant", "corrected", 21),  # which has other fields of the items
        ("Transformer_DCN_Quant", "published", MAX_LEN),
    ],
)
def test_equals_the_dense_model(equals_dense, name, history_mask, width):
    equals_dense(width=width, name=name, mask=history_mask)


@pytest.mark.parametrize(
    "lengths", [[0], [1], [20], [0, 0, 0], [2, 2], [20, 20], [0, 20]], ids=lambda lengths: "-".join(map(str, lengths))
)
@pytest.mark.parametrize("history_mask", ["corrected", "published"])
def test_equals_the_dense_model_in_batches_of_one_kind(equals_dense, history_mask, lengths):
    equals_dense(lengths, mask=history_mask)


def test_equals_the_dense_model_with_heads_and_without_the_maximum(equals_dense):
    equals_dense(num_heads=4, concat_max_pool=False, dense={"num_heads": 4, "max_pool": False})


def test_a_history_shorter_than_its_slots_everywhere(equals_dense):
    """No row has all slots, so that part of the cross network's matrices is read by none."""
    equals_dense([1, 2, 1], 2)


def test_what_the_published_mask_sees(build, make_batch, float64):
    """The number of items up to K; with a full history, the newest item."""
    model, dataset = build("Transformer_DCN_tiny", history_mask="published")
    disturb(model.double().eval(), 0.1)
    batch = make_batch(dataset.splits["train"], long_rows(dataset.splits["train"], len(LENGTHS)), LENGTHS)
    items = batch.history.values
    others = items % (dataset.items.num_items - 1) + 1
    changed = model(replace_history(batch, others))["logit"] != model(batch)["logit"]
    assert changed.flatten().tolist() == [length == MAX_LEN for length in LENGTHS]
    newest = batch.history.offsets[1:][LENGTHS.index(MAX_LEN)] - 1
    others[newest] = items[newest]
    assert torch.equal(model(replace_history(batch, others))["logit"], model(batch)["logit"])
    row = long_rows(dataset.splits["train"], 1)
    scores = [model(make_batch(dataset.splits["train"], row, [n]))["logit"].item() for n in range(MAX_LEN)]
    assert len(set(scores[: K + 1])) == K + 1
    assert len(set(scores[K:])) == 1


def replace_history(batch, values):
    return type(batch)(batch.context, batch.target, batch.history.with_values(values), batch.label, batch.group)


def test_the_published_mask_with_dropout_takes_every_padding_item(build, make_batch):
    model, dataset = build("Transformer_DCN_tiny", history_mask="published")
    history = make_batch(dataset.splits["train"], long_rows(dataset.splits["train"], 3), [20, 3, 0]).history
    assert model.train().seen_items(history).items.lengths.tolist() == [1, 17, 20]
    assert model.eval().seen_items(history).items.lengths.tolist() == [1, 1, 1]


def test_equals_the_twin_of_the_benchmark(build, make_batch, float64):
    model, dataset = build("Transformer_DCN_tiny", **NO_DROPOUT)
    disturb(model.double(), 0.1)
    params = {
        **{"model_id": "twin", "gpu": -1, "embedding_regularizer": 0, "task": "binary_classification", "verbose": 0},
        **{"metrics": ["AUC"], "monitor": "AUC", "model_root": model.model_dir, "embedding_dim": 16, "num_heads": 1},
        **{"dim_feedforward": 32, "transformer_layers": 2, "first_k_cols": K, "dcn_cross_layers": 3},
        **{"dcn_hidden_units": [64, 32], "mlp_hidden_units": [64, 32], "optimizer": "adam", "learning_rate": 1e-3},
        **{"loss": "binary_crossentropy", **NO_DROPOUT},
    }
    for column in ("item_emb_d16",):
        model.feature_map.features[column]["embedding_dim"] = 16
    twin = PaddedTransformerDCN(model.feature_map, params).double().train()
    twin.load_state_dict(model.state_dict())
    batch = make_batch(dataset.splits["train"], long_rows(dataset.splits["train"], len(LENGTHS)), LENGTHS)
    ids, mask = pad(batch, LENGTHS, MAX_LEN)
    columns = {**batch.context, "label": batch.label}
    items = {n: ids if n == "item_id" else dataset.items[n][ids] for n in model.item_fields}
    probability = twin((columns, items, mask.double()))["y_pred"]
    torch.testing.assert_close(model(batch)["y_pred"], probability, rtol=1e-9, atol=1e-9)


def test_parameters_are_those_of_the_published_code(build):
    model, _ = build("Transformer_DCN_tiny")
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    D, W = 48, 96
    x = 32 + D + (K + 1) * W
    for layer in ("0", "1"):
        prefix = f"transformer_encoder.transformer_encoder.layers.{layer}."
        assert shapes[f"{prefix}self_attn.in_proj_weight"] == (3 * W, W)
        assert shapes[f"{prefix}self_attn.in_proj_bias"] == (3 * W,)
        assert shapes[f"{prefix}self_attn.out_proj.weight"] == (W, W)
        assert shapes[f"{prefix}linear1.weight"] == (32, W)
        assert shapes[f"{prefix}linear2.weight"] == (W, 32)
        assert shapes[f"{prefix}norm1.weight"] == shapes[f"{prefix}norm2.bias"] == (W,)
    assert shapes["transformer_encoder.out_linear.weight"] == (W, W)
    assert [shapes[f"crossnet.cross_layers.{layer}.weight"] for layer in range(3)] == [(x, x)] * 3
    assert shapes["parallel_dnn.mlp.0.weight"] == (64, x)
    assert shapes["mlp.mlp.0.weight"] == (64, x + 32)
    assert shapes["embedding_layer.embedding_layer.feature_encoders.item_emb_d16.weight"] == (16, 16)
