"""The command: its options, its port, its workers."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest
import uvicorn

from fuxictr_mm_serving import command, draining
from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.graphs import OnnxGraph
from fuxictr_mm_serving.manifest import version_of
from fuxictr_mm_serving.settings import Settings
from tests.paths import ROOT
from tests.serving.server import Server, free_port


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


@pytest.mark.parametrize("package", command.PACKAGES)
def test_a_package_that_is_not_installed(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stopped:
        command.main([str(tmp_path)])
    assert stopped.value.code == 2
    assert package in capsys.readouterr().err


def test_a_graph_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ServingError, match="onnxruntime"):
        OnnxGraph(b"", "graph.onnx", 1)


def test_the_command_refuses_what_is_no_export(tmp_path):
    command = [sys.executable, "-m", "fuxictr_mm_serving", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


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


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_command(exported, tmp_path):
    command = [sys.executable, "-m", "fuxictr_mm_serving", str(exported), "--workers", "2", "--port", str(free_port())]
    command += ["--users", str(tmp_path / "nothing.parquet")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "nothing.parquet" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_worker_is_killed(exported):
    server = Server(exported, "--workers", "2")
    try:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if not children.exists():
            pytest.skip("needs /proc")

        def workers():
            found = [int(pid) for pid in children.read_text().split()]
            return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

        before = workers()
        assert len(before) == 2
        server.score()
        os.kill(before[0], signal.SIGKILL)
        answered = 0
        for _ in range(20):
            try:
                answered += len(server.score()["scores"]) == 3
            except (OSError, urllib.error.URLError):  # a connection that the dead worker had accepted
                time.sleep(0.1)
        assert answered >= 18
        for _ in range(100):
            if len(workers()) == 2:
                break
            time.sleep(0.1)
        assert len(workers()) == 2
        # Of all workers, the dead one too.
        text = server.read("/metrics").decode()
        assert f"fuxictr_mm_candidates_total {3.0 * (answered + 1)}" in text
    finally:
        server.stop()
    assert server.process.returncode == 0


@pytest.mark.parametrize(
    ("options", "token", "names"),
    [
        (["--host", "localhost"], "", ()),
        (["--allow-host", "a.example", "--allow-host", "b.example"], "", ("a.example", "b.example")),
        ([], "secret", None),
        (["--host", "0.0.0.0"], "", None),
        (["--host", "0.0.0.0", "--allow-host", "a.example"], "secret", ("a.example",)),
    ],
)
def test_which_names_of_hosts_are_expected(exported, monkeypatch, options, token, names):
    found = []
    monkeypatch.setattr(command, "run_server", lambda settings, *_: found.append(settings.hosts))
    monkeypatch.setenv("FUXICTR_MM_TOKEN", token)
    if not token:
        monkeypatch.delenv("FUXICTR_MM_TOKEN")
    command.main([str(exported), "--port", "0", *options])
    assert found == [names]


@pytest.mark.parametrize("name", ["a.example:8000", "*.example", "*", "http://a.example", "", "[::1]"])
def test_names_that_no_host_header_matches_are_refused(exported, monkeypatch, capsys, name):
    monkeypatch.setattr(command, "run_server", lambda *_: pytest.fail("the server starts"))
    with pytest.raises(SystemExit) as ended:
        command.main([str(exported), "--port", "0", "--allow-host", name])
    assert ended.value.code == 2
    assert "--allow-host" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "token"), [("127.0.0.1", ""), ("0.0.0.0", ""), ("0.0.0.0", "secret")])
def test_the_start_is_logged(exported, monkeypatch, caplog, host, token):
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    monkeypatch.delenv("FUXICTR_MM_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("FUXICTR_MM_TOKEN", token)
    with caplog.at_level("INFO"):
        command.main([str(exported), "--host", host, "--port", "0"])
    first, *warnings = (record for record in caplog.records if record.name == "fuxictr_mm_serving")
    line = json.loads(first.message)
    assert line["serving"].startswith(f"http://{host}:")
    assert line["version"] == version_of(exported)
    assert line["token"] is bool(token)
    is_open = host == "0.0.0.0" and not token
    assert [(record.levelname, json.loads(record.message)["open_to"]) for record in warnings] == (
        [("WARNING", host)] if is_open else []
    )


def test_every_line_of_the_log_is_json():
    texts = {"fuxictr_mm_serving": '{"serving": "http://x"}', "uvicorn.error": "Invalid HTTP request received.\nx"}
    records = [logging.LogRecord(name, logging.WARNING, "", 0, text, None, None) for name, text in texts.items()]
    ours, other = (json.loads(command.JsonLines().format(record)) for record in records)
    assert (ours["level"], ours["serving"]) == ("WARNING", "http://x")
    assert other["message"] == texts["uvicorn.error"]
    assert datetime.fromisoformat(other["time"]).tzinfo is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_is_done(exported, monkeypatch, number):
    """uvicorn raises again what has ended it."""
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    stopped = []

    def run(*_, **__):
        stopped.append(number)
        signal.raise_signal(number)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    command.main([str(exported), "--port", "0"])
    assert stopped == [number]
    assert handlers == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]


def test_requests_under_way_have_a_limited_time_to_end(exported, monkeypatch):
    given = []

    class Ended(draining.DrainingServer):
        def run(self, sockets):
            given.append((self.config.timeout_graceful_shutdown, sockets))

    monkeypatch.setattr(draining, "DrainingServer", Ended)
    command.run_server(Settings(folder=str(exported), timeout=2.5), "a socket", lambda: given.append("ready"))
    assert given == ["ready", (4, ["a socket"])]
