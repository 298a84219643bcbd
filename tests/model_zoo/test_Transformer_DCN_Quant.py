"""Transformer_DCN_Quant: its codes, and the model on them as a dense re-computation."""

import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.layers.semantic_ids import cosine_neighbors, k_means, residual_codes

LENGTHS = [3, 0, 1, 20, 4, 7]


@pytest.fixture
def clusters():
    """Twelve vectors in three directions, of different lengths."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(3, 8).repeat_interleave(4, dim=0)
    vectors = directions + 0.05 * torch.randn(12, 8, generator=generator)
    return vectors * (0.5 + torch.rand(12, 1, generator=generator))


def test_the_first_level_finds_clusters(clusters):
    codes = residual_codes(clusters, num_levels=3, num_clusters=3)
    assert codes.shape == (12, 3)
    assert codes[:, 0].view(3, 4).unique(dim=1).numel() == 3
    assert codes[:, 0].unique().numel() == 3


def test_each_level_leaves_less(clusters):
    """Re-computed from the codes: centres are means of what the levels before have left."""
    codes = residual_codes(clusters, num_levels=3, num_clusters=3)
    residual = F.normalize(clusters, dim=1)
    left = [residual.norm()]
    for level in range(3):
        means = torch.stack([residual[codes[:, level] == c].mean(dim=0) for c in range(3)])
        assert torch.equal(torch.cdist(residual, means).argmin(dim=1), codes[:, level])
        residual = residual - means[codes[:, level]]
        left.append(residual.norm())
    assert left == sorted(left, reverse=True)
    assert left[1] < 0.2 * left[0]


def test_one_seed_one_code(clusters):
    def code(seed):
        return residual_codes(clusters, num_levels=2, num_clusters=4, seed=seed)

    assert torch.equal(code(1), code(1))
    assert any(not torch.equal(code(1), code(seed)) for seed in range(2, 6))


def test_k_means_of_equal_points():
    centers = k_means(torch.ones(5, 2), 3, torch.Generator().manual_seed(0))
    assert torch.equal(centers, torch.ones(3, 2))


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_neighbors_equal_the_cosines_sorted(clusters, chunk):
    cosines = F.cosine_similarity(clusters.unsqueeze(1), clusters.unsqueeze(0), dim=2)
    found = cosine_neighbors(clusters, 4, chunk)
    assert torch.equal(found, cosines.argsort(dim=1, descending=True)[:, :4])
    assert found[:, 0].tolist() == list(range(12))


def test_items_are_described_by_codes_and_neighbors(build):
    model, dataset = build("Transformer_DCN_Quant_tiny", codebook_num=2, top_k=3, num_clusters=4)
    items, ids = dataset.items.num_items, model.items["quanid"]
    assert ids.shape == (items, 5)
    assert ids[:, 0].min() >= items
    assert ids[:, 0].max() < items + 4 <= ids[:, 1].min()
    assert ids[:, 1].max() < items + 8
    assert ids[:, 2:].max() < items
    real = dataset.items.known.clone()
    real[0] = False
    assert torch.equal(ids[real, 2], real.nonzero().squeeze(1))
    table = model.state_dict()["embedding_layer.embedding_layer.embedding_layers.quanid.weight"]
    assert table.shape == (items + 8, 16)
    assert "item_emb_d16" not in model.field_dims
    assert model.field_dims["quanid"] == 5 * 16
    assert "item_emb_d16" in dataset.feature_map.features  # the dataset's own is left alone


def test_an_item_is_its_fields_side_by_side(build):
    model, dataset = build("Transformer_DCN_Quant_tiny")
    tables = model.embedding_layer.embedding_layer.embedding_layers
    ids = torch.tensor([5, 9])
    found = model.embed_items(ids)
    tags = dataset.items["item_tags"][ids].long()
    mean = tables["item_tags"](tags).sum(dim=1) / ((tags > 0).sum(dim=1, keepdim=True) + 1e-12)
    wanted = [tables["item_id"](ids), mean, tables["quanid"](model.items["quanid"][ids]).flatten(1)]
    torch.testing.assert_close(found, torch.cat(wanted, dim=1))


def test_codes_get_gradients(build, make_batch):
    model, dataset = build("Transformer_DCN_Quant_tiny")
    table = dataset.splits["train"]
    rows = (table.history_offsets.diff() >= 20).nonzero().flatten()[: len(LENGTHS)]
    batch = make_batch(table, rows, LENGTHS)
    model.add_loss(model(batch), batch.label.float().view(-1, 1)).backward()
    gradient = model.get_parameter("embedding_layer.embedding_layer.embedding_layers.quanid.weight").grad
    touched = gradient.abs().sum(dim=1).nonzero().squeeze(1)
    seen = torch.cat([torch.zeros(1, dtype=torch.int64), batch.history.values.long(), batch.target.long()])
    assert torch.equal(touched, model.items["quanid"][seen].unique())
