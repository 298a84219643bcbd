"""The padded reference: FuxiCTR's layers on padded tensors, fed the way the challenge's baseline feeds them.

Written to be compared with, so neither slowed down nor sped up: rows pass one by one through a ``Dataset``, the item
features of every position are looked up in a pandas frame and turned into arrays batch by batch, ids and embeddings of
padding are embedded and go through the attention like any other, and the regularizer is a norm of whole tables inside
the graph. The step is that of FuxiCTR's ``BaseModel``.

Shape letters: B rows, L padded history, D item dim, C context dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

#: Columns of the rows ``(B,)``; features of each row's history, then target, ``(B * (L + 1), ...)``; mask ``(B, L)``.
PaddedBatch = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


class RowDataset(Dataset):
    """The rows of a file as those of one int64 matrix.

    Parameters
    ----------
    path : str
        Parquet file; a list column takes one column of the matrix per entry.
    """

    def __init__(self, path: str) -> None:
        frame = pd.read_parquet(path)
        self.positions: dict[str, int | slice] = {}
        arrays, first = [], 0
        for name in frame.columns:
            is_list = frame[name].dtype == object
            array = np.array(frame[name].to_list()) if is_list else frame[name].to_numpy()
            dim = array.shape[1] if is_list else 1
            self.positions[name] = slice(first, first + dim) if is_list else first
            first += dim
            arrays.append(array)
        self.matrix = np.column_stack(arrays)

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def __getitem__(self, row: int) -> np.ndarray:
        return self.matrix[row]


class PaddedCollator:
    """Turns rows of the matrix into a padded batch with the features of every item in it.

    Parameters
    ----------
    wanted : set of str
        Columns to keep, of the rows and of the items.
    positions : mapping
        Position of each column in a row.
    item_info : str
        Parquet file of item features, in which the row number is the item id.
    max_len : int
        L.
    """

    def __init__(self, wanted: set[str], positions: Mapping[str, int | slice], item_info: str, max_len: int) -> None:
        self.wanted = wanted
        self.positions = positions
        self.item_info = pd.read_parquet(item_info)
        self.max_len = max_len

    def __call__(self, rows: list[np.ndarray]) -> PaddedBatch:
        """Collate rows of the matrix, each ``(columns,)``."""
        matrix = default_collate(rows)
        columns = {name: matrix[:, position] for name, position in self.positions.items() if name in self.wanted}
        history = columns.pop("item_seq")[:, -self.max_len :]
        target = columns.pop("item_id").unsqueeze(1)
        chosen = self.item_info.iloc[torch.cat([history, target], dim=1).flatten().numpy()]
        names = [name for name in chosen.columns if name in self.wanted]
        items = {name: torch.from_numpy(np.array(chosen[name].to_list())) for name in names}
        return columns, items, (history > 0).float()


def padded_loader(params: Mapping[str, Any], *, shuffle: bool = False, num_workers: int = 0) -> DataLoader:
    """Return a loader of padded batches of the training file."""
    dataset = RowDataset(params["train_data"])
    wanted = {column["name"] for column in params["feature_cols"]} | {params["label_col"]["name"]}
    collate = PaddedCollator(wanted, dataset.positions, params["item_info"][0], params["max_len"])
    return DataLoader(dataset, params["batch_size"], shuffle=shuffle, num_workers=num_workers, collate_fn=collate)


class PaddedModel(BaseModel):
    """A FuxiCTR model that takes padded batches.

    Parameters
    ----------
    feature_map : FeatureMap
        Features.
    params : mapping
        Parameters of the experiment.
    """

    def __init__(self, feature_map: FeatureMap, params: Mapping[str, Any]) -> None:
        names = ("model_id", "gpu", "embedding_regularizer", "task", "metrics", "monitor", "model_root", "verbose")
        super().__init__(feature_map, **{name: params[name] for name in names})
        self._max_gradient_norm = 10.0
        self.embedding_layer = FeatureEmbedding(feature_map, params["embedding_dim"])
        specs = [spec for spec in feature_map.features.values() if spec["type"] != "meta"]
        dims = [(spec.get("embedding_dim", params["embedding_dim"]), spec["source"] == "item") for spec in specs]
        self.item_dim = sum(dim for dim, is_item in dims if is_item)
        self.context_dim = sum(dim for dim, is_item in dims if not is_item)

    def build(self, params: Mapping[str, Any]) -> None:
        """Make optimiser and loss as FuxiCTR does, initialise, move to the device."""
        self.compile(params["optimizer"], params["loss"], params["learning_rate"])
        self.reset_parameters()
        self.model_to_device()

    def embed(self, batch: PaddedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return context ``(B, C)``, target ``(B, D)``, history ``(B, L, D)`` and mask ``(B, L)``."""
        columns, items, mask = batch
        context = self.embedding_layer(self.get_inputs(columns), flatten_emb=True)
        items = {name: column.to(self.device) for name, column in items.items()}
        embeddings = self.embedding_layer(items, flatten_emb=True).view(mask.shape[0], -1, self.item_dim)
        return context, embeddings[:, -1], embeddings[:, :-1], mask.to(self.device)

    def get_labels(self, batch: PaddedBatch) -> Tensor:
        """Return the labels ``(B, 1)``."""
        return super().get_labels(batch[0])


def make_dnn(input_dim: int, output_activation: torch.nn.Module, params: Mapping[str, Any]) -> MLP_Block:
    """Return the DNN that ends in a probability."""
    return MLP_Block(
        input_dim=input_dim,
        output_dim=1,
        hidden_units=params["dnn_hidden_units"],
        hidden_activations="ReLU",
        output_activation=output_activation,
        dropout_rates=params["net_dropout"],
        batch_norm=params["batch_norm"],
    )
