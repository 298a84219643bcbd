"""Transformer_DCN, winner of the WWW 2025 MM-CTR challenge."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.jagged import is_exporting
from fuxictr_mm.layers import Jagged, StaircaseCrossNetV2, TargetTransformer
from fuxictr_mm.layers.structured_zeros import SeenItems, Span, block_linear, input_blocks, last_items, padding_items
from fuxictr_mm.model import MultimodalModel

logger = logging.getLogger(__name__)


class Transformer_DCN(MultimodalModel):
    r"""1st Place Solution. Xu et al., WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2505.03543.

    .. math::

        h = \mathrm{Encoder}([s_1; t], .., [s_L; t]), \quad x = [c, t, h_{L-k+1}, .., h_L, W \max_l h_l + b]

        \hat y = \sigma(\mathrm{MLP}([\mathrm{CrossNetV2}(x), \mathrm{DNN}(x)]))

    with context c, target t and history items s. For a history shorter than k the first slots are zero; an empty one
    counts as a single padding item. Parameters are named and shaped as in the published code, so its weights load.

    The published code passes its keep-mask (1 = a real item) to PyTorch as ``key_padding_mask``, where True means
    ignore. It therefore attends only to the padding: its output depends on the length of a history with padding, up
    to k, and on the newest item of a history of exactly ``max_len`` items. ``history_mask: corrected`` attends to
    the items.

    Departures: the corrected mask is the default; the loss is taken on logits (``loss_from: probability`` gives the
    published form); each encoder layer samples its own initial attention weights, where ``nn.TransformerEncoder``
    copies one layer.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    history_mask : {"corrected", "published"}
        Whether the encoder attends to the items (``corrected``) or to the padding up to ``max_len`` (``published``).
    num_heads : int
        Attention heads of an encoder layer.
    transformer_layers : int
        Number of encoder layers.
    dim_feedforward : int
        Hidden dim of the feed-forward networks of the encoder.
    transformer_dropout : float
        Dropout inside the encoder.
    first_k_cols : int
        k, number of last outputs that are kept.
    concat_max_pool : bool
        Whether the maximum of all outputs is part of x.
    dcn_cross_layers : int
        Layers of the cross network.
    dcn_hidden_units : sequence of int
        Dims of the hidden layers of the DNN.
    mlp_hidden_units : sequence of int
        Dims of the hidden layers of the MLP after cross network and DNN.
    hidden_activations : str
        Activation of DNN and MLP.
    net_dropout : float
        Dropout of the DNN.
    batch_norm : bool
        Batch norm of the DNN.
    **params
        Those of MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        history_mask: Literal["corrected", "published"] = "corrected",
        num_heads: PositiveInt = 1,
        transformer_layers: PositiveInt = 2,
        dim_feedforward: PositiveInt = 256,
        transformer_dropout: Dropout = 0.2,
        first_k_cols: NonNegativeInt = 16,
        concat_max_pool: bool = True,
        dcn_cross_layers: NonNegativeInt = 3,
        dcn_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (1024, 512, 256),
        mlp_hidden_units: HiddenUnits = (64, 32),
        hidden_activations: str = "ReLU",
        net_dropout: Dropout = 0.2,
        batch_norm: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        if history_mask == "published" and self.max_len < first_k_cols:
            raise ConfigError(
                f"{self.model_id}: max_len {self.max_len} is below first_k_cols {first_k_cols}; increase max_len"
            )
        self.check_heads(num_heads, 2 * self.item_dim, "the dim of item and target together")
        self.history_mask, self.num_slots = history_mask, first_k_cols
        seen = "the items" if history_mask == "corrected" else "the padding, as the published code does"
        logger.info(f"{self.model_id}: history_mask: {history_mask}, the encoder attends to {seen}")
        self.separate_padding = transformer_dropout > 0  # dropout makes one padding item differ from another
        self.transformer_encoder = TargetTransformer(
            self.item_dim,
            num_layers=transformer_layers,
            num_heads=num_heads,
            dim_feedforward=dim_feedforward,
            dropout=transformer_dropout,
            max_pool=concat_max_pool,
        )
        dim = self.context_dim + self.item_dim + (first_k_cols + concat_max_pool) * 2 * self.item_dim
        hidden: dict[str, Any] = {"hidden_activations": hidden_activations}
        self.crossnet = StaircaseCrossNetV2(dim, dcn_cross_layers)
        self.parallel_dnn = MLP_Block(
            dim, list(dcn_hidden_units), dropout_rates=net_dropout, batch_norm=batch_norm, **hidden
        )
        self.mlp = MLP_Block(dim + dcn_hidden_units[-1], list(mlp_hidden_units), output_dim=self.num_tasks, **hidden)
        self.build()

    def seen_items(self, history: Jagged) -> SeenItems:
        """Return the items ``(M,)`` of the history ``(N,)`` that the encoder sees, and their slots."""
        if self.history_mask == "corrected":
            return last_items(history, self.num_slots)
        return padding_items(history, self.num_slots, self.max_len, every=self.training and self.separate_padding)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        seen = self.seen_items(batch.history)
        e = self.embed(replace(batch, history=seen.items))
        x = torch.cat([e.context, e.target, self.transformer_encoder(e.target, e.history, seen.slots)], dim=1)
        if self.device.type != "cpu" or is_exporting():
            return self.mlp(torch.cat([self.crossnet(x), self.parallel_dnn(x)], dim=1))
        # Most of x are slots that short histories leave empty: rows are sorted by the number of filled slots.
        order = seen.filled.argsort(descending=True)
        before, slots = self.context_dim + self.item_dim, 2 * self.item_dim * self.num_slots
        spans = seen.spans(before, 2 * self.item_dim, x.shape[1] - before - slots)
        x = x.index_select(0, order)
        logits = self.mlp(torch.cat([self.crossnet(x, spans), self._dnn(x, spans)], dim=1))
        return torch.empty_like(logits).index_copy(0, order, logits)

    def _dnn(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        first, *others = self.parallel_dnn.mlp
        return nn.Sequential(*others)(block_linear(x, first, input_blocks(spans, first.out_features)))
