"""Answers of the server: right scores, unknown ids and new items by the rules of training."""

import tracemalloc
from dataclasses import replace
from datetime import date
from types import SimpleNamespace

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from fuxictr_mm_serving import Export, ServingError, service
from fuxictr_mm_serving.features import ContextField
from fuxictr_mm_serving.manifest import FieldEntry
from fuxictr_mm_serving.new_items import ItemRows
from fuxictr_mm_serving.server import make_app
from fuxictr_mm_serving.service import blank_context
from fuxictr_mm_serving.settings import Settings
from fuxictr_mm_serving.tables import Ids
from fuxictr_mm_serving.users import Titles, Users
from tests.errors import raises_naming
from tests.serving.scores import load_model
from tests.serving.server import REQUEST, ROWS, TITLES, rows_of


def test_scores_are_those_of_rows(client, exported):
    expected = rows_of(exported, REQUEST)
    for _ in range(2):  # the second from the cache
        found = client.post("/score", json=REQUEST)
        assert found.status_code == 200
        np.testing.assert_allclose(found.json()["scores"], expected, atol=1e-6)
    assert client.app.state.service.loaded.cache.hits == 1
    other = {**REQUEST, "history": [5, 6]}
    found = client.post("/score_batch", json={"requests": [REQUEST, other]}).json()["responses"]
    np.testing.assert_allclose(found[0]["scores"], expected, atol=1e-6)
    np.testing.assert_allclose(found[1]["scores"], rows_of(exported, other), atol=1e-6)
    packed = client.post(
        "/score",
        content=msgpack.packb(REQUEST),
        headers={"content-type": "application/msgpack", "accept": "application/msgpack"},
    )
    np.testing.assert_allclose(msgpack.unpackb(packed.content)["scores"], expected, atol=1e-6)


def test_a_user_without_a_row_needs_the_context_of_the_request(exported):
    found = service.Service(exported, users=ROWS)
    context = {"likes_level": 3, "views_level": 2}
    expected = found.score(context=context, history=[5, 6], candidates=[8]).scores
    found.loaded.users = SimpleNamespace(get=lambda user: {"item_seq": [5, 6]})  # as of an earlier log only
    for given in (None, {"likes_level": 3}):
        with raises_naming(ServingError, "context", "views_level", "--users"):
            found.score(user=1, context=given, candidates=[8])
    assert found.score(user=1, context=context, candidates=[8]).scores == expected


def test_a_blank_context_is_of_the_types_of_its_columns():
    texts, numbers = Ids(["a"], False), Ids([7], True)

    def field(name, kind, ids=None, dim=0, computed=None):
        spec = FieldEntry(name=name, column=name, type=kind, pretrain_dim=dim, computed=computed)
        return ContextField(name, name, kind, None, ids, spec)

    context = [
        field("number", "numeric"),
        field("text", "categorical", texts),
        field("integer", "categorical", numbers),
        field("texts", "sequence", texts),
        field("vector", "embedding", dim=2),
        field("length", "numeric", computed="length"),
    ]
    expected = {"number": 0, "text": None, "integer": 0, "texts": [], "vector": [0.0, 0.0]}
    assert blank_context(SimpleNamespace(context=context)) == expected


def test_reasons(client, exported):
    export = Export(exported)
    state = export.user_state(REQUEST["context"], REQUEST["history"])
    expected = export.explain(state, REQUEST["history"], REQUEST["candidates"])
    assert client.post("/score", json=REQUEST).json()["reasons"] == []
    found = client.post("/score", json={**REQUEST, "explain": True}).json()["reasons"]
    assert [[(one["item"], one["share"]) for one in reasons] for reasons in found] == expected
    assert {item for item, _ in expected[0]} == {5, 6, 7}
    assert sum(share for _, share in expected[0]) == pytest.approx(1)
    assert client.get("/page_data").json()["explains"]
    unknown = client.post("/score", json={**REQUEST, "candidates": [8, 99999], "explain": True}).json()["reasons"]
    assert [len(reasons) for reasons in unknown] == [3, 0]
    ids = Ids([2**60 + i for i in range(1000)], True)
    loaded = client.app.state.service.loaded.export
    loaded.items = replace(loaded.items, ids=ids)
    request = {**REQUEST, "history": ids.values[4:7], "candidates": ids.values[7:8], "explain": True}
    found = client.post("/score", json=request).json()["reasons"][0]
    assert {one["item"] for one in found} == {str(item) for item in ids.values[4:7]}


