"""Files of synthetic data: their layout, their bytes, and that they are complete or not there."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LinearRegression

from fuxictr_mm.data.synthetic import writer
from fuxictr_mm.data.synthetic.spec import PRESETS, SyntheticSpec
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.errors import ConfigError, DataError, UserError
from tests.errors import raises_naming

TINY = PRESETS["tiny"]
SMALL = SyntheticSpec(users=150, items=120, train_rows=400, valid_rows=100, test_rows=120, seq_len=6, history_mean=5.0)
COMMITTED = Path(__file__).parents[3] / "data" / "tiny_mm"
SPLITS = {"train": TINY.train_rows, "valid": TINY.valid_rows, "test": TINY.test_rows, "test_labelled": TINY.test_rows}


def test_same_seed_gives_same_bytes_and_another_seed_others(tmp_path, hashes):
    generate(SMALL, tmp_path / "a", progress=False)
    generate(SMALL, tmp_path / "b", progress=False)
    generate(dataclasses.replace(SMALL, seed=8), tmp_path / "c", progress=False)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    other = hashes(tmp_path / "c")
    assert all(digest != other[name] for name, digest in hashes(tmp_path / "a").items())


def test_chunks_do_not_depend_on_one_another(tmp_path, monkeypatch, column):
    monkeypatch.setattr(writer, "ROW_CHUNK", 150)
    generate(SMALL, tmp_path / "all", progress=False)
    generate(dataclasses.replace(SMALL, train_rows=300), tmp_path / "fewer", progress=False)
    for name in ("user_id", "item_seq", "label"):
        all_rows, fewer = (column(tmp_path / part / "train.parquet", name) for part in ("all", "fewer"))
        np.testing.assert_array_equal(all_rows[:300], fewer)


def test_the_committed_folder_is_the_tiny_preset(folder, column):
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 1_000_000
    for path in sorted(folder.iterdir()):
        made, committed = pq.read_table(path), pq.read_table(COMMITTED / path.name)
        assert made.schema == committed.schema
        for name in made.column_names:
            if "emb" in name:  # linear algebra may differ in the last bits on another processor
                np.testing.assert_allclose(column(path, name), column(COMMITTED / path.name, name), atol=0.05)
            else:
                assert made[name].equals(committed[name]), (path.name, name)


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_the_layout_of_the_challenge(folder, world, split, column):
    path = folder / f"{split}.parquet"
    fields = {field.name: str(field.type) for field in pq.read_schema(path)}
    expected = dict.fromkeys(["user_id", "item_id", "likes_level", "views_level"], "int64")
    expected["item_seq"] = f"fixed_size_list<element: int64>[{TINY.seq_len}]"
    if split != "test":
        expected["label"] = "int64"
    assert fields == expected
    assert pq.read_metadata(path).num_rows == SPLITS[split]

    users, items, history = (column(path, name) for name in ("user_id", "item_id", "item_seq"))
    assert users.min() >= 1
    assert users.max() <= TINY.users
    assert items.min() >= 1
    assert items.max() <= TINY.items
    assert history.min() == 0
    assert history.max() <= TINY.items
    real = history > 0
    np.testing.assert_array_equal(real, np.sort(real, axis=1))  # padding at the left, none inside
    assert not (history == items[:, None]).any()
    for row in history[:200]:
        assert len(set(row[row > 0])) == (row > 0).sum()
    for name in ("likes_level", "views_level"):
        np.testing.assert_array_equal(column(path, name), getattr(world, name)[items])

    lengths = real.sum(axis=1)
    assert (lengths == 0).any()
    assert (lengths == TINY.seq_len).any()
    assert not world.cold[history[real]].any()
    share = world.cold[items].mean()
    assert share == 0 if split == "train" else abs(share - TINY.cold_share) < 0.05


def test_both_test_files_hold_the_same_rows(folder):
    unlabelled, labelled = (pq.read_table(folder / f"{name}.parquet") for name in ("test", "test_labelled"))
    assert unlabelled.equals(labelled.drop_columns("label"))


def test_item_files_have_the_layout_of_the_challenge(folder, column):
    half = TINY.emb_dim // 2
    widths = {
        "item_info": {"item_tags": 5, "item_emb_d16": 16},
        "item_feature": {"item_tags": 5, "txt_emb_BERT": TINY.text_dim, "img_emb_CLIPRN50": TINY.image_dim},
        "item_emb": {
            **{f"item_emb_d16_{version}": 16 for version in ("v1", "v2", "v3", "e4")},
            f"txt_emb_pca{half}": half,
            f"img_emb_pca{half}": half,
        },
    }
    for name, lists in widths.items():
        path = folder / f"{name}.parquet"
        schema = pq.read_schema(path)
        for list_name, width in lists.items():
            kind = "int64" if list_name == "item_tags" else "float"
            assert str(schema.field(list_name).type) == f"fixed_size_list<element: {kind}>[{width}]"
            rows = column(path, list_name)
            assert np.isfinite(rows).all()
            if name != "item_feature":
                assert not rows[0].any()
                assert rows[1:].any(axis=1).all()
        first = 1 if name == "item_feature" else 0
        np.testing.assert_array_equal(column(path, "item_id"), np.arange(first, TINY.items + 1))
    plain = [field.name for field in pq.read_schema(folder / "item_feature.parquet")]
    assert plain[:5] == ["item_id", "item_title", "item_tags", "likes_level", "views_level"]


def linear_fit(inputs, targets):
    """Mean R2 on the second half of a linear map learnt on the first."""
    middle = len(inputs) // 2
    return LinearRegression().fit(inputs[:middle], targets[:middle]).score(inputs[middle:], targets[middle:])


def test_text_shows_the_text_half_only_and_the_image_the_image_half_only(folder, world, column):
    text_topics, image_topics = world.text_topics[1:], world.image_topics[1:]
    path = folder / "item_feature.parquet"
    text, image = column(path, "txt_emb_BERT"), column(path, "img_emb_CLIPRN50")
    assert linear_fit(text, text_topics) > 0.9
    assert linear_fit(image, image_topics) > 0.9
    assert linear_fit(text, image_topics) < 0.05
    assert linear_fit(image, text_topics) < 0.05
    assert 8 < image.std(axis=0).mean() / text.std(axis=0).mean() < 12


def test_v3_loses_the_text_and_v4_keeps_both(folder, world, column):
    path = folder / "item_emb.parquet"
    v1, v2, v3, v4 = (column(path, f"item_emb_d16_{version}")[1:] for version in ("v1", "v2", "v3", "e4"))
    text_topics, image_topics = world.text_topics[1:], world.image_topics[1:]
    assert linear_fit(v1, text_topics) > 0.9
    assert linear_fit(v2, image_topics) > 0.9
    assert linear_fit(v3, image_topics) > 0.9
    assert linear_fit(v3, text_topics) < 0.2
    assert linear_fit(v4, image_topics) > 0.9
    assert linear_fit(v4, text_topics) > 0.9
    halves = [column(path, name)[1:] for name in ("txt_emb_pca8", "img_emb_pca8")]
    np.testing.assert_array_equal(v4, np.concatenate(halves, axis=1))
    for half in halves:
        assert half.var(axis=0).mean() == pytest.approx(1, abs=0.01)
    np.testing.assert_array_equal(column(folder / "item_info.parquet", "item_emb_d16")[1:], v3)


def test_reduction_is_the_pca_of_the_raw_embeddings(folder, column):
    text = column(folder / "item_feature.parquet", "txt_emb_BERT").astype(np.float64)
    centred = text - text.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:3]
    reduced = column(folder / "item_emb.parquet", "item_emb_d16_v1")[1:, :3]
    np.testing.assert_allclose(np.abs(reduced), np.abs(centred @ directions.T), atol=0.01)


def test_a_failure_midway_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def fail_later(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*args)

    sample = writer.sample_row_chunk
    monkeypatch.setattr(writer, "sample_row_chunk", fail_later)
    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, tmp_path / "new", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path, monkeypatch, hashes):
    generate(SMALL, tmp_path / "old", progress=False)
    before = hashes(tmp_path / "old")
    monkeypatch.setattr(writer, "sample_histories", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(dataclasses.replace(SMALL, seed=8), tmp_path / "old", progress=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert hashes(tmp_path / "old") == before


def test_a_folder_that_cannot_be_renamed_keeps_the_old_files(tmp_path, monkeypatch, hashes):
    """As one that another process has filled meanwhile."""
    generate(SMALL, tmp_path / "old", progress=False)
    before = hashes(tmp_path / "old")
    rename = Path.rename

    def refuse_new(path, target):
        if Path(target).name == "old" and not (path / "train.parquet").read_bytes() == train:
            raise OSError(39, "Directory not empty")
        return rename(path, target)

    train = (tmp_path / "old" / "train.parquet").read_bytes()
    monkeypatch.setattr(Path, "rename", refuse_new)
    with raises_naming(UserError, "old"):
        generate(dataclasses.replace(SMALL, seed=8), tmp_path / "old", progress=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert hashes(tmp_path / "old") == before


def test_overwrite_replaces_a_dataset_and_nothing_else(tmp_path, hashes):
    target = tmp_path / "data"
    target.mkdir()
    generate(SMALL, target, progress=False)
    before = hashes(target)
    with pytest.raises(DataError, match="--overwrite"):
        generate(SMALL, target, progress=False)
    generate(dataclasses.replace(SMALL, seed=8), target, progress=False, overwrite=True)
    assert hashes(target) != before
    (target / "thesis.txt").write_text("not ours")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        generate(SMALL, target, progress=False, overwrite=True)
    assert (target / "thesis.txt").read_text() == "not ours"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        generate(SMALL, tmp_path / "file", progress=False, overwrite=True)
    with raises_naming(UserError, "below"):
        generate(SMALL, tmp_path / "file" / "below", progress=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"history_mean": 1e-6},
        {"cold_items": 0.0},
        {"cold_share": 1.0},
        {"topic_sharpness": 0.0},
        {"users": 1, "items": 12, "seq_len": 1, "topics": 4, "train_rows": 1, "valid_rows": 1, "test_rows": 1},
        {"history_mean": 1e6},
        {"text_effect": 1e6},
    ],
)
def test_extreme_options_still_make_a_dataset(tmp_path, changes, column):
    spec = dataclasses.replace(SMALL, **changes)
    generate(spec, tmp_path / "data", progress=False)
    assert pq.read_metadata(tmp_path / "data" / "train.parquet").num_rows == spec.train_rows
    assert set(column(tmp_path / "data" / "train.parquet", "label")) <= {0, 1}


@pytest.mark.parametrize("emb_items", [1e-9, 0.04])
def test_too_few_items_with_embeddings_are_refused(tmp_path, emb_items):
    spec = dataclasses.replace(SMALL, emb_items=emb_items)
    with raises_naming(ConfigError, "emb_items", str(emb_items), "6"):
        generate(spec, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_shape_of_taobao_mm(tmp_path):
    spec = dataclasses.replace(
        PRESETS["taobao-mm"].scaled(0.00002), train_rows=400, valid_rows=50, test_rows=50, seq_len=300, users=60
    )
    generate(spec, tmp_path / "out", progress=False)
    emb = pq.read_table(tmp_path / "out" / "item_emb.parquet")
    info = pq.read_table(tmp_path / "out" / "item_info.parquet")
    assert info["item_id"].to_pylist() == list(range(spec.items + 1))
    assert 0.1 < (len(emb) - 1) / spec.items < 0.2
    feature = pq.read_table(tmp_path / "out" / "item_feature.parquet")
    assert feature["item_id"].to_pylist() == emb["item_id"].to_pylist()[1:]
    name = f"{spec.embedding_name}_e4"
    assert emb.schema.field(name).type == pa.list_(pa.int8(), 128)
    values = np.stack(emb[name].to_numpy())[1:]
    # On unit scale, times 16, and few values beyond 8 bits.
    assert 12 < values.astype(float).std() < 18
    assert (np.abs(values) == 127).mean() < 0.01
    train = pq.read_table(tmp_path / "out" / "train.parquet")
    histories = np.stack(train["item_seq"].to_numpy())
    assert (histories > 0).sum(1).max() > 200
    # As in Taobao-MM, targets have embeddings, most history items do not.
    covered = emb["item_id"].to_numpy()
    assert np.isin(train["item_id"].to_numpy(), covered).all()
    assert 0.05 < np.isin(histories[histories > 0], covered).mean() < 0.3
