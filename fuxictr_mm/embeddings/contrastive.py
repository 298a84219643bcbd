r"""Contrastive alignment: a projection of item embeddings in which items clicked by the same users are close.

.. math::
    \mathcal{L}_{a \to b} = -\log
    \frac{e^{z_a \cdot z_b / \tau}}{e^{z_a \cdot z_b / \tau} + \sum_{x \in X \setminus N(a)} e^{z_a \cdot z_x / \tau}},
    \qquad \mathcal{L} = \tfrac{1}{2} (\mathcal{L}_{a \to b} + \mathcal{L}_{b \to a})

with z the normalized outputs of the head, (a, b) a pair of neighbors, X the items of the batch, and N(a) the item a and
all its known neighbors, which are not negatives. InfoNCE: van den Oord et al., 2018, https://arxiv.org/abs/1807.03748;
symmetric, in-batch: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020.

Departures: known neighbors are excluded from the negatives; all items of a batch, of either side, are negatives.

Shapes: I items, D_m dim of a modality, P_m components of a modality, P of all, D output dim, B pairs of a batch, X
distinct items of a batch, M neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.embeddings.content_inputs import ContentInput, from_arrays, state_of, to_arrays
from fuxictr_mm.embeddings.early_stopping import TrainingResult, train_until_best
from fuxictr_mm.errors import DataError
from fuxictr_mm.files import StrPath
from fuxictr_mm.reduction.saved import SavedFormat, check_modalities

if TYPE_CHECKING:
    from fuxictr_mm.embeddings.align import AlignOptions
    from fuxictr_mm.embeddings.item_files import JoinedEmbeddings
    from fuxictr_mm.embeddings.swing import Neighbors

#: The head of all modalities together.
JOINT = "joint"

SAVED = SavedFormat("head", "align")


class AlignmentHead(nn.Module):
    r"""The projection :math:`y = S x + W x + V \mathrm{GELU}(U x + c)`, initialized to its fixed part S.

    S selects and scales some of the inputs. W and V are initialized to zero, so that training starts from the PCA, and
    weight decay pulls back to it.

    Parameters
    ----------
    start : Tensor
        S, ``(D, P)``.
    hidden : int
        Dim of U x; 0 for a linear projection.
    """

    start: Tensor

    def __init__(self, start: Tensor, hidden: int) -> None:
        super().__init__()
        dim, inputs = start.shape
        self.register_buffer("start", start)
        self.linear = nn.Linear(inputs, dim, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.residual: nn.Sequential | None = None
        if hidden:
            last = nn.Linear(hidden, dim, bias=False)
            nn.init.zeros_(last.weight)
            self.residual = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(I, D)`` of inputs ``(I, P)``."""
        y = x @ (self.start + self.linear.weight).T
        return y if self.residual is None else y + self.residual(x)


