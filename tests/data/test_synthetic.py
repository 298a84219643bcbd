import argparse
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from fuxictr_mm.data.synthetic import writer as synthetic_files
from fuxictr_mm.data.synthetic.spec import PRESETS, SyntheticSpec, add_arguments, generate, main_from_args
from fuxictr_mm.data.synthetic.world import World
from fuxictr_mm.errors import ConfigError, DataError

TINY = PRESETS["tiny"]
SMALL = SyntheticSpec(users=150, items=120, train_rows=400, valid_rows=100, test_rows=120, seq_len=6, history_mean=5.0)
COMMITTED = Path(__file__).parents[2] / "data" / "tiny_mm"
SPLITS = {"train": TINY.train_rows, "valid": TINY.valid_rows, "test": TINY.test_rows, "test_labelled": TINY.test_rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("synthetic") / "tiny"
    generate(TINY, target, progress=False)
    return target


@pytest.fixture(scope="module")
def world():
    return World.build(TINY)


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def column(path, name):
    values = pq.read_table(path, columns=[name])[name].combine_chunks()
    if hasattr(values.type, "list_size"):
        return values.flatten().to_numpy().reshape(len(values), values.type.list_size)
    return values.to_numpy(zero_copy_only=False)


def test_same_seed_gives_same_bytes_and_another_seed_others(tmp_path):
    generate(SMALL, tmp_path / "a", progress=False)
    generate(SMALL, tmp_path / "b", progress=False)
    generate(dataclasses.replace(SMALL, seed=8), tmp_path / "c", progress=False)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    other = hashes(tmp_path / "c")
    assert all(digest != other[name] for name, digest in hashes(tmp_path / "a").items())


def test_chunks_do_not_depend_on_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_files, "ROW_CHUNK", 150)
    generate(SMALL, tmp_path / "all", progress=False)
    generate(dataclasses.replace(SMALL, train_rows=300), tmp_path / "fewer", progress=False)
    for name in ("user_id", "item_seq", "label"):
        all_rows, fewer = (column(tmp_path / part / "train.parquet", name) for part in ("all", "fewer"))
        np.testing.assert_array_equal(all_rows[:300], fewer)


def test_the_committed_folder_is_the_tiny_preset(folder):
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
def test_rows_have_the_layout_of_the_challenge(folder, world, split):
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


def test_a_train_history_is_the_beginning_of_the_users_whole_history(folder):
    whole = {}
    for user, row in zip(
        column(folder / "valid.parquet", "user_id"), column(folder / "valid.parquet", "item_seq"), strict=True
    ):
        whole[user] = list(row[row > 0])
    seen = 0
    for user, row in zip(
        column(folder / "train.parquet", "user_id"), column(folder / "train.parquet", "item_seq"), strict=True
    ):
        if user in whole:
            part = list(row[row > 0])
            assert part == whole[user][: len(part)]
            assert len(part) >= len(whole[user]) / 2
            seen += len(part) > 0
    assert seen > 1000


def test_item_files_have_the_layout_of_the_challenge(folder):
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


def test_tags_are_left_padded_and_distinct(folder):
    tags = column(folder / "item_feature.parquet", "item_tags")
    assert (tags > 0).any(axis=1).all()
    assert tags.max() < TINY.tags
    np.testing.assert_array_equal(tags > 0, np.sort(tags > 0, axis=1))
    assert all(len(set(row[row > 0])) == (row > 0).sum() for row in tags)
    np.testing.assert_array_equal(tags, column(folder / "item_info.parquet", "item_tags")[1:])


def test_levels_are_ten_equal_parts_that_follow_popularity(world):
    for level in (world.likes_level[1:], world.views_level[1:]):
        np.testing.assert_array_equal(np.bincount(level)[1:], TINY.items / 10)
        assert np.corrcoef(level, world.popularity[1:])[0, 1] > 0.7


