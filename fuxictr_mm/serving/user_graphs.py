"""The graphs of one user: what is computed once, the scores of candidates, and what they attend to.

A model declares both parts by ``user_state`` and ``score_candidates``. Similarities are folded here, for every model:
the state has what they compare of the history, and each candidate gets a context of its own.

Shape letters: D item dim, E dim of buffers per item, C context dim, L history length, M candidates, T labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fuxictr_mm.layers.din_attention import DINAttention
from fuxictr_mm.layers.similarity import Compared
from fuxictr_mm.layers.target_attention import MultiHeadTargetAttention
from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.serving.item_rows import (
    ItemsGraph,
    compared_columns,
    compared_ids,
    embed_context,
    embed_similarities,
    given_fields,
    similarities_of,
)


class UserGraph(ItemsGraph):
    """What is computed once per user: ``(history (L, D + E), codes (L, M), context) -> state``."""

    def forward(self, history: Tensor, codes: Sequence[Tensor], context: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the tensors that ``CandidateGraph`` reads: those of the model, then what similarities compare."""
        self._give(history, codes)
        ids = torch.arange(history.shape[0], device=history.device)
        columns = dict(zip(given_fields(self.model), context, strict=True))
        for name in self.model.similarities:  # of no candidate yet
            columns[name] = history.new_zeros(1, self.model.feature_map.features[name]["pretrain_dim"])
        state = self.model.user_state(embed_context(self.model, columns, 1), history[:, : self.dims[0]], ids)
        compared = [self._compared(of) for of in compared_columns(self.model)]
        self._rows = self._codes = None
        # A tensor is no output twice, nor one that is an input as it is.
        tensors = [part.clone() for one in compared for part in (one.rows, one.inverse_lengths) if part is not None]
        return *state, *tensors


class CandidateGraph(ItemsGraph):
    """Scores candidates of one user: ``(candidates (M, D + E), state, codes) -> (M, T)`` predictions."""

    def forward(self, candidates: Tensor, state: Sequence[Tensor], codes: Sequence[Tensor] = ()) -> Tensor:
        """Return predictions ``(M, T)``."""
        return self.model.output_activation(self._logits(candidates, state, codes).reshape(-1, self.model.num_tasks))

    def _logits(self, candidates: Tensor, state: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        self._give(candidates, codes)
        columns = self.model.candidate_columns(torch.arange(candidates.shape[0], device=candidates.device))
        state = self._with_similarities(state) if self.model.similarities else state
        self._rows = self._codes = None
        return self.model.score_candidates(candidates[:, : self.model.item_dim], *columns, *state)

    def _with_similarities(self, state: Sequence[Tensor]) -> list[Tensor]:
        """Return the state of the model, whose first tensor is now the context of each candidate ``(M, C)``."""
        columns, ids, cosines = compared_columns(self.model), compared_ids(self.model), {}
        count = len(state) - len(columns) - len(ids)
        tensors = iter(state[count:])
        for of in columns:
            history = Compared(next(tensors), next(tensors) if of in ids else None)
            cosines[of] = self._compared(of).all_cosines(history)
        found = {name: layer.of_user(cosines[of]) for name, (of, layer) in similarities_of(self.model).items()}
        return [embed_similarities(self.model, found, state[0]), *state[1:count]]


class AttentionGraph(CandidateGraph):
    """What candidates of one user attend to: ``(candidates (M, D + E), state) -> (M, L)``, fractions of the history.

    Fractions are absolute weights over their sum, or 0 where all are; the mean over heads and attention layers.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self._found: list[Tensor] = []
        for layer in attention_layers(model):
            layer.weights_of = self._recorded(layer.weights_of)  # type: ignore[method-assign]

    def forward(self, candidates: Tensor, state: Sequence[Tensor], codes: Sequence[Tensor] = ()) -> Tensor:
        """Return the shares."""
        self._found = []
        self._logits(candidates, state, codes)
        shares = torch.cat([F.normalize(weights.abs(), p=1, dim=2) for weights in self._found])
        self._found = []
        return shares.mean(dim=0)

    def _recorded(self, weights_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def record(*inputs: Tensor) -> Tensor:
            weights = weights_of(*inputs)
            self._found.append(weights if weights.dim() == 3 else weights.unsqueeze(0))
            return weights

        return record


def has_fold(model: MultimodalModel) -> bool:
    """Whether a model declares what is computed once per user."""
    return type(model).user_state is not MultimodalModel.user_state and model.has_user_state


def attention_layers(model: MultimodalModel) -> list[DINAttention | MultiHeadTargetAttention]:
    """Return the layers by which candidates attend to the history, of a model that has a fold."""
    layers = [m for m in model.modules() if isinstance(m, DINAttention | MultiHeadTargetAttention)]
    return layers if model.attends_to_history else []
