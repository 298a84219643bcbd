"""SEMINAR: search by product codes of several modalities, whose embeddings are aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import EqualCodes, MultiHeadTargetAttention, contrast_of_fields, mlp_of_shared
from fuxictr_mm.layers.history_search import search, search_user, take
from fuxictr_mm.model import DNNModel


class SEMINAR(DNNModel):
    r"""Search Enhanced Multi-modal Interest Network. Shen et al., 2024, https://arxiv.org/abs/2407.10714.

    .. math::

        r_l = \sum_m w_m \, |\{j : \mathrm{code}_{m, j}(t) = \mathrm{code}_{m, j}(s_l)\}|, \qquad
        S = \mathrm{top}_K \, r_l, \qquad u(i) = \sum_f \mathrm{softmax}(a)_f \, G_f \odot i_f

        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{MHTA}(u(t), u(s_{L-k+1} .. s_L)), \mathrm{MHTA}(u(t), u(S))]))

        \mathcal L = \mathrm{BCE}(\hat y, y) + \lambda \, \mathrm{align}

    with context c, target t and history items s, whose fields f (id, tags, frozen embeddings) have one dim and diagonal
    projections G. The codes of a modality m are those of a product quantizer. The alignment is the symmetric
    contrastive loss of every pair of ``aligned`` fields, as CLIP's, over the distinct targets of a batch. A field of
    zeros, which an item does not have, is left out of it.

    Searching costs one comparison of integers per code and item of a history; only the items that are found, and the
    newest k, are embedded.

    The paper's first stage, pretraining on the alignment and on the next item, is ``fuxictr-mm embed pretrain``
    (``fuxictr_mm.embeddings.search_unit``). Its embeddings are fields that training starts from, and product codes of
    them are ``codes``: see ``docs/embeddings/pretrain.md``.

    Departures: there are no queries, so neither relevance loss nor query parts; the alignment is also a second loss of
    the training; a search is by codes of contents, which new items have, and of ids only where they are among
    ``codes``; weights of modalities in the search are settings.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items; every field has the dim ``embedding_dim``.
    codes : sequence of str
        Columns of the items with product codes, one per modality.
    code_weights : sequence of float, optional
        w, one weight per modality; 1 by default.
    aligned : sequence of str
        Fields of the items to align, two or more; without any there is no alignment loss.
    align_weight : float
        Lambda, the weight of the alignment loss.
    temperature : float
        Temperature of the alignment, which divides the cosines.
    top_k : int
        K, number of items that the search finds.
    short_len : int
        k, number of newest items.
    num_heads : int
        Heads of both attentions; must divide ``embedding_dim``.
    attention_dropout : float
        Dropout on the weights of both attentions.
    **params
        Those of DNNModel and MultimodalModel.
    """

    same_dims = True
    #: Its attention weights the newest items and those that are found.
    attends_to_history = False
    reads_short_history = True
    codes: Tensor

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        codes: Sequence[str] = (),
        code_weights: Sequence[PositiveFloat] | None = None,
        aligned: Sequence[str] = (),
        align_weight: NonNegativeFloat = 0.1,
        temperature: PositiveFloat = 0.05,
        top_k: PositiveInt = 50,
        short_len: NonNegativeInt = 50,
        num_heads: PositiveInt = 1,
        attention_dropout: Dropout = 0.0,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        dim, fields = self.embedding_dim, self.item_fields
        self.check_heads(num_heads, dim, "embedding_dim")
        wrong = [name for name in aligned if name not in fields]
        if wrong or len(set(aligned)) == 1:
            raise ConfigError(
                f"{self.model_id}: aligned is {list(aligned)}, expected two or more of {', '.join(fields)}"
            )
        weights = code_weights or [1.0] * len(codes)
        if len(weights) != len(codes):
            raise ConfigError(f"{self.model_id}: {len(weights)} code_weights for {len(codes)} columns of codes")
        command = "fuxictr-mm embed quantize --method pq"
        self.per_item_codes = tuple(self.item_column("codes", name, command, "codes") for name in codes or (None,))
        self.register_buffer("codes", super().code_table(), persistent=False)
        counts = [self.items.stored(name)[0].numel() for name in self.per_item_codes]
        per_code = [weight for count, weight in zip(counts, weights, strict=True) for _ in range(count)]
        self.register_buffer("code_weights", torch.tensor(per_code), persistent=False)
        self.aligned = [fields.index(name) for name in aligned]
        self.align_weight, self.temperature = align_weight, temperature
        self.alignment: Tensor | None = None
        self.top_k, self.short_len = top_k, short_len
        self.field_gate = nn.Parameter(torch.zeros(len(fields)))
        self.field_scale = nn.Parameter(torch.ones(len(fields), dim))
        self.short_attention = MultiHeadTargetAttention(dim, dim, num_heads, attention_dropout)
        self.long_attention = MultiHeadTargetAttention(dim, dim, num_heads, attention_dropout)
        self.dnn = self.make_dnn(self.context_dim + self.item_dim + 2 * dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        ids, codes, target_ids = batch.history, self.history_codes(batch), batch.target.long()
        score = EqualCodes(codes.distinct, codes.distinct.index_select(0, target_ids), self.code_weights)
        found = search(codes, score, self.top_k)
        target, (long, short) = self.embed_histories(batch, take(ids, found), self.newest_items(batch, self.short_len))
        self.alignment = self._align(target_ids) if self.training and self.aligned else None
        query, fused = self._fuse(target), self._fuse(long.distinct)
        long, short = (Jagged(fused, part.offsets, part.index) for part in (long, short))
        interests = [self.short_attention(query, short), self.long_attention(query, long)]
        return self.dnn(torch.cat([self.embed_context(batch), target, *interests], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and fused items, codes and keys and values, the newest item first."""
        fused, codes = self._fuse(history).flip(0), self.code_table().index_select(0, ids).flip(0)
        return context, fused, codes, *self.long_attention.keys_and_values(fused)

    def candidate_columns(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Return the codes."""
        return (self.code_table().index_select(0, ids),)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        of_candidates, context, fused, codes, keys, values = state
        _, found = search_user(EqualCodes(codes, of_candidates, self.code_weights).of_all(), self.top_k)
        query = self._fuse(candidates)
        short = self.short_attention.attend_to_first(query, fused, self.short_len)
        long = self.long_attention.attend(query, keys, values, found)
        return mlp_of_shared(self.dnn, context, candidates, short, long)

    def code_table(self) -> Tensor:
        """Return the codes of all modalities side by side, ``(I, M)``, joined once."""
        return self.codes

    def _fuse(self, items: Tensor) -> Tensor:
        """Return the gated sums of the fields of items ``(U, F D)``, ``(U, D)``."""
        weights = self.field_gate.softmax(dim=0).unsqueeze(1) * self.field_scale
        # No einsum, which autocast would round: the attention takes keys of the dtype of its weights.
        return (items.unflatten(1, self.field_scale.shape) * weights).sum(dim=1)

    def _align(self, targets: Tensor) -> Tensor:
        """Return the mean contrastive loss of pairs of fields of the distinct items ``(B,)``."""
        # An embedding that unknown items share is of none of them.
        fields = self.embed_items(targets.unique(), fills_unknown=False).unflatten(1, self.field_scale.shape)
        return contrast_of_fields(fields[:, self.aligned], self.temperature)

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the last scored batch, in training with the alignment."""
        loss = super().add_loss(return_dict, y_true)
        alignment, self.alignment = self.alignment, None  # otherwise it keeps the graph of the batch in memory
        return loss if alignment is None else loss + self.align_weight * alignment
