"""What tests of the server share."""

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from fuxictr_mm_serving import Export
from tests.paths import ROOT, TINY

ROWS = str(TINY / "test.parquet")
TITLES = str(TINY / "item_feature.parquet")
REQUEST = {"context": {"likes_level": 3, "views_level": 2}, "history": [5, 6, 7], "candidates": [8, 9, 10]}


def rows_of(exported, request):
    count = len(request["candidates"])
    columns = {name: [value] * count for name, value in request["context"].items()}
    columns |= {"item_id": request["candidates"], "item_seq": [request["history"]] * count}
    return Export(exported).score_rows(columns)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server process."""

    def __init__(self, folder, *options):
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, "-m", "fuxictr_mm_serving", str(folder), "--port", str(port), *options]
        # A pipe that nobody reads would stop the server.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self.log)
        for _ in range(300):
            time.sleep(0.1)
            try:
                self.get("/ready")
                return
            except OSError:
                assert self.process.poll() is None
        raise AssertionError("not ready")

    def get(self, path):
        return json.loads(self.read(path))

    def read(self, path):
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return answer.read()

    def score(self, request=REQUEST):
        data = json.dumps(request).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + "/score", data), timeout=10) as answer:
            return json.load(answer)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
        self.log.close()
