"""INFNet: categories, history and tasks, each with a few hub tokens through which they learn from each other."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from fuxictr.features import FeatureMap
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged, segment_products, weighted_sum
from fuxictr_mm.model import DNNModel

GROUPS = ("fields", "history", "tasks")


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
    the text. What v2 changes otherwise was not at hand: its prediction is that of v1. The last layer has the flows to
    the tasks only, since nothing reads the others.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    form : {"v1", "v2"}
        Version of the paper.
    num_layers : int
        Layers, at least 2.
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
        self.field_hubs = mlp(inputs, num_hubs * dim, num_hubs * dim)
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
        fields = torch.cat([e.context, e.target], dim=1)
        history = e.history.map(self.item_token)
        total = weighted_sum(history, torch.ones_like(history.values[:, 0]))
        tasks, shared = (tokens.expand(total.shape[0], -1, -1) for tokens in (self.tasks, self.shared))
        hubs = {
            "fields": self.field_hubs(fields).unflatten(1, (-1, total.shape[1])),
            "history": self.pool(total).unsqueeze(1),
            "tasks": torch.cat([shared, tasks], dim=1) if self.v2 else shared,
        }
        tokens: dict[str, Tensor | History] = {
            "fields": fields.unflatten(1, (-1, total.shape[1])),
            "history": History(history, torch.ones_like(total), torch.zeros_like(total)),
            "tasks": tasks,
        }
        for layer in self.layers:
            hubs, tokens = layer(hubs, tokens)
        last = tokens["tasks"]
        assert isinstance(last, Tensor)
        return torch.cat([head(task) for head, task in zip(self.heads, last.unbind(1), strict=True)], dim=1)


class History(NamedTuple):
    """Items s ``(.., W)`` of rows with a scale and a shift ``(B, W)``: stands for ``s * scale + shift``."""

    items: Jagged
    scale: Tensor
    shift: Tensor


class CrossAttention(nn.Module):
    """Attention of queries ``(B, Q, W)`` to tokens of the same row; a softmax over one key needs no scores."""

    def __init__(self, dim: int, num_keys: int) -> None:
        super().__init__()
        self.query, self.key = (None if num_keys == 1 else nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.value = nn.Linear(dim, dim, bias=False)

    def forward(self, queries: Tensor, tokens: Tensor | History) -> Tensor:
        """Return ``(B, Q, W)``, zero for an empty history."""
        if self.query is None or self.key is None:
            return self.value(tokens).expand_as(queries)
        queries = self.query(queries) / queries.shape[2] ** 0.5
        if isinstance(tokens, Tensor):
            return (queries @ self.key(tokens).transpose(1, 2)).softmax(dim=2) @ self.value(tokens)
        items, scale, shift = tokens  # the shift adds the same to all scores of a row
        scaled = (queries @ self.key.weight * scale.unsqueeze(1)).to(items.distinct.dtype)
        scores = torch.stack([segment_products(query, items) for query in scaled.unbind(1)], dim=1)
        pooled = weighted_sum(items, items.with_values(scores).softmax().values)
        shift = shift * (items.lengths > 0).unsqueeze(1)
        return self.value(pooled * scale.unsqueeze(1) + shift.unsqueeze(1))


class InformationFlow(nn.Module):
    """A layer: the hubs of some kinds of tokens read the tokens of the others, and scale their own."""

    def __init__(self, dim: int, hubs: dict[str, int], keys: dict[str, int], v2: bool) -> None:
        super().__init__()
        self.v2 = v2
        queries = [*hubs] if v2 else [*hubs, "own"]  # own: the tokens of the tasks
        sources = {q: [g for g in GROUPS if v2 or g != (q if q in hubs else "tasks")] for q in queries}
        self.flows = nn.ModuleDict(
            {q: nn.ModuleDict({g: CrossAttention(dim, keys[g]) for g in sources[q]}) for q in queries}
        )
        self.join = nn.ModuleDict({g: nn.Linear(3 * dim, dim) for g in hubs} if v2 else {})
        self.norm = nn.ModuleDict({g: nn.LayerNorm(dim) for g in hubs} if v2 else {})
        self.gates = nn.ModuleDict(
            {g: nn.Linear(n * dim, 2 * dim) if v2 else mlp(n * dim, dim, dim) for g, n in hubs.items()}
        )

    def forward(
        self, hubs: dict[str, Tensor], tokens: dict[str, Tensor | History]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | History]]:
        """Return hubs and tokens after the layer."""
        read = {
            name: [flow(hubs.get(name, tokens["tasks"]), tokens[g]) for g, flow in flows.items()]  # type: ignore[operator]
            for name, flows in self.flows.items()
        }
        if self.v2:
            hubs = {g: self.norm[g](hubs[g] + self.join[g](torch.cat(read[g], dim=2))) for g in read}
        else:
            tokens = tokens | {"tasks": sum(read.pop("own"))}
            hubs = {g: sum(parts) for g, parts in read.items()}
        for g, gate in self.gates.items():
            scale, *shift = gate(hubs[g].flatten(1)).chunk(1 + self.v2, dim=1)
            tokens = tokens | {g: moved(tokens[g], scale.sigmoid(), *shift)}
        return hubs, tokens


def moved(tokens: Tensor | History, scale: Tensor, shift: Tensor | float = 0.0) -> Tensor | History:
    """Return ``tokens * scale + shift`` with a scale and a shift of each row, ``(B, W)``."""
    if isinstance(tokens, History):
        return History(tokens.items, tokens.scale * scale, tokens.shift * scale + shift)
    return tokens * scale.unsqueeze(1) + (shift.unsqueeze(1) if isinstance(shift, Tensor) else shift)


def mlp(input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    """Return an MLP of one hidden layer."""
    return nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, output_dim))
