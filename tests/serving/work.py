"""What workers do in tests, apart from what takes time to import: each start of a process imports it."""

import os
import signal
import time
from pathlib import Path

from fuxictr_mm_serving.errors import ServingError


def write(tell, folder, fails=0):
    """Serve, but for the first starts, which are killed; SIGTERM is written down."""
    starts = Path(folder, "starts")
    with starts.open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    if len(starts.read_text().split()) <= fails:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: (Path(folder, "terminated").touch(), os._exit(0)))
    tell()
    time.sleep(60)


def refuse(tell, folder):
    with Path(folder, "starts").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    raise ServingError("no\nexport")


def ignore(tell):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell()
    time.sleep(60)