def test_a_user_of_the_file(client, exported):
    row = pq.read_table(ROWS).slice(0, 1).to_pylist()[0]
    own = {"likes_level": row["likes_level"], "views_level": row["views_level"]}
    request = {"context": own, "history": row["item_seq"], "candidates": [8, 9, 10]}
    table = pq.read_table(ROWS)
    last = max(i for i, user in enumerate(table["user_id"].to_pylist()) if user == row["user_id"])
    row = table.slice(last, 1).to_pylist()[0]
    request["context"] = {"likes_level": row["likes_level"], "views_level": row["views_level"]}
    request["history"] = row["item_seq"]
    found = client.post("/score", json={"user": row["user_id"], "candidates": [8, 9, 10]}).json()
    np.testing.assert_allclose(found["scores"], rows_of(exported, request), atol=1e-6)


def test_unknown_ids_follow_the_rule_of_training(client):
    """Of the history they are left out; a candidate is scored as the item of number 0, and named."""
    plain = client.post("/score", json=REQUEST).json()
    more = client.post("/score", json={**REQUEST, "history": [99999, 5, 6, 0, 7]}).json()
    assert more["scores"] == plain["scores"]
    unknown = client.post("/score", json={**REQUEST, "candidates": [8, 99999, -4]}).json()
    assert unknown["unknown"] == [99999, -4]
    assert unknown["scores"][0] == pytest.approx(plain["scores"][0], abs=1e-6)
    assert unknown["scores"][1] == unknown["scores"][2]


def test_a_new_item_by_its_embeddings(client, weights_of, exported):
    import torch

    experiment, weights = weights_of("DIN_MM_tiny")
    model = load_model(experiment, weights)
    items = {name: model.items.rows(torch.tensor([0]), [name])[name].clone() for name in model.item_fields}
    table = {}
    for name in ("txt_emb_pca8", "img_emb_pca8"):
        items[name] = model.items.rows(torch.tensor([9]), [name])[name]
        table[name] = items[name][0].tolist()
    with torch.no_grad():
        row = model.embedding_layer(items, flatten_emb=True).numpy()
    export = Export(exported)
    state = export.user_state(REQUEST["context"], REQUEST["history"])
    found = client.post("/score", json={**REQUEST, "new_items": [{"embeddings": table}]}).json()
    assert len(found["scores"]) == 4
    assert found["scores"][3] == pytest.approx(float(export.score_items(state, ItemRows(row))[0]), abs=1e-6)
    refused = client.post("/score", json={**REQUEST, "new_items": [{"embeddings": {"txt_emb_pca8": [1.0]}}]})
    assert refused.status_code == 422
    assert "txt_emb_pca8" in refused.json()["error"]


def test_users_are_integers_or_texts(exported, tmp_path):
    table = pq.read_table(ROWS).slice(0, 2).drop_columns(["user_id"])
    path = tmp_path / "users.parquet"

    def write(*users, kind=None):
        pq.write_table(table.append_column("user_id", pa.array(users, kind)), path)

    for users in ((b"a", b"b"), (date(2025, 1, 1), date(2025, 1, 2)), (1.0, float("nan")), (None, "a"), (True, False)):
        write(*users)
        with raises_naming(ServingError, path, "user_id", "row ") as raised:
            service.Service(exported, users=path)
        assert repr(users[0]) not in str(raised.value)  # it is logged, and of a user
    large = 2**53 + 1
    write(large, -large)
    settings = Settings(folder=str(exported), users=str(path), titles=str(tmp_path / "titles.parquet"))
    pq.write_table(pa.table({"item_id": [large, 2], "item_title": ["one", "two"]}), settings.titles)
    with TestClient(make_app(settings)) as client:
        assert client.get("/page_data").json()["users"] == [str(large), str(-large)]
        assert client.get("/page_data").json()["items"] == [str(large), 2]
        assert client.post("/titles", json={"candidates": [str(large), "2", 2]}).json() == ["one", "two", "two"]
        answers = [client.post("/score", json={"user": user, "candidates": [8]}) for user in (large, str(large))]
        assert answers[0].json() == answers[1].json()
        assert client.post("/score", json={"user": str(large - 1), "candidates": [8]}).status_code == 422
    for kind in (pa.string(), pa.dictionary(pa.int8(), pa.string())):  # the latter are categories of pandas
        write("1", "b", kind=kind)
        found = service.Service(exported, users=path)
        assert found.score(user="1", candidates=[8]).scores


