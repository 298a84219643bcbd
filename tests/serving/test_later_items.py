"""Rows of a later log, with items and users that training has not seen, scored by an export of its items."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.cli import main
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.serving.export import export
from fuxictr_mm_serving import Export, ServingError, scoring
from fuxictr_mm_serving.users import Users
from tests.datasets.logs import START, make_log, write_source
from tests.datasets.shop import ROLES
from tests.errors import raises_naming
from tests.fuxictr_models import CHALLENGE, HISTORY, SEQUENCE

PREPARE = ("prepare", "log", "--interactions", "interactions*", "--quiet", "--source")


@pytest.fixture(scope="module", params=["LightFM", pytest.param("DIN_MM", marks=pytest.mark.slow)])
def shop(tmp_path_factory, request):
    """A trained model, two later logs whose new items have the same numbers, and exports."""
    root = tmp_path_factory.mktemp("shop")
    log, items, users = make_log(7)
    old, new = log.filter(pl.col("time") <= START + 110), log.filter(pl.col("time") > START + 110)
    vectors = items.select("asin", vector=pl.Series(np.random.default_rng(0).normal(size=(30, 4)).tolist()))
    source, tomorrow = write_source(root / "old", old, items[:24], users), root / "tomorrow"
    vectors[:24].write_parquet(source / "vectors.parquet")
    # Clicked early enough to be in histories.
    new = new.with_columns(click=pl.when(pl.col("time") < START + 135).then(1).otherwise("click"))
    changed = items.with_columns(price=pl.when(pl.int_range(30) == 3).then(99.0).otherwise("price"))
    write_source(tomorrow, new, changed, users)
    vectors[24:].write_parquet(tomorrow / "vectors.parquet")
    write_source(root / "others", new.reverse(), items[::-1], users)
    vectors[24:].write_parquet(root / "others" / "vectors.parquet")
    own = ["--roles", *ROLES, "--labels", "click", "--embeddings", "vectors.parquet"]
    main([*PREPARE, str(source), "--out", str(root / "base"), *own])
    for name in ("tomorrow", "others"):
        like = ["--like", str(root / "base")]
        main([*PREPARE, str(root / name), "--out", str(root / f"of_{name}"), *like])
    options = {"epochs": 1, "record": False, "model_root": str(root / "runs"), "verbose": 0}
    experiment = Experiment.load(f"{request.param}_base", root / "base", **options)
    experiment.fit()
    later = root / "of_tomorrow"
    export(experiment, root / "export")
    export(experiment, root / "export_later", items=later)
    scores = experiment.predict(later / "test")
    return SimpleNamespace(
        root=root, later=later, experiment=experiment, scores=scores, log=(new, items, users, vectors)
    )


@pytest.fixture(scope="module")
def after(shop):
    """The folder of a log of a day after tomorrow, with an item of its own."""
    new, items, users, vectors = shop.log
    source, folder = shop.root / "third", shop.root / "of_third"
    last = new[:60].with_columns(time=START + 200 + pl.int_range(60), click=1)
    last = last.with_columns(asin=pl.when(pl.int_range(60) % 7 == 0).then(pl.lit("new")).otherwise("asin"))
    write_source(source, last, items[:1].with_columns(asin=pl.lit("new")), users)
    vectors[:1].with_columns(asin=pl.lit("new")).write_parquet(source / "vectors.parquet")
    main([*PREPARE, str(source), "--out", str(folder), "--like", str(shop.later)])
    return folder


def scores_of(export, rows, out, **options):
    scoring.score_file(export, rows, out, **options)
    return pl.read_parquet(out)["score"].to_numpy()


def test_scores_are_those_of_prediction(shop, tmp_path, monkeypatch):
    rows, count = pq.read_table(shop.later / "test"), 24
    targets, histories = rows["item_id"].to_numpy(), rows["item_seq"].to_pylist()
    is_new = targets > count
    has_new = np.array([max(history, default=0) > count for history in histories])
    assert min(is_new.sum(), has_new.sum(), (~is_new & ~has_new).sum()) > 5
    found = scores_of(shop.root / "export_later", shop.later / "test", tmp_path / "scores.parquet")
    np.testing.assert_allclose(found, shop.scores, atol=1e-5)
    # Files of training are scored as before, and so are several row groups, by a run that is resumed.
    test = shop.root / "base" / "test"
    expected = scores_of(shop.root / "export", test, tmp_path / "expected.parquet")
    found = scores_of(shop.root / "export_later", test, tmp_path / "found.parquet")
    is_same = np.array([3 + 1 not in row for row in histories_of(test)])  # item 4 has another price since
    np.testing.assert_allclose(found[is_same], expected[is_same], atol=1e-6)
    pq.write_table(rows, tmp_path / "groups.parquet", row_group_size=7)
    score_part, parts = scoring._score_part, []

    def stopped(*args):
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(args)
        return score_part(*args)

    monkeypatch.setattr(scoring, "_score_part", stopped)
    with pytest.raises(KeyboardInterrupt):
        scores_of(shop.root / "export_later", tmp_path / "groups.parquet", tmp_path / "resumed.parquet", part_rows=7)
    monkeypatch.setattr(scoring, "_score_part", score_part)
    assert len(list((tmp_path / ".resumed.parquet.parts").glob("*.npy"))) == 2
    options = {"part_rows": 7}
    found = scores_of(shop.root / "export_later", tmp_path / "groups.parquet", tmp_path / "resumed.parquet", **options)
    np.testing.assert_allclose(found, shop.scores, atol=1e-5)


def histories_of(rows):
    table = pq.read_table(rows)
    both = zip(table["item_id"].to_pylist(), table["item_seq"].to_pylist(), strict=True)
    return [{target, *history} for target, history in both]


def test_the_owner_s_ids_and_numbers(shop, tmp_path):
    rows = pl.read_parquet(shop.later / "test")
    items = pl.read_parquet(shop.later / "items.parquet")
    ids = dict(zip(items["item_id"], items["source_id"], strict=True))
    exported = Export(shop.root / "export_later")
    users = Users(shop.later / "test", "user_id", exported)
    new = rows.filter(pl.col("user_id") == 0)
    assert new["source_user"].n_unique() > 1
    assert {*rows["source_user"]} == {*users.some(99)}
    last = {user: row for row, user in enumerate(rows["source_user"])}
    for user, row in last.items():
        found = users.get(user)
        history = found.pop("item_seq")
        assert history == [ids[number] for number in rows["item_seq"][row]]
        state = exported.user_state(found, history)
        scores, known = exported.score_candidates(state, [ids[rows["item_id"][row]]])
        assert known.all()
        assert scores[0] == pytest.approx(shop.scores[row], abs=1e-5)


@pytest.mark.slow
def test_a_log_after_a_later_one_continues_its_numbers(shop, after, tmp_path):
    """Rows of either log are scored by an export of the other, unless they hold an item that it does not hold."""
    export(shop.experiment, tmp_path / "export", items=after)
    found = scores_of(tmp_path / "export", shop.later / "test", tmp_path / "before.parquet")
    np.testing.assert_allclose(found, shop.scores, atol=1e-5)
    assert Users(shop.later / "test", "user_id", Export(tmp_path / "export")).some(1)
    is_known = np.array([max(row) <= 30 for row in histories_of(after / "test")])
    assert 5 < is_known.sum() < len(is_known) - 5
    rows = pq.read_table(after / "test")
    pq.write_table(rows.filter(is_known), tmp_path / "known.parquet")
    found = scores_of(shop.root / "export_later", tmp_path / "known.parquet", tmp_path / "found.parquet")
    expected = scores_of(tmp_path / "export", after / "test", tmp_path / "after.parquet")
    np.testing.assert_allclose(found, expected[is_known], atol=1e-5)
    with raises_naming(ServingError, "item 31", f"--items {after}"):
        scores_of(shop.root / "export_later", after / "test", tmp_path / "refused.parquet")
    others = (
        shop.root / "of_others"
    )  # prepared like the first log, as the log before: its new items have the same numbers
    with raises_naming(ServingError, others / "test", f"--items {others}"):
        scores_of(tmp_path / "export", others / "test", tmp_path / "refused.parquet")


@pytest.mark.parametrize("view", ["flat", pytest.param("challenge", marks=pytest.mark.slow)])
def test_models_of_files(shop, tmp_path, view):
    """Their new items have the id of padding, as in training."""
    text = {"flat": SEQUENCE, "challenge": CHALLENGE.replace("len(mask)", "mask.shape[0]")}[view]
    (tmp_path / "Plain.py").write_text(text)
    sys.modules.pop("fuxictr_mm.model_zoo.Plain", None)
    settings = {"model": "Plain", "dataset_id": shop.experiment.config.dataset_id, "embedding_dim": 4, "batch_size": 99}
    features = ["device", "item_id", "vector"]
    if view == "flat":
        settings |= {"use_features": [*features, "item_seq"], "feature_specs": HISTORY["feature_specs"]}
        settings |= {"din_target_field": "item_id", "din_sequence_field": "item_seq"}
    else:
        settings |= {"use_features": features, "batch_view": "challenge"}
    (tmp_path / "model_config.yaml").write_text(json.dumps({"Plain_base": settings}))
    shutil.copy(shop.root / "base" / "dataset_config.yaml", tmp_path)
    experiment = Experiment.load(
        "Plain_base", tmp_path, model_zoo=tmp_path, data_root=str(shop.root / "base"), verbose=0, max_len=5
    )
    torch.manual_seed(0)
    model = experiment.build_model(experiment.load_dataset({"valid": True}))
    model.save_weights(tmp_path / "weights.model")
    export(experiment, tmp_path / "export", weights=tmp_path / "weights.model", items=shop.later)
    expected = experiment.predict(shop.later / "test", weights=tmp_path / "weights.model")
    found = scores_of(tmp_path / "export", shop.later / "test", tmp_path / "scores.parquet")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_graph_of_torch(shop, tmp_path):
    export(shop.experiment, tmp_path / "export", items=shop.later, format="pt2")
    for name in ("items.npy", "known.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / "export" / name), np.load(shop.root / "export_later" / name))


@pytest.mark.slow
def test_a_repository_of_triton(shop, tmp_path):
    """Its ensemble scores rows with new items, in histories and as targets."""
    from tests.serving.triton import Triton

    export(shop.experiment, tmp_path / "models", items=shop.later, format="triton")
    ours = Export(shop.root / "export_later").of_numbers
    triton, name = Triton(tmp_path / "models"), shop.experiment.config.expid
    rows = pq.read_table(shop.later / "test").to_pylist()
    row = next(row for row in rows if max(row["item_seq"], default=0) > 24)
    expected = ours.score_candidates(ours.user_state(row, row["item_seq"]), np.arange(1, 31))[0]
    types = {f.name: np.float32 if f.type == "numeric" else np.int64 for f in ours.context}
    inputs = {f"context_{f.name}": np.array([row[f.column]], types[f.name]) for f in ours.context}
    inputs |= {"history": np.array(row["item_seq"]), "candidates": np.arange(1, 31)}
    found = triton.infer(name, inputs)["prediction"][:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    found = triton.infer(f"{name}_items", {"ids": np.arange(32)})["rows"]
    np.testing.assert_array_equal(found[:31], ours.items.table.rows(np.arange(31)))
    np.testing.assert_array_equal(found[31], found[0])


@pytest.mark.slow
def test_an_export_may_keep_the_numbers(shop, tmp_path):
    export(shop.experiment, tmp_path / "numbers", items=shop.later, ids="numbers")
    found = scores_of(tmp_path / "numbers", shop.later / "test", tmp_path / "scores.parquet")
    np.testing.assert_allclose(found, shop.scores, atol=1e-5)


def test_an_export_of_other_items_is_refused(shop, tmp_path):
    out = tmp_path / "scores.parquet"
    with raises_naming(ServingError, "item", f"--items {shop.later}"):
        scores_of(shop.root / "export", shop.later / "test", out)
    others = shop.root / "of_others"
    with raises_naming(ServingError, others / "test", f"--items {others}"):
        scores_of(shop.root / "export_later", others / "test", out)
    with raises_naming(ConfigError, shop.root / "base" / "items.parquet", "--like"):
        export(shop.experiment, tmp_path / "export", items=shop.root / "base")
    with raises_naming(MissingFileError, tmp_path / "items.parquet", "--like"):
        export(shop.experiment, tmp_path / "export", items=tmp_path)
