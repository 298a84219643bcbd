r"""The Pretraining Search Unit of SEMINAR: Shen et al., 2024, https://arxiv.org/abs/2407.10714.

.. math::
    e_{id}(i) \in \mathbb R^D, \quad e_m(i) = G_m x_m(i), \qquad u(i) = \sum_f \mathrm{softmax}(a)_f \, e_f(i)

    o = \mathrm{MHTA}(u(t), u(S)), \qquad \hat y(t, S) = \sigma(\mathrm{MLP}([u(t), o, u(t) \odot o]))

    \mathcal L = \mathrm{BCE}(\hat y, y) + \lambda \, \mathrm{mean}_{f < g} \, \mathrm{CLIP}(e_f, e_g)

with x_m the principal components of a modality m, f the id and the modalities, S the items before t, y = 1 for the next
item and 0 for the sampled ones, and CLIP the symmetric contrastive loss over the distinct next items of a batch. A
field that an item does not have is zero, and has no part in the alignment.

Departures: there are no queries, so neither query parts nor a relevance loss; the published code's MLP has no product
of target and interest; each G_m starts from the leading principal components, and weight decay pulls back to them;
targets of the alignment are the items themselves (the published code smooths them).

Shapes: F fields, I items, P_m components of a modality, P of all, D dim, B positions, J negatives, X distinct items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.data.ids import Numbering
from fuxictr_mm.embeddings.content_inputs import ContentInput, by_modality, from_arrays, state_of, to_arrays
from fuxictr_mm.embeddings.contrastive import AlignmentHead
from fuxictr_mm.embeddings.early_stopping import TrainingResult, train_until_best
from fuxictr_mm.embeddings.sequences import NextItemBatch, NextItems, share_below
from fuxictr_mm.files import StrPath
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import MultiHeadTargetAttention, contrast_of_fields
from fuxictr_mm.reduction.saved import SavedFormat, check_modalities

if TYPE_CHECKING:
    from fuxictr_mm.embeddings.item_files import JoinedEmbeddings
    from fuxictr_mm.embeddings.pretrain import PretrainOptions

#: The field of the ids.
ID = "id"

SAVED = SavedFormat("search unit", "pretrain")


class ItemFields(nn.Module):
    """The fields of items and their gated sum.

    Parameters
    ----------
    starts : mapping of str to Tensor
        What G of each modality starts from, ``(D, P_m)``.
    num_ids : int
        Number of items with an embedding of their id.
    """

    def __init__(self, starts: Mapping[str, Tensor], num_ids: int) -> None:
        super().__init__()
        dim = len(next(iter(starts.values())))
        self.names = [ID, *starts]
        self.ids = nn.Embedding(num_ids + 1, dim, padding_idx=0)  # 0: none
        nn.init.normal_(self.ids.weight, std=0.1)
        nn.init.zeros_(self.ids.weight[0].detach())
        self.projections = nn.ModuleDict({name: AlignmentHead(start, 0) for name, start in starts.items()})
        self.gate = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, inputs: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Return ``(X, F, D)`` of inputs ``(X, P_m)`` and numbers of ids ``(X,)``."""
        contents = [projection(inputs[name]) for name, projection in self.projections.items()]
        return torch.stack([self.ids(ids), *contents], dim=1)

    def fuse(self, fields: Tensor) -> Tensor:
        """Return ``(X, D)`` of fields ``(X, F, D)``."""
        return (fields * self.gate.softmax(dim=0).unsqueeze(1)).sum(dim=1)


class SearchUnit(nn.Module):
    """The logits of next items.

    Parameters
    ----------
    fields : ItemFields
        Of the items.
    num_heads : int
        Of the attention; must divide D.
    """

    def __init__(self, fields: ItemFields, num_heads: int) -> None:
        super().__init__()
        self.fields, dim = fields, fields.ids.embedding_dim
        self.attention = MultiHeadTargetAttention(dim, dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(3 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, items: Tensor, batch: NextItemBatch) -> Tensor:
        """Return the logits ``(B, 1 + J)`` of fused items ``(X, D)``."""
        candidates = torch.from_numpy(batch.candidates)
        # All positions with their first candidate, then all with their second: the history of each comes again.
        target, columns = items[candidates.t().flatten()], candidates.shape[1]
        offsets = np.concatenate([[0], np.cumsum(np.tile(np.diff(batch.offsets), columns))])
        history = Jagged(items, torch.from_numpy(offsets), torch.from_numpy(batch.history).repeat(columns))
        interest = self.attention(target, history)
        logits: Tensor = self.mlp(torch.cat([target, interest, target * interest], dim=1))
        return logits.view(columns, -1).t()


def next_item_loss(logits: Tensor, counts: Tensor) -> Tensor:
    """Return the binary cross-entropy of logits ``(B, 1 + J)``, the next item first, of those that count."""
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    return F.binary_cross_entropy_with_logits(logits[counts], labels[counts])


def train_unit(
    unit: SearchUnit,
    inputs: Tensor,
    parts: Sequence[ContentInput],
    ids: Tensor,
    data: NextItems,
    options: PretrainOptions,
    verbose: int = 1,
) -> TrainingResult:
    """Train a unit in place on inputs ``(I, P)`` and numbers of ids ``(I,)``, and keep the weights of the best AUC."""
    rng = np.random.default_rng(options.seed)
    decayed = list(unit.fields.projections.parameters())
    rest = [parameter for parameter in unit.parameters() if all(parameter is not other for other in decayed)]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)

    def fields_of(batch: NextItemBatch) -> Tensor:
        rows = torch.from_numpy(batch.items)
        found: Tensor = unit.fields(by_modality(inputs[rows], parts), ids[rows])
        return found

    def loss() -> Tensor:
        batch = data.sample(options.batch_size, rng)
        fields = fields_of(batch)
        logits = unit(unit.fields.fuse(fields), batch)
        aligned = fields[torch.from_numpy(np.unique(batch.candidates[:, 0]))]
        return next_item_loss(logits, torch.from_numpy(batch.counts)) + options.align_weight * contrast_of_fields(
            aligned, options.temperature
        )

    @torch.no_grad()
    def auc() -> float:
        same = np.random.default_rng(options.seed)  # the same negatives in every evaluation
        below, pairs = 0.0, 0
        for start in range(0, len(data.held), options.batch_size):
            batch = data.batch(data.held[start : start + options.batch_size], same)
            logits = unit(unit.fields.fuse(fields_of(batch)), batch)
            if not torch.isfinite(logits).all():
                return math.nan
            found = share_below(logits.numpy(), batch.counts)
            below, pairs = below + found[0], pairs + found[1]
        return below / max(pairs, 1)

    return train_until_best(unit, optimizer, loss, auc, options, "pretrain", "AUC", verbose)


