"""Every strategy of text and image embeddings on one dataset, with several seeds.

python -m benchmarks.embedding_strategies --dataset_id tiny_mm --seeds 3

Table 1 of "Feature Fusion Revisited" (Zhou, WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2504.18961) and its
future work. Embeddings and codes are computed from the raw embeddings of the dataset's item files; DIN_MM with the
settings of one experiment runs on each. Finished runs are not repeated: after a kill, the same command resumes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.seeds import mean_and_deviation
from benchmarks.strategy_files import Settings, StrategyFiles, find_source
from fuxictr_mm.arguments import add_debug, run_main
from fuxictr_mm.config import list_datasets, list_experiments, load_config
from fuxictr_mm.errors import ConfigError, nearest
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.files import write_beside, write_json

#: Strategies, and the input of the model besides ids and tags.
STRATEGIES = {
    "none": "no embeddings",
    "V1": "PCA(text)",
    "V2": "PCA(image)",
    "V3": "PCA(text, image)",
    "V4": "PCA(text) + PCA(image), on one scale",
    "V4_plain": "PCA(text) + PCA(image), at their own scales",
    "RQ": "residual codes of text and of image",
    "PQ": "product codes of text and of image",
    "VQ": "nearest centroid and nearest items, by text and by image",
    "aligned": "embeddings trained on Swing neighbours",
}

#: Validation AUC on MicroLens_1M_x1 as published in Table 1 of the paper; not measured here.
PAPER = {"V1": 0.9247, "V2": 0.9231, "V3": 0.9124, "V4": 0.9306}

MODEL = "DIN_MM"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Make what is missing, train what is missing, print and write the table; return what was written as JSON."""
    args = _parse(arguments)
    logging.basicConfig(level=logging.WARNING)
    expid = _base_experiment(args.config, args.dataset_id, args.expid)
    config = load_config(args.config, expid, data_root=args.data_root)
    item_files = config["item_info"] if isinstance(config["item_info"], list) else [config["item_info"]]
    fields = _fields(config)
    sources = [
        find_source("text", "txt_emb_", item_files, args.text),
        find_source("image", "img_emb_", item_files, args.image),
    ]
    settings = Settings.for_items(sources, dim=args.dim, levels=args.levels, codes=args.codes, neighbors=args.neighbors)
    out = Path(args.out or f"embeddings/{args.dataset_id}")
    files = StrategyFiles(out, sources, config["train_data"], settings)
    described = ", ".join(f"{source.name} {source.column} (dim {source.dim})" for source in sources)
    print(f"{MODEL} as in {expid} on {args.dataset_id}: {', '.join(fields)}, and of {described}")
    print(f"{settings}; files and runs in {files.folder}\n", _HEADER, sep="\n", flush=True)
    rows = []
    for strategy in args.strategies:
        item_file, columns = files.make(strategy)
        changes: dict[str, Any] = {
            # A column is read from the first file that has it.
            "item_info": [*([str(item_file)] if item_file else []), *item_files],
            "feature_cols": [*_others(config["feature_cols"], columns), *columns],
            "use_features": [*fields, *(column["name"] for column in columns)],
            "model_root": str(files.folder / "runs"),
            "metrics": ["AUC"],
            "monitor": "AUC",
            "monitor_mode": "max",
            "tensorboard": False,
            "verbose": 0,
            **({"epochs": args.epochs} if args.epochs else {}),
            **({"test_data": args.test_data} if args.test_data else {}),
        }
        results = []
        for seed in range(1, args.seeds + 1):
            experiment = Experiment.load(expid, args.config, gpu=args.gpu, data_root=args.data_root, **changes)
            named = experiment.with_settings(seed=seed, model_id=f"{expid}_{strategy}_seed{seed}")
            results.append(named.fit(resume=True))
        rows.append(
            {
                "strategy": strategy,
                "what": STRATEGIES[strategy],
                "features": changes["use_features"],
                "valid_auc": [result.valid["AUC"] for result in results],
                "test_auc": [result.test["AUC"] for result in results if result.test],
                "seconds": [result.seconds for result in results],
                "paper_valid_auc": PAPER.get(strategy),
            }
        )
        print(_row(rows[-1]), flush=True)
    report = {
        "dataset_id": args.dataset_id,
        "expid": expid,
        "seeds": list(range(1, args.seeds + 1)),
        "test_data": args.test_data or config.get("test_data"),
        "inputs": files.inputs,
        "rows": rows,
    }
    _write(report, out)
    return report


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedding_strategies", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--dataset_id", required=True, metavar="D")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 1 to N (default 3)")
    parser.add_argument("--config", default=".", metavar="DIR", help="folder of the configuration (default .)")
    parser.add_argument(
        "--expid", help=f"experiment whose settings are used (default: the first {MODEL} of the dataset)"
    )
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), metavar="S", help=", ".join(STRATEGIES))
    parser.add_argument("--out", metavar="DIR", help="files, runs and tables (default: embeddings/D)")
    parser.add_argument("--text", metavar="COLUMN", help="raw text embeddings (default: txt_emb_* of largest dim)")
    parser.add_argument("--image", metavar="COLUMN", help="raw image embeddings (default: img_emb_* of largest dim)")
    parser.add_argument("--dim", type=int, help="dim of V1 to V4 and aligned (default: 128, or half the raw dim)")
    parser.add_argument("--levels", type=int, help="of RQ and PQ (default 4)")
    parser.add_argument("--codes", type=int, help="per level (default: 256, or a power of two below sqrt(items))")
    parser.add_argument("--neighbors", type=int, help="nearest items besides VQ's code (default 10)")
    parser.add_argument("--epochs", type=int, help="other than the experiment's")
    parser.add_argument("--test_data", metavar="FILE", help="a test split with labels, where the dataset's has none")
    parser.add_argument("--data_root", metavar="DIR", help="another folder of the data")
    parser.add_argument("--gpu", type=int, default=-1)
    add_debug(parser)
    args = parser.parse_args(arguments)
    for strategy in args.strategies:
        if strategy not in STRATEGIES:
            raise ConfigError(
                f"--strategies {strategy}, expected some of {', '.join(STRATEGIES)}{nearest(strategy, STRATEGIES)}"
            )
    if args.seeds < 1:
        raise ConfigError(f"--seeds {args.seeds}, expected 1 or more")
    return args


