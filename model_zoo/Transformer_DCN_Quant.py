"""Transformer_DCN_Quant, the winner of the WWW 2025 MM-CTR challenge with semantic ids."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from fuxictr_mm.config import ModelSettings
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.errors import ConfigError, nearest
from fuxictr_mm.layers.semantic_ids import cosine_neighbors, residual_codes
from fuxictr_mm.registry import load_model_class

logger = logging.getLogger(__name__)
Transformer_DCN: Any = load_model_class("Transformer_DCN")


class Transformer_DCN_Quant(Transformer_DCN):
    r"""1st Place Solution, its follow-up. Xu et al., WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2505.03543.

    Transformer_DCN with ids instead of the frozen embedding of an item: its cluster at each level of a residual
    quantizer, and its nearest neighbours. Both are embedded by one table.

    .. math:: s_i = [\mathrm{id}_i, \mathrm{tags}_i, E_{z^1_i}, .., E_{z^L_i}, E_{n^1_i}, .., E_{n^K_i}]

    Departures, besides those of Transformer_DCN: clusters and neighbours are found once for the catalogue, by our own
    k-means and by the cosine; the published code searches the catalogue for every item of every batch, for neighbours
    of the largest inner product, without normalisation. A level is described by the cluster's index; the published
    code takes the id of the item with the nearest residual, which for normalised embeddings is the item itself at every
    level, and for longer ones the shortest embedding of the catalogue. The table is
    ``embedding_layer.embedding_layer.embedding_layers.quanid.weight`` (published: ``quan_embedding`` instead of the
    first part, a row per item), and the catalogue's embeddings are not in the state dict.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    quantized_feature : str, optional
        The embedding that the ids are computed from; by default the only one.
    codebook_num : int
        L, number of levels of the residual quantizer.
    num_clusters : int
        Number of centroids of a level.
    top_k : int
        K, number of neighbours.
    quantizer_seed : int
        Seed of the initial centroids.
    default_vocab : int, optional
        Accepted because the published configuration has it; no effect here.
    **params
        Those of Transformer_DCN and MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        quantized_feature: str | None = None,
        codebook_num: NonNegativeInt = 3,
        num_clusters: PositiveInt = 5,
        top_k: NonNegativeInt = 3,
        quantizer_seed: int = 20242025,
        default_vocab: PositiveInt | None = None,
        **params: Any,
    ) -> None:
        model_id = params["model_id"]
        specs = feature_map.features
        frozen = [n for n, s in specs.items() if s.get("source") == "item" and s["type"] == "embedding"]
        name = quantized_feature or (frozen[0] if len(frozen) == 1 else "")
        if name not in frozen:
            raise ConfigError(
                f"{model_id}: quantized_feature is {quantized_feature!r}{nearest(str(quantized_feature), frozen)}, "
                f"expected one of the items' embeddings ({', '.join(frozen) or 'there are none'})"
            )
        new = feature_map.items.num_items - feature_map.items.num_trained
        if new:
            raise ConfigError(
                f"{model_id}: {new} items are not in the vocabulary of the run, but this model fits its "
                "codes on the items of training; remove them from the item files, or train again"
            )
        ids = torch.zeros(feature_map.items.num_items, codebook_num + top_k, dtype=torch.int64)
        if torch.get_default_device().type != "meta":  # where a model is made for its shapes, no codes are needed
            known = feature_map.items.known.nonzero().squeeze(1)
            if codebook_num + top_k == 0 or not num_clusters <= len(known) >= top_k:
                raise ConfigError(
                    f"{model_id}: codebook_num {codebook_num}, num_clusters {num_clusters} and top_k {top_k} must fit "
                    f"{len(known)} items, with at least one level or neighbour"
                )
            logger.info(f"{model_id}: semantic ids of {len(known)} items from '{name}'")
            # On the CPU: the rounding of a GPU would give other codes, and weights would fit one device only.
            known = known.cpu()
            found = feature_map.items[name].cpu()[known]
            codes = residual_codes(found, num_levels=codebook_num, num_clusters=num_clusters, seed=quantizer_seed)
            # In the table: a row per item, then C rows per level.
            codes += feature_map.items.num_items + num_clusters * torch.arange(codebook_num, device=codes.device)
            ids[known] = torch.cat([codes, known[cosine_neighbors(found, top_k)]], dim=1)
        vocab_size = feature_map.items.num_items + num_clusters * codebook_num
        dim = ModelSettings.of(params, model_id).embedding_dim
        ids = ids.to(feature_map.items.known.device)
        super().__init__(_replace_embedding(feature_map, name, ids, vocab_size, dim), **params)


def _replace_embedding(feature_map: FeatureMap, name: str, ids: Tensor, vocab_size: int, dim: int) -> FeatureMap:
    """Return a copy with ``quanid``, the embeddings of ``ids`` ``(I, M)`` instead of a frozen embedding."""
    replaced = copy.copy(feature_map)
    replaced.features = type(feature_map.features)({n: s for n, s in feature_map.features.items() if n != name})
    replaced.features["quanid"] = {
        "type": "sequence",
        "source": "item",
        "vocab_size": vocab_size,
        "embedding_dim": dim,
        "max_len": ids.shape[1],
        "feature_encoder": "nn.Flatten()",
        "emb_output_dim": ids.shape[1] * dim,
    }
    items = feature_map.items
    replaced.items = ItemTable(
        {**{n: items[n] for n in items.names}, "quanid": ids}, items.known, vocabulary=items.vocabulary
    )
    return replaced
