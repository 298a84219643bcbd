"""Limits on time and waiting requests, and the cache of user states."""

import json
import threading
import time
import tracemalloc
from datetime import date

import numpy as np
import pytest
from starlette.testclient import TestClient

from fuxictr_mm_serving import Export, ServingError, service
from fuxictr_mm_serving import export as export_module
from fuxictr_mm_serving.cache import StateCache
from fuxictr_mm_serving.deadline import DeadlineError, until
from fuxictr_mm_serving.server import make_app
from fuxictr_mm_serving.settings import Settings
from tests.errors import raises_naming
from tests.serving.server import REQUEST


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
        assert client.post("/score", content="{").status_code == 503  # its body is not decoded
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
    monkeypatch.setattr(export_module, "NUMBERS", 1)
    state = found.user_state(REQUEST["context"], REQUEST["history"])
    started = time.monotonic()
    with pytest.raises(DeadlineError), until(started + 0.05):
        found.score_candidates(state, list(range(1, 100)))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("is_folded", [True, False])
def test_memory_is_bounded_by_the_pairs_of_candidates_and_history(exported, monkeypatch, is_folded):
    """As many candidates at a time as the largest array of the graph allows; the scores are the same."""
    found = Export(exported)
    monkeypatch.setattr(Export, "is_folded", is_folded)
    history, candidates = [*range(1, 21)], [*range(1, 101)]
    state = found.user_state(REQUEST["context"], history)
    expected = found.score_candidates(state, candidates)[0]
    graph = found._graphs["candidates" if is_folded else "rows"]
    counts, run = [], graph.run
    name = "candidates" if is_folded else "target"
    monkeypatch.setattr(graph, "run", lambda inputs: counts.append(len(inputs[name])) or run(inputs))
    need = found.manifest.numbers_per_pair
    numbers = need["candidates"] if is_folded else max(need["rows"], len(history))
    monkeypatch.setattr(export_module, "NUMBERS", 30 * len(history) * numbers)
    np.testing.assert_allclose(found.score_candidates(state, candidates)[0], expected, rtol=0, atol=1e-6)
    assert counts == [25] * 4
    rows = {"item_id": candidates, "item_seq": [history] * 100, "likes_level": [3] * 100, "views_level": [2] * 100}
    np.testing.assert_allclose(found.score_rows(rows), expected, rtol=0, atol=1e-5)
    assert is_folded or counts == [25] * 8
    if is_folded:
        reasons = found.explain(state, history, candidates)
        monkeypatch.setattr(export_module, "NUMBERS", 2**40)
        for some, all_at_once in zip(reasons, found.explain(state, history, candidates), strict=True):
            assert dict(some) == pytest.approx(dict(all_at_once), abs=1e-6)


@pytest.mark.parametrize("graphs", [{}, {"graphs": {"rows": "rows.onnx"}}])
def test_a_history_that_needs_too_much_memory_is_refused(export_copy, graphs):
    path = export_copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"longest_history": 3, **graphs}))
    with TestClient(make_app(Settings(folder=str(export_copy)))) as client:
        statuses = {n: client.post("/score", json={**REQUEST, "history": [5] * n}).status_code for n in (3, 4)}
        assert statuses == {3: 200, 4: 422}
        graphs = client.app.state.service.loaded.export._graphs
    is_kept = {name: graph._session.get_session_options().enable_cpu_mem_arena for name, graph in graphs.items()}
    assert [name for name in is_kept if not is_kept[name]] == (["user"] if "user" in is_kept else ["rows"])


@pytest.mark.parametrize("max_len", [None, 20])
def test_rows_of_a_file_are_as_long_as_in_training(export_copy, max_len):
    path = export_copy / "manifest.json"
    manifest = json.loads(path.read_text()) | {"longest_history": 3}
    path.write_text(json.dumps(manifest | {"items": manifest["items"] | {"max_len": max_len}}))
    rows = {
        "item_id": [8] * 3,
        "item_seq": [[5] * n for n in (3, 4, 5)],
        "likes_level": [3] * 3,
        "views_level": [2] * 3,
    }
    if max_len is not None:
        assert len(Export(export_copy).score_rows(rows)) == 3
        return
    with raises_naming(ServingError, "FILE: item_seq", "row 11 ", " 4 ", " 3 "):  # training bounds no history
        Export(export_copy).score_rows(rows, "FILE", first=10)


def test_a_text_and_other_bytes_are_two_users():
    keys = [
        service._key({"name": value}, []) for value in (b"x", "b'x'", 1, "1", 1.5, None, date(2025, 1, 1), "2025-01-01")
    ]
    assert len(set(keys)) == len(keys)


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
