"""LightFM, a factorization of user and item, each the sum of the embeddings of its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuxictr.features import FeatureMap
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged, mean_pooling
from fuxictr_mm.layers import Factorization, mean_squares
from fuxictr_mm.model import MultimodalModel
from fuxictr_mm.training.embedding_tables import set_initial_std


class LightFM(MultimodalModel):
    r"""Metadata Embeddings for User and Item Cold-start. Kula, CBRecSys 2015, https://arxiv.org/abs/1507.08439.

    .. math:: u = \sum_f c_f, \quad t = \sum_f t_f, \quad \hat y = \sigma(u_{2..E} \cdot t_{2..E} + u_1 + t_1 + b)

    c are the context fields, the user's id among them, and t the fields of the target: its id, tags, and frozen
    embeddings through a linear projection. It has no hidden layer, trains in a fraction of the time of the others, and
    errs on other rows: in an ensemble with them it is worth more than a further seed.

    Departures: the first number of every embedding is its bias, of several labels one number each, and the products are
    then summed with learned weights of each label; frozen embeddings are features, too; the squared
    embeddings of the rows of a batch are added to the loss, so that each is regularized as often as it is used.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    factor_regularizer : float
        Weight of the squared embeddings of a row.
    init_std : float
        Standard deviation of the initial embeddings; their biases begin at 0.
    history : bool
        Whether the mean of the history's item embeddings is added to the user embedding u.
    **params
        Those of MultimodalModel.
    """

    same_dims = True

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        factor_regularizer: NonNegativeFloat = 0.02,
        init_std: PositiveFloat = 0.05,
        history: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.factor_regularizer = factor_regularizer
        self.factorization = Factorization(self.embedding_dim, self.num_tasks)
        self.uses_history = history
        self.squares: Tensor | None = None
        self.build()
        set_initial_std(self, init_std, zeros=self.num_tasks)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row and label, ``(B, T)``."""
        context = self.embed_context(batch)
        if self.uses_history:
            target, (history,) = self.embed_histories(batch, batch.history)
            user = [context, mean_pooling(history)]
        else:
            target = self.embed_items(batch.target.long())
            user = [context]
        self.squares = mean_squares(context, target) if self.training else None
        return self.score_candidates(target, *user)

    def _sum(self, fields: Tensor) -> Tensor:
        """Return the sum of concatenated fields ``(B, F E)``, ``(B, E)``."""
        return fields.unflatten(1, (fields.shape[1] // self.embedding_dim, self.embedding_dim)).sum(dim=1)

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and the mean of the history if it is read."""
        return (context, mean_pooling(Jagged.of_row(history))) if self.uses_history else (context,)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, T)``."""
        return self.factorization(sum(map(self._sum, state)), self._sum(candidates))

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the last scored batch, in training with the squares of its embeddings."""
        loss = super().add_loss(return_dict, y_true)
        squares, self.squares = self.squares, None
        return loss if squares is None else loss + self.factor_regularizer * squares
