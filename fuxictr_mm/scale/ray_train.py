"""Train an experiment on a Ray cluster: ``python -m fuxictr_mm.scale.ray_train --expid X --workers 2``.

Ray starts the processes, and starts them again when one is lost; what they do is what they do under torchrun.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fuxictr_mm.arguments import Parser, add_debug, add_examples, add_experiment_options, run_main
from fuxictr_mm.errors import UserError
from fuxictr_mm.files import StrPath


def train_on_ray(
    expid: str, config: StrPath = ".", workers: int = 2, *, gpus: bool = False, max_failures: int = 3, **options: Any
) -> dict[str, dict[str, float]]:
    """Train an experiment with processes of Ray, and return its metrics by split, as ``Run.metrics``.

    An interrupted run of the experiment is resumed. The cluster is the one that ``RAY_ADDRESS`` names or
    ``ray.init`` has joined, else a local one.

    Parameters
    ----------
    expid : str
        Experiment id.
    config : path
        Folder of ``model_config.yaml`` and ``dataset_config.yaml``. It, the data and ``model_root`` must be on disks
        that all workers see, under the same paths.
    workers : int
        Number of processes.
    gpus : bool
        Whether each has a GPU.
    max_failures : int
        How often a lost worker is replaced; the run then resumes.
    **options
        Further ones of ``Experiment.load``.

    Raises
    ------
    UserError
        The configuration is wrong; a worker has failed too often.
    """
    from fuxictr_mm.experiment import Experiment

    config = str(Path(config).absolute())
    experiment = Experiment.load(expid, config, **options)  # errors are shown here, not by a worker
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    settings = {"expid": expid, "config": config, "folder": os.getcwd(), "gpu": 0 if gpus else -1, "options": options}
    trainer = TorchTrainer(
        _train,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(
            name=expid,
            storage_path=str(experiment.paths.model_root.absolute() / "ray"),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # of a worker, wrapped by Ray
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{expid}: a worker of Ray has failed ({reason[-1]}); its log has the reason") from error
    run = experiment.finished.newest()
    if run is None:
        raise UserError(
            f"{experiment.paths.result}: not written; set model_root to a folder on a disk that all workers share"
        )
    return run.metrics


def _train(settings: dict[str, Any]) -> None:
    """Train in a worker, which has joined the others already."""
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.logs import set_up_logging

    os.chdir(settings["folder"])  # relative paths are those of the command
    set_up_logging()
    experiment = Experiment.load(settings["expid"], settings["config"], gpu=settings["gpu"], **settings["options"])
    experiment.fit(resume=True, progress=False)


def main() -> None:
    """Parse the command line, train, print the metrics."""
    parser = Parser(prog="python -m fuxictr_mm.scale.ray_train", description="Train an experiment on a Ray cluster.")
    add_examples(parser, "python -m fuxictr_mm.scale.ray_train --expid DIN_MM_tiny --workers 2")
    add_experiment_options(parser)
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="number of processes (default: 2)")
    parser.add_argument("--gpus", action="store_true", help="give each process a GPU")
    parser.add_argument(
        "--max-failures",
        type=int,
        default=3,
        metavar="N",
        help="maximum number of restarts of a lost process (default: 3)",
    )
    add_debug(parser)
    args = parser.parse_args()
    options = {k: v for k in ("data_root", "model_zoo") if (v := getattr(args, k)) is not None}
    metrics = train_on_ray(
        args.expid, args.config, args.workers, gpus=args.gpus, max_failures=args.max_failures, **options
    )
    for split, values in metrics.items():
        print(f"{split}: " + " - ".join(f"{name}: {value:.6f}" for name, value in values.items()))


if __name__ == "__main__":
    run_main(main)