def _base_experiment(config_dir: str, dataset_id: str, expid: str | None) -> str:
    datasets, experiments = list_datasets(config_dir), list_experiments(config_dir)
    if dataset_id not in datasets:
        raise ConfigError(
            f"{config_dir}: no dataset id '{dataset_id}'{nearest(dataset_id, datasets)} "
            f"(there are: {', '.join(datasets)})"
        )
    if expid is not None:
        found = load_config(config_dir, expid)
        if found["model"] != MODEL or found["dataset_id"] != dataset_id:
            raise ConfigError(
                f"--expid {expid} is {found['model']} on {found['dataset_id']}, expected {MODEL} on {dataset_id}"
            )
        return expid
    for name, entry in experiments.items():
        if entry.get("model") == MODEL:
            on = entry.get("dataset_id") or load_config(config_dir, name)["dataset_id"]  # that of Base
            if on == dataset_id:
                return name
    raise ConfigError(
        f"{config_dir}: no experiment with model {MODEL} on {dataset_id}; add one to model_config.yaml, whose settings "
        "then hold for all strategies"
    )


def _names(column: dict[str, Any]) -> list[str]:
    return column["name"] if isinstance(column["name"], list) else [column["name"]]


def _fields(config: dict[str, Any]) -> list[str]:
    """Return the experiment's features without its embeddings."""
    kinds = {name: column["type"] for column in config["feature_cols"] for name in _names(column)}
    active = [name for column in config["feature_cols"] if column.get("active", True) for name in _names(column)]
    return [n for n in config["use_features"] or active if kinds.get(n) not in ("embedding", "meta")]


def _others(feature_cols: list[dict[str, Any]], columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the dataset's own columns with names that are added."""
    new = {column["name"] for column in columns}
    kept = [{**column, "name": [n for n in _names(column) if n not in new]} for column in feature_cols]
    return [column for column in kept if column["name"]]


_HEADER = (
    "| strategy | input besides ids and tags | valid AUC | test AUC | seconds a run "
    "| paper (theirs), MicroLens_1M_x1 |\n" + "| --- " * 6 + "|"
)


def _row(row: dict[str, Any]) -> str:
    paper = f"{row['paper_valid_auc']:.4f}" if row["paper_valid_auc"] else ""
    seconds = f"{statistics.mean(row['seconds']):.0f}"
    aucs = [mean_and_deviation(row[name]) for name in ("valid_auc", "test_auc")]
    cells = [row["strategy"], row["what"], *aucs, seconds, paper]
    return f"| {' | '.join(cells)} |"


def _write(report: dict[str, Any], folder: Path) -> None:
    table = "\n".join([_HEADER, *(_row(row) for row in report["rows"])]) + "\n"
    write_beside(folder / "strategies.md", lambda stream: stream.write(table.encode()))
    write_json(folder / "strategies.json", report)
    print(f"\nwrote {folder / 'strategies.md'} and {folder / 'strategies.json'}")


if __name__ == "__main__":
    run_main(main)
