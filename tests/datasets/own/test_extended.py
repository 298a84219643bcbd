"""``prepare log --like --extend`` against preparing all days at once, and training that continues with its rows."""

import json
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from fuxictr_mm.config.sizes import CONTINUED_RATE
from fuxictr_mm.datasets.configuration import copy_config, write_files
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.runs import vocabulary_of_weights
from fuxictr_mm.serving.export import export
from fuxictr_mm.tables import gathered_state
from fuxictr_mm.training.checkpoints import save_state_dict
from fuxictr_mm.training.initial_weights import find_initial_weights, load_initial_weights
from fuxictr_mm_serving import ServingError, scoring
from tests.datasets.command import run
from tests.datasets.logs import START, make_log, write_source
from tests.datasets.own.later_rows import read, values
from tests.datasets.shop import ROLES
from tests.errors import exits_naming, raises_naming
from tests.torchrun import call_on_ranks

ALL = ("train", "valid", "test")
COLUMNS = ("user_id", "device", "age", "category", "tags")
BOUNDS = (START - 1, START + 100, START + 125, START + 150)
TABLE = "embedding_layer.embedding_layer.embedding_layers.{}.weight"


def days_of(log):
    return [log.filter(pl.col("time") > first, pl.col("time") <= last) for first, last in pairwise(BOUNDS)]


@pytest.fixture
def chain(prepare, tmp_path):
    """A log, and the folders of its first day and of two days that extend it."""
    log, items, users = make_log(4)
    folders = []
    for number, day in enumerate(days_of(log)):
        source = write_source(tmp_path / f"day{number}", day, items[:24] if not number else items, users)
        folders.append(prepare(source, f"shop{number}", *folders[-1:], extend=True if number else None))
    return log, items, users, folders


def test_numbers_stay_and_new_values_follow_them(chain):
    log, _, _, folders = chain
    for before, after in pairwise(folders):
        for name in COLUMNS:
            old, new = values(before, name), values(after, name)
            assert list(new.items())[: len(old)] == list(old.items())
        old, new = (values(folder, "items", "item_id", "source_id") for folder in (before, after))
        assert list(new.items())[: len(old)] == list(old.items())
    assert len(values(folders[2], "items", "item_id", "source_id")) == 31
    assert set(values(folders[2], "user_id").values()) == {None, *log["user"]}
    assert {"watch", "tablet"} < set(values(folders[1], "device").values())
    scales = [json.loads((f / "manifest.json").read_text())["columns"] for f in folders]
    assert scales[0]["interactions"]["written"] == scales[2]["interactions"]["written"]
    assert scales[0]["items"]["written"] == scales[2]["items"]["written"]


@pytest.mark.slow
def test_rows_are_those_of_all_days_at_once_and_split_by_time(chain, prepare, tmp_path):
    log, items, users, folders = chain
    both = prepare(write_source(tmp_path / "all", log, items, users), "all")
    for number in (1, 2):
        everything = read(both, folders[2], ALL, since=BOUNDS[number])
        expected = [row for row in everything if row["time"] <= BOUNDS[number + 1]]
        found = read(folders[number], folders[2], ALL)
        if number == 1:  # what only rows of valid and test have gets its number on the day after
            for row in (*found, *expected):
                row["device"] = row["age"] = None
            found, expected = (sorted(rows, key=json.dumps) for rows in (found, expected))
        assert found == expected
        times = [pl.read_parquet(folders[number] / split)["source_time"] for split in ALL]
        assert times[0].max() < times[1].min()
        assert times[1].max() < times[2].min()
        assert len(times[0]) == pytest.approx(0.8 * len(found), abs=8)


@pytest.mark.slow
def test_another_split_stays_for_the_next_day(chain, prepare, tmp_path):
    log, items, users, folders = chain
    day = write_source(tmp_path / "again", days_of(log)[1], items, users)
    other = prepare(day, "other", folders[0], extend=True, split=[0.9, 0.1, 0.0])
    assert not (other / "test").exists()
    last = prepare(write_source(tmp_path / "last", days_of(log)[2], items, users), "last", other, extend=True)
    assert not (last / "test").exists()


