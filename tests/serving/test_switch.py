"""Another export in the folder: loaded without a lost request, or refused once."""

import asyncio
import io
import json
import os
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from fuxictr_mm.serving.export import export
from fuxictr_mm_serving import ServingError, service
from fuxictr_mm_serving import users as users_module
from fuxictr_mm_serving.manifest import checksum, version_of
from fuxictr_mm_serving.server import Metrics, make_app, watch
from fuxictr_mm_serving.settings import Settings
from fuxictr_mm_serving.users import stamp_of_users
from tests.errors import raises_naming
from tests.serving.server import REQUEST, ROWS, Server, rows_of


def served(export_copy):
    """Return a copy of the export, and a function that changes its manifest."""

    def rewrite(change=lambda manifest: None, **files):
        manifest = json.loads((export_copy / "manifest.json").read_text())
        change(manifest)
        for name, content in files.items():
            name = name.replace("_npy", ".npy").replace("_json", ".json").replace("_onnx", ".onnx")
            (export_copy / "new").write_bytes(content)
            os.replace(export_copy / "new", export_copy / name)
            manifest["sha256"][name], manifest["bytes"][name] = checksum(export_copy / name), len(content)
        manifest["created"] = str(time.time_ns())
        (export_copy / "manifest.json").write_text(json.dumps(manifest))

    return export_copy, rewrite


def test_a_large_file_is_checked_after_the_start(export_copy, tmp_path, monkeypatch):
    content = bytearray((export_copy / "items.npy").read_bytes())
    content[-1] ^= 1
    (export_copy / "items.npy").write_bytes(content)
    with pytest.raises(ServingError, match=r"items\.npy"):
        make_app(Settings(folder=str(export_copy)))
    monkeypatch.setattr(service, "CHECKED_BYTES", 10000)
    with TestClient(make_app(Settings(folder=str(export_copy)))) as client:
        for _ in range(100):
            if (ready := client.get("/ready")).status_code == 503:
                break
            time.sleep(0.05)
        assert "items.npy" in ready.json()["error"]
        assert str(tmp_path) not in ready.text
        assert client.post("/score", json=REQUEST).status_code == 503
        assert client.get("/health").status_code == 200
        content[-1] ^= 1
        (export_copy / "items.npy").write_bytes(content)
        client.app.state.service.switch()
        assert client.post("/score", json=REQUEST).status_code == 200
    (export_copy / "items.npy").write_bytes(content[:-1])
    with pytest.raises(ServingError, match=r"items\.npy"):
        make_app(Settings(folder=str(export_copy)))


def test_a_refused_export_is_read_once(export_copy, monkeypatch):
    found = service.Service(export_copy)
    whole = (export_copy / "manifest.json").read_bytes()
    (export_copy / "manifest.json").write_bytes(whole.replace(b'"fp32"', b"5"))
    with raises_naming(ServingError, "precision"):
        found.switch()
    monkeypatch.setattr(service, "Export", None)
    assert not found.switch()
    monkeypatch.undo()
    (export_copy / "manifest.json").write_bytes(whole + b" ")
    assert found.switch()
    assert found.loaded.version == version_of(export_copy)


def test_the_watcher_survives_any_error_and_logs_it_once(caplog):
    class Broken:
        looks = 0

        def check(self):
            raise MemoryError

        def switch(self):
            self.looks += 1
            raise RuntimeError("unexpected")

        def refresh_users(self):
            raise ServingError("damaged")

        def refresh_titles(self):
            raise ServingError("untitled")

    async def look():
        task = asyncio.create_task(watch(broken, metrics, 0.01))
        await asyncio.sleep(0.2)
        assert not task.done()
        task.cancel()

    broken, metrics = Broken(), Metrics()
    asyncio.run(look())
    assert broken.looks > 1
    assert caplog.text.count("unexpected") == 1
    assert "fuxictr_mm_failed_switches_total 1.0" in metrics.text().decode()
    assert caplog.text.count("damaged") == 1
    assert "fuxictr_mm_failed_users_reads_total 1.0" in metrics.text().decode()
    assert caplog.text.count("untitled") == 1
    assert "fuxictr_mm_failed_titles_reads_total 1.0" in metrics.text().decode()


def test_the_end_does_not_wait_for_an_export_that_is_read():
    free = threading.Event()

    async def end():
        task = asyncio.create_task(watch(SimpleNamespace(check=lambda: free.wait(20)), None, 0.01))
        await asyncio.sleep(0.1)
        task.cancel()

    started = time.monotonic()
    asyncio.run(end())
    assert time.monotonic() - started < 10
    free.set()


