"""Seconds and peak memory from a dataset's files to the first batch of training, in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.dataset import parameters


def measure_files(side: str, model: str, folder: Path, batch_size: int, max_len: int, threads: int) -> dict[str, Any]:
    """Read the files in a new process and return ``rows``, ``seconds`` and ``peak_memory_mb``."""
    command = [sys.executable, "-m", "benchmarks.files", side, model, str(folder)]
    command += [str(batch_size), str(max_len), str(threads)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def read_ours(params: dict[str, Any]) -> int:
    """Read training and validation data, take one shuffled batch; return the training rows."""
    from fuxictr_mm.config import ExperimentConfig
    from fuxictr_mm.data.dataset import read_dataset
    from fuxictr_mm.data.loaders import InMemoryLoader

    splits = read_dataset(ExperimentConfig.from_dict(params), {"train": True, "valid": True}).splits
    next(iter(InMemoryLoader(splits["train"], params["batch_size"], shuffle=True)))
    return len(splits["train"])


def read_reference(params: dict[str, Any]) -> int:
    """Do the same the padded way."""
    from benchmarks.reference import RowDataset, padded_loader

    train = padded_loader(params, shuffle=True)
    valid = RowDataset(params["valid_data"])
    assert len(valid)
    next(iter(train))
    return len(train.dataset)


def main() -> None:
    """Run in the new process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["ours", "reference"])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    for name in ("batch_size", "max_len", "threads"):
        parser.add_argument(name, type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    params = parameters(args.model, args.folder, batch_size=args.batch_size, max_len=args.max_len)
    read = {"ours": read_ours, "reference": read_reference}[args.side]
    started = time.perf_counter()
    rows = read(params)
    seconds = time.perf_counter() - started
    print(json.dumps({"rows": rows, "seconds": seconds, "peak_memory_mb": memory.peak("cpu") / 1e6}))


if __name__ == "__main__":
    main()
