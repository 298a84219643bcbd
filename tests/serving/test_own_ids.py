"""A log with ids of its own, from ``prepare log`` to scores: requests and files have the owner's ids and numbers."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from fuxictr_mm.datasets.configuration import write_config
from fuxictr_mm.datasets.reader import load_reader
from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.serving.export import export
from fuxictr_mm.serving.prepared import Prepared
from fuxictr_mm_serving import Export, ServingError
from fuxictr_mm_serving.new_items import NewItem
from fuxictr_mm_serving.prepared import EXTENDS, NUMBERING
from fuxictr_mm_serving.scoring import score_file
from fuxictr_mm_serving.server import make_app
from fuxictr_mm_serving.settings import Settings
from fuxictr_mm_serving.users import Titles, Users
from tests.errors import raises_naming

#: Context and ids of a row, as the server reads them.
CONTEXT = ("user_id", "device", "floor", "basket")


def write_log(source):
    """Write a log in which users are integers that are numbers of other users as well, and items are texts."""
    random = np.random.default_rng(0)
    rows, asins = 400, [f"B{number:03}" for number in random.choice(900, 30, replace=False)]
    log = pl.DataFrame(
        {
            "user": random.integers(0, 12, rows)[::-1],
            "asin": [asins[number] for number in random.integers(0, 30, rows)],
            "time": np.arange(rows) + 1_700_000_000,
            "click": random.integers(0, 2, rows),
            "device": random.choice(["phone", "tablet"], rows),
            "floor": random.integers(3, 9, rows),
            "basket": random.normal(200, 50, rows).round(3),
        }
    )
    log = log.with_columns(pl.when(pl.col("time") % 7 > 0).then(pl.col("device", "basket")))
    log.write_parquet(source / "interactions.parquet")
    categories = [["tea", "books", "games"][number % 3] for number in range(30)]
    items = pl.DataFrame({"asin": asins, "title": [f"a thing no {n}" for n in range(30)], "category": categories})
    items = items.with_columns(price=pl.Series(random.normal(50, 9, 30).round(2)))
    items.write_csv(source / "items.csv")
    return log


@pytest.fixture(scope="module", params=["LightFM", pytest.param("DIN", marks=pytest.mark.slow)])
def shop(tmp_path_factory, request):
    """Rows of a log as their owner has them, the dataset of it, scores of a trained model, and its export."""
    source = tmp_path_factory.mktemp("log")
    log = write_log(source)
    data, out = source / "shop", source / "export"
    reader = load_reader("log")(source, data / ".scratch", 20)
    reader.configure({"roles": ["user=user", "target=asin", "time=time"]})
    summary = Writer(reader, "log", data, verbose=0).write()
    write_config(data, "shop", reader, summary, [reader.label])
    options = {"epochs": 1, "record": False, "model_root": str(source / "runs"), "verbose": 0}
    experiment = Experiment.load(f"{request.param}_shop", data, **options)
    experiment.fit()
    export(experiment, out)
    written = pl.read_parquet(data / "test")
    ids = dict(pl.read_parquet(data / "items.parquet").select("item_id", "source_id").iter_rows())
    test = log.tail(40).sort("user", maintain_order=True)
    assert [ids[number] for number in written["item_id"]] == test["asin"].to_list()
    own = pl.DataFrame(
        {
            "user_id": test["user"],
            "item_id": test["asin"],
            "item_seq": [[ids[number] for number in row] for row in written["item_seq"]],
            **{name: test[name] for name in CONTEXT[1:]},
        }
    )
    scores = experiment.predict(data / "test")
    return SimpleNamespace(data=data, export=out, scores=scores, own=own, experiment=experiment)


@pytest.fixture
def client(shop):
    """Return a client of a server with users and titles as ``prepare`` wrote them."""
    items = str(shop.data / "items.parquet")
    settings = Settings(folder=str(shop.export), users=str(shop.data / "test"), titles=items)
    with TestClient(make_app(settings)) as client:
        yield client


def requests(own):
    """Yield each row as a request."""
    for row in own.iter_rows(named=True):
        context = {name: row[name] for name in CONTEXT}
        yield {"context": context, "history": row["item_seq"], "candidates": [row["item_id"]]}


def score(client, **request):
    """Return the first score of the answer to a request."""
    answer = client.post("/score", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()["scores"][0]


def scores_of(shop, tmp_path, rows):
    """Return what ``score`` writes for a file or folder of rows."""
    score_file(shop.export, rows, tmp_path / "scores.parquet")
    return pl.read_parquet(tmp_path / "scores.parquet")["score"].to_numpy()


def test_requests_and_files_have_the_ids_of_the_owner(shop, client, tmp_path):
    answers = [score(client, **request) for request in requests(shop.own)]
    assert np.abs(np.array(answers) - shop.scores).max() < 1e-5
    shop.own.write_parquet(tmp_path / "own.parquet")
    assert np.abs(scores_of(shop, tmp_path, tmp_path / "own.parquet") - shop.scores).max() < 1e-5


def test_rows_of_prepare_have_its_numbers(shop, tmp_path):
    part = shop.data / "test" / "part-00000.parquet"
    shutil.copy(part, tmp_path / "copy.parquet")
    earlier = tmp_path / "earlier" / "test" / "part-00000.parquet"
    earlier.parent.mkdir(parents=True)
    (tmp_path / "earlier" / "vocabularies").mkdir()
    shutil.copy(shop.data / "items.parquet", tmp_path / "earlier")
    pl.read_parquet(part).write_parquet(earlier)
    for rows in (shop.data / "test", tmp_path / "copy.parquet", earlier.parent):
        assert np.abs(scores_of(shop, tmp_path, rows) - shop.scores).max() < 1e-5
    shutil.copy(earlier, tmp_path / "of_others.parquet")
    with raises_naming(ServingError, "of_others.parquet", "fuxictr_mm.numbering"):
        scores_of(shop, tmp_path, tmp_path / "of_others.parquet")


def test_a_new_item_has_the_price_of_the_owner(shop, client):
    """Its columns are those of an item of the file with the same price, and it scores by it."""
    exported, items = Export(shop.export), pl.read_csv(shop.data.parent / "items.csv").row(3, named=True)
    fields = exported.manifest.items.fields
    start = sum([*fields.values()][: [*fields].index("price_scaled")])
    columns = slice(start, start + fields["price_scaled"])
    number = exported.items.numbers([items["asin"]], "items")
    row, stored = exported.embed_new([NewItem(numbers={"price": items["price"]})]), exported.items.table.rows(number)
    np.testing.assert_allclose(row.values[0, columns], stored[0, columns], atol=1e-5)
    assert np.abs(row.values[0, columns]).max() > 1e-4
    request = next(requests(shop.own)) | {"candidates": []}
    cheap, dear = (score(client, **request, new_items=[{"numbers": {"price": price}}]) for price in (5, 95))
    assert abs(cheap - dear) > 1e-5
    for wrong in ({"cost": 5}, {"price_scaled": 5}, {"price": None}, {"price": 1e308}, {"price": True}):
        answer = client.post("/score", json=request | {"new_items": [{"numbers": wrong}]})
        assert answer.status_code == 422, answer.text


def test_users_of_prepare_are_known_by_the_ids_of_the_owner(shop, client, tmp_path):
    last = {row["user_id"]: (row, score) for row, score in zip(shop.own.to_dicts(), shop.scores, strict=True)}
    for user, (row, expected) in last.items():
        assert score(client, user=user, candidates=[row["item_id"]]) == pytest.approx(expected, abs=1e-5)
    assert client.post("/score", json={"user": 99, "candidates": ["B1"]}).status_code == 422
    exported = Export(shop.export)
    shop.own.write_parquet(tmp_path / "own.parquet")
    written, own = (Users(path, "user_id", exported) for path in (shop.data / "test", tmp_path / "own.parquet"))
    assert set(written.some(99)) == set(own.some(99)) == {*shop.own["user_id"]}
    for user, (row, _) in last.items():
        found, basket = written.get(user), row["basket"]
        assert own.get(user) == {name: row[name] for name in ("item_seq", *CONTEXT)}
        assert found.pop("basket") == pytest.approx(201.842 if basket is None else basket, abs=1e-4)
        assert {**found, "basket": basket, "floor": int(found["floor"])} == own.get(user)


def test_new_users_of_a_later_log_are_known_by_their_ids(shop, tmp_path):
    rows = pq.read_table(shop.data / "test" / "part-00000.parquet")
    users = rows["source_user"].to_pylist()
    new, path = [users[0], None], tmp_path / "rows.parquet"  # None: of an anonymous row
    codes = [0 if user in new else code for user, code in zip(users, rows["user_id"].to_pylist(), strict=True)]
    rows = rows.set_column(rows.schema.get_field_index("user_id"), "user_id", pa.array(codes, pa.int32()))
    later = rows.slice(len(rows) - 1)
    for name, value in (("user_id", pa.array([0], pa.int32())), ("source_user", pa.array([None], pa.int64()))):
        later = later.set_column(later.schema.get_field_index(name), name, value)
    pq.write_table(pa.concat_tables([rows, later]).replace_schema_metadata(rows.schema.metadata), path)
    found = Users(path, "user_id", Export(shop.export))
    assert set(found.some(99)) == set(users)
    assert found.get(users[0])["user_id"] is None
    assert found.get(users[-1])["user_id"] == users[-1]


def test_a_folder_of_users_has_one_kind_of_ids(shop, tmp_path):
    shutil.copy(shop.data / "test" / "part-00000.parquet", tmp_path / "part-0.parquet")
    shop.own.write_parquet(tmp_path / "part-1.parquet")
    with raises_naming(ServingError, tmp_path, "part-0.parquet", "part-1.parquet"):
        Users(tmp_path, "user_id", Export(shop.export))


@pytest.mark.parametrize("column", ["item_id", "user_id", "device", "category"])
def test_files_that_were_numbered_again_are_refused(shop, tmp_path, column):
    table, path = pq.read_table(shop.data / "test" / "part-00000.parquet"), tmp_path / "rows.parquet"
    metadata = dict(table.schema.metadata)
    digests = json.loads(metadata[NUMBERING.encode()])
    metadata[NUMBERING.encode()] = json.dumps({**digests, column: "0" * 64}).encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)
    items = pq.read_table(shop.data / "items.parquet", columns=["item_id", "title"])
    pq.write_table(items.replace_schema_metadata(metadata), titles := tmp_path / "titles.parquet")
    exported = Export(shop.export)
    if column == "category":  # of the items, whose files no server reads
        assert Users(path, "user_id", exported).some(99)
        return
    with raises_naming(ServingError, path, f"'{column}'"):
        Users(path, "user_id", exported)
    continued = {**metadata, EXTENDS.encode(): json.dumps({column: {digests[column]: 9}}).encode()}
    pq.write_table(table.replace_schema_metadata(continued), tmp_path / "continued.parquet")
    with raises_naming(ServingError, "continued.parquet", f"'{column}'", "more numbers"):
        Users(tmp_path / "continued.parquet", "user_id", exported)
    if column == "item_id":
        with raises_naming(ServingError, titles, "'item_id'"):
            Titles(titles, exported)
    with raises_naming(ServingError, path, f"'{column}'"):
        scores_of(shop, tmp_path, path)


def test_what_is_unknown_or_missing_is_as_in_training(shop, client):
    request = next(requests(shop.own.filter(pl.col("item_seq").list.len() > 1)))
    context, history = request["context"], request["history"]
    expected = score(client, **{**request, "context": {**context, "device": None, "user_id": None}})
    for device, user in (("watch", 99), (None, None)):
        assert score(client, **{**request, "context": {**context, "device": device, "user_id": user}}) == expected
    assert score(client, **{**request, "context": {**context, "floor": str(context["floor"])}}) == score(
        client, **request
    )
    assert score(client, **{**request, "history": ["no item", *history]}) == score(client, **request)
    answer = client.post("/score", json={**request, "candidates": ["no item", *request["candidates"]]}).json()
    assert answer["unknown"] == ["no item"]
    del context["basket"]
    assert client.post("/score", json=request).status_code == 422


def test_reasons_new_items_and_the_page_have_the_ids_of_the_owner(shop, client):
    request = next(requests(shop.own.filter(pl.col("item_seq").list.len() > 1)))
    new = [{"codes": {"category": [name]}} for name in ("tea", "books", "no category")]
    content = client.get("/page_data").json()
    answer = client.post("/score", json={**request, "new_items": new, "explain": content["explains"]}).json()
    assert len(set(answer["scores"][1:])) == 3
    if content["explains"]:
        assert {reason["item"] for reason in answer["reasons"][0]} <= set(request["history"])
    assert content["text_ids"]
    first = {"context": content["context"], "history": [], "candidates": content["items"][:2]}
    assert client.post("/score", json=first).status_code == 200
    assert set(content["users"]) == {*shop.own["user_id"]}
    assert set(shop.own["item_id"]) <= set(content["items"])
    items = pl.read_parquet(shop.data / "items.parquet")
    titles = client.post("/titles", json={"candidates": items["source_id"].to_list()}).json()
    assert titles == items["title"].to_list()


def test_columns_of_titles(shop, tmp_path):
    exported, path = Export(shop.export), tmp_path / "titles.parquet"
    titles = pl.DataFrame({"item_id": ["B1", "B2"], "name": ["one", None], "title": ["1", "2"]})
    titles.write_parquet(path)
    assert Titles(path, exported).of(["B1", "B2", "B3"]) == ["1", "2", ""]
    assert Titles(path, exported, "name").of(["B1", "B2"]) == ["one", ""]
    titles.drop("title").write_parquet(path)
    with raises_naming(ServingError, "titles.parquet", "--title-column"):
        Titles(path, exported)
    with raises_naming(ServingError, "titles.parquet", "'label'"):
        Titles(path, exported, "label")


def test_a_number_is_not_named_as_the_history():
    names = ("item_seq", "price")
    context = [{"name": f"{name}_scaled", "column": f"{name}_scaled", "type": "numeric"} for name in names]
    manifest = {"items": {"target": "item_id", "history": "item_seq"}, "context": context}
    Prepared(scales={f"{name}_scaled": (2.0, 3.0) for name in names}).describe(manifest, [])
    assert [entry["column"] for entry in manifest["context"]] == ["item_seq_scaled", "price"]


@pytest.mark.slow
def test_an_export_may_keep_the_numbers(shop, tmp_path):
    export(shop.experiment, tmp_path / "export", ids="numbers")
    kept = SimpleNamespace(export=tmp_path / "export")
    assert np.abs(scores_of(kept, tmp_path, shop.data / "test") - shop.scores).max() < 1e-5
    exported = Export(kept.export)
    assert not (kept.export / "vocabulary.json").exists()
    assert exported.items.some(2) == [1, 2]
    assert "basket_scaled" in exported.columns


def test_a_prepared_folder_gives_the_newest_state_of_every_user(shop, tmp_path):
    exported = Export(shop.export)
    written, folder = pl.read_parquet(shop.data / "train"), tmp_path / "later"
    ids = dict(pl.read_parquet(shop.data / "items.parquet").select("item_id", "source_id").iter_rows())
    histories = dict(pl.read_parquet(shop.data / "histories").select("source_user", "item_seq").iter_rows())
    floors = dict(pl.read_parquet(shop.data / "vocabularies" / "floor.parquet").select("code", "value").iter_rows())
    users = Users(shop.data, "user_id", exported)
    assert set(users.some(99)) == {*written["source_user"]} == {*histories}
    newest = pl.concat([written, *(pl.read_parquet(shop.data / name) for name in ("valid", "test"))])
    newest = newest.sort("source_row").unique("source_user", keep="last")
    for user, floor in newest.select("source_user", "floor").iter_rows():
        found = users.get(user)
        assert found["item_seq"] == [ids[number] for number in histories[user]]
        assert (found["user_id"], found["floor"]) == (user, floors[floor])
    # A later folder with rows of one user only, a history of each, and one of a user of a day that is not given.
    (folder / "test").mkdir(parents=True)
    (folder / "histories").mkdir()
    rows = pq.read_table(shop.data / "test" / "part-00000.parquet").slice(0, 1)
    pq.write_table(rows, folder / "test" / "part-00000.parquet")
    state = {"source_user": [*histories, 99], "item_seq": [[number] for number in range(1, len(histories) + 2)]}
    pq.write_table(pa.table(state), folder / "histories" / "part-00000.parquet")
    both = Users([shop.data, folder], "user_id", exported)
    for user, (item,) in zip(*state.values(), strict=True):
        assert both.get(user)["item_seq"] == [ids[item]]
    only = rows["source_user"][0].as_py()
    assert both.get(only)["floor"] == floors[rows["floor"][0].as_py()]
    assert all(both.get(user)["floor"] == users.get(user)["floor"] for user in {*histories} - {only})
    assert both.get(99) == {"item_seq": [ids[state["item_seq"][-1][0]]], "user_id": 99}
    with raises_naming(ServingError, shop.data, "item_id"):
        Users(shop.data, "item_id", exported)
