"""The data and the hyper-parameters of the benchmarks: those of the WWW 2025 MM-CTR challenge."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data.synthetic.spec import PRESETS
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.errors import MissingFileError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.registry import load_model_class

MODELS: dict[str, dict[str, Any]] = {
    "DIN": {"attention_hidden_units": [512, 256], "attention_hidden_activations": "ReLU", "attention_dropout": 0.1},
    "DIN_MM": {"num_heads": 4},
    "QIN": {
        "embedding_dim": 128,
        "embedding_regularizer": 2e-4,
        "learning_rate": 2e-3,
        "num_layers": 4,
        "num_row": 4,
    },
    "Transformer_DCN": {
        "embedding_regularizer": 0,
        "learning_rate": 5e-4,
        "num_heads": 1,
        "transformer_layers": 2,
        "dim_feedforward": 256,
        "transformer_dropout": 0.2,
        "first_k_cols": 16,
        "dcn_cross_layers": 3,
        "dcn_hidden_units": [1024, 512, 256],
        "mlp_hidden_units": [64, 32],
        "net_dropout": 0.2,
        "batch_norm": False,
    },
}


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of the data that ``make_data`` makes."""
    parser.add_argument("--rows", type=int, default=200_000, help="training rows of the data made")
    parser.add_argument("--users", type=int, default=55_000, help="its users")
    parser.add_argument("--items", type=int, default=91_717, help="its items")


def make_data(rows: int, users: int, items: int) -> Path:
    """Return the folder of a dataset with the sizes of MicroLens_1M_x1, made on first use in the temp folder."""
    folder = Path(tempfile.gettempdir()) / "fuxictr_mm_benchmark" / f"rows{rows}_users{users}_items{items}"
    if not (folder / "train.parquet").is_file():
        spec = dataclasses.replace(
            PRESETS["microlens-1m"],
            users=users,
            items=items,
            train_rows=rows,
            valid_rows=max(rows // 10, 1),
            test_rows=1,
            # The unreduced embeddings are not read.
            text_dim=128,
            image_dim=128,
        )
        generate(spec, folder, progress=False)
    return folder


def parameters(model: str, folder: Path, *, batch_size: int, max_len: int, gpu: int = -1, **changes: Any) -> dict:
    """Return the parameters of an experiment with the challenge's hyper-parameters on the data of a folder."""
    info = folder / "item_info.parquet"
    if not info.is_file():
        raise MissingFileError(f"{info}: no such file; make the folder with: fuxictr-mm synth --preset microlens-1m")
    schema = pq.read_schema(info)
    column = next(name for name in schema.names if name.startswith("item_emb_d"))
    dim = schema.field(column).type.list_size
    num_items = pq.ParquetFile(info).metadata.num_rows
    columns: list[dict[str, Any]] = [
        {"name": "user_id", "dtype": "int", "type": "meta"},
        {"name": "item_seq", "dtype": "int", "type": "meta"},
        {"name": "likes_level", "dtype": "int", "type": "categorical", "vocab_size": 11},
        {"name": "views_level", "dtype": "int", "type": "categorical", "vocab_size": 11},
        {"name": "item_id", "dtype": "int", "type": "categorical", "source": "item", "vocab_size": num_items},
        {"name": "item_tags", "dtype": "int", "type": "sequence", "source": "item", "max_len": 5, "vocab_size": 11_740},
        {"name": column, "dtype": "float", "type": "embedding", "source": "item", "embedding_dim": dim},
    ]
    return {
        "model": model,
        "model_id": f"{model}_benchmark",
        "dataset_id": folder.name,
        "train_data": str(folder / "train.parquet"),
        "valid_data": str(folder / "valid.parquet"),
        "item_info": [str(info)],
        "feature_cols": columns,
        "label_col": {"name": "label", "dtype": "float"},
        "task": "binary_classification",
        "loss": "binary_crossentropy",
        "metrics": ["AUC", "logloss"],
        "monitor": "AUC",
        "model_root": str(folder / "checkpoints"),
        "verbose": 0,
        "seed": 20242025,
        "gpu": gpu,
        "threads": torch.get_num_threads(),  # those that the benchmark has set
        "batch_size": batch_size,
        "max_len": max_len,
        "resident": True,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "embedding_dim": 64,
        "embedding_regularizer": 1e-6,
        "dnn_hidden_units": [1024, 512, 256],
        "net_dropout": 0.1,
        "batch_norm": True,
        **MODELS[model],
        **changes,
    }


def experiment_of(params: dict[str, Any]) -> Experiment:
    """Return the experiment of such parameters."""
    return Experiment(ExperimentConfig.from_dict(params), load_model_class(params["model"]))
