"""Rows of a later log, with items and users that training has not seen, scored by an export of its items."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.serving.export import export
from fuxictr_mm_serving import Export, ServingError, scoring
from fuxictr_mm_serving.parquet import Users
from tests.datasets.logs import START, make_log, write_source
from tests.datasets.shop import ROLES
from tests.errors import raises_naming


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
    prepare = ["prepare", "log", "--interactions", "interactions*", "--quiet", "--source"]
    own = ["--roles", *ROLES, "--labels", "click", "--embeddings", "vectors.parquet"]
    main([*prepare, str(source), "--out", str(root / "base"), *own])
    for name in ("tomorrow", "others"):
        like = ["--like", str(root / "base")]
        main([*prepare, str(root / name), "--out", str(root / f"of_{name}"), *like])
    options = {"epochs": 1, "record": False, "model_root": str(root / "runs"), "verbose": 0}
    experiment = Experiment.load(f"{request.param}_base", root / "base", **options)
    experiment.fit()
    later = root / "of_tomorrow"
    export(experiment, root / "export")
    export(experiment, root / "export_later", items=later)
    return SimpleNamespace(root=root, later=later, experiment=experiment, scores=experiment.predict(later / "test"))


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
