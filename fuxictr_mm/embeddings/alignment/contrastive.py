r"""Contrastive alignment: a map of content vectors under which items that are alike by behaviour lie near.

.. math::
    \mathcal{L}_{a \to b} = -\log
    \frac{e^{z_a \cdot z_b / \tau}}{e^{z_a \cdot z_b / \tau} + \sum_{x \in X \setminus N(a)} e^{z_a \cdot z_x / \tau}},
    \qquad \mathcal{L} = \tfrac{1}{2} (\mathcal{L}_{a \to b} + \mathcal{L}_{b \to a})

with z the unit vectors that the head gives, (a, b) a pair of neighbours, X the items of the batch, and N(a) the item a
and all its known neighbours: a neighbour is no negative. InfoNCE: van den Oord et al., 2018,
https://arxiv.org/abs/1807.03748; symmetric, in-batch: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020.

Departures: known neighbours are taken out of the negatives; all items of a batch, of either side, are negatives.

Shapes: I items, P input width, D output width, B pairs of a batch, X distinct items of a batch, M neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.embeddings.alignment.swing import Neighbors
from fuxictr_mm.embeddings.alignment.training import Training
from fuxictr_mm.errors import DataError
from fuxictr_mm.training.progress import progress_bar


class AlignmentHead(nn.Module):
    r"""The map :math:`y = S x + W x + V \mathrm{GELU}(U x + c)`, which starts as its fixed part S.

    S takes some of the inputs as they are; W and V start at zero, so that training starts from the PCA, and weight
    decay draws back to it.

    Parameters
    ----------
    start : Tensor
        S, ``(D, P)``.
    hidden : int
        Width of U x; 0 leaves the map linear.
    """

    start: Tensor

    def __init__(self, start: Tensor, hidden: int) -> None:
        super().__init__()
        dim, width = start.shape
        self.register_buffer("start", start)
        self.linear = nn.Linear(width, dim, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.residual: nn.Sequential | None = None
        if hidden:
            last = nn.Linear(hidden, dim, bias=False)
            nn.init.zeros_(last.weight)
            self.residual = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``(I, D)`` for ``(I, P)``."""
        outputs = inputs @ (self.start + self.linear.weight).T
        return outputs if self.residual is None else outputs + self.residual(inputs)


@dataclass
class Trained:
    """What training a head came to.

    Parameters
    ----------
    before, after : float
        Recall of held-out items' neighbours at the start and of the weights kept.
    steps : int
        Step of the weights kept.
    history : list of float
        The recall at each evaluation.
    """

    before: float
    after: float
    steps: int
    history: list[float] = field(default_factory=list)


