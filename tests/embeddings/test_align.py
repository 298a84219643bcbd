"""``embed align``: from files to aligned embeddings, on a planted signal."""

import argparse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.commands.embed.align import add_arguments, main_from_args
from fuxictr_mm.data.ids import AS_IS
from fuxictr_mm.data.synthetic.spec import SyntheticSpec
from fuxictr_mm.data.synthetic.world import World
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.embeddings.align import AlignOptions, align
from fuxictr_mm.embeddings.item_files import Source, write_embeddings
from fuxictr_mm.embeddings.swing import Neighbors
from fuxictr_mm.errors import ConfigError, DataError, UserError
from tests.errors import raises_naming

ALIGNED = "item_emb_aligned"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small world whose content is noisy."""
    folder = tmp_path_factory.mktemp("align") / "world"
    noise = {"text_noise": 1.0, "image_noise": 1.0}
    spec = SyntheticSpec(users=1500, items=300, train_rows=6000, valid_rows=10, test_rows=10, **noise)
    generate(spec, folder, progress=False)
    return spec, folder


def command(folder, out, *more):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    features = folder / "item_feature.parquet"
    given = [f"text={features}:txt_emb_BERT", f"image={features}:img_emb_CLIPRN50", "--out", out]
    main_from_args(parser.parse_args([*map(str, given), *map(str, more)]), AS_IS)


QUICK = ["--dim", 8, "--steps", 75, "--evaluate-every", 25, "--hidden", 16, "--batch-size", 256]


def read(path, column=ALIGNED):
    """Return the embeddings in the order of the items, padding first."""
    table = pq.read_table(path).sort_by("item_id")
    return np.array(table[column].to_pylist(), dtype=np.float32)


@pytest.fixture(scope="module")
def aligned(world, tmp_path_factory):
    """A folder with what one run of the command writes."""
    folder = tmp_path_factory.mktemp("aligned")
    files = ["--neighbors", folder / "neighbors.parquet", "--save", folder / "head.safetensors"]
    train = ["--train", world[1] / "train.parquet"]
    command(world[1], folder / "aligned.parquet", *train, *QUICK, *files, "--per-modality", "--quiet")
    return folder


def test_held_out_recall_rises_and_topics_are_nearer(world, aligned):
    spec, folder = world
    features = folder / "item_feature.parquet"
    sources = [Source("text", features, "txt_emb_BERT"), Source("image", features, "img_emb_CLIPRN50")]
    options = AlignOptions(dim=8, steps=100, evaluate_every=25, batch_size=256)
    _, trained = align(sources, Neighbors.read(aligned / "neighbors.parquet"), options)
    result = trained["joint"]
    assert result.after > result.before + 0.02, result
    assert max(result.history) == result.after

    truth = World.build(spec)
    embeddings = read(aligned / "aligned.parquet")[1:]
    cold, topics = truth.cold[1:], np.concatenate([truth.text_topics, truth.image_topics], axis=1)[1:]
    # Cold items as well, of which training has no clicks: similar items have similar topics.
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    near = (unit[cold] @ unit[~cold].T).argmax(axis=1)
    similar = np.mean(topics[cold] * topics[~cold][near])
    assert similar > 0.3, similar


def test_every_item_gets_an_embedding(world, aligned):
    for column in (ALIGNED, f"{ALIGNED}_text", f"{ALIGNED}_image"):
        norms = np.linalg.norm(read(aligned / "aligned.parquet", column), axis=1)
        np.testing.assert_allclose(norms, [0, *[8**0.5] * world[0].items], rtol=1e-4)


def test_saved_neighbors_give_the_same_embeddings(world, aligned, tmp_path, capsys):
    command(world[1], tmp_path / "again.parquet", *QUICK, "--neighbors", aligned / "neighbors.parquet")
    assert "recall@20" in capsys.readouterr().out
    np.testing.assert_array_equal(read(tmp_path / "again.parquet"), read(aligned / "aligned.parquet"))


def test_a_saved_head_gives_the_same_embeddings(world, aligned, tmp_path):
    command(world[1], tmp_path / "applied.parquet", "--apply", aligned / "head.safetensors", "--quiet")
    assert pq.read_table(tmp_path / "applied.parquet").equals(pq.read_table(aligned / "aligned.parquet"))


def test_missing_embeddings(world, aligned, tmp_path):
    """Zeros for an item without any, the mean in place of one modality."""
    from fuxictr_mm.embeddings.contrastive import Alignment

    table = pq.read_table(world[1] / "item_feature.parquet").slice(0, 3)
    text, image = (np.array(table[name].to_pylist()) for name in ("txt_emb_BERT", "img_emb_CLIPRN50"))
    text[:2] = 0
    image[0] = 0
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [1, 2, 3], "t": text.tolist(), "i": image.tolist()}), path)
    sources = [Source("text", path, "t"), Source("image", path, "i")]
    write_embeddings(sources, Alignment.load(aligned / "head.safetensors"), tmp_path / "out.parquet")
    joint, text = (read(tmp_path / "out.parquet", column)[1:] for column in (ALIGNED, f"{ALIGNED}_text"))
    np.testing.assert_allclose(np.linalg.norm(joint, axis=1), [0, 8**0.5, 8**0.5], rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), [0, 0, 8**0.5], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ([], "--train"),
        (["--apply", "head.safetensors", "--dim", 8], "--dim"),
        (["--apply", "head.safetensors", "--seed", 8], "--seed"),
        (["--apply", "head.safetensors", "--label", "like"], "--label"),
        (["--neighbors", "neighbors.parquet", "--alpha", 2], "--alpha"),
        (["--train", "T", "--neighbors", "neighbors.parquet"], r"neighbors\.parquet"),  # exists
        (["--train", "T", "--temperature", 0], r"temperature is 0\.0"),
        (["--train", "T", "--held-out", 1], r"held_out is 1\.0"),
        (["--train", "T", "--seed", -1], "seed is -1"),
        (["--train", "T", "--seed", 2**70], f"seed is {2**70}"),
        (["--train", "T", "--dim", 1], "dim is 1, .* 2"),
        (["--train", "T", "--dim", 100], "dim is 100, .*'text' .*50.* 64"),
        (["--train", "T", "--dim", 40, "--per-modality"], "dim is 40, .*'text' .*40"),
        (["--train", "T", "--dim", 8, "--components", 3], "dim is 8, .* 6"),
    ],
)
def test_wrong_options(world, aligned, tmp_path, monkeypatch, options, wrong):
    monkeypatch.chdir(aligned)
    options = [world[1] / "train.parquet" if option == "T" else option for option in options]
    with pytest.raises(ConfigError, match=wrong):
        command(world[1], tmp_path / "out.parquet", *options)
    assert not (tmp_path / "out.parquet").exists()


def ring(path, **modalities):
    """Write items on a ring, and return their sources and neighbors."""
    items = np.arange(1, 1 + len(next(iter(modalities.values()))))
    pq.write_table(pa.table({"item_id": items} | {name: rows.tolist() for name, rows in modalities.items()}), path)
    beside = np.stack([np.roll(items, 1), np.roll(items, -1)], axis=1)
    sources = [Source(name, path, name) for name in modalities]
    return sources, Neighbors(np.repeat(items, 2), beside.ravel(), np.ones(2 * len(items)))


ONE_STEP = {"steps": 1, "evaluate_every": 1, "batch_size": 8, "hidden": 0}


def test_a_modality_that_few_items_have_starts_on_the_scale_of_the_others(tmp_path):
    random = np.random.default_rng(0)
    text, image = random.normal(size=(2, 400, 8))
    text[100:] = 0
    sources, neighbors = ring(tmp_path / "items.parquet", text=text, image=image)
    alignment, _ = align(sources, neighbors, AlignOptions(dim=8, learning_rate=1e-12, **ONE_STEP), 0)
    x = {"text": text.astype(np.float32), "image": image.astype(np.float32)}
    inputs = np.concatenate([part(x[part.name]) for part in alignment.inputs], axis=1)
    squares = np.square(inputs @ alignment.heads["joint"].start.numpy().T)
    assert squares[:100, :4].mean() == pytest.approx(1, rel=1e-3)
    assert squares[:, 4:].mean() == pytest.approx(1, rel=1e-3)


def test_items_without_enough_components(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 64))
    few = ring(tmp_path / "few.parquet", text=rows)
    with raises_naming(ConfigError, "dim is 64", "'text'", "29"):
        align(*few, AlignOptions(dim=64, **ONE_STEP), 0)
    same = ring(tmp_path / "same.parquet", text=np.ones((30, 4)))
    with raises_naming(DataError, "'text'"):
        align(*same, AlignOptions(dim=4, **ONE_STEP), 0)


def test_training_that_diverges_is_stopped(tmp_path):
    items = ring(tmp_path / "items.parquet", text=np.random.default_rng(0).normal(size=(30, 4)))
    with raises_naming(UserError, "step 1", "--learning-rate"):
        align(*items, AlignOptions(dim=4, learning_rate=1e30, weight_decay=1e30, **ONE_STEP), 0)


def test_a_source_is_not_overwritten(aligned, tmp_path):
    from fuxictr_mm.embeddings.contrastive import Alignment

    sources, _ = ring(tmp_path / "items.parquet", text=np.ones((3, 32)), image=np.ones((3, 48)))
    before = (tmp_path / "items.parquet").read_bytes()
    with raises_naming(ConfigError, "items.parquet"):
        write_embeddings(
            sources, Alignment.load(aligned / "head.safetensors"), tmp_path / "items.parquet", overwrite=True
        )
    assert (tmp_path / "items.parquet").read_bytes() == before
