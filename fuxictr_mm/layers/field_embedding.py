"""The embedding of all fields, with sequences of ids pooled as they are read, and faster gradients of single ids.

Shape letters: B rows, L ids of a row, V ids of a table, D dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm import sparse_products
from fuxictr_mm.fuxictr_imports import FeatureEmbedding, MaskedAveragePooling, MaskedSumPooling
from fuxictr_mm.jagged import has_sparse_kernels, is_exporting


class FieldEmbedding(FeatureEmbedding):
    """FuxiCTR's ``FeatureEmbedding``, whose ``(B, L, D)`` embeddings of pooled ids do not exist on a CPU.

    Takes effect for sequences with ``MaskedAveragePooling`` or ``MaskedSumPooling``, with a dense table of no more ids
    than the batch has, unless the batch is small. Neither of the two modules is called then, only their function
    computed. The same holds for the table of single ids in training; its gradient is FuxiCTR's to the last bit.
    """

    def forward(self, X: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Embed the fields ``X``, see ``FeatureEmbedding``."""
        takes_all = not args and kwargs.keys() <= {"flatten_emb"}
        own = {n: field for n in X if (field := self._field(n, X[n])) is not None} if takes_all else {}
        if not own:
            return super().forward(X, *args, **kwargs)
        others = self.embedding_layer({name: values for name, values in X.items() if name not in own})
        return self.embedding_layer.dict2tensor(others | own, **kwargs)

    def _field(self, name: str, ids: Tensor) -> Tensor | None:
        """Return the embedding of a field, None where it is to be FuxiCTR's."""
        tables, encoders = dict(self.embedding_layer.embedding_layers), dict(self.embedding_layer.feature_encoders)
        table, encoder = tables.get(name), encoders.get(name)
        if type(table) is not nn.Embedding or table.sparse or not has_sparse_kernels(ids) or is_exporting():
            return None
        if ids.numel() * table.embedding_dim < sparse_products.SMALL:
            return None
        if encoder is None:
            trains = torch.is_grad_enabled() and table.weight.requires_grad
            return sparse_products.rows_of(table.weight, ids, table.padding_idx) if trains else None
        return self._pool(table, type(encoder), ids)

    def _pool(self, table: nn.Embedding, pooling: type, ids: Tensor) -> Tensor | None:
        if pooling not in (MaskedAveragePooling, MaskedSumPooling) or ids.dim() != 2:
            return None
        if table.num_embeddings > ids.numel():
            return None
        sums = sparse_products.bag_sums(table.weight, ids, table.padding_idx)
        if pooling is MaskedSumPooling:
            return sums
        # As FuxiCTR does, an embedding whose sum is zero does not count.
        counted = (table.weight.detach().sum(dim=1) != 0).float()
        counts = F.embedding(ids.long(), counted.unsqueeze(1)).sum(dim=1)
        return sums / (counts + 1e-12)
