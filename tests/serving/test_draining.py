"""The end of a server: no connection is reset."""

import asyncio
import socket
import threading

import uvicorn

from fuxictr_mm_serving.command import listen
from fuxictr_mm_serving.draining import DrainingServer

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


async def started():
    """Return a server that has started, and its socket."""
    shared = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, loop="asyncio", lifespan="off", log_level="error")
    config.load()
    server = DrainingServer(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([shared])
    return server, shared


def test_connections_that_wait_are_answered():
    async def look():
        server, shared = await started()
        # Connected by the system: the loop, which would accept them, has no turn in between.
        clients = [socket.create_connection(shared.getsockname(), timeout=10) for _ in range(20)]
        for client in clients[1:]:
            client.sendall(REQUEST)
        late = threading.Timer(0.1, clients[0].sendall, [REQUEST])
        late.start()
        await server.shutdown([shared])
        return clients

    for client in asyncio.run(look()):
        with client, client.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 200")


def test_a_server_without_what_draining_needs_ends_as_uvicorn_does():
    async def look():
        server, shared = await started()
        del server.config.http_protocol_class  # as a version that has another name for it
        with socket.create_connection(shared.getsockname(), timeout=10):
            await server.shutdown([shared])
        return shared

    assert asyncio.run(look()).fileno() == -1