def test_titles_name_the_main_text_topic(folder, world):
    titles = column(folder / "item_feature.parquet", "item_title")
    topics = world.text_topics[1:].argmax(axis=1)
    second_words = [{title.split()[1] for title in titles[topics == topic]} for topic in range(TINY.topics // 2)]
    for number, words in enumerate(second_words):
        assert len(words) > 1
        assert all(words.isdisjoint(others) for others in second_words[number + 1 :])


def test_labels_follow_the_true_logit_and_each_modality_tells_half(folder, world):
    users, items, label = (column(folder / "test_labelled.parquet", name) for name in ("user_id", "item_id", "label"))

    def oracle(**terms):
        return roc_auc_score(label, world.true_logit(users, items, **terms))

    best, context = oracle(), oracle(text=False, image=False)
    assert 0.85 < best < 0.93
    assert 0.60 < context < 0.70
    for without in ("text", "image"):
        assert context + 0.08 < oracle(**{without: False}) < best - 0.08
    chance = 1 / (1 + np.exp(-world.true_logit(users, items)))
    assert abs(chance.mean() - label.mean()) < 4 * np.sqrt((chance * (1 - chance)).mean() / len(label))


def test_histories_carry_the_taste_of_both_halves(folder, world):
    users, items, history, label = (
        column(folder / "test_labelled.parquet", name) for name in ("user_id", "item_id", "item_seq", "label")
    )
    some = (history > 0).sum(axis=1) >= 3
    score = world.true_logit(users, items, text=False, image=False)
    for taste, topics in ((world.text_taste, world.text_topics), (world.image_taste, world.image_topics)):
        mean = topics[history].sum(axis=1) / np.maximum((history > 0).sum(axis=1), 1)[:, None]
        cosine = (mean * taste[users]).sum(axis=1)[some] / np.linalg.norm(mean[some], axis=1)
        assert cosine.mean() > 0.8
        score += (mean * topics[items]).sum(axis=1)
    assert roc_auc_score(label, score) > 0.79  # what a model that sees histories and topics can reach


def linear_fit(inputs, targets):
    """Mean R2 on the second half of a linear map learnt on the first."""
    middle = len(inputs) // 2
    return LinearRegression().fit(inputs[:middle], targets[:middle]).score(inputs[middle:], targets[middle:])


def test_text_shows_the_text_half_only_and_the_image_the_image_half_only(folder, world):
    text_topics, image_topics = world.text_topics[1:], world.image_topics[1:]
    path = folder / "item_feature.parquet"
    text, image = column(path, "txt_emb_BERT"), column(path, "img_emb_CLIPRN50")
    assert linear_fit(text, text_topics) > 0.9
    assert linear_fit(image, image_topics) > 0.9
    assert linear_fit(text, image_topics) < 0.05
    assert linear_fit(image, text_topics) < 0.05
    assert 8 < image.std(axis=0).mean() / text.std(axis=0).mean() < 12


def test_v3_loses_the_text_and_v4_keeps_both(folder, world):
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


def test_reduction_is_the_pca_of_the_raw_embeddings(folder):
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
        return draw(*args)

    draw = synthetic_files.draw_row_chunk
    monkeypatch.setattr(synthetic_files, "draw_row_chunk", fail_later)
    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, tmp_path / "new", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path, monkeypatch):
    generate(SMALL, tmp_path / "old", progress=False)
    before = hashes(tmp_path / "old")
    monkeypatch.setattr(synthetic_files, "draw_histories", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(dataclasses.replace(SMALL, seed=8), tmp_path / "old", progress=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert hashes(tmp_path / "old") == before


def test_overwrite_replaces_a_dataset_and_nothing_else(tmp_path):
    target = tmp_path / "data"
    target.mkdir()
    generate(SMALL, target, progress=False)
    before = hashes(target)
    with pytest.raises(DataError, match=r"is not empty .*--overwrite"):
        generate(SMALL, target, progress=False)
    generate(dataclasses.replace(SMALL, seed=8), target, progress=False, overwrite=True)
    assert hashes(target) != before
    (target / "thesis.txt").write_text("not ours")
    with pytest.raises(DataError, match=r"holds thesis\.txt"):
        generate(SMALL, target, progress=False, overwrite=True)
    assert (target / "thesis.txt").read_text() == "not ours"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file; expected a folder"):
        generate(SMALL, tmp_path / "file", progress=False, overwrite=True)
    with pytest.raises(DataError, match="cannot be written"):
        generate(SMALL, tmp_path / "file" / "below", progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("items", 9),
        ("items", 45),
        ("train_rows", -1),
        ("valid_rows", 0),
        ("users", 0),
        ("topics", 7),
        ("topics", 2),
        ("tags", 8),
        ("text_dim", 3),
        ("image_dim", 0),
        ("emb_dim", 15),
        ("emb_dim", 64),
        ("cold_items", 1.0),
        ("cold_share", 1.5),
        ("text_noise", -0.1),
        ("image_scale", 0.0),
        ("image_scale", 1e6),
        ("history_mean", 0.0),
        ("bias", float("nan")),
        ("seed", -1),
    ],
)
def test_impossible_options_are_refused_in_one_line(name, value):
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(TINY, **{name: value})
    message = str(caught.value)
    assert message.startswith(f"synthetic data: {name} is {value}; expected ")
    assert "\n" not in message


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
def test_extreme_options_still_make_a_dataset(tmp_path, changes):
    spec = dataclasses.replace(SMALL, **changes)
    generate(spec, tmp_path / "data", progress=False)
    assert pq.read_metadata(tmp_path / "data" / "train.parquet").num_rows == spec.train_rows
    assert set(column(tmp_path / "data" / "train.parquet", "label")) <= {0, 1}


def test_the_large_preset_has_the_sizes_of_the_challenge():
    spec = PRESETS["microlens-1m"]
    assert (spec.train_rows, spec.valid_rows, spec.test_rows) == (3_600_000, 10_000, 379_142)
    assert (spec.items, spec.tags, spec.users, spec.seq_len) == (91_717, 11_740, 1_000_000, 100)
    assert (spec.text_dim, spec.image_dim, spec.emb_dim) == (768, 1024, 128)


def test_command_line_starts_from_the_preset_and_takes_every_field(tmp_path):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args(["--out", "x"]).preset == "tiny"
    changes = {"users": 150, "items": 120, "train_rows": 50, "valid_rows": 20, "test_rows": 20, "text_noise": 0.5}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    arguments = ["--preset", "tiny", "--out", str(tmp_path / "out"), "--quiet", *options]
    main_from_args(parser.parse_args(arguments))
    spec = dataclasses.replace(TINY, **changes)
    generate(spec, tmp_path / "direct", progress=False)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "direct")
    with pytest.raises(DataError):
        main_from_args(parser.parse_args(arguments))
    main_from_args(parser.parse_args([*arguments, "--overwrite"]))
