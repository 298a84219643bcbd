"""The server: right scores, clear refusals, no request lost when the export is replaced or a worker is killed."""

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import date
from pathlib import Path

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.testclient import TestClient

from fuxictr_mm.serving.export import export
from fuxictr_mm_serving import Export, ServingError, command, requests, service
from fuxictr_mm_serving import export as export_module
from fuxictr_mm_serving import server as server_module
from fuxictr_mm_serving.cache import StateCache
from fuxictr_mm_serving.deadline import DeadlineError, until
from fuxictr_mm_serving.manifest import checksum, version_of
from fuxictr_mm_serving.new_items import ItemRows
from fuxictr_mm_serving.requests import HttpError, ScoreRequest, decode, read_body
from fuxictr_mm_serving.server import make_app, watch
from fuxictr_mm_serving.settings import FAILED, STARTED, VARIABLE, Settings, read_token
from fuxictr_mm_serving.tables import Ids
from tests.errors import raises_naming

ROOT = Path(__file__).resolve().parents[2]
ROWS = str(ROOT / "data" / "tiny_mm" / "test.parquet")
TITLES = str(ROOT / "data" / "tiny_mm" / "item_feature.parquet")
REQUEST = {"context": {"likes_level": 3, "views_level": 2}, "history": [5, 6, 7], "candidates": [8, 9, 10]}


@pytest.fixture
def client(exported):
    with TestClient(make_app(Settings(folder=str(exported), users=ROWS, max_body=20000))) as client:
        yield client


def rows_of(exported, request):
    count = len(request["candidates"])
    columns = {name: [value] * count for name, value in request["context"].items()}
    columns |= {"item_id": request["candidates"], "item_seq": [request["history"]] * count}
    return Export(exported).score_rows(columns)


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
    model = experiment.build_model(experiment.load_dataset({"valid": True}, weights))
    model.load_weights(weights)
    model.eval()
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


