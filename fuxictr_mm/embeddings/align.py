"""Vectors mapped so that items which the same users click lie near: ``fuxictr-mm embed align``.

Swing (`swing`) over the training split says which items are near, a contrastive loss (`contrastive`) trains the map. It
is a function of content alone, so that items nobody has clicked get vectors as well.

Shapes: I items, P components of all modalities.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.config import nearest
from fuxictr_mm.embeddings.command import add_output, flag
from fuxictr_mm.embeddings.item_files import (
    ItemFileWriter,
    JoinedVectors,
    SavedFormat,
    Source,
    add_sources,
    vector_type,
)
from fuxictr_mm.embeddings.reduce import Moments, PrincipalComponents
from fuxictr_mm.embeddings.swing import Clicks, Neighbors, swing
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import check_outputs
from fuxictr_mm.terminal import progress_bar

#: The head that sees all modalities.
JOINT = "joint"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a head is trained.

    Parameters
    ----------
    temperature : float
        Tau; the smaller, the more the nearest negatives count.
    batch_size : int
        Pairs of a step.
    steps : int
        The most there are.
    evaluate_every : int
        Steps from one evaluation to the next.
    patience : int
        Evaluations without a better recall until it stops.
    learning_rate, weight_decay : float
        Of AdamW.
    held_out : float
        Share of items whose pairs, with whatever item, are kept for evaluation.
    recall_at : int
        How many nearest items an evaluation looks at.
    seed : int
        Of weights, held-out items and pairs.
    """

    temperature: float = 0.3
    batch_size: int = 512
    steps: int = 2000
    evaluate_every: int = 50
    patience: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 3.0
    held_out: float = 0.1
    recall_at: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "evaluate_every", "patience", "recall_at", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"align: {name} is {getattr(self, name)}, expected at least 1")
        for name in ("temperature", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"align: {name} is {value}, expected a number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"align: weight_decay is {self.weight_decay}, expected 0 or more")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"align: held_out is {self.held_out}, expected a share between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """What the heads look like, and how they are trained.

    Parameters
    ----------
    dim : int
        Width of the aligned vectors, divided evenly among the modalities, which start from their PCA: of each at least
        as many components are needed.
    components : int
        The most principal components of a modality that a head sees: bounds the memory.
    hidden : int
        Width of the residual MLP; 0 for a linear map.
    per_modality : bool
        Train a head for each modality as well.
    training : Training
        The rest.
    """

    dim: int = 128
    components: int = 256
    hidden: int = 256
    per_modality: bool = False
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("components", 1), ("hidden", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"align: {name} is {getattr(self, name)}, expected at least {least}")


def align(
    sources: Sequence[Source],
    neighbors: Neighbors,
    options: AlignOptions | None = None,
    verbose: int = 1,
) -> tuple[Alignment, dict[str, Trained]]:
    """Train the joint head, and one per modality if wanted.

    Memory is that of the components, ``(I, P)`` float32, and D^2 of the vectors read; not of the vectors.

    Parameters
    ----------
    sources : sequence of Source
        The modalities, raw vectors or reduced ones. An item that one lacks has its mean there.
    neighbors : Neighbors
        What is alike.
    options : AlignOptions, optional
        The defaults where missing.
    verbose : int
        0 shows no progress bar.

    Returns
    -------
    alignment : Alignment
        To apply to these and to new items.
    trained : dict of str to Trained
        What became of each head.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        Vectors or neighbours are wrong, or have too few items in common.
    """
    import torch

    options = options or AlignOptions()
    if any(source.name == JOINT for source in sources):
        raise ConfigError(f"a modality has the name '{JOINT}', which stands for all together; choose another name")
    with JoinedVectors(sources) as joined:
        _check_width(joined.widths, options)
        parts = fit_inputs(joined, options.components)
        order = np.argsort(joined.ids)
        inputs = torch.empty(len(order), sum(len(part.components) for part in parts))
        row_of = np.empty(len(order), dtype=np.int64)
        row_of[order] = np.arange(len(order))
        done = 0
        for ids, vectors in joined.chunks():
            seen = np.concatenate([part(vectors[part.name]) for part in parts], axis=1)
            inputs[torch.from_numpy(row_of[done : done + len(ids)])] = torch.from_numpy(seen)
            done += len(ids)
        pairs = NeighborPairs(neighbors, joined.ids[order], options.training.held_out, options.training.seed)
    columns = dict(zip((p.name for p in parts), inputs.split([len(p.components) for p in parts], dim=1), strict=True))
    wanted = [JOINT, *columns] if options.per_modality else [JOINT]
    heads, trained = {}, {}
    for name in wanted:
        seen_by_head = inputs if name == JOINT else columns[name]
        used = list(columns) if name == JOINT else [name]
        widths = zip(used, shares(options.dim, used), strict=True)
        start = start_matrix([(columns[part].square().mean(dim=0), width) for part, width in widths])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.training.seed)
            heads[name] = AlignmentHead(start, options.hidden)
        trained[name] = train_head(heads[name], seen_by_head, pairs, options.training, f"align {name}", verbose)
        heads[name].requires_grad_(False)
    return Alignment(tuple(parts), heads), trained


