"""The contrastive loss against its formula, the heads, and the command from files to aligned vectors."""

import argparse
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.data.synthetic.spec import SyntheticSpec
from fuxictr_mm.data.synthetic.world import World
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.embeddings.align import (
    Alignment,
    AlignmentHead,
    AlignOptions,
    NeighborPairs,
    Training,
    add_arguments,
    align,
    info_nce,
    main_from_args,
    start_matrix,
    write_aligned,
)
from fuxictr_mm.embeddings.item_files import Source, read_vectors
from fuxictr_mm.embeddings.swing import Neighbors
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError

ALIGNED = "item_emb_aligned"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small world whose content is noisy."""
    folder = tmp_path_factory.mktemp("align") / "world"
    spec = SyntheticSpec(
        users=1500, items=300, train_rows=6000, valid_rows=10, test_rows=10, text_noise=1.0, image_noise=1.0
    )
    generate(spec, folder, progress=False)
    return spec, folder


def command(folder, out, *more):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    features = folder / "item_feature.parquet"
    given = [f"text={features}:txt_emb_BERT", f"image={features}:img_emb_CLIPRN50", "--out", str(out)]
    main_from_args(parser.parse_args([*given, *map(str, more)]))


def quick(folder):
    return [
        "--train",
        folder / "train.parquet",
        "--dim",
        8,
        "--steps",
        75,
        "--evaluate-every",
        25,
        "--hidden",
        16,
        "--batch-size",
        256,
    ]


def vectors_of(path, column=ALIGNED):
    ids, vectors = map(np.concatenate, zip(*read_vectors(Source("aligned", path, column)), strict=True))
    return ids[np.argsort(ids)], vectors[np.argsort(ids)]


@pytest.fixture(scope="module")
def aligned(world, tmp_path_factory):
    """A folder with what one run of the command writes."""
    folder = tmp_path_factory.mktemp("aligned")
    files = ["--neighbors", folder / "neighbors.parquet", "--save", folder / "head.safetensors"]
    command(world[1], folder / "aligned.parquet", *quick(world[1]), *files, "--per-modality", "--quiet")
    return folder


def test_loss_is_the_formula():
    vectors = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 3.0], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0, 1] = known[1, 0] = known[0, 2] = known[2, 0] = True
    loss = info_nce(vectors, torch.tensor([[0], [1]]), known, temperature=0.5)
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).tolist()

    def e(a, b):
        return math.exp(sum(x * y for x, y in zip(unit[a], unit[b], strict=True)) / 0.5)

    # 2 is a neighbour of 0, hence no negative of it; it is one of 1.
    forwards = -math.log(e(0, 1) / (e(0, 1) + e(0, 3)))
    backwards = -math.log(e(1, 0) / (e(1, 0) + e(1, 2) + e(1, 3)))
    assert loss.item() == pytest.approx((forwards + backwards) / 2, rel=1e-12)
    assert torch.autograd.gradcheck(lambda v: info_nce(v, torch.tensor([[0], [1]]), known, 0.5), vectors)


def test_loss_without_negatives_is_zero_with_finite_gradient():
    vectors = torch.randn(2, 3, requires_grad=True)
    loss = info_nce(vectors, torch.tensor([[0], [1]]), ~torch.eye(2, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad.eq(0).all()


def test_head_starts_as_the_leading_components_on_one_scale():
    variances = [torch.tensor([9.0, 4.0, 1.0]), torch.tensor([100.0, 50.0])]
    inputs = torch.cat([torch.randn(5000, len(v)) * v.sqrt() for v in variances], dim=1)
    head = AlignmentHead(start_matrix([(variances[0], 2), (variances[1], 1)]), hidden=4)
    squares = head(inputs).square().mean(dim=0)
    assert squares[:2].mean().item() == pytest.approx(1, rel=0.1)
    assert squares[2].item() == pytest.approx(1, rel=0.1)


def pairs_of(anchors, others, scores, items, held_out=0.2):
    order = np.lexsort((others, anchors))
    ids, counts = np.unique(anchors, return_counts=True)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    neighbors = Neighbors(ids, offsets, np.asarray(others)[order], np.asarray(scores)[order])
    return NeighborPairs(neighbors, np.arange(1, items + 1), held_out, seed=0)


def test_pairs_are_drawn_by_score_and_never_of_held_out_items():
    anchors, others = np.repeat(np.arange(1, 11), 10), np.tile(np.arange(1, 11), 10)
    differ = anchors != others
    anchors, others = anchors[differ], others[differ]
    pairs = pairs_of(anchors, others, 1.0 * others, items=12)
    drawn = np.stack(pairs.draw(40_000, np.random.default_rng(0)))
    assert len(pairs.held) == 2
    assert not np.isin(drawn, pairs.held).any()
    anchor = pairs.train_anchors[0]
    found, counts = np.unique(drawn[1][drawn[0] == anchor] + 1, return_counts=True)
    np.testing.assert_allclose(counts / counts.sum(), found / found.sum(), atol=0.03)


def test_recall_by_hand():
    # Held out is one of five items; every item's neighbours are the two beside it on a ring.
    anchors = np.repeat(np.arange(1, 6), 2)
    others = np.array([[5, 2], [1, 3], [2, 4], [3, 5], [4, 1]]).ravel()
    pairs = pairs_of(anchors, others, np.ones(10), items=5)
    angle = torch.arange(5) * 2 * math.pi / 5
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert pairs.recall(ring, at=2) == 1
    held = int(pairs.held[0])
    far = ring[(2 * torch.arange(5)) % 5]  # neighbours lie two steps apart
    assert pairs.recall(far, at=2) == 0
    assert pairs.known.toarray()[held].sum() == 2


def test_held_out_recall_rises_and_topics_are_nearer(world, aligned):
    spec, folder = world
    features = folder / "item_feature.parquet"
    sources = [Source("text", features, "txt_emb_BERT"), Source("image", features, "img_emb_CLIPRN50")]
    training = Training(steps=100, evaluate_every=25, batch_size=256)
    _, trained = align(sources, Neighbors.read(aligned / "neighbors.parquet"), AlignOptions(dim=8, training=training))
    result = trained["joint"]
    assert result.after > result.before + 0.02, result
    assert max(result.history) == result.after

    truth = World.build(spec)
    ids, vectors = vectors_of(aligned / "aligned.parquet")
    cold = truth.cold[ids]
    topics = np.concatenate([truth.text_topics, truth.image_topics], axis=1)[ids]
    # Of cold items too, about which training said nothing: what is near has like topics.
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = (unit[cold] @ unit[~cold].T).argmax(axis=1)
    like = np.mean(topics[cold] * topics[~cold][near])
    assert like > 0.3, like


def test_every_item_gets_vectors_of_length_sqrt_dim(world, aligned):
    for column in (ALIGNED, f"{ALIGNED}_text", f"{ALIGNED}_image"):
        ids, vectors = vectors_of(aligned / "aligned.parquet", column)
        assert ids.tolist() == list(range(1, world[0].items + 1))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 8**0.5, rtol=1e-4)


def test_the_same_command_writes_the_same_file_and_starts_from_neighbors(world, aligned, tmp_path, capsys):
    options = [o for o in quick(world[1]) if o not in ("--train", world[1] / "train.parquet")]
    command(world[1], tmp_path / "again.parquet", *options, "--neighbors", aligned / "neighbors.parquet")
    assert "recall@20 of held-out items' neighbours" in capsys.readouterr().out
    np.testing.assert_array_equal(vectors_of(tmp_path / "again.parquet")[1], vectors_of(aligned / "aligned.parquet")[1])


def test_a_saved_head_projects_new_items_alike(world, aligned, tmp_path):
    command(world[1], tmp_path / "applied.parquet", "--apply", aligned / "head.safetensors", "--quiet")
    for column in (ALIGNED, f"{ALIGNED}_text"):
        np.testing.assert_array_equal(
            vectors_of(tmp_path / "applied.parquet", column)[1], vectors_of(aligned / "aligned.parquet", column)[1]
        )


def test_an_item_without_vectors_gets_zeros_and_without_one_modality_the_other(world, aligned, tmp_path):
    table = pq.read_table(world[1] / "item_feature.parquet").slice(0, 3)
    text, image = (np.array(table[name].to_pylist()) for name in ("txt_emb_BERT", "img_emb_CLIPRN50"))
    text[:2] = 0
    image[0] = 0
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [1, 2, 3], "t": text.tolist(), "i": image.tolist()}), path)
    sources = [Source("text", path, "t"), Source("image", path, "i")]
    write_aligned(sources, Alignment.load(aligned / "head.safetensors"), tmp_path / "out.parquet")
    _, vectors = vectors_of(tmp_path / "out.parquet")
    assert (vectors[0] == 0).all()
    assert np.linalg.norm(vectors[1]) == pytest.approx(8**0.5, rel=1e-4)
    assert (vectors_of(tmp_path / "out.parquet", f"{ALIGNED}_text")[1][:2] == 0).all()


def test_wrong_use_of_options(world, aligned, tmp_path):
    out, head = tmp_path / "out.parquet", aligned / "head.safetensors"
    with pytest.raises(ConfigError, match="give --train FILE, --neighbors FILE or --apply FILE"):
        command(world[1], out)
    with pytest.raises(ConfigError, match="--dim has no effect with --apply"):
        command(world[1], out, "--apply", head, "--dim", 8)
    with pytest.raises(ConfigError, match="--alpha has no effect without --train"):
        command(world[1], out, "--neighbors", aligned / "neighbors.parquet", "--alpha", 2)
    with pytest.raises(ConfigError, match="exists already; add --overwrite"):
        command(world[1], aligned / "aligned.parquet", *quick(world[1]))
    with pytest.raises(ConfigError, match=r"temperature is 0\.0, expected a number above 0"):
        command(world[1], out, *quick(world[1]), "--temperature", 0)
    with pytest.raises(ConfigError, match=r"dim is 100, of which 'text' gives 50, .* 32 components .* at most 64"):
        command(world[1], out, *quick(world[1]), "--dim", 100)
    with pytest.raises(ConfigError, match="dim is 40, of which 'text' gives 40"):
        command(world[1], out, *quick(world[1]), "--dim", 40, "--per-modality")
    with pytest.raises(ConfigError, match=r"components 3\); expected a dim of at most 6"):
        command(world[1], out, *quick(world[1]), "--components", 3)
    with pytest.raises(MissingFileError, match="expected a head that"):
        command(world[1], out, "--apply", tmp_path / "nothing.safetensors")
    assert not out.exists()


def test_modalities_that_the_head_does_not_know(world, aligned):
    alignment = Alignment.load(aligned / "head.safetensors")
    with pytest.raises(ConfigError, match="modality 'txt' is unknown to the head; did you mean 'text'"):
        alignment.check({"txt": 32, "image": 48})
    with pytest.raises(ConfigError, match="modality 'image' lacks"):
        alignment.check({"text": 32})
    with pytest.raises(ConfigError, match="width 5, expected 32"):
        alignment.check({"text": 5, "image": 48})


def test_damaged_heads(aligned, tmp_path):
    whole = (aligned / "head.safetensors").read_bytes()
    path = tmp_path / "head.safetensors"
    for content, message in (
        (whole[:-10], "is damaged"),
        (b"nothing", "is damaged"),
        (whole.replace(b"heads.0.start", b"heads.0.storm"), "is damaged"),
        (whole.replace(b"fuxictr_mm.head", b"fuxictr_mm.hand"), "is no head"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            Alignment.load(path)


def test_neighbors_of_other_items(world):
    other = Neighbors(np.array([10**6]), np.array([0, 1]), np.array([10**6 + 1]), np.array([1.0]))
    with pytest.raises(DataError, match="check that the ids of the two are the same"):
        align([Source("text", world[1] / "item_feature.parquet", "txt_emb_BERT")], other, AlignOptions(dim=16))
