"""The settings of the server, free of what takes time to import: the process that starts workers needs no more."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fuxictr_mm_serving.errors import ServingError


@dataclass(frozen=True)
class Settings:
    """What the command line says, for every worker."""

    folder: str  #: The export.
    users: str | Sequence[str] | None = None  #: Parquet files of users, or folders of them.
    titles: str | None = None  #: A Parquet file of titles.
    user_column: str = "user_id"  #: Column of ids in ``users``.
    title_column: str | None = None  #: Column of titles; by default ``item_title`` or ``title``.
    threads: int = 1  #: Threads of a graph.
    cache_mib: int = 256  #: Size of the cache of user states.
    #: Requests that are scored at a time, and that may wait; a further one gets 503.
    concurrency: int = 2
    queue: int = 64
    timeout: float = 10.0  #: Seconds until a request is given up, 504, and for its body to arrive, 408.
    max_body: int = 4 * 2**20  #: Bytes.
    max_candidates: int = 500  #: Of a user.
    max_history: int = 10000
    max_users: int = 64  #: Of a ``/score_batch``.
    reload: float = 2.0  #: Seconds between looks for another export, and for changed files of users.
    #: The bearer token that requests must have, except to ``/health``, ``/ready`` and the pages, which hold no data.
    token: str | None = None
    #: Names that the Host header of a request may have, beside addresses and ``localhost``; None for any.
    hosts: tuple[str, ...] | None = None

    @property
    def grace(self) -> int:
        """Seconds for requests under way to end, when the server is to end: a client that reads nothing never does."""
        return math.ceil(self.timeout) + 1


def read_token(path: str | None) -> str | None:
    """Return the bearer token: of a file, else of the variable ``FUXICTR_MM_TOKEN``, None where it is not set.

    Raises
    ------
    ServingError
        The file cannot be read; the token is empty.
    """
    variable = "FUXICTR_MM_TOKEN"
    try:
        token = os.environ.get(variable) if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"{path}: cannot be read as a token ({error})") from None
    if token is not None and not token.strip():  # of a secret that is missing: the server would be open to all
        raise ServingError(f"{path or variable}: is empty, expected a token")
    return token and token.strip()
