"""``fuxictr-mm diagnose``: find what a trained model uses, ignores and gets wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fuxictr_mm.arguments import add_examples, add_experiment_options, add_output_options, show
from fuxictr_mm.diagnosis.diagnose import diagnose_trained, format_summary
from fuxictr_mm.diagnosis.trained import find_trained
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import check_outputs, check_replaceable, write_beside
from fuxictr_mm.runtime import is_one_of_several


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm diagnose``."""
    add_examples(
        parser,
        "fuxictr-mm diagnose --expid DIN_MM_tiny",
        "fuxictr-mm diagnose --expid DIN_MM_tiny --split test --test_data data/tiny_mm/test_labelled.parquet",
        "fuxictr-mm diagnose --expid DIN_MM_tiny --json --quiet | python -m json.tool",
    )
    add_experiment_options(parser, gpu=True)
    parser.add_argument("--run", metavar="RUN", help="a run's name or folder (default: the newest finished one)")
    parser.add_argument("--weights", metavar="RUN", help="trained weights: a run or a file (default: those of the run)")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="examples to use (default: valid)")
    parser.add_argument("--test_data", metavar="FILE", help="replaces the dataset's test_data; needs labels")
    parser.add_argument(
        "--rows", type=int, default=20_000, help="largest number of examples, sampled (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="permutations of each field (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sample and permutations (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="JSON file (default: diagnosis.json in the run's folder)")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Diagnose, write the JSON file, print the summary or the JSON."""
    from fuxictr_mm.logs import set_up_logging

    if is_one_of_several():
        raise ConfigError("diagnose runs in one process; start it without torchrun")
    for name, least in (("rows", 2), ("repeats", 1), ("seed", 0)):
        if not least <= getattr(args, name) < 2**31:
            raise ConfigError(f"--{name} is {getattr(args, name)}, expected {least} to {2**31 - 1}")
    if not args.quiet:
        set_up_logging()
    options = ("config", "run", "weights", "gpu", "data_root", "model_zoo", "test_data")
    trained = find_trained(args.expid, **{name: getattr(args, name) for name in options})
    out = Path(args.out) if args.out else trained.output
    data = trained.experiment.config.dataset
    if trained.experiment.batch_format(trained.experiment.model_class) == "flat":
        data.require_items("diagnose")
    inputs = [*data.item_files, data.train_data, data.valid_data, data.test_data, trained.weights]
    check_outputs([out], inputs, overwrite=True)
    check_replaceable(out, ["fuxictr_mm", "expid", "split", "findings"], "diagnosis")
    verbose = 0 if args.quiet else 1
    result = diagnose_trained(
        trained, split=args.split, rows=args.rows, repeats=args.repeats, seed=args.seed, verbose=verbose
    )
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_beside(out, lambda stream: stream.write(text.encode()))
    show(args, result, f"{format_summary(result)}\n\nall figures: {out}")