@pytest.mark.slow
def test_refusals(chain, prepare, tmp_path, capsys):
    log, items, users, folders = chain
    new = write_source(tmp_path / "new", days_of(log)[1], items, users)
    to_score = prepare(new, "to_score", folders[0])
    last = write_source(tmp_path / "last", days_of(log)[2], items, users)
    with raises_naming(ConfigError, to_score, folders[0]):
        prepare(last, "x", to_score, extend=True)
    with raises_naming(ConfigError, "--all_rows"):
        prepare(new, "x", folders[0], extend=True, all_rows=True)
    with raises_naming(ConfigError, "--all_rows", folders[0]):
        prepare(new, "x", folders[1], all_rows=True)
    with raises_naming(ConfigError, "--split"):
        prepare(new, "x", folders[0], extend=True, split=[0.9, 0.9, 0.1])
    without = write_source(tmp_path / "without", days_of(log)[1].drop("click"), items, users)
    with raises_naming(DataError, without, "click"):
        prepare(without, "x", folders[0], extend=True)
    with raises_naming(DataError, folders[1]):
        prepare(new, "x", folders[1], extend=True)
    with exits_naming(capsys, "--extend", "--like"):
        run_or_exit("log", "--source", new, "--out", tmp_path / "x", "--roles", *ROLES, "--extend")


def run_or_exit(*arguments):
    if code := run(*arguments):
        raise SystemExit(code)


