"""A planted world with two labels, which follow two properties of the items; cells of the second are missing."""

from pathlib import Path

import numpy as np
import polars as pl

from tests.projects import write_project

LABELS = [{"name": "click", "dtype": "float"}, {"name": "like", "dtype": "float"}]
ITEMS = 40

#: What FuxiCTR's users derive from its MultiTaskModel.
MULTI_TASK = """
import torch
from torch import nn
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import MultiTaskModel


class Towers(MultiTaskModel):
    def __init__(self, feature_map, task=["binary_classification"], num_tasks=1, model_id="Towers", gpu=-1,
                 learning_rate=1e-3, embedding_dim=8, **kwargs):
        super().__init__(feature_map, task=task, num_tasks=num_tasks, model_id=model_id, gpu=gpu, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        dim = feature_map.sum_emb_out_dim()
        self.towers = nn.ModuleList(
            [MLP_Block(input_dim=dim, hidden_units=[8], output_dim=1, output_activation=None) for _ in range(num_tasks)]
        )
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        return {
            f"{label}_pred": self.output_activation[i](self.towers[i](x))
            for i, label in enumerate(self.feature_map.labels)
        }
"""


def rows_of(n: int, seed: int, missing: float) -> pl.DataFrame:
    """Return interactions; the properties of the items do not depend on the seed."""
    click_of, like_of = np.random.default_rng(99).normal(size=(2, ITEMS + 1))
    generator = np.random.default_rng(seed)
    target = generator.integers(1, ITEMS + 1, n)

    def draw(logit: np.ndarray) -> np.ndarray:
        return (generator.random(n) < 1 / (1 + np.exp(-3 * logit[target]))).astype(np.float64)

    columns = {"user_id": generator.integers(1, 20, n), "item_id": target, "level": generator.integers(1, 4, n)}
    columns["item_seq"] = [generator.integers(1, ITEMS + 1, k).tolist() for k in generator.integers(0, 5, n)]
    frame = pl.DataFrame({**columns, "click": draw(click_of), "like": draw(like_of)})
    absent = pl.Series(generator.random(n) < missing)
    return frame.with_columns(like=pl.when(absent).then(None).otherwise(pl.col("like")))


def write_world(folder: Path, form: str = "parquet", missing: float = 0.3, rows: int = 4000, **settings) -> Path:
    """Write splits, item file and configuration (experiments X and, of FuxiCTR's form, Towers); return the folder."""
    for seed, (split, n) in enumerate({"train": rows, "valid": rows // 4, "test": 200}.items()):
        frame = rows_of(n, seed, missing)
        if form == "csv":
            sequence = pl.col("item_seq").cast(pl.List(pl.String)).list.join("^")
            frame.with_columns(sequence).write_csv(folder / f"{split}.csv")
        else:
            frame.write_parquet(folder / f"{split}.parquet", row_group_size=500)
    kinds = {"item_id": "categorical", "level": "categorical"}
    columns = [{"name": "user_id", "dtype": "int", "type": "meta"}]
    if form == "parquet":
        pl.DataFrame({"item_id": range(ITEMS + 1)}).write_parquet(folder / "items.parquet")
        columns += [
            {"name": "item_seq", "dtype": "int", "type": "meta"},
            {"name": "level", "dtype": "int", "type": "categorical", "vocab_size": 4},
            {"name": "item_id", "dtype": "int", "type": "categorical", "source": "item", "vocab_size": ITEMS + 1},
        ]
    else:
        columns += [{"name": name, "dtype": "str", "type": kind} for name, kind in kinds.items()]
        sequence = {"type": "sequence", "share_embedding": "item_id", "max_len": 5}
        columns += [{"name": "item_seq", "dtype": "str", **sequence}]
    dataset = {
        "data_root": str(folder), "data_format": form, "feature_cols": columns, "label_col": LABELS,
        **{f"{split}_data": str(folder / f"{split}.{form}") for split in ("train", "valid", "test")},
        **({"item_info": str(folder / "items.parquet")} if form == "parquet" else {}),
    }  # fmt: skip
    shared = {
        "dataset_id": "d", "epochs": 2, "batch_size": 200, "embedding_dim": 8, "learning_rate": 0.01,
        "metrics": ["AUC", "logloss"], "optimizer": "adam", "loss": "binary_crossentropy", "tensorboard": False,
        "verbose": 0, "model_root": str(folder / "checkpoints"), "early_stop_patience": 9, **settings,
    }  # fmt: skip
    both = ["binary_classification"] * 2
    experiments = {
        "X": {"model": "DIN", "dnn_hidden_units": [16], **shared},
        "Towers": {"model": "Towers", "num_tasks": 2, **shared, "task": both, "loss": ["binary_crossentropy"] * 2},
    }
    (folder / "zoo" / "Towers" / "src").mkdir(parents=True, exist_ok=True)
    (folder / "zoo" / "Towers" / "src" / "Towers.py").write_text(MULTI_TASK)
    return write_project(folder, experiments, {"d": dataset})
