"""The world behind synthetic data: tastes show in histories and clicks, and each modality tells its half."""

import dataclasses

import numpy as np
from sklearn.metrics import roc_auc_score

from fuxictr_mm.data.synthetic.spec import PRESETS
from fuxictr_mm.data.synthetic.world import World, sigmoid
from fuxictr_mm.data.synthetic.writer import generate

TINY = PRESETS["tiny"]


def test_levels_are_ten_equal_parts_that_follow_popularity(world):
    for level in (world.likes_level[1:], world.views_level[1:]):
        np.testing.assert_array_equal(np.bincount(level)[1:], TINY.items / 10)
        assert np.corrcoef(level, world.popularity[1:])[0, 1] > 0.7


def test_labels_follow_the_true_logit_and_each_modality_tells_half(folder, world, column):
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


def test_histories_carry_the_taste_of_both_halves(folder, world, column):
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


def test_tags_are_left_padded_and_distinct(folder, column):
    tags = column(folder / "item_feature.parquet", "item_tags")
    assert (tags > 0).any(axis=1).all()
    assert tags.max() < TINY.tags
    np.testing.assert_array_equal(tags > 0, np.sort(tags > 0, axis=1))
    assert all(len(set(row[row > 0])) == (row > 0).sum() for row in tags)
    np.testing.assert_array_equal(tags, column(folder / "item_info.parquet", "item_tags")[1:])


def test_a_train_history_is_the_beginning_of_the_users_whole_history(folder, column):
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


def test_in_the_long_world_only_distant_items_tell(tmp_path, column):
    sizes = {"users": 400, "items": 3000, "train_rows": 50, "valid_rows": 50, "test_rows": 2000}
    spec = dataclasses.replace(PRESETS["long"], **sizes, seq_len=400, history_mean=200)
    generate(spec, tmp_path / "long", progress=False)
    world, file = World.build(spec), tmp_path / "long" / "test_labelled.parquet"
    items, history, label = (column(file, name) for name in ("item_id", "item_seq", "label"))
    topics = np.concatenate([world.text_topics, world.image_topics], axis=1)
    alike = topics @ topics[items].T > spec.topics / 2  # a main topic of the target, (I + 1, B)

    def auc(history):
        """Of the fraction of items alike, beside that of all items."""
        found = (alike[history, np.arange(len(items))[:, None]] & (history > 0)).sum(axis=1)
        return roc_auc_score(label, found / np.maximum((history > 0).sum(axis=1), 1) - alike[1:].mean(axis=0))

    assert abs(auc(history[:, -spec.recent_noise :]) - 0.5) < 0.05
    assert auc(history[:, : -spec.recent_noise]) > 0.75
    assert not (history == items[:, None]).any()
    np.testing.assert_array_equal((world.text_taste[1:] > 0).sum(axis=1), spec.taste_topics)
    tags = column(tmp_path / "long" / "item_info.parquet", "item_tags")[1:]
    main = (tags - 1) % spec.topics == world.text_topics[1:].argmax(axis=1)[:, None]
    assert abs(main[tags > 0].mean() - 1 / spec.topics) < 0.02


def test_in_the_path_world_only_clicked_rows_have_the_like(tmp_path, column):
    spec = dataclasses.replace(PRESETS["path"], train_rows=50, valid_rows=50, test_rows=6000)
    generate(spec, tmp_path / "path", progress=False)
    world, file = World.build(spec), tmp_path / "path" / "test_labelled.parquet"
    users, items, click, like = (column(file, name) for name in ("user_id", "item_id", "label", "like"))
    assert (like <= click).all()
    own, after = world.true_logit(users, items), world.true_logit(users, items, context=spec.second_context)
    assert abs(like[click == 1].mean() - sigmoid(after[click == 1]).mean()) < 0.02
    assert abs(like.mean() - (sigmoid(own) * sigmoid(after)).mean()) < 0.015