@dataclass(frozen=True)
class Pretrained:
    """Trained fields of items, and their inputs."""

    inputs: tuple[ContentInput, ...]  #: One per modality.
    fields: ItemFields
    ids: pa.Array  #: ``(I,)`` ids of the items that have an embedding of their id, as in the files.

    @property
    def columns(self) -> dict[str, int]:
        """Name and dim of each column of pretrained embeddings; the first is that of the fused fields."""
        names = ["item_emb_pretrained", *(f"item_emb_pretrained_{name}" for name in self.fields.names)]
        return dict.fromkeys(names, self.fields.ids.embedding_dim)

    def apply(self, joined: JoinedEmbeddings) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]]:
        """Yield ids ``(n,)`` and pretrained embeddings ``(n, D)`` by column, of all items.

        Raises a ConfigError if the embeddings do not have the names and dims of those that the unit was trained on.
        """
        check_modalities(joined.dims, {part.name: len(part.mean) for part in self.inputs}, "the search unit")
        rows, start = self.rows_of(joined.ids, joined.numbering), 0
        for ids, parts in joined.chunks():
            yield ids, self.transform(parts, rows[start : start + len(ids)])
            start += len(ids)

    def rows_of(self, items: NDArray[np.int64], numbering: Numbering) -> NDArray[np.int64]:
        """Return the row ``(n,)`` of the embedding of each item's id, 0 where there is none."""
        known = numbering.numbers(self.ids, f"{ID} of the search unit", 0, known=False)
        order = np.argsort(known)
        places = np.searchsorted(known, items, sorter=order).clip(max=len(known) - 1)
        return np.where(known[order][places] == items, order[places] + 1, 0)

    @torch.no_grad()
    def transform(
        self, parts: Mapping[str, NDArray[np.float32]], rows: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the embeddings ``(n, D)`` by column, of embeddings ``(n, D_m)`` by modality and rows of ids ``(n,)``.

        What an item does not have is zeros; row 0 is that of an item without an embedding of its id.
        """
        inputs = {part.name: torch.from_numpy(part(parts[part.name])) for part in self.inputs}
        fields = self.fields(inputs, torch.from_numpy(rows))
        return {
            column: found.numpy()
            for column, found in zip(self.columns, [self.fields.fuse(fields), *fields.unbind(1)], strict=True)
        }

    def save(self, path: StrPath) -> None:
        """Write a safetensors file, with the names as JSON in its metadata."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([(ID, self.ids.type)])) as writer:
            writer.write_batch(pa.record_batch([self.ids], names=[ID]))
        arrays: dict[str, NDArray[Any]] = to_arrays(self.inputs)
        arrays |= {f"fields.{name}": tensor.numpy() for name, tensor in self.fields.state_dict().items()}
        arrays["item_ids"] = np.frombuffer(sink.getvalue(), dtype=np.uint8)
        SAVED.save(path, {"modalities": [part.name for part in self.inputs]}, arrays)

    @classmethod
    def load(cls, path: StrPath) -> Pretrained:
        """Read a file of ``save``; raises MissingFileError or DataError."""
        return SAVED.load(path, cls._from_content)

    @classmethod
    def _from_content(cls, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Pretrained:
        inputs = from_arrays(content["modalities"], arrays)
        ids = pa.ipc.open_stream(pa.py_buffer(arrays["item_ids"].tobytes())).read_all()[ID].combine_chunks()
        state = state_of(arrays, "fields.")
        fields = ItemFields({part.name: state[f"projections.{part.name}.start"] for part in inputs}, len(ids))
        fields.load_state_dict(state)
        return cls(inputs, fields.requires_grad_(False), ids)
