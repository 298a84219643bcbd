"""How much memory a graph needs for each pair of a scored row and a history item."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.export import ExportedProgram

#: Scored rows and history items of each, for which sizes are compared. Few items, so that what a row has apart from its
#: history counts as well.
ROWS, LENGTH = 1024, 64


def numbers_per_pair(program: ExportedProgram, names: Sequence[str]) -> int:
    """Return the size of the largest array that a graph computes, in numbers per scored row and history item.

    Parameters
    ----------
    program : ExportedProgram
        The graph.
    names : sequence of str
        Its inputs. Those that have as many entries as there are scored rows or items are known by their names.
    """
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    inputs = dict(zip(names, values[len(values) - len(names) :], strict=True))
    pairs = ROWS * LENGTH
    # In a graph of rows, the history has those of all rows, and items may all be distinct.
    counts = {"target": ROWS, "candidates": ROWS, "items": pairs} | ({"history": pairs} if "target" in inputs else {})
    sizes = {str(inputs[name].shape[0]): count for name, count in counts.items() if name in inputs}
    computed = [node.meta.get("val") for node in program.graph.nodes if node.op == "call_function"]
    largest = max((_numbers(value, sizes) for value in computed), default=0)
    return max(-(-largest // pairs), 1)


def _numbers(value: Any, sizes: Mapping[str, int]) -> int:
    """Return the size of an array, or the largest of several; 0 for one of a fixed size, such as a parameter."""
    if isinstance(value, list | tuple):
        return max((_numbers(one, sizes) for one in value), default=0)
    if not isinstance(value, torch.Tensor) or not any(isinstance(size, torch.SymInt) for size in value.shape):
        return 0
    return prod(_size(size, sizes) for size in value.shape)


def _size(size: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
    """Return a size; one that depends on the data, such as the items that a search keeps, is that of the history."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs({symbol: sizes.get(str(symbol), LENGTH) for symbol in expression.free_symbols}))
