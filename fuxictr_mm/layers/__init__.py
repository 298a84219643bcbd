"""Layers: tensors in, tensors out.

Importing this package registers them in ``fuxictr.pytorch.layers``.
"""

from fuxictr_mm.layers.augru import AUGRU
from fuxictr_mm.layers.bilinear import BilinearInteraction
from fuxictr_mm.layers.capsules import InterestCapsules
from fuxictr_mm.layers.contrast_mlp import ContrastiveProduct, ContrastLayer, contrastive_loss
from fuxictr_mm.layers.cross_attention import CrossAttentionLayer
from fuxictr_mm.layers.cross_net import CrossNet, CrossNetMix, CrossNetV2
from fuxictr_mm.layers.din_attention import DINAttention
from fuxictr_mm.layers.hash_attention import HashAttention
from fuxictr_mm.layers.jagged import Jagged
from fuxictr_mm.layers.pooling import weighted_sum
from fuxictr_mm.layers.quadratic import QuadraticLayer, QuadraticNetwork
from fuxictr_mm.layers.register import register
from fuxictr_mm.layers.senet import SENet
from fuxictr_mm.layers.staircase import StaircaseCrossNetV2
from fuxictr_mm.layers.target_attention import MultiHeadTargetAttention
from fuxictr_mm.layers.transformer import Buckets, JaggedTransformerLayer, TargetTransformer

__all__ = [
    "AUGRU",
    "BilinearInteraction",
    "Buckets",
    "ContrastLayer",
    "ContrastiveProduct",
    "CrossAttentionLayer",
    "CrossNet",
    "CrossNetMix",
    "CrossNetV2",
    "DINAttention",
    "HashAttention",
    "InterestCapsules",
    "Jagged",
    "JaggedTransformerLayer",
    "MultiHeadTargetAttention",
    "QuadraticLayer",
    "QuadraticNetwork",
    "SENet",
    "StaircaseCrossNetV2",
    "TargetTransformer",
    "contrastive_loss",
    "register",
    "weighted_sum",
]

register()
