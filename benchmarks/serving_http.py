"""Load of the server of an export on this machine: ``python -m benchmarks.serving_http DIR``.

Clients that each wait for their answer find the largest number of requests per second; then requests start at half of
that rate, whether or not earlier ones are answered, and their times are shown. Clients and server share the cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Queue

import numpy as np


def main() -> None:
    """Start the server, measure, print a line for each load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", metavar="DIR")
    parser.add_argument("--seconds", type=float, default=20, help="of each load (20)")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--history", type=int, default=100)
    parser.add_argument("--users", type=int, default=200, help="distinct histories (200)")
    parser.add_argument("--context", type=json.loads, default={"likes_level": 3, "views_level": 2}, metavar="JSON")
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    bodies = [
        json.dumps(
            {
                "context": args.context,
                "history": generator.integers(1, 1001, args.history).tolist(),
                "candidates": generator.integers(1, 1001, args.candidates).tolist(),
            }
        ).encode()
        for _ in range(args.users)
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fuxictr_mm_serving", args.export, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until_ready(port)
            closed = load(port, bodies, args.clients, args.seconds, 0)
            show("waiting clients", closed, args.seconds)
            rate = len(closed) / args.seconds / 2
            show("half of that rate", load(port, bodies, 4 * args.clients, args.seconds, rate), args.seconds)
        finally:
            server.terminate()


def wait_until_ready(port: int) -> None:
    """Return when the server answers."""
    for _ in range(300):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not answer")


def load(port: int, bodies: list[bytes], clients: int, seconds: float, rate: float) -> list[tuple[int, float]]:
    """Return status and seconds of each request; at a ``rate``, counted from when it was due, otherwise one by one."""
    found: list[tuple[int, float]] = []
    due: Queue[tuple[int, float] | None] = Queue()
    end = time.monotonic() + seconds

    def work(next_request: Callable[[], tuple[int, float] | None]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while (request := next_request()) is not None:
            number, started = request
            try:
                connection.request("POST", "/score", bodies[number % len(bodies)])
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except OSError:
                status = 0
                connection.close()
            found.append((status, time.monotonic() - started))

    def at_once(counter: list[int]) -> tuple[int, float] | None:
        counter[0] += 1
        now = time.monotonic()
        return (counter[0], now) if now < end else None

    sources = [due.get if rate else partial(at_once, [1000 * i]) for i in range(clients)]
    threads = [threading.Thread(target=work, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    if rate:
        started = time.monotonic()
        for number in range(int(rate * seconds)):
            time.sleep(max(started + number / rate - time.monotonic(), 0))
            due.put((number, started + number / rate))
        for _ in threads:
            due.put(None)
    for thread in threads:
        thread.join()
    return found


def show(name: str, found: list[tuple[int, float]], seconds: float) -> None:
    """Print a line."""
    times = 1e3 * np.array([time for _, time in found])
    errors = sum(status != 200 for status, _ in found)
    p50, p99 = np.percentile(times, [50, 99])
    print(f"{name:18} {len(found) / seconds:7.1f} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, errors {errors}")


if __name__ == "__main__":
    main()
