"""``fuxictr-mm-serve``: start the server."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import ipaddress
import json
import logging
import math
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from socket import AF_INET, AF_INET6, AI_PASSIVE, IPPROTO_TCP, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.hosts import check_names
from fuxictr_mm_serving.settings import Settings, read_token

logger = logging.getLogger("fuxictr_mm_serving")

#: What the server imports beyond the dependencies of fuxictr-mm, which has it as an extra.
PACKAGES = ("onnxruntime", "starlette", "uvicorn", "prometheus_client", "msgpack")

#: Options with a number, whose defaults are those of the settings: smallest and largest value, unit, and what it is.
NUMBERS: dict[str, tuple[float, float, str, str]] = {
    "threads": (1, math.inf, "N", "threads per graph"),
    "concurrency": (1, math.inf, "N", "requests that a worker scores in parallel"),
    "queue": (0, math.inf, "N", "maximum number of waiting requests, others get 503"),
    "timeout": (0.001, 86400, "S", "timeout of a request in seconds"),
    "cache_mib": (0, math.inf, "N", "cache for states of users in MiB"),
    "max_body": (1, math.inf, "BYTES", "maximum size of a body"),
    "max_candidates": (1, math.inf, "N", "maximum number of candidates per user"),
    "max_history": (0, math.inf, "N", "maximum number of items of a history"),
    "reload": (0.01, 86400, "S", "seconds between looks for a new export and changed users"),
}
RANGES: dict[str, tuple[float, float]] = {"port": (0, 65535), "workers": (1, math.inf)}
RANGES |= {name: given[:2] for name, given in NUMBERS.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the server."""
    parser.add_argument("export", metavar="DIR", help="folder written by fuxictr-mm export, or a link to one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="a name that requests may have in their Host header, beside addresses and localhost; may be repeated "
        "(default: none on this machine without a token, else any)",
    )
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    for name, (_, _, unit, text) in NUMBERS.items():
        default = getattr(Settings, name)
        option, text = f"--{name.replace('_', '-')}", f"{text} (default: {default:n})"
        parser.add_argument(option, type=type(default), default=default, metavar=unit, help=text)
    parser.add_argument(
        "--users",
        action="append",
        metavar="PATH",
        help="users that requests may refer to: Parquet file, folder of part files, or whole folder of fuxictr-mm "
        "prepare log; may be repeated, and the last row of a user counts",
    )
    parser.add_argument("--user-column", default="user_id", metavar="NAME", help="its column of ids (user_id)")
    parser.add_argument("--titles", metavar="FILE", help="Parquet file with ids and titles of items, for the page")
    parser.add_argument("--title-column", metavar="NAME", help="its column of titles (item_title or title)")
    parser.add_argument("--token-file", metavar="FILE", help="bearer token that requests must have")


