"""Base class of models that end in a DNN, combined with a factorization of user and item.

Shape letters: B rows, F fields, E ``embedding_dim``, K ``factor_dim``, T labels, M candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.fuxictr_imports import FeatureMap
from fuxictr_mm.jagged import Jagged, mean_pooling
from fuxictr_mm.layers import Factorization, mean_squares
from fuxictr_mm.model import DNNModel, Embedded
from fuxictr_mm.training.embedding_tables import set_initial_std


class Factors(NamedTuple):
    """The factors of the rows of a batch, or of one user and its candidates."""

    user: Tensor  #: ``(B, F, K)``, or ``(1, F, K)`` for all rows.
    item: Tensor  #: ``(B, F, K)``.
    history: Tensor | None = None  #: Mean of the sums of the history's fields, ``(B, K)`` or ``(1, K)``.


class FactorizedModel(DNNModel):
    r"""A DNNModel whose logit is the mean of two, its own and that of a factorization of user and item.

    A DNN over concatenated fields learns products of user and item slowly; a factorization (``Factorization``) is made
    of them, and errs on other rows. Each is trained on its own loss, as in an ensemble: on the loss of their mean,
    whichever learns faster takes the other's gradient.

    Every field has K further numbers in the same table (of frozen embeddings: by the same projection), so that both see
    the same missing ids. They are regularized by the squares of a batch's rows, and of whole tables, as in ``LightFM``:

    .. math::

        \mathcal L = \ell(y, \hat y) + \ell(y, \hat z)
            + \lambda_r \sum_{f \in u, v} |f|^2 + \frac{\lambda_t}{2} \sum_f |f|^2

    with the logits of the network and the factorization, ``factor_regularizer`` r of the rows, and
    ``factor_table_regularizer`` t of all factors f. The second one also reaches the factors of items that are only in
    histories.

    A model calls ``embed_with_factors`` and ``with_factors`` around its own logits, ``split_fields`` where it scores
    candidates; without ``factor_dim`` they change nothing.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    factor_dim : int
        K, the dim of the factorization of user and item, including one bias per label; 0 for none.
    factor_features : list of str, optional
        Fields of the factorization; all by default.
    factor_regularizer : float
        Weight of the squared factors of a row in the loss.
    factor_table_regularizer : float
        Weight of the squared factors of whole tables, instead of ``embedding_regularizer``.
    factor_history : bool
        Whether the mean of the factors of the history's items is added to those of the user, as ``history`` of LightFM.
    **params
        Those of DNNModel and MultimodalModel.

    Raises
    ------
    ConfigError
        ``factor_features`` has no field of the user or of the item, or a table with ``factor_table_regularizer`` is
        sharded.
    """

    same_dims = True
    #: Standard deviation of the factors at the beginning.
    factor_std = 0.05

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        factor_dim: NonNegativeInt = 0,
        factor_features: list[str] | None = None,
        factor_regularizer: NonNegativeFloat = 0.02,
        factor_table_regularizer: NonNegativeFloat = 0.0,
        factor_history: bool = False,
        **params: Any,
    ) -> None:
        # Read where the tables are made.
        self.factor_dim, self.factor_table_regularizer = factor_dim, factor_table_regularizer
        super().__init__(feature_map, **params)
        self.factor_regularizer = factor_regularizer
        self._factors_history = factor_history and factor_dim > 0
        self.factorization = Factorization(factor_dim, self.num_tasks) if factor_dim else None
        self._fields = {"context": self.context_fields, "item": self.item_fields}
        chosen = set(self.field_dims) if factor_features is None else set(factor_features)
        self._places = {side: [at for at, n in enumerate(of) if n in chosen] for side, of in self._fields.items()}
        if factor_dim and (chosen - set(self.field_dims) or not all(self._places.values())):
            raise ConfigError(
                f"{self.model_id}: factor_features is {factor_features}, expected fields of the user "
                f"({', '.join(self.context_fields) or 'there is none'}) and of the item "
                f"({', '.join(self.item_fields)}); without such fields, remove factor_dim"
            )
        #: Both logits and the mean squares of the factors, of the last batch in training.
        self.parts: tuple[Tensor, Tensor, Tensor] | None = None

    def build(self) -> None:
        """Initialise the layers and the factors, and create the optimizer."""
        super().build()
        if self.factor_dim:
            set_initial_std(self, self.factor_std, self.factor_dim)

    @property
    def target_dim(self) -> int:
        """Dim of all fields of an item together, without factors."""
        return len(self.item_fields) * self.embedding_dim

    def embed_with_factors(self, batch: Batch) -> tuple[Embedded, Factors]:
        """Embed a batch; return it without factors, and these."""
        e = self.embed(batch)
        if not self.factor_dim:
            return e, Factors(e.context, e.target)
        (context, user), (target, item) = self.split_fields(e.context, "context"), self.split_fields(e.target, "item")
        history = e.history.map(lambda fields: self.split_fields(fields, "item")[0])
        factors = Factors(user, item, self.history_factors(e.history))
        return replace(e, context=context, target=target, history=history), factors

    def history_factors(self, history: Jagged) -> Tensor | None:
        """Return the mean ``(B, K)`` of the factors of items ``(N, F (E + K))``, None if it is not part of the user."""
        if not self._factors_history:
            return None
        return mean_pooling(history.map(lambda fields: self.split_fields(fields, "item")[1].sum(dim=1)))

    def split_fields(self, fields: Tensor, side: Literal["context", "item"]) -> tuple[Tensor, Tensor]:
        """Split concatenated fields ``(B, F (E + K))`` into fields ``(B, F E)`` and factors ``(B, F, K)``."""
        if not self.factor_dim:
            return fields, fields
        split = fields.unflatten(1, (len(self._fields[side]), self.embedding_dim + self.factor_dim))
        return split[..., : self.embedding_dim].flatten(1), split[:, self._places[side], self.embedding_dim :]

    def with_factors(self, logits: Tensor, factors: Factors) -> Tensor:
        """Return the mean ``(B, T)`` of the logits and those of the factorization."""
        if self.factorization is None:
            return logits
        user = factors.user.sum(dim=1)
        if factors.history is not None:
            user = user + factors.history
        others = self.factorization(user, factors.item.sum(dim=1))
        self.parts = (logits, others, mean_squares(factors.user, factors.item)) if self.training else None
        return (logits + others) / 2

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the last batch; in training with a factorization, both losses and the mean squares."""
        parts, self.parts = self.parts, None
        if parts is None:
            return super().add_loss(return_dict, y_true)
        loss = self.factor_regularizer * parts[2]
        for logit in parts[:2]:
            logit = logit.float()
            loss = loss + super().add_loss({"logit": logit, "y_pred": self.output_activation(logit)}, y_true)
        return loss
