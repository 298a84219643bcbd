"""Train and evaluate one experiment: ``python run_expid.py --expid DIN_MM_tiny``."""

from pathlib import Path

from fuxictr_mm.arguments import Parser, add_debug, add_examples, run_main


def main() -> None:
    """Parse the command line and train the experiment."""
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
    parser.add_argument("--data_root", metavar="DIR", help="replaces the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--seed", type=int, help="replaces the experiment's seed")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run of this experiment")
    add_debug(parser)
    args = parser.parse_args()

    from fuxictr_mm.experiment import Experiment, find_config, results_csv_path
    from fuxictr_mm.logs import set_up_logging

    set_up_logging()
    config = find_config(args.config, Path(__file__).resolve().parent)
    settings = {} if args.seed is None else {"seed": args.seed}
    experiment = Experiment.load(
        args.expid, config, gpu=args.gpu, data_root=args.data_root, model_zoo=args.model_zoo, **settings
    )
    experiment.fit(resume=args.resume, results_csv=results_csv_path(config))


if __name__ == "__main__":
    run_main(main)