def test_a_link_to_a_name_that_does_not_exist_is_a_failed_switch(exported, tmp_path):
    current, other = tmp_path / "current", tmp_path / "other"
    current.symlink_to(exported)
    found = service.Service(current)
    for target in (tmp_path / "mistyped", exported):
        other.symlink_to(target)
        other.rename(current)
        if target == exported:
            assert not found.switch()
        else:
            with raises_naming(ServingError, current):
                found.switch()
        assert found.has_refused == (target != exported)
        assert found.score(context={"likes_level": 3, "views_level": 2}, candidates=[8]).scores


def test_a_link_to_nothing_in_the_folder_stops_no_switch(export_copy):
    folder, rewrite = served(export_copy)
    found = service.Service(folder)
    (folder / ".#manifest.json").symlink_to("user@host.1:2")
    rewrite()
    assert found.switch()
    assert found.loaded.version == version_of(folder)


def test_an_export_that_reads_other_columns_is_refused_until_the_users_have_them(export_copy, tmp_path):
    folder, rewrite = served(export_copy)
    users = tmp_path / "users.parquet"
    shutil.copy(ROWS, users)
    found = service.Service(folder, users=users)
    before = found.score(user=1, candidates=[8])
    rewrite(lambda manifest: manifest["items"].update(history="clicked"))
    with raises_naming(ServingError, users, "clicked"):
        found.switch()
    assert found.score(user=1, candidates=[8]) == before
    assert not found.switch()
    assert found.has_refused
    table = pq.read_table(ROWS)
    pq.write_table(table.rename_columns(["clicked" if n == "item_seq" else n for n in table.column_names]), users)
    assert found.switch()
    assert not found.has_refused
    assert found.score(user=1, candidates=[8]).scores == pytest.approx(before.scores)


def test_changed_users_are_read_again_and_damaged_ones_are_not(exported, tmp_path):
    table = pq.read_table(ROWS)
    users = tmp_path / "users.parquet"

    def write(content):
        (tmp_path / "new").write_bytes(content)
        os.replace(tmp_path / "new", users)

    def parquet(table):
        pq.write_table(table, tmp_path / "table")
        return (tmp_path / "table").read_bytes()

    user = table["user_id"][0].as_py()
    others = table.filter(pc.not_equal(table["user_id"], user))
    write(parquet(others))
    found = service.Service(exported, users=users)
    assert not found.refresh_users()
    with raises_naming(ServingError, "user"):
        found.score(user=user, candidates=[8])
    write(parquet(table))
    assert [found.refresh_users() for _ in range(3)] == [False, True, False]  # read when it no longer changes
    scores = found.score(user=user, candidates=[8])
    write(parquet(others)[:-9])
    assert not found.refresh_users()
    with raises_naming(ServingError, users):
        found.refresh_users()
    assert not found.refresh_users()  # not read again
    assert found.has_refused_users
    level = table.schema.get_field_index("likes_level")
    write(parquet(table.set_column(level, "likes_level", [["x"] * len(table)])))
    assert not found.refresh_users()
    with raises_naming(ServingError, users):
        found.refresh_users()
    assert found.score(user=user, candidates=[8]) == scores
    write(parquet(table))
    assert not found.refresh_users()
    users.rename(tmp_path / "away")  # as a link that is being replaced
    with raises_naming(ServingError, users):
        found.refresh_users()
    (tmp_path / "away").rename(users)
    assert found.refresh_users()
    assert not found.has_refused_users


def test_changed_titles_are_read_again_and_damaged_ones_are_not(exported, tmp_path):
    titles = tmp_path / "titles.parquet"

    def write(*names):
        pq.write_table(pa.table({"item_id": range(1, len(names) + 1), "title": names}), titles)

    write("one")
    found = service.Service(exported, titles=titles)
    assert not found.refresh_titles()
    write("one", "two")
    assert [found.refresh_titles() for _ in range(3)] == [False, True, False]  # read when it no longer changes
    assert found.titles.of([1, 2]) == ["one", "two"]
    titles.write_bytes(b"damaged")
    assert not found.refresh_titles()
    assert not found.has_refused_titles
    with raises_naming(ServingError, titles):
        found.refresh_titles()
    assert not found.refresh_titles()
    assert found.has_refused_titles
    assert found.titles.of([1, 2]) == ["one", "two"]
    titles.unlink()  # as a link that is being replaced
    assert not found.refresh_titles()
    write("first", "second")
    assert [found.refresh_titles() for _ in range(2)] == [False, True]
    assert not found.has_refused_titles
    assert found.titles.of([1, 2]) == ["first", "second"]
    assert not service.Service(exported).refresh_titles()


