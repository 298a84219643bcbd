"""Parameters and training speed of every model of the zoo at the size of the challenge.

    python -m benchmarks.model_table --data_root DIR

DIR holds the challenge's files as dataset_config.yaml names them (MicroLens_1M_x1/train.parquet, item_emb.parquet ...),
the real ones or those of ``fuxictr-mm synth --preset microlens-1m``. Each model is built with the settings of its
experiment id NAME_MicroLens; no figure depends on the values in the rows. Samples are counted per second of CPU time
of all threads: with one thread, that is per second on an otherwise idle machine, and a busy one disturbs it little.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fuxictr_mm.arguments import run_main
from fuxictr_mm.config import list_experiments
from fuxictr_mm.errors import ConfigError


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_table", description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--config", default=".", metavar="DIR", help="folder of model_config.yaml")
    option("--data_root", metavar="DIR", help="folder of the data")
    option("--expid", nargs="+", help="experiments (default: NAME_MicroLens of every model that has one)")
    option(
        "--skip", nargs="*", default=["Transformer_DCN_Quant_MicroLens"], help="left out (default: what needs 70 GB)"
    )
    option("--batch_size", type=int, default=2048, help="rows per batch")
    option("--steps", type=int, default=3, help="training steps per block")
    option("--repeats", type=int, default=3, help="blocks, of which the median counts")
    option("--threads", type=int, default=1, help="threads of torch")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row per model."""
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    print(
        "| experiment | parameters | of them embeddings | samples per CPU second |",
        "| --- | --- | --- | --- |",
        sep="\n",
    )
    for expid in args.expid or [e for e in default_experiments(args.config) if e not in args.skip]:
        with tempfile.TemporaryDirectory() as root:
            overrides = {"batch_size": args.batch_size, "threads": args.threads, "model_root": root, "verbose": 0}
            total, embeddings, speed = measure(args, expid, overrides)
        print(f"| {expid} | {in_millions(total)} | {in_millions(embeddings)} | {speed:,.0f} |", flush=True)
        gc.collect()


def default_experiments(config: str) -> list[str]:
    """Return NAME_MicroLens of every model that has one, in the order of the file."""
    experiments = list_experiments(config)
    return [expid for expid, settings in experiments.items() if expid == f"{settings.get('model')}_MicroLens"]


def measure(args: argparse.Namespace, expid: str, overrides: dict[str, Any]) -> tuple[int, int, float]:
    """Return parameters, those of embeddings, and training samples per CPU second of one experiment."""
    from fuxictr_mm.experiment import Experiment

    experiment = Experiment.load(expid, args.config, data_root=args.data_root, **overrides)
    dataset = experiment.load_dataset({"train": True})
    torch.manual_seed(experiment.config.seed)
    model = experiment.build_model(dataset)
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    embeddings = sum(p.numel() for p in model.embedding_layer.parameters() if p.requires_grad)
    batches = full_batches(experiment.make_loader(dataset.splits["train"], model, shuffle=True), args.batch_size)
    model.train()
    model.train_step(next(batches))
    speeds = []
    for _ in range(args.repeats):
        started = time.process_time()
        for _ in range(args.steps):
            loss = model.train_step(next(batches))
        float(loss)
        speeds.append(args.steps * args.batch_size / (time.process_time() - started))
    return total, embeddings, statistics.median(speeds)


def full_batches(loader: Any, batch_size: int) -> Iterator[Any]:
    """Yield batches without end, none of them smaller than the others."""
    while True:
        found = False
        for batch in loader:
            if len(batch) == batch_size:
                found = True
                yield batch
        if not found:
            raise ConfigError(f"the training file has fewer than {batch_size} rows; give a smaller --batch_size")


def in_millions(count: int) -> str:
    """Return a count in millions.

    Examples
    --------
    >>> in_millions(268_123_456), in_millions(1_234_567)
    ('268 M', '1.23 M')
    """
    return f"{count / 1e6:.3g} M"


if __name__ == "__main__":
    run_main(main)