def serve(args: argparse.Namespace) -> None:
    """Run the server until it is stopped.

    Raises
    ------
    ServingError
        A package is not installed; the export, or a file of users, titles or the token, cannot be read; the port is
        taken.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ServingError(f"the server needs {', '.join(missing)}: pip install 'fuxictr-mm[serving]'")
    from fuxictr_mm_serving.manifest import read_manifest
    from fuxictr_mm_serving.workers import Workers

    for name, (least, most) in RANGES.items():
        if not least <= getattr(args, name) <= most:  # also NaN
            expected = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise ServingError(f"--{name.replace('_', '-')}: is {getattr(args, name)}, expected {expected}")
    check_names(args.allow_host or ())
    names = {field.name for field in dataclasses.fields(Settings)}
    options = {name: value for name, value in vars(args).items() if name in names}
    settings = Settings(folder=args.export, token=read_token(args.token_file), **options)
    read_manifest(Path(args.export))  # takes no time: what is wrong is found before the rest is imported
    with listen(args.host, args.port) as shared:
        if args.allow_host or (settings.token is None and is_loopback(shared)):
            settings = dataclasses.replace(settings, hosts=tuple(args.allow_host or ()))
        when_ready = partial(announce, settings, shared)
        if args.workers == 1:
            run_server(settings, shared, when_ready)
            return
        log_to_stderr()
        with tempfile.TemporaryDirectory() as folder:
            workers = Workers(
                serve_in_worker,
                (settings, shared, folder),
                count=args.workers,
                grace=settings.grace + 5,
                on_serving=when_ready,
                on_end=shared.close,  # or clients would still connect, and nobody answer
            )
            workers.run()


def listen(host: str, port: int) -> socket.socket:
    """Return the socket of an address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, family=AF_INET6 if ":" in host else AF_INET, type=SOCK_STREAM, flags=AI_PASSIVE
        )[0]
        # asyncio sends each answer at once only where the protocol is named; otherwise the body would wait for the
        # client's delayed acknowledgement of the headers, 40 ms on Linux.
        shared = socket.socket(family, kind, IPPROTO_TCP)
    except OSError as error:
        raise _not_listening(host, port, error) from None
    try:
        if os.name == "posix":  # elsewhere it would take the port of another server
            shared.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        shared.bind(address)  # until requests can be answered, connections are refused
    except OSError as error:
        shared.close()
        raise _not_listening(host, port, error) from None
    return shared


class JsonLines(logging.Formatter):
    """A line of JSON for each record: its time and level, then what it says."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; the text of another package, such as uvicorn, is its ``message``."""
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        text = record.getMessage()
        said = json.loads(text) if record.name == logger.name and text[:1] == "{" else {"message": text.strip()}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps({"time": time, "level": record.levelname, **said})


def log_to_stderr() -> None:
    """Write lines of all levels from ``INFO`` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def announce(settings: Settings, shared: socket.socket) -> None:
    """Log where requests are answered, by which export, and whether a token is asked for."""
    from fuxictr_mm_serving.manifest import version_of

    host, port = shared.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    asks = settings.token is not None
    logger.info(json.dumps({"serving": address, "version": version_of(Path(settings.folder)), "token": asks}))
    if not asks and not is_loopback(shared):
        logger.warning(json.dumps({"open_to": host, "reason": "no token is required; give --token-file"}))


def is_loopback(shared: socket.socket) -> bool:
    """Return whether a socket is reached from this machine only."""
    return ipaddress.ip_address(shared.getsockname()[0].partition("%")[0]).is_loopback


def _not_listening(host: str, port: int, error: OSError) -> ServingError:
    return ServingError(f"--host {host} --port {port}: cannot be listened on ({error.strerror})")


def run_server(settings: Settings, shared: socket.socket, is_ready: Callable[[], None] = lambda: None) -> None:
    """Answer requests in this process until it is to end; calls ``is_ready`` once the export is loaded."""
    import uvicorn

    from fuxictr_mm_serving.draining import DrainingServer
    from fuxictr_mm_serving.server import make_app

    log_to_stderr()
    app = make_app(settings)
    is_ready()
    options = uvicorn.Config(
        app, access_log=False, log_config=None, log_level="warning", timeout_graceful_shutdown=settings.grace
    )
    with ended_by_signals():
        DrainingServer(options).run(sockets=[shared])


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Go on after a server that SIGTERM or Ctrl-C has ended: uvicorn raises them again when the last request is done.

    That a server is stopped is not a failure, and several workers end with the exit code 0 as well.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve_in_worker(is_ready: Callable[[], None], settings: Settings, shared: socket.socket, folder: str) -> None:
    """Answer requests as one of several processes, whose counts are in files of the folder."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read when prometheus_client is imported
    run_server(settings, shared, is_ready)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``fuxictr-mm-serve``."""
    parser = argparse.ArgumentParser("fuxictr-mm-serve", description="Serve an exported model over HTTP.")
    add_arguments(parser)
    try:
        serve(parser.parse_args(arguments))
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
