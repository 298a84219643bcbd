"""Bad requests get one clear sentence, at little cost."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from dataclasses import replace

import msgpack
import pytest
from starlette.requests import Request

from fuxictr_mm_serving import requests
from fuxictr_mm_serving.requests import HttpError, ScoreRequest, decode, read_body
from fuxictr_mm_serving.settings import Settings
from fuxictr_mm_serving.tables import Ids
from tests.serving.server import REQUEST, Server

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
    (422, {**REQUEST, "candidates": [1.5]}, "candidates.0: "),
    (422, '{"candidates": [1e400]}', "candidates.0: "),
    (422, {**REQUEST, "candidates": [2**70]}, "candidates"),
    (422, {**REQUEST, "history": None}, "history"),
    (422, {**REQUEST, "history": "abc"}, "history"),
    (422, {**REQUEST, "history": [{}]}, "history"),
    (422, {**REQUEST, "history": ["a"]}, "a"),
    (422, {**REQUEST, "more": 1}, "more"),
    (422, {**REQUEST, "user": 10**9}, "user"),
    (422, {**REQUEST, "context": {"likes_level": 3}}, "categorical"),
    (422, {**REQUEST, "context": {"likes_level": 3, "views_level": None}}, "views_level"),
    (422, {**REQUEST, "context": {"likes_level": 99, "views_level": 1}}, "likes_level"),
    (422, {**REQUEST, "context": {"likes_level": "x", "views_level": 1}}, "likes_level"),
    (422, {**REQUEST, "context": {"likes_level": [1], "views_level": 1}}, "likes_level"),
    (422, {**REQUEST, "context": {"likes_level": {"a": 1}, "views_level": 1}}, "likes_level"),
    (422, {**REQUEST, "new_items": [{"embeddings": {"x": [1]}}]}, "x"),
    (
        422,
        {**REQUEST, "new_items": [{"codes": {"item_tags": [1]}}, {"codes": {"item_tags": [1] * 6}}]},
        "new_items.1: ",
    ),
    (422, {**REQUEST, "new_items": [{"codes": {"item_tags": [-1]}}]}, "new_items.0: "),
    (422, {**REQUEST, "new_items": [{"embeddings": {"txt_emb_pca8": [1e39] * 8}}]}, "new_items.0: 'txt_emb_pca8'"),
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
    (422, {**REQUEST, "new_items": [{"codes": {"item_tags": 3}}]}, "new_items.0.codes.item_tags: is 3"),
    (422, {**REQUEST, "new_items": [{"codes": {"item_tags": [1.5]}}]}, "new_items.0.codes.item_tags.0: is 1.5"),
    (422, {**REQUEST, "new_items": [{"embeddings": {"x": [None]}}]}, "new_items.0.embeddings.x.0: is null"),
    (422, {**REQUEST, "new_items": [{"numbers": {"x": [1]}}]}, "new_items.0.numbers.x: is a list"),
    (422, {**REQUEST, "context": 5}, "object"),
    (400, '{"history": [], "candidates": [1], "history": [2]}', "history"),
    (413, " " * 20001, "20000"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_requests_get_one_clear_sentence(shared_client, number):
    status, body, named = BAD[number]
    body = json.dumps(body) if isinstance(body, dict) else body
    found = shared_client.post("/score", content=body, headers={"content-type": "application/json"})
    assert found.status_code == status, found.text
    assert list(found.json()) == ["error"]
    assert named in found.json()["error"]
    assert "\n" not in found.json()["error"]
    assert "Request" not in found.json()["error"]  # a name of our code
    assert len(found.json()["error"]) < 1000


def test_an_error_names_the_request_of_a_batch(shared_client):
    bad = {**REQUEST, "candidates": ["x"]}
    for one in (bad, {**REQUEST, "candidates": []}, {**REQUEST, "candidates": list(range(501))}):
        found = shared_client.post("/score_batch", json={"requests": [REQUEST, one]})
        assert found.status_code == 422
        assert found.json()["error"].startswith("requests.1: ")
    assert not shared_client.post("/score", json=bad).json()["error"].startswith("requests")


def test_bodies_and_paths_that_are_not_supported(shared_client):
    for headers in ({"content-encoding": "gzip"}, {"content-encoding": "br"}):
        found = shared_client.post("/score", json=REQUEST, headers=headers)
        assert (found.status_code, list(found.json())) == (415, ["error"])
        assert headers["content-encoding"] in found.json()["error"]
    assert shared_client.post("/score", json=REQUEST, headers={"content-encoding": "identity"}).status_code == 200
    found = shared_client.get("/score")
    assert found.status_code == 405
    assert found.headers["allow"] in found.json()["error"]
    found = shared_client.get("/nothing")
    assert found.status_code == 404
    assert "/docs" in found.json()["error"]
    twice = msgpack.packb(REQUEST)[:1] + msgpack.packb(REQUEST)[1:]
    twice = bytes([0x84]) + twice[1:] + msgpack.packb("history") + msgpack.packb([1])
    found = shared_client.post("/score", content=twice, headers={"content-type": "application/msgpack"})
    assert found.status_code == 400


def test_only_text_that_may_hold_half_a_pair_is_checked(client, monkeypatch):
    for body in (b'{"candidates":["\xed\xa0\x80"]}', '{"candidates":["\ud800"]}'.encode("utf-16", "surrogatepass")):
        assert "surrogate" in client.post("/score", content=body).json()["error"]
    whole = r'{"candidates":["\ud83d\ude00"],"history":[]}'
    assert "surrogate" not in client.post("/score", content=whole).json()["error"]
    monkeypatch.setattr(requests, "check_text", None)
    assert client.post("/score", content='{"candidates":["é"],"history":[]}'.encode()).status_code == 422


@pytest.mark.parametrize("depth", [100, 985, 1000, 2000])
def test_nested_messagepack_is_refused(shared_client, depth):
    head, tail = msgpack.packb({**REQUEST, "context": {"likes_level": "?", "views_level": 2}}).split(b"\xa1?")
    body = head + b"\x91" * depth + b"\x01" + tail
    found = shared_client.post("/score", content=body, headers={"content-type": "application/msgpack"})
    assert found.status_code in (400, 422), found.text


def test_an_id_beyond_64_bits_is_refused_by_a_vocabulary(client):
    export = client.app.state.service.loaded.export
    export.items = replace(export.items, ids=Ids(list(range(1, 1001)), True))
    packed = {"accept": "application/msgpack"}
    assert client.post("/score", json={**REQUEST, "candidates": [2**64]}, headers=packed).status_code == 422
    found = client.post("/score", json={**REQUEST, "candidates": [8, 2**64 - 1]}, headers=packed)
    assert msgpack.unpackb(found.content)["unknown"] == [2**64 - 1]


def test_an_integer_beyond_floats_is_no_known_text(client):
    export = client.app.state.service.loaded.export
    export.items = replace(export.items, ids=Ids([str(n) for n in range(1, 1001)], False, takes_numbers=True))
    found = client.post("/score", json={**REQUEST, "candidates": [8, 10**400]})
    assert (found.status_code, found.json()["unknown"]) == (200, [10**400])
    packed = client.post(
        "/score", json={**REQUEST, "candidates": [8, 10**400]}, headers={"accept": "application/msgpack"}
    )
    assert msgpack.unpackb(packed.content)["unknown"] == [str(10**400)]


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
    assert server.process.returncode == 0  # after SIGTERM


def test_a_client_that_leaves_is_no_bug():
    async def receive():
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "headers": []}, receive)
    with pytest.raises(HttpError) as raised:
        asyncio.run(read_body(request, Settings(folder="")))
    assert raised.value.status == 400


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
