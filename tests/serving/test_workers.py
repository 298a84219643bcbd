"""Worker processes: one that is killed comes back, and those that cannot serve end the command."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.context import SpawnProcess

import pytest
import uvicorn

from fuxictr_mm_serving import ServingError, command, workers
from fuxictr_mm_serving.workers import Workers
from tests.errors import raises_naming
from tests.paths import ROOT
from tests.serving.work import ignore, refuse, write


def starts(folder):
    path = folder / "starts"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def when(condition, then):
    """Call a function once a condition holds."""

    def look():
        for _ in range(600):
            if condition():
                break
            time.sleep(0.05)
        then()

    threading.Thread(target=look, daemon=True).start()


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_worker_that_is_killed_comes_back(tmp_path, caplog):
    told = []
    has_ended = (tmp_path / "terminated").exists
    options = {"on_serving": lambda: told.append("serves"), "on_end": lambda: told.append(has_ended())}
    supervisor = Workers(write, (tmp_path,), count=1, grace=10, **options)
    serves = lambda: supervisor._workers[0].serves  # noqa: E731
    when(serves, lambda: os.kill(starts(tmp_path)[0], signal.SIGKILL))
    when(lambda: len(starts(tmp_path)) == 2 and serves(), stop)
    handler = signal.getsignal(signal.SIGTERM)
    supervisor.run()
    assert (tmp_path / "terminated").exists()
    assert told == ["serves", False]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "SIGKILL" in caplog.text
    assert json.loads(caplog.messages[0])["started_again_in_s"] == 0
    for pid in starts(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_that_are_killed_at_every_start_end_the_command(tmp_path, monkeypatch):
    delays = []
    monkeypatch.setattr(workers, "delay_of", lambda ends: delays.append(ends) or 0.01)
    with raises_naming(ServingError, "SIGKILL", "--workers 1"):
        Workers(write, (tmp_path, 99), count=1, grace=10).run()
    assert len(starts(tmp_path)) == workers.ATTEMPTS
    assert delays == [1, 2]


def test_a_start_that_fails_once_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "delay_of", lambda ends: 0.01)
    supervisor = Workers(write, (tmp_path, workers.ATTEMPTS - 1), count=1, grace=10)
    when(lambda: supervisor._workers[0].serves, stop)
    supervisor.run()
    assert len(starts(tmp_path)) == workers.ATTEMPTS


def test_an_error_of_the_first_start_ends_the_command(tmp_path):
    with raises_naming(ServingError, "no export"):
        Workers(refuse, (tmp_path,), count=1, grace=10).run()
    assert len(starts(tmp_path)) == 1


def test_a_start_that_the_system_refuses_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "delay_of", lambda ends: 0.01)
    refused, start = [], SpawnProcess.start

    def refuse_once(process):
        if not refused:
            refused.append(process)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", refuse_once)
    supervisor = Workers(write, (tmp_path,), count=1, grace=10)
    when(lambda: supervisor._workers[0].serves, stop)
    supervisor.run()
    assert len(starts(tmp_path)) == 1


class Ended:
    """A process that has ended."""

    exitcode = -signal.SIGKILL


def test_ends_are_counted_for_a_while():
    supervisor = Workers(write, (), count=1, grace=1)
    supervisor._have_served = True
    worker = supervisor._workers[0]
    for expected in (0, 2, 6):
        worker.process, worker.serves = Ended(), True
        supervisor._look_at(worker)
        assert worker.start_at - time.monotonic() == pytest.approx(expected, abs=0.5)
    supervisor._ends = [end - workers.COUNTED_SECONDS for end in supervisor._ends]
    worker.process, worker.serves = Ended(), True
    supervisor._look_at(worker)
    assert worker.start_at <= time.monotonic()


@pytest.mark.parametrize("again", [True, False])
def test_a_worker_that_does_not_end_is_killed(again):
    supervisor = Workers(ignore, (), count=1, grace=60 if again else 0.2)
    serves = lambda: supervisor._workers[0].serves  # noqa: E731
    when(serves, stop)
    if again:
        when(lambda: supervisor._signals == 1, lambda: (time.sleep(0.5), stop()))
    started = time.monotonic()
    supervisor.run()
    assert time.monotonic() - started < 30


async def no_app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def test_an_answer_does_not_wait_for_an_acknowledgement():
    async def look():
        shared = command.listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(no_app, loop="asyncio", lifespan="off", log_level="error"))
        task = asyncio.create_task(server.serve([shared]))
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*shared.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        (connection,) = server.server_state.connections
        found = connection.transport.get_extra_info("socket")
        option = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        server.should_exit = True
        await task
        return option

    assert asyncio.run(look())


def test_the_process_that_starts_workers_imports_no_server(tmp_path):
    code = "import sys; from fuxictr_mm_serving import command, workers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"uvicorn", "starlette", "onnxruntime", "prometheus_client"} & set(done.stdout.split())
