"""The contrastive loss against its formula, pairs, recall, heads, and saved heads."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fuxictr_mm.embeddings.content_inputs import ContentInput
from fuxictr_mm.embeddings.contrastive import (
    Alignment,
    AlignmentHead,
    NeighborPairs,
    info_nce,
    start_matrix,
)
from fuxictr_mm.embeddings.swing import Neighbors
from fuxictr_mm.errors import ConfigError, DataError
from tests.errors import raises_naming


def test_loss_is_the_formula():
    x = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 3.0], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0, 1] = known[1, 0] = known[0, 2] = known[2, 0] = True
    loss = info_nce(x, torch.tensor([[0], [1]]), known, temperature=0.5)
    unit = (x / x.norm(dim=1, keepdim=True)).tolist()

    def e(a, b):
        return math.exp(sum(x * y for x, y in zip(unit[a], unit[b], strict=True)) / 0.5)

    # 2 is a neighbor of 0, hence no negative of it; it is one of 1.
    forwards = -math.log(e(0, 1) / (e(0, 1) + e(0, 3)))
    backwards = -math.log(e(1, 0) / (e(1, 0) + e(1, 2) + e(1, 3)))
    assert loss.item() == pytest.approx((forwards + backwards) / 2, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: info_nce(x, torch.tensor([[0], [1]]), known, 0.5), x)


def test_loss_without_negatives_is_zero_with_finite_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    loss = info_nce(x, torch.tensor([[0], [1]]), ~torch.eye(2, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert x.grad.eq(0).all()


def test_a_head_starts_as_the_leading_components_on_one_scale():
    variances = [torch.tensor([9.0, 4.0, 1.0]), torch.tensor([100.0, 50.0])]
    inputs = torch.cat([torch.randn(5000, len(v)) * v.sqrt() for v in variances], dim=1)
    head = AlignmentHead(start_matrix([(variances[0], 2), (variances[1], 1)]), hidden=4)
    squares = head(inputs).square().mean(dim=0)
    assert squares[:2].mean().item() == pytest.approx(1, rel=0.1)
    assert squares[2].item() == pytest.approx(1, rel=0.1)


def pairs_of(anchors, others, scores, items):
    neighbors = Neighbors(np.asarray(anchors), np.asarray(others), np.asarray(scores, dtype=np.float64))
    return NeighborPairs(neighbors, np.arange(1, items + 1), 0.2, seed=0)


def test_pairs_are_sampled_by_score_and_never_of_held_out_items():
    anchors, others = np.repeat(np.arange(1, 11), 10), np.tile(np.arange(1, 11), 10)
    differ = anchors != others
    pairs = pairs_of(anchors[differ], others[differ], others[differ], items=12)
    sampled = np.stack(pairs.sample(40_000, np.random.default_rng(0)))
    assert len(pairs.held) == 2
    assert not np.isin(sampled, pairs.held).any()
    _, counts = np.unique(sampled[0], return_counts=True)
    np.testing.assert_allclose(counts / 40_000, 1 / 8, atol=0.01)
    found, counts = np.unique(sampled[1][sampled[0] == pairs.train_anchors[0]] + 1, return_counts=True)
    np.testing.assert_allclose(counts / counts.sum(), found / found.sum(), atol=0.03)


def test_recall_by_hand():
    # Held out is one of five items; every item's neighbors are the two beside it on a ring.
    others = np.array([[2, 5], [1, 3], [2, 4], [3, 5], [1, 4]]).ravel()
    pairs = pairs_of(np.repeat(np.arange(1, 6), 2), others, np.ones(10), items=5)
    angle = torch.arange(5) * 2 * math.pi / 5
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert pairs.recall(ring, at=2) == 1
    assert pairs.recall(ring, at=1) == 1  # scored as if it had one neighbor
    assert pairs.recall(ring[(2 * torch.arange(5)) % 5], at=2) == 0  # neighbors two steps apart
    assert pairs.known.toarray()[int(pairs.held[0])].sum() == 2


def test_a_sample_of_the_held_out_items_is_not_those_of_small_ids():
    # Items 1 to 50 lie beside their neighbors, those above on the other side of the origin.
    items = np.arange(1, 101)
    pairs = NeighborPairs(Neighbors(items, ((items - 1) ^ 1) + 1, np.ones(100)), items, 0.5, seed=0)
    table = torch.eye(50).repeat_interleave(2, dim=0)
    table[51::2] *= -1
    assert pairs.recall(table, at=1) == pytest.approx((pairs.held < 50).mean())
    assert 0.2 < pairs.recall(table, at=1, most=25) < 0.8


def test_neighbors_of_other_items():
    with raises_naming(DataError, "0 items"):
        pairs_of([10**6], [10**6 + 1], [1.0], items=5)


@pytest.fixture
def alignment():
    """A head of two modalities of dims 3 and 2, and one of text alone."""
    torch.manual_seed(0)
    inputs = tuple(
        ContentInput(name, np.ones(dim, np.float32), np.eye(2, dim, dtype=np.float32))
        for name, dim in (("text", 3), ("image", 2))
    )
    heads = {"joint": AlignmentHead(torch.eye(4), 5), "text": AlignmentHead(torch.eye(2), 0)}
    for head in heads.values():
        torch.nn.init.normal_(head.linear.weight)
        head.requires_grad_(False)
    return Alignment(inputs, heads)


def test_aligned_embeddings_have_the_norm_sqrt_dim_or_are_zero(alignment):
    x = {"text": np.array([[1, 2, 3], [0, 0, 0], [0, 0, 0]], np.float32), "image": np.eye(3, 2, dtype=np.float32)}
    aligned = alignment.transform(x)
    assert {name: len(rows.T) for name, rows in aligned.items()} == alignment.columns
    np.testing.assert_allclose(np.linalg.norm(aligned["item_emb_aligned"], axis=1), [2, 2, 0], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(aligned["item_emb_aligned_text"], axis=1), [2**0.5, 0, 0], rtol=1e-5)


def test_modalities_that_the_head_does_not_know(alignment):
    with raises_naming(ConfigError, "'image'"):
        next(alignment.apply(SimpleNamespace(dims={"text": 3})))


def test_saved_heads(alignment, tmp_path):
    path = tmp_path / "head.safetensors"
    alignment.save(path)
    read = Alignment.load(path)
    x = {"text": np.random.rand(4, 3).astype(np.float32), "image": np.random.rand(4, 2).astype(np.float32)}
    for column, rows in alignment.transform(x).items():
        np.testing.assert_array_equal(read.transform(x)[column], rows)
    for name, other in ((b"heads.0.start", b"heads.0.storm"), (b"fuxictr_mm.head", b"fuxictr_mm.hand")):
        path.write_bytes(path.read_bytes().replace(name, other))
        with raises_naming(DataError, "head.safetensors"):
            Alignment.load(path)
        alignment.save(path)
