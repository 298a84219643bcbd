"""SEMINAR equals a padded re-computation, with its alignment in the loss."""

from pathlib import Path

import pytest
import torch

from fuxictr_mm.experiment import Experiment


def contrast(one, other, temperature):
    """Of two embeddings of the same items, item by item."""
    cosines = torch.cosine_similarity(one[:, None], other[None], dim=2) / temperature
    return -(torch.log_softmax(cosines, 1).diagonal() + torch.log_softmax(cosines, 0).diagonal()).mean() / 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"code_weights": [1.0, 0.4], "top_k": 3, "num_heads": 2, "align_weight": 1.0, "temperature": 0.5},
        {"codes": ["codes_pq_text"], "aligned": [], "short_len": 0},
    ],
)
def test_equals_the_dense_model(equals_dense, target_attention, newest_mask, best_mask, settings):
    def dense(model, p):
        names = settings.get("codes", ["codes_pq_text", "codes_pq_image"])
        weights = settings.get("code_weights", [1.0] * len(names))
        score = torch.arange(p.mask.shape[1]) / p.mask.shape[1] / 100  # the newer of equal ones
        for name, weight in zip(names, weights, strict=True):
            codes = model.items.stored(name)
            score = score + weight * ((codes[p.target][:, None] == codes[p.ids]) & (codes[p.ids] != 0)).sum(2)
        gates = torch.softmax(model.field_gate, 0)

        def fuse(items):
            fields = items.unflatten(-1, (len(gates), -1))
            return sum(gates[f] * model.field_scale[f] * fields[..., f, :] for f in range(len(gates)))

        near, new = best_mask(score, p.mask, model.top_k), newest_mask(p.mask, model.short_len)
        t, s = fuse(p.t), fuse(p.s)
        parts = [target_attention(model.short_attention, t, s, new), target_attention(model.long_attention, t, s, near)]
        logits = model.dnn(torch.cat([p.c, p.t, *parts], dim=-1))
        names = settings.get("aligned", ["item_id", "txt_emb_pca8", "img_emb_pca8"])
        first = [p.target.tolist().index(item) for item in sorted(set(p.target.tolist()))]
        fields = p.t[first].unflatten(1, (len(gates), -1))
        fields = [fields[:, model.item_fields.index(name)] for name in names]
        losses = [contrast(a, b, model.temperature) for i, a in enumerate(fields) for b in fields[:i]]
        return logits, model.align_weight * sum(losses) / len(losses) if losses else 0.0

    equals_dense("SEMINAR_tiny", dense, **settings)


def test_a_column_may_have_one_code_per_item(tiny_dataset, tmp_path):
    """As a categorical column of the items has."""
    root = Path(__file__).resolve().parents[2]
    experiment = Experiment.load("SEMINAR_tiny", root, model_root=str(tmp_path), code_weights=[3.0, 1.0])
    dataset = tiny_dataset(experiment.config.to_dict())
    items = dataset.items
    items.column_codes_pq_text = items.stored("codes_pq_text")[:, 0]
    model = experiment.build_model(dataset)
    assert model.code_weights.tolist() == [3.0, 1.0, 1.0, 1.0, 1.0]
    assert torch.equal(model.codes[:, 0], items.stored("codes_pq_text"))


def test_a_field_of_zeros_is_not_aligned(tiny_dataset, tmp_path, monkeypatch):
    """As the pretrained embedding of an id without clicks: the gradient of a normalized zero would be 1e12."""
    root = Path(__file__).resolve().parents[2]
    experiment = Experiment.load("SEMINAR_tiny", root, model_root=str(tmp_path))
    model = experiment.build_model(tiny_dataset(experiment.config.to_dict()))
    fields = torch.randn(4, *model.field_scale.shape)
    names = [model.item_fields.index(name) for name in ("item_id", "txt_emb_pca8", "img_emb_pca8")]
    fields[2, names[0]] = 0
    fields.requires_grad_()
    monkeypatch.setattr(model, "embed_items", lambda ids, fills_unknown: fields.flatten(1))
    loss = model._align(torch.arange(4))
    ids, text, image = (fields[:, name] for name in names)
    has = [0, 1, 3]
    losses = [contrast(ids[has], other[has], model.temperature) for other in (text, image)]
    losses.append(contrast(text, image, model.temperature))
    torch.testing.assert_close(loss, sum(losses) / 3)
    loss.backward()
    assert not fields.grad[2, names[0]].any()


def test_the_embedding_that_unknown_items_share_is_not_aligned(tiny_dataset, tmp_path):
    root = Path(__file__).resolve().parents[2]
    specs = [{"name": "item_id", "dropout": 0.5, "unknown": "trained"}]
    specs += [{"name": ["codes_pq_text", "codes_pq_image"], "embedded": False}]
    experiment = Experiment.load("SEMINAR_tiny", root, model_root=str(tmp_path), feature_specs=specs)
    model = experiment.build_model(tiny_dataset(experiment.config.to_dict()))
    model.unknown_item.embedding.data.fill_(0.5)
    model.train()
    model._align(torch.arange(1, 100)).backward()
    assert model.unknown_item.embedding.grad is None
