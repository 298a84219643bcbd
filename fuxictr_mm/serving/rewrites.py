"""Layers of a model as they cost less in a graph, with the same outputs.

Shape letters: L history length, D item dim, A attention dim.
"""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from fuxictr_mm.fuxictr_imports import MLP_Block
from fuxictr_mm.layers.quadratic import QuadraticLayer
from fuxictr_mm.layers.target_attention import MultiHeadTargetAttention
from fuxictr_mm.model import MultimodalModel


def fuse_batch_norm(model: MultimodalModel) -> MultimodalModel:
    """Make each batch norm of an ``MLP_Block`` a part of the weights before it, in place; returns the model.

    Elsewhere a batch norm may be over another axis, or the linear layer be read for itself.
    """
    for layers in [m.mlp for m in model.modules() if isinstance(m, MLP_Block)]:
        for place, (linear, norm) in enumerate(pairwise(list(layers))):
            if (
                isinstance(linear, nn.Linear)
                and isinstance(norm, nn.BatchNorm1d)
                and norm.affine
                and norm.track_running_stats
            ):
                layers[place], layers[place + 1] = fuse_linear_bn_eval(linear, norm), nn.Identity()
    return model


def fix_slopes(model: MultimodalModel) -> MultimodalModel:
    """Make each ``PReLU`` of one slope a ``LeakyReLU``, in place; returns the model. ONNX Runtime is 8 times faster."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
                setattr(module, name, nn.LeakyReLU(layer.weight.item()))
    return model


def sum_projections(model: MultimodalModel) -> MultimodalModel:
    """Make the linear projections of each ``QuadraticLayer`` their sum, in place; returns the model.

    Graphs would otherwise store all, and those of torch would sum them in every call.
    """
    for layer in [m for m in model.modules() if isinstance(m, QuadraticLayer)]:
        weight, bias = (total.detach() for total in layer.sums())
        summed = nn.Linear(weight.shape[1], weight.shape[0])
        summed.weight.data, summed.bias.data = weight, bias
        layer.linear[0], layer.num_row = summed, 1
    return model


def fuse_projections(model: MultimodalModel) -> MultimodalModel:
    r"""Make the candidates' projections of one large head a part of the history's, in place; returns the model.

    .. math:: (W_q t) \cdot (W_k s) = t \cdot (W_q^\top W_k s), \qquad W_o \sum_n a_n W_v s_n = \sum_n a_n (W_o W_v) s_n

    A candidate then costs L D instead of D A + A L products. ``forward`` of these layers stays as it is.
    """
    for layer in [m for m in model.modules() if isinstance(m, MultiHeadTargetAttention)]:
        if layer.use_qkvo and layer.num_heads == 1 and layer.head_dim >= layer.W_q.in_features:
            fused = copy.deepcopy(layer)
            query, key, value, output = (layer.get_parameter(f"W_{name}.weight").detach().double() for name in "qkvo")
            for name, weight in (("W_k", query.t() @ key), ("W_v", output @ value)):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight.data = weight.to(layer.W_q.weight.dtype)
                setattr(fused, name, linear)
            for name in ("W_q", "W_o"):
                setattr(fused, name, nn.Identity())
            fused.head_dim = layer.W_q.in_features
            layer.fused = fused
            for name in ("keys_and_values", "attend", "weights_of"):
                setattr(layer, name, getattr(fused, name))
    return model
