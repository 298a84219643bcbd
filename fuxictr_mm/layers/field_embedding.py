"""The embedding of all fields, with sequences of ids pooled as they are read.

Shape letters: B rows, L ids of a row, V ids of a table, D dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm import sparse_products
from fuxictr_mm.fuxictr_imports import FeatureEmbedding, MaskedAveragePooling, MaskedSumPooling
from fuxictr_mm.jagged import has_sparse_kernels, is_exporting


class FieldEmbedding(FeatureEmbedding):
    """FuxiCTR's ``FeatureEmbedding``, whose ``(B, L, D)`` embeddings of pooled ids do not exist on a CPU.

    Takes effect for sequences with ``MaskedAveragePooling`` or ``MaskedSumPooling``, with a dense table of no more ids
    than the batch has, unless the batch is small. Neither of the two modules is called then, only their function
    computed.
    """

    def forward(self, X: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Embed the fields ``X``, see ``FeatureEmbedding``."""
        takes_all = not args and kwargs.keys() <= {"flatten_emb"}
        pooled = {n: sums for n in X if (sums := self._pool(n, X[n])) is not None} if takes_all else {}
        if not pooled:
            return super().forward(X, *args, **kwargs)
        fields = self.embedding_layer({name: values for name, values in X.items() if name not in pooled})
        return self.embedding_layer.dict2tensor(fields | pooled, **kwargs)

    def _pool(self, name: str, ids: Tensor) -> Tensor | None:
        tables, encoders = dict(self.embedding_layer.embedding_layers), dict(self.embedding_layer.feature_encoders)
        table, pooling = tables.get(name), type(encoders.get(name))
        if pooling not in (MaskedAveragePooling, MaskedSumPooling) or type(table) is not nn.Embedding or table.sparse:
            return None
        if ids.dim() != 2 or table.num_embeddings > ids.numel() or not has_sparse_kernels(ids) or is_exporting():
            return None
        if ids.numel() * table.embedding_dim < sparse_products.SMALL:
            return None
        sums = sparse_products.bag_sums(table.weight, ids, table.padding_idx)
        if pooling is MaskedSumPooling:
            return sums
        # As FuxiCTR does, an embedding whose sum is zero does not count.
        counted = (table.weight.detach().sum(dim=1) != 0).float()
        counts = F.embedding(ids.long(), counted.unsqueeze(1)).sum(dim=1)
        return sums / (counts + 1e-12)
