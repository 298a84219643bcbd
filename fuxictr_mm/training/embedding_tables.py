"""The embedding tables of features, and the standard deviation of their initial weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fuxictr_mm.fuxictr_imports import FeatureEmbeddingDict, PretrainedEmbedding
from fuxictr_mm.tables import sharded_tables


def embedding_tables(model: nn.Module, more: nn.Module | None = None) -> list[nn.Parameter]:
    """Return the embedding tables of features, those in ``more`` included; linear projections are none."""
    inside = [m for m in model.modules() if isinstance(m, FeatureEmbeddingDict) or m is more]
    tables = [m for module in inside for m in module.modules() if isinstance(m, nn.Embedding)]
    weights: dict[int, Any] = {id(table.weight): table.weight for table in tables}
    return list(weights.values())


@torch.no_grad()
def set_initial_std(model: nn.Module, std: float, last: int = 0, zeros: int = 0) -> None:
    """Give the embedding tables of features another standard deviation than FuxiCTR's 1e-4, or their last numbers.

    The first ``zeros`` of these numbers become 0: biases that begin at random rank rows by noise in the first steps.
    Embeddings of a file (``pretrained_emb``) stay as they are.
    """
    given = {id(m.pretrain_embedding.weight) for m in model.modules() if isinstance(m, PretrainedEmbedding)}
    tables = [*embedding_tables(model, nn.ModuleDict()), *(table.weight for table in sharded_tables(model))]
    for table in [table for table in tables if id(table) not in given]:
        part = table[:, -last:] if last else table
        part.mul_(std / 1e-4)
        part[:, :zeros] = 0
