"""Layers: tensors in, tensors out.

Importing this package registers them in ``fuxictr.pytorch.layers``.
"""

from torch import nn

from fuxictr_mm.fuxictr_imports import fuxictr_layers
from fuxictr_mm.jagged import Jagged, weighted_sum
from fuxictr_mm.layers.bilinear import BilinearInteraction
from fuxictr_mm.layers.capsules import InterestCapsules
from fuxictr_mm.layers.content_attention import BucketAttention, SemanticAttention, SimTier, tiers
from fuxictr_mm.layers.contrast import contrast_of_fields
from fuxictr_mm.layers.cross_attention import CrossAttentionLayer
from fuxictr_mm.layers.cross_net import CrossNet, CrossNetMix, CrossNetV2, cross_network
from fuxictr_mm.layers.din_attention import DINAttention
from fuxictr_mm.layers.est import ESTLayer
from fuxictr_mm.layers.factorization import Factorization, mean_squares
from fuxictr_mm.layers.hash_attention import HashAttention
from fuxictr_mm.layers.history_search import (
    EqualCodes,
    InnerProduct,
    SameCategory,
    directions,
    first,
    neighbours,
    newest,
    search,
    search_user,
    signs,
    softmax_of_found,
    take,
)
from fuxictr_mm.layers.hstu import HSTULayer
from fuxictr_mm.layers.longer import LONGERLayer, TokenMerge
from fuxictr_mm.layers.one_trans import OneTransBlock
from fuxictr_mm.layers.quadratic import QuadraticLayer, QuadraticNetwork
from fuxictr_mm.layers.recurrent import AUGRU
from fuxictr_mm.layers.senet import SENet
from fuxictr_mm.layers.shared_inputs import mlp_of_shared, mlp_of_shared_fields, products_of_fields
from fuxictr_mm.layers.simcen import ContrastiveProduct, ContrastLayer, contrastive_loss
from fuxictr_mm.layers.similarity import HistorySimilarity
from fuxictr_mm.layers.structured_zeros import StaircaseCrossNetV2
from fuxictr_mm.layers.target_attention import MultiHeadTargetAttention
from fuxictr_mm.layers.tokens import (
    PerTokenLinear,
    SliceTokens,
    SwiGLU,
    TokenMixerLargeBlock,
    TokenMixing,
    mix_tokens,
)
from fuxictr_mm.layers.transformer import Buckets, JaggedTransformerLayer, TargetTransformer, append, rotate

# What a type checker lets model files import from here.
__all__ = [
    "AUGRU",
    "BilinearInteraction",
    "BucketAttention",
    "Buckets",
    "ContrastLayer",
    "ContrastiveProduct",
    "CrossAttentionLayer",
    "CrossNet",
    "CrossNetMix",
    "CrossNetV2",
    "DINAttention",
    "ESTLayer",
    "EqualCodes",
    "Factorization",
    "HSTULayer",
    "HashAttention",
    "HistorySimilarity",
    "InnerProduct",
    "InterestCapsules",
    "JaggedTransformerLayer",
    "LONGERLayer",
    "MultiHeadTargetAttention",
    "OneTransBlock",
    "PerTokenLinear",
    "QuadraticLayer",
    "QuadraticNetwork",
    "SENet",
    "SameCategory",
    "SemanticAttention",
    "SimTier",
    "SliceTokens",
    "StaircaseCrossNetV2",
    "SwiGLU",
    "TargetTransformer",
    "TokenMerge",
    "TokenMixerLargeBlock",
    "TokenMixing",
    "append",
    "contrast_of_fields",
    "contrastive_loss",
    "cross_network",
    "directions",
    "first",
    "mean_squares",
    "mix_tokens",
    "mlp_of_shared",
    "mlp_of_shared_fields",
    "neighbours",
    "newest",
    "products_of_fields",
    "register",
    "rotate",
    "search",
    "search_user",
    "signs",
    "softmax_of_found",
    "take",
    "tiers",
]


def register() -> None:
    """Set each layer of this package as an attribute of ``fuxictr.pytorch.layers``.

    Names that FuxiCTR has are kept, so that its models use the layers they were written for. Calling it again changes
    nothing.
    """
    for name, layer in globals().items():
        if isinstance(layer, type) and issubclass(layer, nn.Module) and not hasattr(fuxictr_layers, name):
            setattr(fuxictr_layers, name, layer)


register()