@pytest.mark.parametrize("kind", [int, str])
def test_users_take_little_memory_and_the_last_row_of_each_counts(exported, tmp_path, kind):
    count, path, export = 20_000, tmp_path / "users.parquet", Export(exported)
    ids = [kind(user) for user in (*range(count)[::-1], count - 1)]
    columns = {"user_id": ids, "item_seq": [[1]] * count + [[2]], "likes_level": [1] * (count + 1)}
    pq.write_table(pa.table(columns | {"views_level": columns["likes_level"]}), path)
    tracemalloc.start()
    users = Users(path, "user_id", export)
    assert tracemalloc.get_traced_memory()[0] < 60 * count  # a dictionary takes 90
    assert tracemalloc.get_traced_memory()[1] < 100 * count  # lists of texts and of their bytes take 150
    tracemalloc.stop()
    assert users.some(2) == ids[:2]
    assert [users.get(user)["item_seq"] for user in (0, count - 1, str(count - 1))] == [[1], [2], [2]]
    for user in (count, -1, "x", 2**70):
        with raises_naming(ServingError, "user", repr(user)):
            users.get(user)


def test_ids_of_the_page(client):
    assert client.get("/page_data").json()["text_ids"] is False
    export = client.app.state.service.loaded.export
    export.items = replace(export.items, ids=Ids([str(i) for i in range(1, 1001)], False))
    data = client.get("/page_data").json()
    assert data["text_ids"] is True
    assert data["items"][:2] == ["1", "2"]
    export.items = replace(export.items, ids=Ids([2**60 + i for i in range(1000)], True))
    data = client.get("/page_data").json()
    assert data["text_ids"] is False
    assert data["items"][:2] == [str(2**60), str(2**60 + 1)]
    assert client.post("/score", json={**REQUEST, "history": [], "candidates": data["items"]}).json()["unknown"] == []


def test_titles_of_too_many_items(client):
    assert client.post("/titles", json={"candidates": [1] * 2000}).json() == [""] * 2000
    assert client.post("/titles", json={"candidates": [1] * 2001}).status_code == 422


def test_other_pages(client, exported):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json()["model"] == "DIN_MM"
    assert client.get("/nothing").status_code == 404
    assert client.post("/score/", json=REQUEST, follow_redirects=False).status_code == 404
    client.post("/score", json=REQUEST)
    text = client.get("/metrics").text
    assert 'fuxictr_mm_requests_total{path="/score",status="200"} 1.0' in text
    assert "fuxictr_mm_candidates_total 3.0" in text
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    properties = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    assert {"user", "context", "history", "candidates", "new_items", "explain"} == properties.keys()
    assert "openapi.json" in client.get("/docs").text
    assert "<table" in client.get("/").text


def first(entries):
    """Yield entries, as if there were millions more."""
    yield from entries
    pytest.fail("more was read than was asked for")


def test_the_page_reads_no_more_users_and_titles_than_it_shows(client):
    users, titles = client.app.state.service.loaded.users, Titles(TITLES, client.app.state.service.loaded.export)
    assert len(users.some(2)) == 2
    titles._titles = SimpleNamespace(items=lambda: first([(1, "one"), (2, ""), (3, "three")]))
    assert titles.some(2) == [1, 3]
