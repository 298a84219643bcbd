"""Layers of INFNet: attention from hub tokens to the tokens of other kinds, and back by a gate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fuxictr_mm.jagged import Jagged, segment_products, weighted_sum

GROUPS = ("fields", "history", "tasks")


class History(NamedTuple):
    """Items s ``(.., W)`` of rows with a scale and a shift ``(B, W)``: represents ``s * scale + shift``.

    With ``shared``, all rows have the items of the only row of ``items``.
    """

    items: Jagged
    scale: Tensor
    shift: Tensor
    shared: bool = False


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
        items, scale, shift, shared = tokens  # the shift adds the same to all scores of a row
        scaled = (queries @ self.key.weight * scale.unsqueeze(1)).to(items.distinct.dtype)
        if shared:
            pooled = (scaled @ items.values.t()).softmax(dim=2) @ items.values
        else:
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
            {g: nn.Linear(n * dim, 2 * dim) if v2 else make_mlp(n * dim, dim, dim) for g, n in hubs.items()}
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
            tokens = tokens | {g: _moved(tokens[g], scale.sigmoid(), *shift)}
        return hubs, tokens


def _moved(tokens: Tensor | History, scale: Tensor, shift: Tensor | float = 0.0) -> Tensor | History:
    """Return ``tokens * scale + shift`` with a scale and a shift of each row, ``(B, W)``."""
    if isinstance(tokens, History):
        return tokens._replace(scale=tokens.scale * scale, shift=tokens.shift * scale + shift)
    return tokens * scale.unsqueeze(1) + (shift.unsqueeze(1) if isinstance(shift, Tensor) else shift)


def make_mlp(input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    """Return an MLP of one hidden layer."""
    return nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, output_dim))
