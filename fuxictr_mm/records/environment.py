"""Where and with what a run was made."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from fuxictr_mm import __version__
from fuxictr_mm.device import device_of
from fuxictr_mm.training import distributed


def environment(gpu: int, started_at: datetime) -> dict[str, Any]:
    """Return versions, device, commit of the working directory and command of this run.

    Parameters
    ----------
    gpu : int
        As in the configuration, -1 for the CPU.
    started_at : datetime
        When the run began.
    """
    device = device_of(gpu)
    return {
        "fuxictr_mm": __version__,
        "fuxictr": _version("fuxictr"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        **commit(),
        "command": sys.argv,
        "started_at": started_at.isoformat(timespec="seconds"),
    }


def commit() -> dict[str, Any]:
    """Return the git commit of the working directory, and whether files differ from it; None where there is no git."""
    head = _git("rev-parse", "HEAD")
    status = None if head is None else _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no repository, or one too large to look through in passing
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