def test_titles_that_an_export_refused_are_tried_with_the_next_one(export_copy, tmp_path, monkeypatch):
    titles = tmp_path / "titles.parquet"
    pq.write_table(pa.table({"item_id": [1], "title": ["one"]}), titles)
    found = service.Service(export_copy, titles=titles)
    pq.write_table(pa.table({"item_id": [1, 2], "title": ["first", "second"]}), titles)

    def refuse(export, path):
        raise ServingError(f"{path}: is of another numbering")

    monkeypatch.setattr(users_module, "check_numbering", refuse)
    assert not found.refresh_titles()
    with raises_naming(ServingError, "another numbering"):
        found.refresh_titles()
    monkeypatch.undo()
    assert not found.refresh_titles()
    (export_copy / "manifest.json").write_bytes((export_copy / "manifest.json").read_bytes() + b" ")
    assert found.switch()
    assert found.refresh_titles()
    assert not found.has_refused_titles
    assert found.titles.of([1, 2]) == ["first", "second"]


def test_failed_reads_of_titles_are_in_ready(exported, tmp_path):
    titles = tmp_path / "titles.parquet"
    pq.write_table(pa.table({"item_id": [1], "title": ["one"]}), titles)
    with TestClient(make_app(Settings(folder=str(exported), titles=str(titles), reload=0.01))) as client:
        assert "titles" not in client.get("/ready").json()
        titles.write_bytes(b"damaged")
        for _ in range(100):
            if (ready := client.get("/ready").json()).get("titles"):
                break
            time.sleep(0.05)
        assert ready["titles"] == "failed"
        assert "users" not in ready
        assert "fuxictr_mm_failed_titles_reads_total 1.0" in client.get("/metrics").text


def test_a_log_that_is_being_prepared_is_not_read_as_users(tmp_path):
    shutil.copy(ROWS, tmp_path / "part-0.parquet")
    manifest = {"origin": {"reader": "log"}, "log": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert len(stamp_of_users([tmp_path])) == 1
    del manifest["log"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with raises_naming(ServingError, tmp_path):
        stamp_of_users([tmp_path])


INTEGERS = json.dumps({"item_id": {"type": "integer", "values": list(range(1, 1001))}}).encode()


WRONG = {
    "vocabulary of an integer": ({"vocabulary_json": b'{"item_id": {"type": "text", "values": 5}}'}, "vocabulary"),
    "vocabulary of lists": ({"vocabulary_json": b'{"item_id": {"type": "text", "values": [[1]]}}'}, "vocabulary"),
    "texts as integers": ({"vocabulary_json": INTEGERS.replace(b"1,", b'"1",')}, "vocabulary"),
    "type of a field": ({"change": lambda m: m["context"][0].update(type=["x"])}, "context"),
    "length": ({"change": lambda m: m["context"][0].update(type="sequence", max_len=10**12)}, "context"),
    "negative length": ({"change": lambda m: m["items"].update(max_len=-5)}, "max_len"),
    "no context": ({"change": lambda m: m.update(context=[])}, "/export:"),
    "swapped graphs": (
        {"change": lambda m: m["graphs"].update(user=m["graphs"]["rows"], rows=m["graphs"]["user"])},
        "/export:",
    ),
    "attention": ({"change": lambda m: m["graphs"].update(attention=m["graphs"]["rows"])}, "/export:"),
    "labels": ({"change": lambda m: m.update(labels=["a", "b"])}, "/export:"),
    "items that are not finite": ({"items_npy": None}, "/export:"),
    "context that is not finite": ({"context_likes_level_npy": None}, "/export:"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_export_that_cannot_score_replaces_none_and_is_read_once(export_copy, monkeypatch, what):
    folder, rewrite = served(export_copy)
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


@pytest.mark.slow
def test_another_export_under_load(export_copy, weights_of):
    """No request fails, and every answer is wholly of one export."""
    experiment, weights = weights_of("DIN_tiny")
    expected = {}
    server = Server(export_copy, "--reload", "0.1")
    try:
        answers, errors, stop = [], [], threading.Event()

        def load():
            while not stop.is_set():
                try:
                    answers.append(server.score())
                except OSError as error:
                    errors.append(error)

        threads = [threading.Thread(target=load) for _ in range(3)]
        expected[server.get("/ready")["version"]] = rows_of(export_copy, REQUEST)
        for thread in threads:
            thread.start()
        export(experiment, export_copy, weights=weights, overwrite=True, tolerance=1e-3)
        for _ in range(100):
            time.sleep(0.1)
            if server.get("/ready")["model"] == "DIN":
                break
        expected[server.get("/ready")["version"]] = rows_of(export_copy, REQUEST)
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
