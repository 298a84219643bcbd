"""Deep Interest Network, the baseline of the WWW 2025 MM-CTR challenge."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from torch import Tensor

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import DINAttention, mlp_of_shared
from fuxictr_mm.model import DNNModel


class DIN(DNNModel):
    r"""Deep Interest Network. Zhou et al., KDD 2018, https://arxiv.org/abs/1706.06978.

    .. math:: \hat y = \sigma(\mathrm{DNN}([c, t, \sum_l a(t, s_l) s_l])), \quad a = \mathrm{MLP}([t, s, t - s, t s])

    with context c, target t and history items s, each item its id, tags and frozen embeddings, concatenated.
    Parameters are named and shaped as in the challenge's baseline, so its weights load.

    Departures: a takes the difference and the product, as the published code does, where the paper has the outer
    product; the loss is taken on logits (``loss_from: probability`` gives the published form); batch norm and Dice
    inside the attention see real items only, not padding.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    attention_hidden_units : sequence of int
        Dims of the hidden layers of the attention MLP.
    attention_hidden_activations : str
        Activation of the attention MLP.
    attention_output_activation : str, optional
        Activation of the attention weight.
    attention_dropout : float
        Dropout inside the attention MLP.
    din_use_softmax : bool
        Whether the weights of a history are normalised to sum to one; in the paper they are not.
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
        attention_hidden_activations: str = "Dice",
        attention_output_activation: str | None = None,
        attention_dropout: Dropout = 0.0,
        din_use_softmax: bool = False,
        dnn_hidden_units: HiddenUnits = (512, 128, 64),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        self.attention_layers = DINAttention(
            self.item_dim,
            attention_hidden_units,
            hidden_activations=attention_hidden_activations,
            output_activation=attention_output_activation,
            dropout_rate=attention_dropout,
            use_softmax=din_use_softmax,
        )
        self.dnn = self.make_dnn(self.context_dim + 2 * self.item_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        interest = self.attention_layers(e.target, e.history)
        return self.dnn(torch.cat([e.context, e.target, interest], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, history and its part of the attention."""
        return context, history, self.attention_layers.keys(history)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, history, keys = state
        interest = self.attention_layers.attend(candidates, history, keys)
        return mlp_of_shared(self.dnn, context, candidates, interest)
