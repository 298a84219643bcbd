"""MIND: several interests by dynamic routing."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from fuxictr.features import FeatureMap
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import InterestCapsules, Jagged, mlp_of_shared
from fuxictr_mm.model import DNNModel


class MIND(DNNModel):
    r"""Multi-Interest Network with Dynamic Routing. Li et al., CIKM 2019, https://arxiv.org/abs/1904.08030.

    .. math::

        u_1 .. u_K = \mathrm{Capsules}(s_1 .. s_L), \quad v_k = \mathrm{ReLU}(W [u_k, c] + b), \quad
        v = \sum_k \mathrm{softmax}_k\big((v_k \cdot t)^p\big) v_k, \quad \hat y = \sigma(\mathrm{DNN}([c, t, v]))

    with context c (the paper: the user's profile), target t and history items s. The order of the history does not
    matter.

    Departures: it ranks, by a DNN, where the paper retrieves by the product of v and t; the initial routing logits are
    normal, sampled once per item and capsule, where the paper samples them for each history; one ReLU layer makes the
    interests of the capsules, where the paper has several; the p-th power keeps the sign.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_capsules : int
        K, maximum number of interests; a history of L items has log2(L), rounded down.
    num_rounds : int
        Rounds of routing.
    routing_deviation : float
        Standard deviation of the initial routing logits.
    attention_power : float
        p, exponent of the label-aware attention; larger values favour the best interest.
    **params
        Those of DNNModel and MultimodalModel.
    """

    routing_start: Tensor
    per_item_buffers = ("routing_start",)

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_capsules: PositiveInt = 4,
        num_rounds: PositiveInt = 3,
        routing_deviation: PositiveFloat = 1.0,
        attention_power: Annotated[float, Field(ge=1)] = 2.0,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.attention_power = attention_power
        self.register_buffer("routing_start", routing_deviation * torch.randn(self.items.num_trained, num_capsules))
        self.capsules = InterestCapsules(self.item_dim, num_capsules, num_rounds)
        self.interest_map = nn.Linear(self.item_dim + self.context_dim, self.item_dim)
        self.dnn = self.make_dnn(self.context_dim + 2 * self.item_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        capsules_BKD, present_BK = self._capsules(e.history, batch.history.values.long())
        interests_BKD = self._interests(e.context, capsules_BKD)
        scores_BK = (interests_BKD * e.target.unsqueeze(1)).sum(dim=-1)
        scores_BK = scores_BK * scores_BK.abs().pow(self.attention_power - 1)
        weights_BK = scores_BK.masked_fill(~present_BK, -torch.inf).softmax(dim=1)
        interest = (weights_BK.unsqueeze(2) * interests_BKD).sum(dim=1)
        return self.dnn(torch.cat([e.context, e.target, interest], dim=-1))

    def _capsules(self, history: Jagged, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the capsules ``(B, K, D)`` of histories, and a mask of those that exist ``(B, K)``."""
        return self.capsules(history, self.per_item("routing_start", ids))

    def _interests(self, context: Tensor, capsules: Tensor) -> Tensor:
        """Return the interests of capsules ``(B, K, D)``, or of those of one user ``(1, K, D)``, ``(B, K, D)``."""
        of_rows = context.unsqueeze(1).expand(-1, capsules.shape[1], -1), capsules.expand(context.shape[0], -1, -1)
        return torch.relu(self.interest_map(torch.cat(of_rows[::-1], dim=-1)))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, capsules and their mask."""
        return context, *self._capsules(Jagged.of_row(history), ids)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, capsules_1KD, present_1K = state
        interests_MKD = self._interests(context, capsules_1KD)  # M is 1 where candidates have one context
        scores_MK = (interests_MKD @ candidates.unsqueeze(2)).squeeze(2)
        scores_MK = scores_MK * scores_MK.abs().pow(self.attention_power - 1)
        weights_MK = scores_MK.masked_fill(~present_1K, -torch.inf).softmax(dim=1)
        interest = (weights_MK.unsqueeze(1) @ interests_MKD).squeeze(1)
        return mlp_of_shared(self.dnn, context, candidates, interest)