def fit_inputs(joined: JoinedVectors, most: int) -> list[ContentInput]:
    """Fit the PCA of each modality, chunk by chunk, on the items that have a vector of it."""
    moments = {name: Moments(width) for name, width in joined.widths.items()}
    for _, vectors in joined.chunks():
        for name, rows in vectors.items():
            moments[name].update(rows[(rows != 0).any(axis=1)])
    for source in joined.sources:
        if moments[source.name].count < 2:
            raise DataError(f"{source.where}: fewer than two vectors that are not zero, expected one per item")
    return [ContentInput.from_pca(name, found.components().keep(most)) for name, found in moments.items()]


def shares(dim: int, names: Sequence[str]) -> list[int]:
    """Divide a width among modalities, the first ones taking what is left over.

    Examples
    --------
    >>> shares(16, ["text", "image", "sound"])
    [6, 5, 5]
    """
    return [dim // len(names) + (place < dim % len(names)) for place in range(len(names))]


def _check_width(widths: Mapping[str, int], options: AlignOptions) -> None:
    """Raise where a head would need more components of a modality than there are."""
    there = {name: min(width, options.components) for name, width in widths.items()}
    heads = [list(widths), *([name] for name in widths if options.per_modality)]
    for names in heads:
        for name, share in zip(names, shares(options.dim, names), strict=True):
            if share > there[name]:
                most = len(names) * min(there[n] for n in names)
                raise ConfigError(
                    f"align: dim is {options.dim}, of which '{name}' gives {share}, but it has no more than "
                    f"{there[name]} components (vectors of width {widths[name]}, components {options.components}); "
                    f"expected a dim of at most {most}"
                )


def write_aligned(
    sources: Sequence[Source], alignment: Alignment, out: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """Write ``item_emb_aligned``, and ``item_emb_aligned_NAME`` of each head, of all items of the sources.

    Raises
    ------
    ConfigError, DataError, MissingFileError, UserError
        Names or widths are not those of the training; vectors are wrong; the file is there or cannot be written.
    """
    schema = {name: vector_type(width) for name, width in alignment.columns.items()}
    with JoinedVectors(sources) as joined:
        alignment.check(joined.widths)
        with ItemFileWriter(out, schema, overwrite=overwrite) as writer:
            for ids, vectors in joined.chunks():
                writer.write(ids, alignment.transform(vectors))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm embed align``."""
    add_examples(
        parser,
        "fuxictr-mm embed align text=item_feature.parquet:txt_emb_BERT image=item_feature.parquet:img_emb_CLIPRN50 \\",
        "    --train train.parquet --out item_emb_aligned.parquet --save aligned.safetensors",
        "fuxictr-mm embed align text=new_items.parquet:txt_emb_BERT image=new_items.parquet:img_emb_CLIPRN50 \\",
        "    --apply aligned.safetensors --out new_item_emb_aligned.parquet",
    )
    add_sources(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="item file to write")
    parser.add_argument("--train", metavar="FILE", help="training split, from which Swing takes the clicks")
    parser.add_argument(
        "--neighbors", metavar="FILE", help="with --train: write the Swing neighbours; without: read them"
    )
    parser.add_argument("--save", metavar="FILE", help="write the trained head, a safetensors file")
    parser.add_argument("--apply", metavar="FILE", help="use this head instead of training one: for new items")
    add_output(parser)
    parser.add_argument("--seed", type=int, help="of every draw (default 0)")
    behaviour = parser.add_argument_group("Swing, with --train")
    behaviour.add_argument("--alpha", type=float, help="smoothing (default 1.0)")
    behaviour.add_argument("--user-weight", type=float, help="a user of n clicks weighs n to minus this (default 0.5)")
    behaviour.add_argument("--top-k", type=int, help="neighbours kept of an item (default 50)")
    behaviour.add_argument("--users-per-item", type=int, help="users that an item is scored over (default 500)")
    behaviour.add_argument("--items-per-user", type=int, help="clicks of a user that count (default 100)")
    heads = parser.add_argument_group("heads")
    heads.add_argument("--dim", type=int, help="width of the aligned vectors (default 128)")
    heads.add_argument("--components", type=int, help="principal components seen of a modality (default 256)")
    heads.add_argument("--hidden", type=int, help="width of the residual MLP (default 256; 0: a linear map)")
    heads.add_argument("--per-modality", action="store_true", default=None, help="align each modality by itself too")
    training = parser.add_argument_group("training")
    training.add_argument("--temperature", type=float, help="of the contrastive loss (default 0.3)")
    training.add_argument("--batch-size", type=int, help="pairs of a step (default 512)")
    training.add_argument("--steps", type=int, help="the most there are (default 2000)")
    training.add_argument("--evaluate-every", type=int, help="steps between evaluations (default 50)")
    training.add_argument("--patience", type=int, help="evaluations without a better recall (default 5)")
    training.add_argument("--learning-rate", type=float, help="of AdamW (default 0.001)")
    training.add_argument("--weight-decay", type=float, help="towards the PCA (default 3.0)")
    training.add_argument("--held-out", type=float, help="share of items held out for evaluation (default 0.1)")
    training.add_argument("--recall-at", type=int, help="nearest items that an evaluation looks at (default 20)")


_SWING = ("alpha", "user_weight", "top_k", "users_per_item", "items_per_user")


_HEADS = ("dim", "components", "hidden", "per_modality")


_TRAINING = tuple(Training.__dataclass_fields__)


def main_from_args(arguments: argparse.Namespace) -> None:
    """Run ``fuxictr-mm embed align``."""
    sources = [Source.parse(text) for text in arguments.sources]
    _refuse_useless(arguments)
    computed, read = (arguments.neighbors, None) if arguments.train is not None else (None, arguments.neighbors)
    inputs = [*(source.path for source in sources), arguments.train, arguments.apply, read]
    # Before minutes of work, not after.
    check_outputs([arguments.out, arguments.save, computed], inputs, arguments.overwrite)
    if arguments.seed is not None and arguments.seed < 0:
        raise ConfigError(f"--seed is {arguments.seed}, expected 0 or more")
    verbose = 0 if arguments.quiet else 1
    if arguments.apply is not None:
        applied = Alignment.load(arguments.apply)
        write_aligned(sources, applied, arguments.out, arguments.overwrite)
        report = {"applied": arguments.apply, "columns": applied.columns}
        show(arguments, report, f"wrote {arguments.out}: {', '.join(applied.columns)} by {arguments.apply}")
        return
    options = AlignOptions(**_given(arguments, _HEADS), training=Training(**_given(arguments, _TRAINING)))
    _check_width({source.name: source.width for source in sources}, options)  # before minutes of Swing
    neighbors = _neighbors(arguments, verbose)
    found = f"{len(neighbors.neighbors)} neighbours of {len(neighbors.item_ids)} items"
    alignment, trained = align(sources, neighbors, options, verbose)
    write_aligned(sources, alignment, arguments.out, arguments.overwrite)
    if arguments.save is not None:
        alignment.save(arguments.save)
    at = options.training.recall_at
    columns = {
        column: {"width": width, "recall_at": at, **asdict(result)}
        for (column, width), result in zip(alignment.columns.items(), trained.values(), strict=True)
    }
    report = {"neighbors": len(neighbors.neighbors), "items": len(neighbors.item_ids), "columns": columns}
    lines = [f"{'Swing' if arguments.train else arguments.neighbors}: {found}"]
    for column, result in columns.items():
        lines.append(
            f"{column} ({result['width']} wide): recall@{at} of held-out items' neighbours {result['before']:.4f} "
            f"before, {result['after']:.4f} after {result['steps']} steps"
        )
    lines.append(f"wrote {arguments.out}; for dataset_config.yaml (add the file to item_info:):")
    lines += [
        f"  - {{name: {column}, active: False, dtype: float, type: embedding, source: item}}" for column in columns
    ]
    show(arguments, report, "\n".join(lines))


def _neighbors(arguments: argparse.Namespace, verbose: int) -> Neighbors:
    if arguments.train is None:
        return Neighbors.read(arguments.neighbors)
    found = swing(Clicks.read(arguments.train), **_given(arguments, (*_SWING, "seed")), verbose=verbose)
    if arguments.neighbors is not None:
        found.write(arguments.neighbors)
    return found


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _refuse_useless(arguments: argparse.Namespace) -> None:
    """Raise where an option has no effect, or none says where neighbours come from."""
    if arguments.apply is not None:
        useless = _given(arguments, ("train", "neighbors", "save", *_SWING, *_HEADS, *_TRAINING))
        if useless:
            raise ConfigError(
                f"{flag(next(iter(useless)))} has no effect with --apply, which trains nothing; leave it out"
            )
    elif arguments.train is None:
        if arguments.neighbors is None:
            raise ConfigError("nothing says which items are alike: give --train FILE, --neighbors FILE or --apply FILE")
        useless = _given(arguments, _SWING)
        if useless:
            raise ConfigError(f"{flag(next(iter(useless)))} has no effect without --train; leave it out")


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


SAVED = SavedFormat("head", "align")


@dataclass(frozen=True)
class ContentInput:
    """What the heads see of a modality: its principal components, their mean square being 1.

    Parameters
    ----------
    name : str
        Of the modality.
    mean : ndarray of float32, (D_m,)
        Of the items that have a vector.
    components : ndarray of float32, (P_m, D_m)
        By falling variance, scaled.
    """

    name: str
    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    @classmethod
    def from_pca(cls, name: str, pca: PrincipalComponents) -> ContentInput:
        """Take all components of a PCA."""
        scale = 1 / np.sqrt(max(float(pca.variances.mean()), 1e-30))
        return cls(name, pca.mean.astype(np.float32), (scale * pca.components).astype(np.float32))

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``(n, P_m)`` for vectors ``(n, D_m)``; zeros, the mean, for an item without a vector."""
        present = (vectors != 0).any(axis=1, keepdims=True)
        return ((vectors - self.mean) * present) @ self.components.T


@dataclass(frozen=True)
class Alignment:
    """Heads over the same inputs.

    Parameters
    ----------
    inputs : tuple of ContentInput
        One per modality.
    heads : dict of str to AlignmentHead
        ``joint``, of all modalities, and perhaps one for each by its name.
    """

    inputs: tuple[ContentInput, ...]
    heads: dict[str, AlignmentHead]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the modalities."""
        return tuple(part.name for part in self.inputs)

    @property
    def columns(self) -> dict[str, int]:
        """Name and width of each column that it makes."""
        return {_column(name): len(head.start) for name, head in self.heads.items()}

    def check(self, widths: Mapping[str, int]) -> None:
        """Raise ConfigError where vectors of these names and widths are not what it was trained on."""
        known = f"(it was trained on: {', '.join(self.names)}); give its name as NAME=FILE:COLUMN"
        for name in widths:
            if name not in self.names:
                raise ConfigError(f"modality '{name}' is unknown to the head{nearest(name, self.names)} {known}")
        for part in self.inputs:
            if part.name not in widths:
                raise ConfigError(f"modality '{part.name}' lacks; the head needs it {known}")
            if widths[part.name] != len(part.mean):
                raise ConfigError(
                    f"modality '{part.name}' has vectors of width {widths[part.name]}, expected {len(part.mean)}; "
                    "use vectors of the same model as in training"
                )

    @torch.no_grad()
    def transform(self, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Return the columns ``(n, D)`` of vectors ``(n, D_m)`` of each modality, see `aligned_rows`."""
        seen = {part.name: torch.from_numpy(part(vectors[part.name])) for part in self.inputs}
        seen[JOINT] = torch.cat(list(seen.values()), dim=-1)
        return {_column(name): aligned_rows(head, seen[name]).numpy() for name, head in self.heads.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; names stand in its metadata as JSON."""
        arrays: dict[str, NDArray] = {}
        for number, part in enumerate(self.inputs):
            arrays[f"inputs.{number}.mean"], arrays[f"inputs.{number}.components"] = part.mean, part.components
        for number, head in enumerate(self.heads.values()):
            arrays |= {f"heads.{number}.{name}": tensor.numpy() for name, tensor in head.state_dict().items()}
        SAVED.save(path, {"modalities": list(self.names), "heads": list(self.heads)}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Alignment:
        """Read what `save` wrote.

        Raises
        ------
        MissingFileError, DataError
            There is no such file; it is damaged or holds something else.
        """
        return SAVED.load(path, cls._from_content)

    @classmethod
    def _from_content(cls, content: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> Alignment:
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds numbers that are not finite")
        inputs = tuple(
            ContentInput(str(name), arrays[f"inputs.{number}.mean"], arrays[f"inputs.{number}.components"])
            for number, name in enumerate(content["modalities"])
        )
        heads = {str(name): _head(arrays, f"heads.{number}.") for number, name in enumerate(content["heads"])}
        alignment = cls(inputs, heads)
        alignment._check_shapes()
        return alignment

    def _check_shapes(self) -> None:
        widths = {part.name: len(part.components) for part in self.inputs}
        widths[JOINT] = sum(widths.values())
        for part in self.inputs:
            if part.components.shape[1:] != part.mean.shape:
                raise ValueError(f"the components of '{part.name}' are of another width than its mean")
        for name, head in self.heads.items():
            if head.start.shape[1] != widths[name]:
                raise ValueError(f"head '{name}' is of another width than its inputs")


def aligned_rows(head: AlignmentHead, inputs: Tensor) -> Tensor:
    """Return vectors of mean square 1, ``(n, D)``, that is of length sqrt(D), the direction being what was trained.

    Zeros, as the padding has, where no modality has a vector.
    """
    rows = torch.nn.functional.normalize(head(inputs), dim=-1) * len(head.start) ** 0.5
    return rows * (inputs != 0).any(dim=-1, keepdim=True)


def _column(head: str) -> str:
    return "item_emb_aligned" if head == JOINT else f"item_emb_aligned_{head}"


def _head(arrays: Mapping[str, NDArray], prefix: str) -> AlignmentHead:
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    state = {name: torch.from_numpy(array) for name, array in own.items()}
    hidden = len(state["residual.0.weight"]) if "residual.0.weight" in state else 0
    head = AlignmentHead(torch.zeros_like(state["start"]), hidden)
    head.load_state_dict(state)
    return head.requires_grad_(False)
