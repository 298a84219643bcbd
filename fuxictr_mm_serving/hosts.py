"""The Host header: which names a request may have called this server by.

A web page of another site cannot read this server, unless its own name leads here (DNS rebinding): a browser takes
both for one site. The header then has the name of the page. An address cannot be made to lead elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from fuxictr_mm_serving.errors import ServingError


def is_expected(header: str, names: Collection[str]) -> bool:
    """Return whether a Host header holds an address, ``localhost``, or one of some names; a port may follow.

    Examples
    --------
    >>> [is_expected(host, ()) for host in ("localhost:8000", "10.0.0.7", "[::1]:8000", "", "rebound.example:8000")]
    [True, True, True, True, False]
    >>> is_expected("Models.example.", ["models.example"])
    True
    """
    host = header.strip().lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].rstrip(".")
    if not host or name == "localhost" or name in {one.lower().rstrip(".") for one in names}:
        return True  # HTTP/1.0 needs no header, and no browser speaks it
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_names(names: Collection[str]) -> None:
    """Refuse names that no Host header matches: with a port, a scheme or a wildcard.

    Raises
    ------
    ServingError
        One of them is no name of a host.
    """
    for name in names:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", name):
            raise ServingError(f"--allow-host: is '{name}', expected a name without port, scheme or wildcard")
