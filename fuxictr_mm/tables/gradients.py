"""Sparse gradients of embedding tables: rows and values, of one process or of several.

Shape letters: R rows of a table, D its dim, U touched rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fuxictr_mm.errors import ConfigError


def touched_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the tables of ``table: touched``."""
    return _sparse_parameters(model, sharded=False)


def sharded_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the tables of ``table: sharded`` of a model in one process, which has them as ``nn.Embedding``."""
    return _sparse_parameters(model, sharded=True)


def _sparse_parameters(model: nn.Module, sharded: bool) -> list[nn.Parameter]:
    """Return the weights of every ``nn.Embedding`` with sparse gradients."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse and m.weight.requires_grad]
    tables = [table for table in tables if getattr(table, "is_sharded", False) == sharded]
    weights: dict[int, Any] = {id(table.weight): table.weight for table in tables}
    return list(weights.values())


def touched_rows(table: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Return the rows ``(U,)`` that the sparse gradient of a table reaches, ascending, and their gradient ``(U, D)``.

    A change of it in place changes that of the table.

    Raises
    ------
    ConfigError
        The gradient is dense.
    """
    assert table.grad is not None
    if not table.grad.is_sparse:
        raise ConfigError(
            f"a table of {tuple(table.shape)} with table: touched has a gradient for all rows, because the "
            "model uses the whole weight; set table: dense"
        )
    if not table.grad.is_coalesced():
        table.grad = table.grad.coalesce()
    return table.grad._indices()[0], table.grad._values()


def sparse_gradient(table: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Return a gradient of a table ``(R, D)`` with ``values`` ``(n, D)`` in ``rows`` ``(n,)``, which are added up."""
    shape = list(table.shape)
    return torch.sparse_coo_tensor(rows.unsqueeze(0), values, shape, check_invariants=False).coalesce()


def no_gradient(table: Tensor) -> Tensor:
    """Return a gradient of a table that reaches no row."""
    rows = torch.zeros(0, dtype=torch.int64, device=table.device)
    return sparse_gradient(table, rows, table.detach().new_zeros(0, table.shape[1]))