def test_integers_written_as_floats_are_known_among_texts(prepare, tmp_path):
    """Floors of a building: pandas writes 3.0, since one is missing, also on a day after that with the first text."""
    folder = None
    for day, floors in enumerate((["1", "2", "3"], ["1.0", "2.0", "attic"], ["3.0", "attic", None])):
        (tmp_path / f"floors{day}").mkdir()
        rows = {"user": [n % 5 for n in range(60)], "asin": [n % 7 for n in range(60)]}
        rows |= {"time": [60 * day + n for n in range(60)], "click": [n // 2 % 2 for n in range(60)]}
        rows |= {"floor": [floors[n % 3] for n in range(60)]}
        pl.DataFrame(rows).write_csv(tmp_path / f"floors{day}" / "interactions.csv")
        folder = prepare(tmp_path / f"floors{day}", f"floor{day}", folder, extend=True if day else None)
    assert values(folder, "floor") == {0: None, 1: "1", 2: "2", 3: "3", 4: "attic"}
    assert set(pl.read_parquet(folder / "train")["floor"]) == {0, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize("impressions", [None, ["event=buy"]])
def test_negatives_are_no_clicks_of_earlier_days(prepare, tmp_path, impressions):
    """Also none of those that are too old for the newest history of a user, of which there are 5."""
    log, items, users = make_log(4, rows=400)
    clicks = log.filter(pl.col("click") == 1).drop("click").with_columns(event=pl.lit("buy"))
    folders, known = [], set()
    for number, day in enumerate(days_of(clicks)):
        source = write_source(tmp_path / f"clicks{number}", day, items, users)
        options = {"labels": None, "negatives": 2, "impressions": impressions} if not number else {"extend": True}
        folders.append(prepare(source, f"clicks{number}", *folders[-1:], **options))
        if number:
            rows = pl.concat([pl.read_parquet(folders[-1] / split) for split in ALL])
            sampled = rows.filter(pl.col("label") == 0)
            assert len(sampled) == 2 * len(day)
            asins = values(folders[-1], "items", "item_id", "source_id")
            pairs = {(user, asins[item]) for user, item in sampled.select("source_user", "item_id").iter_rows()}
            assert not known & pairs
        known |= set(day.select("user", "asin").iter_rows())
    others = prepare(source, "again", folders[1], overwrite=True, extend=True)  # the same sample
    for split in ALL:
        assert pl.read_parquet(others / split).equals(pl.read_parquet(folders[2] / split))
    folders[0].rename(tmp_path / "moved")
    with raises_naming(ConfigError, folders[0], folders[1]):
        prepare(source, "none", folders[1], extend=True)


@pytest.mark.slow
def test_events_that_are_no_rows_are_not_said_to_be_dropped(prepare, tmp_path, caplog):
    log, items, users = make_log(4)
    kinds = {"event": pl.when(pl.col("click") == 1).then(pl.lit("buy")).otherwise(pl.lit("view"))}
    days = [day.with_columns(**kinds).drop("click") for day in days_of(log)]
    sources = [write_source(tmp_path / f"events{n}", day, items, users) for n, day in enumerate(days)]
    base = prepare(sources[0], "events", labels=["event=buy"], impressions=["event=view"], match_within="60")
    prepare(sources[1], "more_events", base, extend=True)
    assert "no label" not in caplog.text


@pytest.mark.parametrize("day", [0, 1])
def test_gauc_is_left_out_where_validation_rows_do_not_define_it(tmp_path, day):
    """Of an extension as well, whose validation rows are few."""
    from types import SimpleNamespace

    from fuxictr_mm.yaml_files import dump_yaml, load_yaml

    for name, labels in (("shop", [0, 1]), ("next", [[0, 1], [1, 1]][day])):
        (tmp_path / name).mkdir()
        pl.DataFrame({"user_id": [1, 1], "click": labels}).write_parquet(tmp_path / name / "valid")
    entry = {"valid_data": "./valid", "label_col": {"name": "click", "dtype": "float"}, "feature_cols": []}
    (tmp_path / "shop" / "dataset_config.yaml").write_text(dump_yaml({"shop": entry}))
    common = {"model": "DIN", "dataset_id": "shop", "metrics": ["AUC", "gAUC"], "group_id": "user_id"}
    models = {"DIN_shop": {**common, "monitor": "AUC"}, "mine": {**common, "monitor": "gAUC"}}
    (tmp_path / "shop" / "model_config.yaml").write_text(dump_yaml(models))
    summary = SimpleNamespace(splits={"train": 0, "valid": 0}, vocab_sizes={}, items=40)
    copy_config(tmp_path / "next", "next", tmp_path / "shop", summary, 1.0)
    written = load_yaml(tmp_path / "next" / "model_config.yaml")
    assert written["DIN_next"]["metrics"] == [["AUC", "gAUC"], ["AUC"]][day]
    assert written["mine_next"]["metrics"] == ["AUC", "gAUC"]


@pytest.mark.parametrize("is_defined", [True, False])
def test_gauc_returns_on_the_day_that_defines_it(tmp_path, is_defined):
    """If prepare left it out, as a comment says; not where an experiment never had it."""
    from types import SimpleNamespace

    from fuxictr_mm.yaml_files import dump_yaml, load_yaml

    for name, labels in (("shop", [1, 1]), ("second", [1, 1]), ("third", [0, 1] if is_defined else [1, 1])):
        (tmp_path / name).mkdir()
        pl.DataFrame({"user_id": [1, 1], "click": labels}).write_parquet(tmp_path / name / "valid")
    entry = {"valid_data": "./valid", "label_col": {"name": "click", "dtype": "float"}, "feature_cols": []}
    write_files(tmp_path / "shop", "shop", entry, {"DIN": {"metrics": ["AUC", "gAUC", "logloss"]}})
    path = tmp_path / "shop" / "model_config.yaml"
    path.write_text(path.read_text() + dump_yaml({"mine": {"model": "DIN", "dataset_id": "shop", "metrics": ["AUC"]}}))
    summary = SimpleNamespace(splits={"train": 0, "valid": 0}, vocab_sizes={}, items=40)
    copy_config(tmp_path / "second", "second", tmp_path / "shop", summary, 1.0)
    copy_config(tmp_path / "third", "third", tmp_path / "second", summary, 1.0)
    written = load_yaml(tmp_path / "third" / "model_config.yaml")
    metrics = ["AUC", "gAUC", "logloss"] if is_defined else ["AUC", "logloss"]
    assert (written["DIN_third"]["metrics"], written["mine_third"]["metrics"]) == (metrics, ["AUC"])


def test_a_folder_without_a_configuration_is_refused_before_rows_are_written(tmp_path, capsys):
    source = write_source(tmp_path / "new", *make_log(4))
    (tmp_path / "shop").mkdir()
    with exits_naming(capsys, "--like", "--extend", tmp_path / "shop", "model_config.yaml"):
        run_or_exit("log", "--source", source, "--out", tmp_path / "x", "--like", tmp_path / "shop", "--extend")
    assert not (tmp_path / "x").exists()


# Weights


@pytest.fixture
def projects(tmp_path, monkeypatch):
    """The folders of two days with a configuration, the second one extends the first."""
    monkeypatch.chdir(tmp_path)
    log, items, users = make_log(4)
    sources = [
        write_source(tmp_path / f"day{n}", day, items if n else items[:24], users) for n, day in enumerate(days_of(log))
    ]
    given = ["--interactions", "inter*", "--quiet"]
    assert run("log", "--source", sources[0], "--out", "shop", "--roles", *ROLES, "--labels", "click", *given) == 0
    assert run("log", "--source", sources[1], "--out", "shop_2", "--like", "shop", "--extend", *given) == 0
    return sources


def built(config, expid, **settings):
    experiment = Experiment.load(expid, config, verbose=0, tensorboard=False, threads=1, **settings)
    dataset = experiment.load_dataset({"train": True, "valid": True})
    experiment.prepare_process()
    return experiment, dataset, experiment.build_model(dataset)


def saved(config, expid, path, **settings):
    """Write random weights with their vocabularies, as a run does."""
    _, dataset, model = built(config, expid, seed=7, **settings)
    save_state_dict(model.state_dict(), path)
    dataset.vocabularies.save(vocabulary_of_weights(path))
    return model.state_dict()


@pytest.mark.parametrize("table", ["dense", pytest.param("touched", marks=pytest.mark.slow)])
def test_known_rows_are_copied_and_new_ones_keep_their_initial_values(projects, tmp_path, table):
    specs = [{"name": "item_id", "table": table}, {"name": "user_id", "table": table}]
    own = {"feature_specs": specs, "embedding_regularizer": 0}
    before = saved("shop", "DIN_shop", tmp_path / "a.model", **own)
    experiment, dataset, model = built("shop_2", "DIN_shop_2", initial_weights=tmp_path / "a.model", **own)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    load_initial_weights(model, find_initial_weights(experiment.config), dataset, experiment.config.dataset.item_files)
    grown = set()
    for name, value in model.state_dict().items():
        rows = before[name].shape[0] if value.dim() else None
        torch.testing.assert_close(value[:rows] if value.dim() else value, before[name], rtol=0, atol=0)
        if value.shape != before[name].shape:
            grown.add(name)
            torch.testing.assert_close(value[rows:], initial[name][rows:], rtol=0, atol=0)
    assert grown == {TABLE.format(name) for name in ("user_id", "item_id", "device", "age")}


SHARDED = {
    "feature_specs": [{"name": ["item_id", "user_id"], "table": "sharded"}],
    "embedding_regularizer": 0,
    "table_optimizer": "rowwise_adagrad",
    "swa_start": None,
    "initial_weights": "a.model",
}


def states_with_initial_weights():
    """Return the whole state of a model with sharded tables before and after it has read its initial weights."""
    experiment, dataset, model = built("shop_2", "DIN_shop_2", **SHARDED)
    states = [gathered_state(model)]
    load_initial_weights(model, find_initial_weights(experiment.config), dataset, experiment.config.dataset.item_files)
    states.append(gathered_state(model))
    return [{name: value.clone() for name, value in state.items()} for state in states]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchrec") is None, reason="pip install --no-deps -r requirements-scale-cpu.txt")
@pytest.mark.parametrize("processes", [1, 2])
def test_known_rows_are_copied_into_sharded_tables(projects, tmp_path, processes):
    before = saved("shop", "DIN_shop", tmp_path / "a.model", embedding_regularizer=0)
    arguments = {"folder": tmp_path, "processes": processes, "cwd": tmp_path}
    ((initial, found), *_), _ = call_on_ranks(states_with_initial_weights, **arguments)
    for name, value in found.items():
        rows = before[name].shape[0] if value.dim() else None
        assert torch.equal(value[:rows] if value.dim() else value, before[name]), name
        if value.shape != before[name].shape:
            assert torch.equal(value[rows:], initial[name][rows:]), name
    assert all(len(found[TABLE.format(name)]) > len(before[TABLE.format(name)]) for name in ("item_id", "user_id"))


@pytest.mark.slow
def test_weights_of_other_data_or_models_are_refused(projects, tmp_path):
    saved("shop", "DIN_shop", tmp_path / "a.model")
    saved("shop_2", "DIN_shop_2", tmp_path / "later.model")

    def load(config, expid, weights, **settings):
        experiment, dataset, model = built(config, expid, initial_weights=str(tmp_path / weights), **settings)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            load_initial_weights(
                model, find_initial_weights(experiment.config), dataset, experiment.config.dataset.item_files
            )
        finally:
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    with raises_naming(UserError, "a.model", "dnn"):
        load("shop_2", "DIN_shop_2", "a.model", dnn_hidden_units=[8])
    with raises_naming(UserError, "a.model", "missing"):
        load("shop_2", "LightFM_shop_2", "a.model")
    with raises_naming(UserError, "later", "user_id"):
        load("shop", "DIN_shop", "later.model")
    # Another folder, of the same log in another order.
    log, items, users = make_log(4)
    source = write_source(tmp_path / "other", days_of(log)[0][::-1], items[:24][::-1], users[::-1])
    given = ["--interactions", "inter*", "--quiet", "--labels", "click"]
    assert run("log", "--source", source, "--out", "other_shop", "--roles", *ROLES, *given) == 0
    with raises_naming(UserError, "a.vocabulary", "user_id", "prepare log --like", "--extend"):
        load("other_shop", "DIN_other_shop", "a.model")
    vocabulary_of_weights(tmp_path / "a.model").unlink()
    with raises_naming(UserError, "a.model", TABLE.format("item_id"), "a.vocabulary"):
        load("shop_2", "DIN_shop_2", "a.model")
    with raises_naming(UserError, "none.model"):
        load("shop_2", "DIN_shop_2", "none.model")


@pytest.mark.slow
def test_experiments_are_those_of_the_first_folder(projects):
    first, second = (
        Experiment.load(expid, folder) for folder, expid in (("shop", "DIN_shop"), ("shop_2", "DIN_shop_2"))
    )
    settings = [experiment.config.model_dump() for experiment in (first, second)]
    rates = [dumped["learning_rate"] for dumped in settings]
    assert rates[1] == pytest.approx(rates[0] * CONTINUED_RATE)
    same = {"embedding_dim", "batch_size", "epochs", "embedding_regularizer", "dnn_hidden_units"}
    assert {k: settings[0][k] for k in same if k in settings[0]} == {
        k: settings[1][k] for k in same if k in settings[1]
    }
    sizes = [{c.name: c.vocab_size for c in e.config.dataset.feature_cols} for e in (first, second)]
    assert [size["item_id"] for size in sizes] == [25, 31]
    assert first.config.swa_start > second.config.swa_start
    assert second.config.dataset.train_data == "shop_2/train"


@pytest.mark.slow
def test_a_changed_configuration_is_continued(projects, tmp_path):
    """Files of embeddings that were added and scaled, a raised vocab_size, and experiments of one's own."""
    from types import SimpleNamespace

    from fuxictr_mm.yaml_files import dump_yaml, load_yaml

    path = tmp_path / "shop" / "dataset_config.yaml"
    entry = load_yaml(path)["shop"]
    entry["item_info"] += ["/elsewhere/title.parquet"]
    entry["feature_cols"][2]["vocab_size"] = 1000
    title = {"name": "title", "dtype": "float", "type": "embedding", "source": "item", "norm": "l2"}
    entry["feature_cols"].append(title)
    path.write_text(dump_yaml({"shop": entry}))
    models = load_yaml(tmp_path / "shop" / "model_config.yaml")
    models["Base"] = {"epochs": 3}
    models["mine"] = {"model": "DIN", "dataset_id": "shop", "learning_rate": 4e-3, "initial_weights": "x"}
    (tmp_path / "shop" / "model_config.yaml").write_text(dump_yaml(models))
    summary = SimpleNamespace(splits={"train": 0, "valid": 0}, vocab_sizes={"user_id": 20, "device": 9}, items=40)
    (tmp_path / "next").mkdir()
    found = copy_config(tmp_path / "next", "next", tmp_path / "shop", summary, 0.5, 0.25)
    assert found["mine_next"] == "mine"
    entry = load_yaml(tmp_path / "next" / "dataset_config.yaml")["next"]
    assert entry["item_info"] == ["./items.parquet", "./title.parquet"]
    assert "test_data" not in entry
    sizes = {column["name"]: column.get("vocab_size") for column in entry["feature_cols"]}
    assert (sizes["user_id"], sizes["device"], sizes["item_id"]) == (20, 1000, 41)
    assert title in entry["feature_cols"]  # whatever the norms are now
    mine = load_yaml(tmp_path / "next" / "model_config.yaml")["mine_next"]
    assert mine == {"epochs": 3, "model": "DIN", "dataset_id": "next", "learning_rate": 1e-3}


@pytest.mark.slow
def test_training_continues_from_day_to_day(projects, tmp_path, monkeypatch):
    """With a learning rate of nearly zero, known rows are scored as before; then resume, a third day and an export."""
    common = {"verbose": 0, "tensorboard": False, "threads": 1, "epochs": 1, "swa_start": None, "metrics": ["AUC"]}
    common["attention_hidden_activations"] = "ReLU"  # Dice has statistics of the newest batches
    first = Experiment.load("DIN_shop", "shop", **common)
    of_first = first.fit()
    given = ["--interactions", "inter*", "--quiet"]
    assert run("log", "--source", projects[1], "--out", "to_score", "--like", "shop", *given) == 0
    still = Experiment.load(
        "DIN_shop_2", "shop_2", **common, learning_rate=1e-30, embedding_regularizer=0, initial_weights=of_first.path
    )
    still.fit()
    frame = pl.read_parquet("to_score/test")
    known = (frame["item_id"] <= 24) & (frame["item_seq"].list.max().fill_null(0) <= 24)
    for name in ("user_id", "device", "age"):
        known &= frame[name] > 0
    scores = dict(zip(frame["source_row"].filter(known), first.predict("to_score/test")[known.to_numpy()], strict=True))
    assert len(scores) > 10
    for split in ALL:
        rows = pl.read_parquet(tmp_path / "shop_2" / split)["source_row"]
        for row, score in zip(rows, still.predict(f"shop_2/{split}"), strict=True):
            assert score == pytest.approx(scores.pop(row, score), abs=1e-7)
    assert not scores

    warm = Experiment.load("DIN_shop_2", "shop_2", **common, initial_weights=of_first.path)
    run_2 = warm.fit()
    assert warm.fit(resume=True).path == run_2.path
    other = tmp_path / "other.model"
    changed = {k: v + 1 if v.is_floating_point() else v for k, v in torch.load(first.paths.weights).items()}
    save_state_dict(changed, other)
    (vocabulary_of_weights(of_first.path)).rename(vocabulary_of_weights(other))
    changed_start = Experiment.load("DIN_shop_2", "shop_2", **common, initial_weights=other)
    assert changed_start.finished.result(paths=False) is None
    assert changed_start.fit(resume=True).path != run_2.path
    assert changed_start.finished.result(paths=False) is not None
    assert (
        Experiment.load("DIN_shop_2", "shop_2", **common).finished.result(paths=False) is not None
    )  # as after --initial_weights
    assert warm.finished.result(paths=False) is None

    assert run("log", "--source", projects[2], "--out", "shop_3", "--like", "shop_2", "--extend", *given) == 0
    third = Experiment.load("DIN_shop_3", "shop_3", **common, initial_weights=other)  # of two days before
    third.with_settings(initial_weights=str(run_2.path)).fit()
    assert np.isfinite(third.predict()).all()
    # Rows of the days before have the first of its numbers; new items of a log to score have those of others.
    export(third.with_settings(initial_weights=str(run_2.path)), tmp_path / "export")
    for folder in ("shop", "shop_2", "shop_3"):
        scoring.score_file(tmp_path / "export", f"{folder}/test", tmp_path / "scores.parquet")
        found = pl.read_parquet(tmp_path / "scores.parquet")["score"]
        np.testing.assert_allclose(found, third.predict(f"{folder}/test"), atol=1e-5)
    with raises_naming(DataError, "to_score", "digest"):
        third.predict("to_score/test")
    with raises_naming(ServingError, "to_score", "digest"):
        scoring.score_file(tmp_path / "export", "to_score/test", tmp_path / "scores.parquet")
    with raises_naming(DataError, "shop_3", "digest", "--extend"):
        warm.predict("shop_3/test")
    with raises_naming(ConfigError, third.paths.weights):
        third.with_settings(initial_weights=str(third.paths.weights)).fit()