BAD = [
    (400, "{", "JSON"),
    (400, b"\xff\xfe", "JSON"),
    (400, '{"history": [NaN]}', "NaN"),
    (422, "[]", ""),
    (422, "{}", "candidates"),
    (422, {**REQUEST, "candidates": []}, "candidates"),
    (422, {**REQUEST, "candidates": list(range(501))}, "500"),
    (422, {**REQUEST, "candidates": 5}, "candidates"),
    (422, {**REQUEST, "candidates": [8, None]}, "candidates.1: "),
    (422, {**REQUEST, "candidates": [[1]]}, "candidates"),
    (422, {**REQUEST, "candidates": ["x"]}, "x"),
    (422, {**REQUEST, "candidates": [1.5]}, "candidates"),
    (422, {**REQUEST, "candidates": [2**70]}, "candidates"),
    (422, {**REQUEST, "history": None}, "history"),
    (422, {**REQUEST, "history": "abc"}, "history"),
    (422, {**REQUEST, "history": [{}]}, "history"),
    (422, {**REQUEST, "history": ["a"]}, "a"),
    (422, {**REQUEST, "more": 1}, "more"),
    (422, {**REQUEST, "user": 10**9}, "user"),
    (422, {**REQUEST, "context": {"likes_level": 3}}, "views_level"),
    (422, {**REQUEST, "context": {"likes_level": 99, "views_level": 1}}, "likes_level"),
    (422, {**REQUEST, "context": {"likes_level": "x", "views_level": 1}}, "likes_level"),
    (422, {**REQUEST, "context": {"likes_level": [1], "views_level": 1}}, "likes_level"),
    (422, {**REQUEST, "context": {"likes_level": {"a": 1}, "views_level": 1}}, "likes_level"),
    (422, {**REQUEST, "new_items": [{"embeddings": {"x": [1]}}]}, "x"),
    (422, {**REQUEST, "new_items": [{"embeddings": {"txt_emb_pca8": [1e39] * 8}}]}, "txt_emb_pca8"),
    (422, {**REQUEST, "new_items": [{"embeddings": {"txt_emb_pca8": [3e38] * 8}}]}, "finite"),
    (422, {**REQUEST, "context": {"likes_level": 10**400, "views_level": 1}}, "likes_level"),
    (422, {**REQUEST, "context": {"\ud800": 1}}, "surrogate"),
    (422, {**REQUEST, "candidates": ["\ud800"]}, "surrogate"),
    (422, {"user": 1, "candidates": [8], "context": {"like_level": 3}}, "like_level"),
    (422, {**REQUEST, "context": {**REQUEST["context"], "like_level": 3}}, "like_level"),
    (422, {**REQUEST, "context": {"likes_level": "x" * 15000, "views_level": 1}}, "likes_level"),
    (422, r'{"candidates":[1],"context":{"a":"\ud83d\ude00","b":' + "[" * 961 + "]" * 961 + "}}", ""),
    (422, {**REQUEST, "candidates": ["1_0"]}, "1_0"),
    (422, {**REQUEST, "candidates": ["\u0661"]}, "candidates"),
    (422, {**REQUEST, "candidates": [True]}, "candidates"),
    (422, {**REQUEST, "new_items": [{"embeddings": {"txt_emb_pca8": [True] * 8}}]}, "embeddings"),
    (422, {**REQUEST, "user": True}, "user"),
    (422, {**REQUEST, "new_items": [{}]}, "new_items.0"),
    (422, {**REQUEST, "context": 5}, "object"),
    (400, '{"history": [], "candidates": [1], "history": [2]}', "history"),
    (413, " " * 20001, "20000"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_requests_get_one_clear_sentence(client, number):
    status, body, named = BAD[number]
    body = json.dumps(body) if isinstance(body, dict) else body
    found = client.post("/score", content=body, headers={"content-type": "application/json"})
    assert found.status_code == status, found.text
    assert list(found.json()) == ["error"]
    assert named in found.json()["error"]
    assert "\n" not in found.json()["error"]
    assert "Request" not in found.json()["error"]  # a name of our code
    assert len(found.json()["error"]) < 1000


def test_an_error_names_the_request_of_a_batch(client):
    bad = {**REQUEST, "candidates": ["x"]}
    for one in (bad, {**REQUEST, "candidates": []}, {**REQUEST, "candidates": list(range(501))}):
        found = client.post("/score_batch", json={"requests": [REQUEST, one]})
        assert found.status_code == 422
        assert found.json()["error"].startswith("requests.1: ")
    assert not client.post("/score", json=bad).json()["error"].startswith("requests")


def test_bodies_and_paths_that_are_not_supported(client):
    for headers in ({"content-encoding": "gzip"}, {"content-encoding": "br"}):
        found = client.post("/score", json=REQUEST, headers=headers)
        assert (found.status_code, list(found.json())) == (415, ["error"])
        assert headers["content-encoding"] in found.json()["error"]
    assert client.post("/score", json=REQUEST, headers={"content-encoding": "identity"}).status_code == 200
    found = client.get("/score")
    assert found.status_code == 405
    assert found.headers["allow"] in found.json()["error"]
    found = client.get("/nothing")
    assert found.status_code == 404
    assert "/docs" in found.json()["error"]
    twice = msgpack.packb(REQUEST)[:1] + msgpack.packb(REQUEST)[1:]
    twice = bytes([0x84]) + twice[1:] + msgpack.packb("history") + msgpack.packb([1])
    found = client.post("/score", content=twice, headers={"content-type": "application/msgpack"})
    assert found.status_code == 400


def test_users_are_integers_or_texts(exported, tmp_path):
    table = pq.read_table(ROWS).slice(0, 2).drop_columns(["user_id"])
    path = tmp_path / "users.parquet"

    def write(*users):
        pq.write_table(table.append_column("user_id", pa.array(users)), path)

    for users in ((b"a", b"b"), (date(2025, 1, 1), date(2025, 1, 2)), (1.0, float("nan")), (None, "a"), (True, False)):
        write(*users)
        with raises_naming(ServingError, path, "user_id", "row "):
            service.Service(exported, users=path)
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
    write("1", "b")
    found = service.Service(exported, users=path)
    assert found.score(user="1", candidates=[8]).scores


def test_only_text_that_may_hold_half_a_pair_is_checked(client, monkeypatch):
    for body in (b'{"candidates":["\xed\xa0\x80"]}', '{"candidates":["\ud800"]}'.encode("utf-16", "surrogatepass")):
        assert "surrogate" in client.post("/score", content=body).json()["error"]
    whole = r'{"candidates":["\ud83d\ude00"],"history":[]}'
    assert "surrogate" not in client.post("/score", content=whole).json()["error"]
    monkeypatch.setattr(requests, "check_text", None)
    assert client.post("/score", content='{"candidates":["é"],"history":[]}'.encode()).status_code == 422


@pytest.mark.parametrize("depth", [100, 985, 1000, 2000])
def test_nested_messagepack_is_refused(client, depth):
    head, tail = msgpack.packb({**REQUEST, "context": {"likes_level": "?", "views_level": 2}}).split(b"\xa1?")
    body = head + b"\x91" * depth + b"\x01" + tail
    found = client.post("/score", content=body, headers={"content-type": "application/msgpack"})
    assert found.status_code in (400, 422), found.text


def test_an_id_beyond_64_bits_is_refused_by_a_vocabulary(client):
    export = client.app.state.service.loaded.export
    export.items = replace(export.items, ids=Ids(list(range(1, 1001)), True))
    packed = {"accept": "application/msgpack"}
    assert client.post("/score", json={**REQUEST, "candidates": [2**64]}, headers=packed).status_code == 422
    found = client.post("/score", json={**REQUEST, "candidates": [8, 2**64 - 1]}, headers=packed)
    assert msgpack.unpackb(found.content)["unknown"] == [2**64 - 1]


@pytest.mark.slow
def test_an_error_arrives_though_the_body_is_not_read(exported):
    """Clients that send all of a body first would see a closed connection."""
    server = Server(exported)
    try:
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(server.url + "/score", b" " * (5 * 2**20), timeout=20)
    finally:
        server.stop()
    assert raised.value.code == 413
    assert "error" in json.load(raised.value)


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


def test_a_large_file_is_checked_after_the_start(exported, tmp_path, monkeypatch):
    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder)
    content = bytearray((folder / "items.npy").read_bytes())
    content[-1] ^= 1
    (folder / "items.npy").write_bytes(content)
    with pytest.raises(ServingError, match=r"items\.npy"):
        make_app(Settings(folder=str(folder)))
    monkeypatch.setattr(service, "CHECKED_BYTES", 10000)
    with TestClient(make_app(Settings(folder=str(folder)))) as client:
        for _ in range(100):
            if (ready := client.get("/ready")).status_code == 503:
                break
            time.sleep(0.05)
        assert "items.npy" in ready.json()["error"]
        assert str(tmp_path) not in ready.text
        assert client.post("/score", json=REQUEST).status_code == 503
        assert client.get("/health").status_code == 200
        content[-1] ^= 1
        (folder / "items.npy").write_bytes(content)
        client.app.state.service.switch()
        assert client.post("/score", json=REQUEST).status_code == 200
    (folder / "items.npy").write_bytes(content[:-1])
    with pytest.raises(ServingError, match=r"items\.npy"):
        make_app(Settings(folder=str(folder)))


def test_a_token(exported, monkeypatch, tmp_path):
    with TestClient(make_app(Settings(folder=str(exported), token="secret"))) as client:
        assert client.get("/health").status_code == 200
        for header in ({}, {"authorization": "Bearer other"}, {"authorization": "Basic secret"}):
            assert client.post("/score", json=REQUEST, headers=header).status_code == 401
        for path in ("/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        for path in ("/page_data", "/metrics"):
            assert client.get(path).status_code == 401
        assert client.post("/titles", json={"candidates": [1]}).status_code == 401
        good = client.post("/score", json=REQUEST, headers={"authorization": "Bearer secret"})
        assert good.status_code == 200
        # What the Host header makes of the URL, "x/health?", opens nothing.
        with monkeypatch.context() as patch:
            patch.setattr(Request, "url", URL("http://x/health?/score"))
            assert client.post("/score", json=REQUEST).status_code == 401
    with TestClient(make_app(Settings(folder=str(exported), token="sécret"))) as client:
        header = "Bearer sécret".encode()
        assert client.post("/score", json=REQUEST, headers={"authorization": header}).status_code == 200
    monkeypatch.delenv("FUXICTR_MM_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("FUXICTR_MM_TOKEN", "secret\n")
    assert read_token(None) == "secret"
    (tmp_path / "token").write_text("\n")
    for path, value in ((None, ""), (None, " "), (str(tmp_path / "token"), "secret")):
        monkeypatch.setenv("FUXICTR_MM_TOKEN", value)
        with raises_naming(ServingError, path or "FUXICTR_MM_TOKEN"):
            read_token(path)


def test_a_bug_is_counted_and_no_data_is_logged(client, monkeypatch, caplog):
    def fail(**_):
        raise KeyError("of a user")

    monkeypatch.setattr(client.app.state.service, "score", fail)
    with caplog.at_level("INFO"):
        found = client.post("/score", json=REQUEST)
    assert (found.status_code, list(found.json())) == (500, ["error"])
    assert "of a user" not in caplog.text + found.text
    assert "KeyError" in caplog.text
    assert "test_server.py" in caplog.text
    assert 'path="/score",status="500"' in client.get("/metrics").text


def test_a_client_that_leaves_is_no_bug():
    async def receive():
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "headers": []}, receive)
    with pytest.raises(HttpError) as raised:
        asyncio.run(read_body(request, Settings(folder="")))
    assert raised.value.status == 400


def test_a_text_and_other_bytes_are_two_users():
    keys = [
        service._key({"name": value}, []) for value in (b"x", "b'x'", 1, "1", 1.5, None, date(2025, 1, 1), "2025-01-01")
    ]
    assert len(set(keys)) == len(keys)


def test_a_refused_export_is_read_once(exported, tmp_path, monkeypatch):
    folder = tmp_path / "served"
    shutil.copytree(exported, folder)
    found = service.Service(folder)
    whole = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(whole.replace(b'"fp32"', b"5"))
    with raises_naming(ServingError, "precision"):
        found.switch()
    monkeypatch.setattr(service, "Export", None)
    assert not found.switch()
    monkeypatch.undo()
    (folder / "manifest.json").write_bytes(whole + b" ")
    assert found.switch()
    assert found.loaded.version == version_of(folder)


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


def test_full_and_slow(exported, monkeypatch):
    app = make_app(Settings(folder=str(exported), concurrency=1, queue=1, timeout=0.5))
    free = threading.Event()
    score = app.state.service.score
    monkeypatch.setattr(app.state.service, "score", lambda **o: (free.wait(10), score(**o))[1])
    with TestClient(app) as client:
        statuses = []

        def post():
            statuses.append(client.post("/score", json=REQUEST))

        threads = [threading.Thread(target=post) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found.status_code for found in statuses) == [503, 503, 503, 504, 504]
        assert all(found.headers["retry-after"] == "1" for found in statuses if found.status_code == 503)
        free.set()
        time.sleep(0.5)
        assert client.post("/score", json=REQUEST).status_code == 200


def test_work_past_its_time_is_dropped(exported, monkeypatch):
    """Neither the other users of a batch, nor what waited, are scored after the 504."""
    app = make_app(Settings(folder=str(exported), concurrency=1, timeout=0.2))
    scored = []

    def slow(*inputs):
        scored.append(time.sleep(0.3))
        return np.zeros(3, np.float32), np.ones(3, bool)

    monkeypatch.setattr(app.state.service.loaded.export, "score_candidates", slow)
    with TestClient(app) as client:
        assert client.post("/score_batch", json={"requests": [REQUEST] * 8}).status_code == 504
        assert client.post("/score", json=REQUEST).status_code == 504
        time.sleep(0.2)
    assert len(scored) <= 2


def test_pieces_of_rows_end_at_the_deadline(exported, monkeypatch):
    found = Export(exported)
    monkeypatch.setattr(Export, "is_folded", False)
    monkeypatch.setattr(found, "_predict", lambda *inputs: np.zeros(time.sleep(0.1) or 1, np.float32))
    monkeypatch.setattr(export_module, "PAIRS", 1)
    state = found.user_state(REQUEST["context"], REQUEST["history"])
    started = time.monotonic()
    with pytest.raises(DeadlineError), until(started + 0.05):
        found.score_candidates(state, list(range(1, 100)))
    assert time.monotonic() - started < 2


def test_the_watcher_survives_any_error_and_logs_it_once(caplog):
    class Broken:
        looks = 0

        def check(self):
            raise MemoryError

        def switch(self):
            self.looks += 1
            raise RuntimeError("unexpected")

    async def look():
        task = asyncio.create_task(watch(broken, None, 0.01))
        await asyncio.sleep(0.2)
        assert not task.done()
        task.cancel()

    broken = Broken()
    asyncio.run(look())
    assert broken.looks > 1
    assert caplog.text.count("unexpected") == 1


MANY = 60_000
HUGE = {
    "candidates": '{"history":[],"candidates":[' + ",".join(["[]"] * MANY) + "]}",
    "history": '{"candidates":[1],"history":[' + ",".join(["[]"] * MANY) + "]}",
    "new_items": '{"candidates":[1],"new_items":[' + ",".join(["[]"] * MANY) + "]}",
    "x": '{"candidates":[1],"new_items":[{"embeddings":{"x":[' + ",".join(["[]"] * MANY) + "]}}]}",
    "0": "{" + ",".join(f'"{i}":0' for i in range(MANY)) + "}",
    "context": '{"candidates":[1],"context":{' + ",".join(f'"{i}":0' for i in range(MANY)) + "}}",
}


@pytest.mark.parametrize("named", HUGE)
def test_a_body_of_many_errors_costs_no_more_than_its_first(named):
    body = HUGE[named].encode()
    json.loads(body)
    started = time.process_time()
    with pytest.raises(HttpError) as raised:
        decode(body, "json", ScoreRequest, Settings(folder=""))
    assert raised.value.status == 422
    assert named in str(raised.value)
    assert len(str(raised.value)) < 500
    assert time.process_time() - started < 2  # 4.4 s with an error for each entry


def test_the_cache_counts_what_small_entries_take():
    cache = StateCache(2**30)
    tracemalloc.start()
    for i in range(3000):
        cache.get(f"{i:032x}", lambda: {"numbers": np.arange(2), "context": np.zeros((1, 8), np.float32)})
    real = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert real * 0.7 <= cache.num_bytes <= real * 3


def test_the_least_recently_used_state_is_dropped_first():
    entry = {"x": np.zeros(25)}
    cache = StateCache(2500)  # of two such entries, with 800 bytes beside the numbers of each
    for key in ("a", "b", "a", "c"):
        cache.get(key, lambda: entry)
    assert (cache.hits, cache.misses, len(cache)) == (1, 3, 2)
    cache.get("a", lambda: pytest.fail("was used after b"))
    assert cache.num_bytes <= cache.max_bytes
    assert cache.get("d", lambda: {"x": np.zeros(500)})["x"].size == 500  # larger than the cache: not kept
    assert len(cache) == 2


def test_states_are_counted_once_though_requests_run_at_once(exported, monkeypatch):
    app = make_app(Settings(folder=str(exported), concurrency=2))
    score, both = app.state.service.score, threading.Barrier(2, timeout=10)

    def together(**options):
        found = score(**options)
        both.wait()
        return found

    monkeypatch.setattr(app.state.service, "score", together)
    with TestClient(app) as client:
        others = [{**REQUEST, "history": [item]} for item in (5, 6)]
        threads = [threading.Thread(target=client.post, args=("/score",), kwargs={"json": one}) for one in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 'fuxictr_mm_user_states_total{held="no"} 2.0' in client.get("/metrics").text


def test_titles_of_too_many_items(client):
    assert client.post("/titles", json={"candidates": [1] * 2000}).json() == [""] * 2000
    assert client.post("/titles", json={"candidates": [1] * 2001}).status_code == 422


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server process."""

    def __init__(self, folder, *options):
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, "-m", "fuxictr_mm_serving", str(folder), "--port", str(port), *options]
        # A pipe that nobody reads would stop the server.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self.log)
        for _ in range(300):
            time.sleep(0.1)
            try:
                self.get("/ready")
                return
            except OSError:
                assert self.process.poll() is None
        raise AssertionError("not ready")

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def score(self, request=REQUEST):
        data = json.dumps(request).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + "/score", data), timeout=10) as answer:
            return json.load(answer)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
        self.log.close()


@pytest.mark.slow
def test_another_export_under_load(exported, weights_of, tmp_path):
    """No request fails, and every answer is wholly of one export."""
    experiment, weights = weights_of("DIN_tiny")
    folder = tmp_path / "served"
    shutil.copytree(exported, folder)
    expected = {}
    server = Server(folder, "--reload", "0.1")
    try:
        answers, errors, stop = [], [], threading.Event()

        def load():
            while not stop.is_set():
                try:
                    answers.append(server.score())
                except OSError as error:
                    errors.append(error)

        threads = [threading.Thread(target=load) for _ in range(3)]
        expected[server.get("/ready")["version"]] = rows_of(folder, REQUEST)
        for thread in threads:
            thread.start()
        export(experiment, folder, weights=weights, overwrite=True, tolerance=1e-3)
        for _ in range(100):
            time.sleep(0.1)
            if server.get("/ready")["model"] == "DIN":
                break
        expected[server.get("/ready")["version"]] = rows_of(folder, REQUEST)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert {answer["version"] for answer in answers} == expected.keys()
        assert len(expected) == 2
        for answer in answers:
            np.testing.assert_allclose(answer["scores"], expected[answer["version"]], atol=1e-4)
    finally:
        server.stop()


@pytest.mark.slow
def test_a_worker_is_killed(exported):
    server = Server(exported, "--workers", "2")
    try:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if not children.exists():
            pytest.skip("needs /proc")
        found = [int(pid) for pid in children.read_text().split()]
        workers = [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        server.score()
        os.kill(workers[0], signal.SIGKILL)
        answered = 0
        for _ in range(20):
            try:
                answered += len(server.score()["scores"]) == 3
            except (OSError, urllib.error.URLError):  # a connection that the dead worker had accepted
                time.sleep(0.1)
        assert answered >= 18
    finally:
        server.stop()


def test_a_worker_that_cannot_start(tmp_path, monkeypatch):
    killed, slept = [], []
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setenv(VARIABLE, json.dumps({"folder": str(tmp_path / "nothing")}))
    monkeypatch.setattr(os, "kill", lambda *given: killed.append(given))
    monkeypatch.setattr(server_module.time, "sleep", slept.append)
    with pytest.raises(SystemExit):
        server_module.app_of_worker()
    assert killed == [(os.getppid(), signal.SIGTERM)]
    assert "nothing" in (tmp_path / FAILED).read_text()
    (tmp_path / STARTED).touch()
    with pytest.raises(SystemExit):  # others serve: they go on, and this one tries again
        server_module.app_of_worker()
    assert len(killed) == len(slept) == 1


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_command(exported, tmp_path):
    command = [sys.executable, "-m", "fuxictr_mm_serving", str(exported), "--workers", "2", "--port", str(free_port())]
    command += ["--users", str(tmp_path / "nothing.parquet")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "nothing.parquet" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken(exported, capsys, workers):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as stopped:
            command.main([str(exported), "--port", port, "--workers", workers])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert port in lines[0]


def test_the_command_refuses_what_is_no_export(tmp_path):
    command = [sys.executable, "-m", "fuxictr_mm_serving", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def served(exported, tmp_path):
    """Return a copy of the export, and a function that changes its manifest."""
    folder = tmp_path / "served"
    shutil.copytree(exported, folder)

    def rewrite(change=lambda manifest: None, **files):
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        for name, content in files.items():
            name = name.replace("_npy", ".npy").replace("_json", ".json").replace("_onnx", ".onnx")
            (folder / "new").write_bytes(content)
            os.replace(folder / "new", folder / name)
            manifest["sha256"][name], manifest["bytes"][name] = checksum(folder / name), len(content)
        manifest["created"] = str(time.time_ns())
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return folder, rewrite


def test_a_link_to_nothing_in_the_folder_stops_no_switch(exported, tmp_path):
    folder, rewrite = served(exported, tmp_path)
    found = service.Service(folder)
    (folder / ".#manifest.json").symlink_to("user@host.1:2")
    rewrite()
    assert found.switch()
    assert found.loaded.version == version_of(folder)


def test_an_export_that_reads_other_columns_is_refused_until_the_users_have_them(exported, tmp_path):
    folder, rewrite = served(exported, tmp_path)
    users = tmp_path / "users.parquet"
    shutil.copy(ROWS, users)
    found = service.Service(folder, users=users)
    before = found.score(user=1, candidates=[8])
    rewrite(lambda manifest: manifest["items"].update(history="clicked"))
    with raises_naming(ServingError, users, "clicked"):
        found.switch()
    assert found.score(user=1, candidates=[8]) == before
    assert not found.switch()
    table = pq.read_table(ROWS)
    pq.write_table(table.rename_columns(["clicked" if n == "item_seq" else n for n in table.column_names]), users)
    assert found.switch()
    assert found.score(user=1, candidates=[8]).scores == pytest.approx(before.scores)


INTEGERS = json.dumps({"item_id": {"type": "integer", "values": list(range(1, 1001))}}).encode()
WRONG = {
    "vocabulary of an integer": ({"vocabulary_json": b'{"item_id": {"type": "text", "values": 5}}'}, "vocabulary"),
    "vocabulary of lists": ({"vocabulary_json": b'{"item_id": {"type": "text", "values": [[1]]}}'}, "vocabulary"),
    "texts as integers": ({"vocabulary_json": INTEGERS.replace(b"1,", b'"1",')}, "vocabulary"),
    "type of a field": ({"change": lambda m: m["context"][0].update(type=["x"])}, "context"),
    "length": ({"change": lambda m: m["context"][0].update(type="sequence", max_len=10**12)}, "context"),
    "negative length": ({"change": lambda m: m["items"].update(max_len=-5)}, "max_len"),
    "no context": ({"change": lambda m: m.update(context=[])}, "served"),
    "swapped graphs": (
        {"change": lambda m: m["graphs"].update(user=m["graphs"]["rows"], rows=m["graphs"]["user"])},
        "served",
    ),
    "attention": ({"change": lambda m: m["graphs"].update(attention=m["graphs"]["rows"])}, "served"),
    "labels": ({"change": lambda m: m.update(labels=["a", "b"])}, "served"),
    "items that are not finite": ({"items_npy": None}, "served"),
    "context that is not finite": ({"context_likes_level_npy": None}, "served"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_export_that_cannot_score_replaces_none_and_is_read_once(exported, tmp_path, monkeypatch, what):
    folder, rewrite = served(exported, tmp_path)
    found = service.Service(folder)
    options, named = WRONG[what]
    files = dict(options)
    change = files.pop("change", lambda manifest: None)
    for name, content in files.items():
        if content is None:
            stream = io.BytesIO()
            np.save(stream, np.full_like(np.load(folder / name.replace("_npy", ".npy")), np.nan))
            files[name] = stream.getvalue()
    if "vocabulary_json" in files:
        change = lambda manifest: manifest.update(vocabulary="vocabulary.json")  # noqa: E731
    rewrite(change, **files)
    with raises_naming(ServingError, named):
        found.switch()
    assert found.score(**REQUEST).version == found.loaded.version
    monkeypatch.setattr(service, "Export", None)
    assert not found.switch()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", "99999"),
        ("workers", "0"),
        ("timeout", "nan"),
        ("timeout", "0"),
        ("timeout", "inf"),
        ("reload", "-1"),
        ("max-body", "-1"),
        ("max-candidates", "0"),
        ("max-history", "-1"),
    ],
)
def test_options_beyond_their_range_are_refused(exported, capsys, option, value):
    with pytest.raises(SystemExit) as stopped:
        command.main([str(exported), f"--{option}={value}"])
    assert stopped.value.code == 2
    assert f"--{option}" in capsys.readouterr().err
