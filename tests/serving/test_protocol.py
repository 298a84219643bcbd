"""Connections that workers share answer at once."""

import asyncio
import os
import socket

import uvicorn

from fuxictr_mm_serving import command
from fuxictr_mm_serving.protocol import NoDelayProtocol


async def no_app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def test_an_answer_does_not_wait_for_an_acknowledgement():
    async def look():
        shared = socket.socket()  # as uvicorn makes it for several workers, with protocol number 0
        shared.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(no_app, http=NoDelayProtocol, lifespan="off", log_level="error"))
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


def test_workers_use_it(exported, monkeypatch):
    given = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: given.update(options))
    command.main([str(exported), "--workers", "2"])
    assert (given["workers"], given["http"]) == (2, NoDelayProtocol)
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ  # its folder is gone