class NeighborPairs:
    """Pairs of neighbours by the rows of a table of items, split into those to train on and those held out.

    Parameters
    ----------
    neighbors : Neighbors
        By item id.
    item_ids : ndarray of int64, (I,)
        Of the table's rows, ascending. Neighbours that the table lacks are left out.
    held_out : float
        Share of the items with neighbours that are held out with all their pairs.
    seed : int
        Which.

    Raises
    ------
    DataError
        Too few items are in both for training and evaluation.
    """

    def __init__(self, neighbors: Neighbors, item_ids: NDArray[np.int64], held_out: float, seed: int) -> None:
        from scipy import sparse

        rng = np.random.default_rng(seed)
        anchors, others, scores = neighbors.anchors, neighbors.neighbors, neighbors.scores
        there = np.isin(anchors, item_ids) & np.isin(others, item_ids) & (anchors != others)
        anchors, others = (np.searchsorted(item_ids, ids[there]) for ids in (anchors, others))
        scores = scores[there]
        self.candidates = np.union1d(anchors, others)
        held = rng.permutation(np.unique(anchors))[: round(held_out * len(np.unique(anchors)))]
        unseen = np.isin(anchors, held) | np.isin(others, held)
        if not len(held) or unseen.all():
            raise DataError(
                f"{len(self.candidates)} items have both vectors and neighbours: too few to train on some and hold out "
                "others; check that the ids of the two are the same, or give more interactions"
            )
        shape = (len(item_ids), len(item_ids))
        known = sparse.csr_array((np.ones(len(anchors), dtype=bool), (anchors, others)), shape=shape)
        self.known = (known + known.T).tocsr()
        self.held = np.sort(held)
        self.train_anchors, counts = np.unique(anchors[~unseen], return_counts=True)
        self._others = others[~unseen]
        self._starts = np.cumsum(counts) - counts
        self._counts = counts
        totals = np.concatenate(([0.0], np.cumsum(scores[~unseen])))
        self._totals = totals

    def draw(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw `count` anchors, each as likely, and a neighbour of each in proportion to its score; rows, (B,)."""
        place = rng.integers(len(self.train_anchors), size=count)
        first = self._totals[self._starts[place]]
        last = self._totals[self._starts[place] + self._counts[place]]
        drawn = np.searchsorted(self._totals, first + rng.random(count) * (last - first), side="right") - 1
        drawn = np.clip(drawn, self._starts[place], self._starts[place] + self._counts[place] - 1)
        return self.train_anchors[place], self._others[drawn]

    def recall(self, vectors: Tensor, at: int, most: int = 4096) -> float:
        """Mean share of a held-out item's neighbours among its nearest items.

        Parameters
        ----------
        vectors : Tensor
            ``(I, D)``, of any length: nearness is the cosine.
        at : int
            How many nearest; an item with more neighbours is scored as if it had so many.
        most : int
            Held-out items that are looked at, at most.
        """
        vectors = F.normalize(vectors, dim=-1)
        candidates = torch.from_numpy(self.candidates)
        table = vectors[candidates]
        at = min(at, len(candidates) - 1)
        total = 0.0
        for held in np.array_split(self.held[:most], -(-min(len(self.held), most) // 256)):
            similarity = vectors[torch.from_numpy(held)] @ table.T
            similarity[torch.arange(len(held)), torch.from_numpy(np.searchsorted(self.candidates, held))] = -torch.inf
            nearest = self.candidates[similarity.topk(at, dim=-1).indices.numpy()]
            rows = self.known[held]
            hits = rows[np.arange(len(held))[:, None], nearest].sum(axis=1)
            total += float((hits / np.minimum(rows.sum(axis=1), at)).sum())
        return total / min(len(self.held), most)


def info_nce(vectors: Tensor, pairs: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Return the symmetric loss of a batch, see the head of this file.

    Parameters
    ----------
    vectors : Tensor
        ``(X, D)``, of any length.
    pairs : Tensor
        ``(2, B)``, rows of `vectors` that are neighbours.
    known : Tensor
        ``(X, X)`` bool, symmetric: which are known neighbours.
    temperature : float
        Tau.
    """
    unit = F.normalize(vectors, dim=-1)
    logits = unit @ unit.T / temperature
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    # Finite: the gradient of logsumexp over nothing but -inf is no number.
    negatives = logits.masked_fill(known | itself, -1e9).logsumexp(dim=-1)
    positive = logits[pairs[0], pairs[1]]
    return 0.5 * (F.softplus(negatives[pairs[0]] - positive) + F.softplus(negatives[pairs[1]] - positive)).mean()


def train_head(
    head: AlignmentHead, inputs: Tensor, pairs: NeighborPairs, training: Training, what: str = "align", verbose: int = 1
) -> Trained:
    """Train a head and leave it with the weights of the best recall.

    Parameters
    ----------
    head : AlignmentHead
        Changed in place.
    inputs : Tensor
        ``(I, P)``.
    pairs : NeighborPairs
        Of the rows of `inputs`.
    training : Training
        How.
    what : str
        Name on the progress bar.
    verbose : int
        0 shows no progress bar.
    """
    rng = np.random.default_rng(training.seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    before = _recall(head, inputs, pairs, training)
    result = Trained(before, before, 0, [before])
    best: dict[str, Any] = copy.deepcopy(head.state_dict())
    waited = 0
    with progress_bar(range(1, training.steps + 1), what, verbose) as bar:
        for step in bar:
            drawn = np.stack(pairs.draw(training.batch_size, rng))
            items, places = np.unique(drawn, return_inverse=True)
            known = torch.from_numpy(pairs.known[items][:, items].toarray())
            vectors = head(inputs[torch.from_numpy(items)])
            loss = info_nce(vectors, torch.from_numpy(places.reshape(2, -1)), known, training.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % training.evaluate_every and step < training.steps:
                continue
            recall = _recall(head, inputs, pairs, training)
            result.history.append(recall)
            bar.set_postfix({f"recall@{training.recall_at}": f"{recall:.4f}"})
            if recall > result.after:
                result.after, result.steps, waited = recall, step, 0
                best = copy.deepcopy(head.state_dict())
            else:
                waited += 1
                if waited == training.patience:
                    break
    head.load_state_dict(best)
    return result


@torch.no_grad()
def _recall(head: AlignmentHead, inputs: Tensor, pairs: NeighborPairs, training: Training) -> float:
    return pairs.recall(project(head, inputs), training.recall_at)


@torch.no_grad()
def project(head: AlignmentHead, inputs: Tensor, chunk: int = 16_384) -> Tensor:
    """Return the head's vectors ``(I, D)`` of ``(I, P)``, a chunk at a time."""
    return torch.cat([head(part) for part in inputs.split(chunk)])


def start_matrix(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Return S, which takes the first inputs of each modality and gives each modality the same mean square.

    Parameters
    ----------
    parts : sequence of (Tensor, int)
        Variances of a modality's inputs, ``(P_m,)``, and how many of them to take.

    Returns
    -------
    Tensor
        ``(sum of taken, sum of P_m)``.

    Examples
    --------
    >>> start_matrix([(torch.tensor([4.0, 1.0]), 1), (torch.tensor([1.0]), 1)])
    tensor([[0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    blocks = []
    for variances, taken in parts:
        scale = variances[:taken].mean().clamp_min(1e-12).rsqrt()
        blocks.append(scale * torch.eye(len(variances))[:taken])
    return torch.block_diag(*blocks)
