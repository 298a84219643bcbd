"""Grid search: ``python run_param_tuner.py --config tuner.yaml --gpu 0 1``."""

import argparse
from pathlib import Path

from fuxictr_mm.cli import add_debug, run_main


def main() -> None:
    """Parse the command line, run the trials, print the table of results."""
    parser = argparse.ArgumentParser(
        description="Run a grid of experiments: the YAML names a base_expid and a tuner_space of lists of values."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="tuner file")
    parser.add_argument("--tag", help="run only the experiment ids that contain this, e.g. 001")
    parser.add_argument(
        "--gpu",
        type=int,
        nargs="+",
        default=[-1],
        metavar="N",
        help="a worker for each; -1 is the CPU, may be repeated",
    )
    parser.add_argument("--data_root", type=Path, metavar="DIR", help="take the place of the dataset's data_root")
    parser.add_argument("--model_zoo", type=Path, metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--script", type=Path, default=Path(__file__).with_name("run_expid.py"), help=argparse.SUPPRESS)
    add_debug(parser)
    args = parser.parse_args()

    from fuxictr_mm import tuning

    folder = tuning.enumerate_trials(args.config, args.model_zoo)
    results = tuning.run_grid(
        folder, args.gpu, args.tag, args.script, data_root=args.data_root, model_zoo=args.model_zoo
    )
    tuning.report(results, folder, args.tag)


if __name__ == "__main__":
    run_main(main)
