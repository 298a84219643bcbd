"""The end of a server: clients that have connected by then are answered."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time

import uvicorn

logger = logging.getLogger("fuxictr_mm_serving")

#: Seconds in which the request of a new connection is to arrive once the server ends.
FIRST_REQUEST_SECONDS = 0.5


class DrainingServer(uvicorn.Server):
    """A server that first accepts the connections that wait, and reads their requests.

    uvicorn closes its socket at once, and connections without a request: their clients would get a reset.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, then wait for the requests of connections that are new; the rest is as in uvicorn."""
        try:
            await self._drain(sockets or [])
        except Exception as error:  # of another version of uvicorn, or of another event loop
            logger.warning(json.dumps({"not_drained": repr(error)}))
        await super().shutdown(sockets)

    async def _drain(self, sockets: list[socket.socket]) -> None:
        if os.name == "posix":
            await self._accept_waiting(sockets)
        deadline = time.monotonic() + FIRST_REQUEST_SECONDS
        while time.monotonic() < deadline and any(
            getattr(connection, "cycle", self) is None for connection in self.server_state.connections
        ):
            await asyncio.sleep(0.01)

    async def _accept_waiting(self, sockets: list[socket.socket]) -> None:
        loop, config = asyncio.get_running_loop(), self.config
        for shared in sockets:
            loop.remove_reader(shared)
        await asyncio.sleep(0.01)  # asyncio drops what it has accepted but not begun when the server is closed
        accepted = []
        for server, shared in zip(self.servers, sockets, strict=True):
            try:
                while True:
                    accepted.append(shared.accept()[0])
            except OSError:  # none waits any more
                pass
            server.close()
            shared.close()
        for connection in accepted:
            connection.setblocking(False)
            await loop.connect_accepted_socket(
                lambda: config.http_protocol_class(  # type: ignore[call-arg]
                    config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
                ),
                connection,
            )
