"""HTTP connections of several workers."""

from __future__ import annotations

import asyncio
import socket
from asyncio.trsock import TransportSocket
from typing import TYPE_CHECKING

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    Base = asyncio.Protocol
else:
    Base = AutoHTTPProtocol


class NoDelayProtocol(Base):
    """Sends each answer at once.

    asyncio does so only for sockets whose protocol number is TCP's, and that which uvicorn shares among workers has 0:
    the body of an answer would wait for the client's delayed acknowledgement of its headers, 40 ms on Linux.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Turn off Nagle's algorithm."""
        found = transport.get_extra_info("socket")
        if isinstance(found, TransportSocket):  # uvloop turns it off itself
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