def start_matrix(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Return S, which selects the first inputs of each modality and scales each modality to the same mean square.

    A part has the mean squares of a modality's inputs, ``(P_m,)``, and how many of them to select.

    Examples
    --------
    >>> start_matrix([(torch.tensor([4.0, 1.0]), 1), (torch.tensor([1.0]), 1)])
    tensor([[0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    blocks = []
    for squares, selected in parts:
        scale = squares[:selected].mean().clamp_min(1e-12).rsqrt()
        blocks.append(scale * torch.eye(len(squares))[:selected])
    return torch.block_diag(*blocks)


class NeighborPairs:
    """Pairs of neighbors, as rows of a table of items, split into pairs for training and held-out items.

    Parameters
    ----------
    neighbors : Neighbors
        By item id.
    item_ids : ndarray
        ``(I,)`` int64, of the rows of the table, ascending. Neighbors that are not in the table are left out.
    held_out : float
        Fraction of the items with neighbors that are held out with all their pairs.
    seed : int
        Of the held-out items.
    """

    def __init__(self, neighbors: Neighbors, item_ids: NDArray[np.int64], held_out: float, seed: int) -> None:
        from scipy import sparse

        known = np.isin(neighbors.items, item_ids) & np.isin(neighbors.neighbors, item_ids)
        known &= neighbors.items != neighbors.neighbors
        anchors, others = (np.searchsorted(item_ids, ids[known]) for ids in (neighbors.items, neighbors.neighbors))
        self.candidates = np.union1d(anchors, others)
        distinct = np.unique(anchors)
        # In random order, for the sample that is evaluated.
        self.held = np.random.default_rng(seed).permutation(distinct)[: round(held_out * len(distinct))]
        train = ~(np.isin(anchors, self.held) | np.isin(others, self.held))
        if not len(self.held) or not train.any():
            raise DataError(
                f"{len(self.candidates)} items have both embeddings and neighbors: too few for training and "
                "held-out items; check that both use the same ids, or give more interactions"
            )
        matrix = sparse.csr_array((np.ones(len(anchors), dtype=bool), (anchors, others)), shape=(len(item_ids),) * 2)
        self.known = (matrix + matrix.T).tocsr()
        self.train_anchors, counts = np.unique(anchors[train], return_counts=True)
        self._others = others[train]
        self._ends = np.concatenate(([0], np.cumsum(counts)))
        self._totals = np.concatenate(([0.0], np.cumsum(neighbors.scores[known][train])))

    def sample(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample ``count`` anchors uniformly and a neighbor of each in proportion to its score; rows ``(B,)``."""
        index = rng.integers(len(self.train_anchors), size=count)
        first, end = self._ends[index], self._ends[index + 1]
        low, high = self._totals[first], self._totals[end]
        sampled = np.searchsorted(self._totals, low + rng.random(count) * (high - low), side="right") - 1
        return self.train_anchors[index], self._others[np.clip(sampled, first, end - 1)]

    def recall(self, embeddings: Tensor, at: int, most: int = 4096) -> float:
        """Return the mean fraction of a held-out item's neighbors that are among its nearest items, by cosine.

        An item with more neighbors than ``at``, the nearest items, is scored as if it had this many. Of more held-out
        items than ``most``, a random sample that is always the same is evaluated.
        """
        embeddings = F.normalize(embeddings, dim=-1)
        table = embeddings[torch.from_numpy(self.candidates)]
        at = min(at, len(self.candidates) - 1)
        evaluated = np.sort(self.held[:most])
        total = 0.0
        for held in np.array_split(evaluated, -(-len(evaluated) // 256)):
            similarity = embeddings[torch.from_numpy(held)] @ table.T
            similarity[torch.arange(len(held)), torch.from_numpy(np.searchsorted(self.candidates, held))] = -torch.inf
            found = self.candidates[similarity.topk(at, dim=-1).indices.numpy()]
            rows = self.known[held]
            hits = rows[np.arange(len(held))[:, None], found].sum(axis=1)
            total += float((hits / np.minimum(rows.sum(axis=1), at)).sum())
        return total / len(evaluated)


def info_nce(embeddings: Tensor, pairs: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Return the symmetric loss of a batch of embeddings ``(X, D)`` of any norm.

    ``pairs`` ``(2, B)`` are rows of them that are neighbors; ``known`` ``(X, X)``, symmetric, is True for known
    neighbors.
    """
    unit = F.normalize(embeddings, dim=-1)
    logits = unit @ unit.T / temperature
    same = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    # Not -inf: logsumexp over nothing but -inf has no gradient.
    negatives = logits.masked_fill(known | same, -1e9).logsumexp(dim=-1)
    positive = logits[pairs[0], pairs[1]]
    return 0.5 * (F.softplus(negatives[pairs[0]] - positive) + F.softplus(negatives[pairs[1]] - positive)).mean()


def train_head(
    head: AlignmentHead, inputs: Tensor, pairs: NeighborPairs, options: AlignOptions, what: str, verbose: int = 1
) -> TrainingResult:
    """Train a head in place on inputs ``(I, P)``, and leave it with the weights of the best recall."""
    rng = np.random.default_rng(options.seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)

    def loss() -> Tensor:
        items, rows = np.unique(np.stack(pairs.sample(options.batch_size, rng)), return_inverse=True)
        known = torch.from_numpy(pairs.known[items][:, items].toarray())
        embeddings = head(inputs[torch.from_numpy(items)])
        return info_nce(embeddings, torch.from_numpy(rows.reshape(2, -1)), known, options.temperature)

    def recall() -> float:
        embeddings = _project(head, inputs)
        return pairs.recall(embeddings, options.recall_at) if torch.isfinite(embeddings).all() else math.nan

    metric = f"recall@{options.recall_at}"
    return train_until_best(head, optimizer, loss, recall, options, what, metric, verbose)


@torch.no_grad()
def _project(head: AlignmentHead, inputs: Tensor, chunk: int = 16_384) -> Tensor:
    return torch.cat([head(part) for part in inputs.split(chunk)])


@dataclass(frozen=True)
class Alignment:
    """Trained heads and their inputs."""

    inputs: tuple[ContentInput, ...]  #: One per modality.
    heads: dict[str, AlignmentHead]  #: ``joint``, of all modalities, and possibly one per modality by its name.

    @property
    def columns(self) -> dict[str, int]:
        """Name and dim of each column of aligned embeddings."""
        return {_column(name): len(head.start) for name, head in self.heads.items()}

    def apply(self, joined: JoinedEmbeddings) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]]:
        """Yield ids ``(n,)`` and aligned embeddings ``(n, D)`` by column, of all items.

        Raises a ConfigError if the embeddings do not have the names and dims of those that the heads were trained on.
        """
        check_modalities(joined.dims, {part.name: len(part.mean) for part in self.inputs}, "the head")
        for ids, parts in joined.chunks():
            yield ids, self.transform(parts)

    @torch.no_grad()
    def transform(self, parts: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Return the aligned embeddings ``(n, D)`` by column, of embeddings ``(n, D_m)`` by modality.

        Their norm is sqrt(D), a mean square of 1, because only the direction is trained. An item without any embedding
        gets zeros, as padding does.
        """
        inputs = {part.name: torch.from_numpy(part(parts[part.name])) for part in self.inputs}
        inputs[JOINT] = torch.cat(list(inputs.values()), dim=-1)
        columns = {}
        for name, head in self.heads.items():
            present = (inputs[name] != 0).any(dim=-1, keepdim=True)
            columns[_column(name)] = F.normalize(head(inputs[name]), dim=-1) * len(head.start) ** 0.5 * present
        return {column: aligned.numpy() for column, aligned in columns.items()}

    def save(self, path: StrPath) -> None:
        """Write a safetensors file, with the names as JSON in its metadata."""
        arrays = to_arrays(self.inputs)
        for number, head in enumerate(self.heads.values()):
            arrays |= {f"heads.{number}.{name}": tensor.numpy() for name, tensor in head.state_dict().items()}
        SAVED.save(path, {"modalities": [part.name for part in self.inputs], "heads": list(self.heads)}, arrays)

    @classmethod
    def load(cls, path: StrPath) -> Alignment:
        """Read a file of ``save``; raises MissingFileError or DataError."""
        return SAVED.load(path, cls._from_content)

    @classmethod
    def _from_content(cls, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Alignment:
        inputs = from_arrays(content["modalities"], arrays)
        dims = {part.name: len(part.components) for part in inputs}
        dims[JOINT] = sum(dims.values())
        heads = {str(name): _head(arrays, f"heads.{number}.") for number, name in enumerate(content["heads"])}
        for name, head in heads.items():
            if head.start.shape[1] != dims[name]:
                raise ValueError(f"head '{name}' has another dim than its inputs")
        return cls(inputs, heads)


def _column(head: str) -> str:
    return "item_emb_aligned" if head == JOINT else f"item_emb_aligned_{head}"


def _head(arrays: Mapping[str, NDArray[Any]], prefix: str) -> AlignmentHead:
    state = state_of(arrays, prefix)
    hidden = len(state["residual.0.weight"]) if "residual.0.weight" in state else 0
    head = AlignmentHead(torch.zeros_like(state["start"]), hidden)
    head.load_state_dict(state)
    return head.requires_grad_(False)
