"""Deep Interest Network, the baseline of the WWW 2025 MM-CTR challenge."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import DINAttention
from fuxictr_mm.model import MultimodalModel


class DIN(MultimodalModel):
    r"""Deep Interest Network. Zhou et al., KDD 2018, https://arxiv.org/abs/1706.06978.

    .. math:: \hat y = \sigma(\mathrm{DNN}([c, t, \sum_l a(t, s_l) s_l])), \quad a = \mathrm{MLP}([t, s, t - s, t s])

    with context c, target t and history items s, each item being its id, tags and frozen vectors side by side.
    Parameters are named and shaped as in the challenge's baseline, so its weights load.

    Departures: the loss is taken on logits (``loss_from: probability`` gives the published form); batch norm and Dice
    inside the attention see real items only, not padding.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    dnn_hidden_units : sequence of int
        Widths of the DNN.
    dnn_activations : str
        Activation of the DNN; ``Dice`` is the paper's.
    attention_hidden_units : sequence of int
        Widths of the attention MLP.
    attention_hidden_activations : str
        Its activation.
    attention_output_activation : str, optional
        Activation of the attention weight itself.
    attention_dropout : float
        Dropout inside the attention MLP.
    din_use_softmax : bool
        Whether weights of a history sum to one; the paper leaves them as they are.
    net_dropout : float
        Dropout inside the DNN.
    batch_norm : bool
        Batch norm inside the DNN.
    **params
        Those of MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        dnn_hidden_units: HiddenUnits = (512, 128, 64),
        dnn_activations: str = "ReLU",
        attention_hidden_units: HiddenUnits = (64,),
        attention_hidden_activations: str = "Dice",
        attention_output_activation: str | None = None,
        attention_dropout: Dropout = 0.0,
        din_use_softmax: bool = False,
        net_dropout: Dropout = 0.0,
        batch_norm: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.attention_layers = DINAttention(
            self.item_dim,
            attention_hidden_units,
            hidden_activations=attention_hidden_activations,
            output_activation=attention_output_activation,
            dropout_rate=attention_dropout,
            use_softmax=din_use_softmax,
        )
        self.dnn = MLP_Block(
            input_dim=self.context_dim + 2 * self.item_dim,
            output_dim=1,
            hidden_units=list(dnn_hidden_units),
            hidden_activations=dnn_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        interest = self.attention_layers(e.target, e.history)
        return self.dnn(torch.cat([e.context, e.target, interest], dim=-1))
