"""Attention to the history in kernels for a GPU, written in Triton.

The modules of this package import Triton, which torch brings in its builds with CUDA; they are imported where a layer
with ``uses_kernels`` calls them.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from fuxictr_mm.errors import ConfigError

#: Heads times dims that one warp keeps in its registers, both filled up to a power of two.
LARGEST_QUERY = 2048


def fuse(model: nn.Module) -> None:
    """Let the layers of a model that have kernels call them.

    Raises
    ------
    ConfigError
        Triton is not installed.
    """
    if find_spec("triton") is None:
        raise ConfigError("fused_attention is True, but Triton is not installed; install it, or set it to False")
    for module in model.modules():
        if hasattr(module, "uses_kernels"):
            module.uses_kernels = True  # type: ignore[assignment]


def takes(*tensors: Tensor) -> bool:
    """Whether kernels compute with such tensors: float32 or bfloat16 on a GPU, and not inside torch's compiler."""
    dtypes = (torch.float32, torch.bfloat16)
    return all(t.is_cuda and t.dtype in dtypes for t in tensors) and not torch.compiler.is_compiling()


def takes_queries(heads: int, dim: int) -> bool:
    """Whether the queries of a row, one of each head, fit into the registers of a warp."""
    return filled(heads) * filled(dim) <= LARGEST_QUERY


def filled(size: int) -> int:
    """Return the next power of two, as sizes of blocks are.

    Examples
    --------
    >>> filled(1), filled(3), filled(192)
    (1, 4, 256)
    """
    return 1 << (size - 1).bit_length()
