"""LateFusion: a tower for each modality, combined by a gate."""

from __future__ import annotations

from typing import Any, cast

import torch
from fuxictr.features import FeatureMap
from torch import Tensor, nn

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import DINAttention, Jagged, mlp_of_shared
from fuxictr_mm.model import DNNModel


class LateFusion(DNNModel):
    r"""Late fusion of modalities. Baltrusaitis et al., IEEE TPAMI 2019, https://arxiv.org/abs/1705.09406.

    .. math::

        z_m = \mathrm{DNN}_m([c, t^m, \mathrm{DIN}_m(t^m, s^m_1 .. s^m_L)]), \qquad
        \hat y = \sigma\Big(\sum_m \mathrm{softmax}_m(W [c, t] + b) \, z_m\Big)

    with context c, target t and history items s. Each frozen embedding of an item is a modality m; its ids and tags
    together are another. They are combined only as the weighted sum of their towers' logits. Late fusion combines
    decisions, by averages, votes or a learned model; here the towers are DIN (Zhou et al., KDD 2018), and a softmax
    gate on context and target combines them.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    attention_hidden_units : sequence of int
        Dims of the hidden layers of each tower's activation unit.
    attention_hidden_activations : str
        Activation of the activation units.
    attention_dropout : float
        Dropout inside the activation units.
    din_use_softmax : bool
        Whether the weights of a history sum to one.
    dnn_hidden_units : sequence of int
        Dims of the DNN's hidden layers.
    **params
        Those of DNNModel and MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        attention_hidden_units: HiddenUnits = (64,),
        attention_hidden_activations: str = "ReLU",
        attention_dropout: Dropout = 0.0,
        din_use_softmax: bool = False,
        dnn_hidden_units: HiddenUnits = (512, 256),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        self.columns = self._columns()
        self.attention, self.dnn = nn.ModuleDict(), nn.ModuleDict()
        for name, columns in self.columns.items():
            self.attention[name] = DINAttention(
                columns.numel(),
                attention_hidden_units,
                hidden_activations=attention_hidden_activations,
                dropout_rate=attention_dropout,
                use_softmax=din_use_softmax,
            )
            self.dnn[name] = self.make_dnn(self.context_dim + 2 * columns.numel())
        self.gate = nn.Linear(self.context_dim + self.item_dim, len(self.columns))
        self.build()

    def _columns(self) -> dict[str, Tensor]:
        """Return the columns of each modality in an item's concatenated fields."""
        columns: dict[str, list[Tensor]] = {}
        columns_of_fields = torch.arange(self.item_dim).split([self.field_dims[name] for name in self.item_fields])
        for name, field_columns in zip(self.item_fields, columns_of_fields, strict=True):
            is_embedding = self.feature_map.features[name]["type"] == "embedding"
            columns.setdefault(name if is_embedding else "ids", []).append(field_columns)
        return {name: torch.cat(parts) for name, parts in columns.items()}

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        votes = []
        for name, columns in self.columns.items():
            columns = columns.to(e.target.device)
            target = e.target.index_select(1, columns)
            history = Jagged(e.history.distinct.index_select(1, columns), e.history.offsets, e.history.index)
            votes.append(self.dnn[name](torch.cat([e.context, target, self.attention[name](target, history)], dim=-1)))
        weights = self.gate(torch.cat([e.context, e.target], dim=-1)).softmax(dim=-1)
        return (weights.unsqueeze(1) * torch.stack(votes, dim=-1)).sum(dim=-1)

    def _tower(self, name: str) -> DINAttention:
        return cast(DINAttention, self.attention[name])

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, history and the part of each tower's attention that depends only on the history."""
        parts = [self._tower(n).keys(history.index_select(1, c)) for n, c in self.columns.items()]
        return context, history, *parts

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, T)``."""
        context, history, *parts = state
        votes = []
        for (name, columns), keys in zip(self.columns.items(), parts, strict=True):
            target = candidates.index_select(1, columns)
            interest = self._tower(name).attend(target, history.index_select(1, columns), keys)
            votes.append(mlp_of_shared(self.dnn[name], context, target, interest))
        columns = torch.cat([context.expand(candidates.shape[0], -1), candidates], dim=-1)
        weights = self.gate(columns).softmax(dim=-1)
        return (weights.unsqueeze(1) * torch.stack(votes, dim=-1)).sum(dim=-1)
