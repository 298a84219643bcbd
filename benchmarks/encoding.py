"""Rows per second and peak memory of the encoding of a CSV file, beside FuxiCTR's own, and whether the results agree.

The file has 13 numeric and 17 categorical columns, as skewed as Criteo's, with missing values. Each side runs in
processes of its own; Ray, which FuxiCTR uses, is started before the clock. Memory is the sum of the side's processes::

    python -m benchmarks.encoding --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

NUMERIC, CATEGORICAL = 13, 17


def parameters(folder: Path) -> dict[str, Any]:
    """Return the settings of the dataset."""
    numeric = [f"n{i}" for i in range(NUMERIC)]
    return {
        "dataset_id": "criteo_like",
        "data_root": str(folder),
        "data_format": "csv",
        "min_categr_count": 2,
        "train_data": str(folder / "train.csv"),
        "label_col": {"name": "label", "dtype": "float"},
        "feature_cols": [
            {"name": numeric, "active": True, "dtype": "float", "type": "numeric", "normalizer": "MinMaxScaler"},
            *({"name": f"c{i}", "active": True, "dtype": "str", "type": "categorical"} for i in range(CATEGORICAL)),
        ],
    }


def write_rows(path: Path, rows: int) -> None:
    """Write the CSV file; a categorical column has between 10 and a million values, with Zipf's frequencies."""
    import polars as pl

    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"label": rng.integers(0, 2, rows)}
    for i in range(NUMERIC):
        values = pl.Series(np.round(rng.lognormal(i % 5, 1, rows), 2))
        columns[f"n{i}"] = pl.select(pl.when(pl.Series(rng.random(rows) > 0.1)).then(values)).to_series()
    for i in range(CATEGORICAL):
        ids = rng.zipf(1.2, rows).astype(np.uint64) % np.uint64(10 ** (1 + 5 * i / (CATEGORICAL - 1)))
        texts = pl.Series(ids * np.uint64(2654435761) % np.uint64(2**32)).cast(pl.String)
        columns[f"c{i}"] = pl.select(pl.when(pl.Series(rng.random(rows) > 0.05)).then(texts)).to_series()
    pl.DataFrame(columns).write_csv(path)


def run_ours(params: dict[str, Any]) -> tuple[float, str]:
    """Encode with this library; return seconds and the encoded file."""
    from fuxictr_mm.config import ExperimentConfig
    from fuxictr_mm.encoding.prepare import encode

    started = time.perf_counter()
    config, root = ExperimentConfig.from_dict({"model": "DNN", **params}), Path(params["data_root"]) / "ours"
    changes, _ = encode(config, {"train": params["train_data"]}, {"train": True}, root)
    return time.perf_counter() - started, changes["train_data"]


def run_fuxictr(params: dict[str, Any]) -> tuple[float, str]:
    """Encode with FuxiCTR."""
    import ray
    from fuxictr.preprocess import FeatureProcessor, build_dataset

    ray.init(log_to_driver=False, include_dashboard=False)
    started = time.perf_counter()
    processor = FeatureProcessor(**params)
    train, _, _ = build_dataset(processor, **params)
    return time.perf_counter() - started, train


def measure(side: str, folder: Path) -> dict[str, Any]:
    """Run one side in a new process; return ``seconds``, ``file`` and ``peak_memory_mb``."""
    command = [sys.executable, "-m", "benchmarks.encoding", "--side", side, "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{side}: exit code {process.returncode}")
    return {**json.loads(output.splitlines()[-1]), "peak_memory_mb": peak[0] // 1024}


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Keep the largest memory of a process and its descendants, mapped files left out, in kB."""
    while process.poll() is None:
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                except OSError:
                    continue
        family = {process.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        total = 0
        for pid in family:
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
        peak[0] = max(peak[0], total)
        time.sleep(0.2)


def agree(ours: str, theirs: str) -> bool:
    """Whether both files hold the same values, numbers to six digits."""
    import polars as pl

    mine = pl.read_parquet(ours)
    reference = pl.read_parquet(theirs).select(mine.columns)
    return all(
        np.allclose(mine[name].to_numpy(), reference[name].to_numpy(), rtol=1e-6, atol=1e-6) for name in mine.columns
    )


def main() -> None:
    """Measure both sides, in alternation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--side", choices=["ours", "fuxictr"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run = {"ours": run_ours, "fuxictr": run_fuxictr}[args.side]
        seconds, file = run(parameters(args.folder))
        print(json.dumps({"seconds": seconds, "file": file}))
        return
    if args.folder is not None and not args.folder.is_dir():
        parser.error(f"--folder is {args.folder}, which is no folder; expected one for temporary files")
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        source = Path(temporary) / "train.csv"
        write_rows(source, args.rows)
        print(f"{args.rows} rows, {source.stat().st_size / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}")
        for pair in range(args.pairs):
            found = {}
            for side in ("ours", "fuxictr"):
                folder = Path(temporary) / f"{side}{pair}"
                folder.mkdir()
                (folder / "train.csv").symlink_to(source)
                found[side] = measure(side, folder)
                rate = args.rows / found[side]["seconds"]
                print(f"{side}: {found[side]['seconds']:.1f} s, {rate:.0f} rows/s, {found[side]['peak_memory_mb']} MB")
            ratio = found["fuxictr"]["seconds"] / found["ours"]["seconds"]
            same = agree(found["ours"]["file"], found["fuxictr"]["file"])
            print(f"{ratio:.1f} times as fast, results {'agree' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
