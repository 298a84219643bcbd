"""INFNet: categories, history and tasks, each with a few hub tokens through which they learn from each other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from fuxictr.features import FeatureMap
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged, weighted_sum
from fuxictr_mm.layers.information_flow import History, InformationFlow, make_mlp
from fuxictr_mm.model import DNNModel


class INFNet(DNNModel):
    r"""Information Flow Network, for several labels. Li et al., 2025, https://arxiv.org/abs/2508.11565.

    Tokens C of the fields of context and target, S of the history, T of the tasks, and hub tokens of each:

    .. math::

        \tilde C = \mathrm{reshape}(\mathrm{MLP}(\mathrm{flat}(C))), \quad \tilde S = \sum_l \phi(s_l), \quad
        \tilde T \text{ learned}, \qquad
        A(Q, K) = \mathrm{softmax}\Big(\frac{Q W_q (K W_k)^\top}{\sqrt d}\Big) K W_v

    The layers of v1, with all A of their own weights, and the prediction of task i:

    .. math::

        \tilde C' = A(\tilde C, S) + A(\tilde C, T), \quad \tilde S' = A(\tilde S, C) + A(\tilde S, T), \quad
        \tilde T' = A(\tilde T, C) + A(\tilde T, S), \quad \hat T = A(T, C) + A(T, S)

        C' = C \odot \sigma(\mathrm{MLP}(\tilde C')), \quad S' = S \odot \sigma(\mathrm{MLP}(\tilde S')), \quad
        T' = \hat T \odot \sigma(\mathrm{MLP}(\tilde T')), \qquad \hat y_i = \sigma(\mathrm{DNN}_i(T'_i))

    Those of v2, for each kind X of tokens, with the tokens of the tasks among the hubs of the tasks:

    .. math::

        \tilde X' = \mathrm{LN}(\tilde X + W [A(\tilde X, C), A(\tilde X, S), A(\tilde X, T)]), \quad
        (\alpha, \beta) = W' \mathrm{flat}(\tilde X') + b, \quad X' = X \odot \sigma(\alpha) + \beta

    S is scaled and shifted by row, so it is never made: queries and sums are scaled instead.

    Departures: the history is one kind of behaviour, so it has one hub, and the fields of an item are joined by a
    linear. The paper's text gates by the hubs of the same layer, its equations by those of the layer before; here as in
    the text. Of v2 these equations alone were at hand: its prediction is that of v1; UniRank's code of it has keys and
    values that the hubs of all kinds share, an MLP for alpha and beta, and a residual and a norm after them. The last
    layer has the flows to the tasks only, since nothing reads the others.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    form : {"v1", "v2"}
        Version of the paper.
    num_layers : int
        Number of layers, at least 2.
    num_hubs : int
        Hub tokens of the fields.
    num_shared : int
        Hub tokens of the tasks that all tasks share.
    dnn_hidden_units : sequence of int
        Dims of the hidden layers of each task's head.
    **params
        Those of DNNModel and MultimodalModel.
    """

    same_dims = True

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        form: Literal["v1", "v2"] = "v1",
        num_layers: Annotated[int, Field(ge=2)] = 2,
        num_hubs: PositiveInt = 4,
        num_shared: PositiveInt = 2,
        dnn_hidden_units: HiddenUnits = (64,),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        dim, self.v2 = self.embedding_dim, form == "v2"
        self.item_token, self.pool = nn.Linear(self.item_dim, dim), nn.Linear(dim, dim, bias=False)
        inputs = self.context_dim + self.item_dim
        self.field_hubs = make_mlp(inputs, num_hubs * dim, num_hubs * dim)
        self.tasks = nn.Parameter(torch.randn(self.num_tasks, dim) / dim**0.5)
        self.shared = nn.Parameter(torch.randn(num_shared, dim) / dim**0.5)
        hubs = {"fields": num_hubs, "history": 1, "tasks": num_shared + self.v2 * self.num_tasks}
        keys = {"fields": inputs // dim, "history": 0, "tasks": self.num_tasks}
        self.layers = nn.ModuleList(
            InformationFlow(dim, hubs if i < num_layers - 1 else {"tasks": hubs["tasks"]}, keys, self.v2)
            for i in range(num_layers)
        )
        self.heads = nn.ModuleList(self.make_dnn(dim, 1) for _ in range(self.num_tasks))
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits ``(B, T)``, a column for each label."""
        e = self.embed(batch)
        history = e.history.map(self.item_token)
        total = weighted_sum(history, torch.ones_like(history.values[:, 0]))
        tokens = History(history, torch.ones_like(total), torch.zeros_like(total))
        return self.score(torch.cat([e.context, e.target], dim=1), tokens, total)

    def score(self, fields: Tensor, history: History, total: Tensor) -> Tensor:
        """Return the logits ``(B, T)`` of fields, and of history tokens and their sums ``(B, W)``."""
        tasks, shared = (tokens.expand(total.shape[0], -1, -1) for tokens in (self.tasks, self.shared))
        hubs = {
            "fields": self.field_hubs(fields).unflatten(1, (-1, total.shape[1])),
            "history": self.pool(total).unsqueeze(1),
            "tasks": torch.cat([shared, tasks], dim=1) if self.v2 else shared,
        }
        tokens: dict[str, Tensor | History] = {
            "fields": fields.unflatten(1, (-1, total.shape[1])),
            "history": history,
            "tasks": tasks,
        }
        for layer in self.layers:
            hubs, tokens = layer(hubs, tokens)
        last = tokens["tasks"]
        assert isinstance(last, Tensor)
        return torch.cat([head(task) for head, task in zip(self.heads, last.unbind(1), strict=True)], dim=1)

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and the tokens of the history and their sum."""
        tokens = self.item_token(history)
        return context, tokens, tokens.sum(dim=0, keepdim=True)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, T)``."""
        context, tokens, total = state
        context, total = (part.expand(candidates.shape[0], -1) for part in (context, total))
        history = History(Jagged.of_row(tokens), torch.ones_like(total), torch.zeros_like(total), shared=True)
        return self.score(torch.cat([context, candidates], dim=1), history, total)
