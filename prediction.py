"""Score the test file and write a submission: ``python prediction.py --expid DIN_MM_tiny``."""

from pathlib import Path

from fuxictr_mm.arguments import Parser, add_debug, add_examples, run_main


def main() -> None:
    """Parse the command line, score, write ``submission/EXPID.zip``."""
    parser = Parser(description="Score the test file of a trained experiment and write a submission.")
    add_examples(
        parser,
        "python prediction.py --expid DIN_MM_tiny",
        "python prediction.py --expid DIN_MM_MicroLens --gpu 0 --task 'Task1&2'",
        "python prediction.py --expid DIN_MM_tiny --weights DIN_MM_tiny_hub --out other_folder",
    )
    parser.add_argument("--config", default=None, metavar="DIR", help="folder of model_config.yaml (default: this one)")
    parser.add_argument("--expid", required=True, help="experiment id in model_config.yaml")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--task", default="Task2", choices=("Task1", "Task2", "Task1&2"), help="column of the scores")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights other than the experiment's own: "
        "a state dict, a .safetensors file, or a folder by fuxictr-mm export-hub",
    )
    parser.add_argument("--data_root", metavar="DIR", help="replaces the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--out", type=Path, default=Path("submission"), metavar="DIR", help="folder to write to")
    add_debug(parser)
    args = parser.parse_args()

    from fuxictr_mm.data.parquet import count_rows
    from fuxictr_mm.experiment import Experiment, find_config
    from fuxictr_mm.logs import set_up_logging
    from fuxictr_mm.runtime import is_main
    from fuxictr_mm.submission import write_submission

    set_up_logging()
    config = find_config(args.config, Path(__file__).resolve().parent)
    experiment = Experiment.load(args.expid, config, gpu=args.gpu, data_root=args.data_root, model_zoo=args.model_zoo)
    scores = experiment.predict(weights=args.weights)
    if is_main():
        rows = count_rows(experiment.config.dataset.test_data)
        written = write_submission(args.out / f"{args.expid}.zip", scores, task=args.task, expected_rows=rows)
        print(f"{written}: {len(scores)} rows, column {args.task}")


if __name__ == "__main__":
    run_main(main)
