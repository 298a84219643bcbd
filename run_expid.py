"""Train and evaluate one experiment: ``python run_expid.py --expid DIN_MM_tiny``."""

import os

from fuxictr_mm.cli import Parser, add_debug, add_examples, run_main


def main() -> None:
    """Parse the command line and run the experiment."""
    parser = Parser(description="Train and evaluate one experiment.")
    add_examples(
        parser,
        "python run_expid.py --expid DIN_MM_tiny",
        "python run_expid.py --expid DIN_MM_MicroLens --gpu 0 --seed 7 --data_root /data",
        "torchrun --nproc-per-node 2 run_expid.py --expid DIN_MM_tiny",
    )
    parser.add_argument("--config", default=None, metavar="DIR", help="folder of model_config.yaml (default: this one)")
    parser.add_argument("--expid", required=True, help="experiment id in model_config.yaml")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--data_root", metavar="DIR", help="take the place of the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--seed", type=int, help="take the place of the experiment's seed")
    parser.add_argument("--resume", action="store_true", help="go on where a killed run of this experiment stood")
    add_debug(parser)
    args = parser.parse_args()

    from fuxictr_mm import experiment

    experiment.set_up_logging()
    config = experiment.find_config(args.config, os.path.dirname(os.path.abspath(__file__)))
    overrides = {} if args.seed is None else {"seed": args.seed}
    params, model_class = experiment.read_params(
        config, args.expid, gpu=args.gpu, data_root=args.data_root, model_zoo=args.model_zoo, overrides=overrides
    )
    experiment.run_experiment(params, model_class, experiment.results_csv_path(config), args.resume)


if __name__ == "__main__":
    run_main(main)
