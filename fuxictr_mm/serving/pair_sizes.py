"""How much memory a graph needs by its scored rows and history items."""

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

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default

#: Numbers of the largest array for the history of one user (128 MiB), and a length that no history has. About four such
#: arrays exist at a time, and a server computes two users: with deploy/kubernetes.yaml they fit.
NUMBERS_OF_USER, NO_LENGTH = 2**25, 2**20


def numbers_per_pair(program: ExportedProgram, names: Sequence[str]) -> int:
    """Return the size of the largest array that a graph computes, in numbers per scored row and history item.

    ``names`` are its inputs. Those that have as many entries as there are scored rows or items are known by them.
    """
    return max(-(-_largest(_shapes(program), _sizes(program, names, ROWS, LENGTH), LENGTH) // (ROWS * LENGTH)), 1)


def longest_history(program: ExportedProgram, names: Sequence[str]) -> int | None:
    """Return the most history items of one row for which a graph computes no array beyond ``NUMBERS_OF_USER`` numbers.

    None for a graph whose arrays do not depend on the length, or grow so slowly with it that no history is too long.
    """
    shapes = _shapes(program)

    def fits(length: int) -> bool:
        return _largest(shapes, _sizes(program, names, 1, length), length) <= NUMBERS_OF_USER

    if fits(NO_LENGTH):
        return None
    low, high = 1, NO_LENGTH
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _sizes(program: ExportedProgram, names: Sequence[str], rows: int, length: int) -> dict[str, int]:
    """Return the sizes that inputs have by their symbols, for some rows of so many history items each."""
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    inputs = dict(zip(names, values[len(values) - len(names) :], strict=True))
    # In a graph of rows, the history has those of all rows, and items may all be distinct; in that of a user, its own.
    counts = {"target": rows, "candidates": rows, "items": rows * length}
    counts["history"] = rows * length if "target" in inputs else length
    return {str(inputs[name].shape[0]): count for name, count in counts.items() if name in inputs}


def _shapes(program: ExportedProgram) -> list[tuple[int | torch.SymInt, ...]]:
    """Return the shapes of the arrays that a graph computes, but of those of a fixed size, such as a parameter."""
    found: dict[str, tuple[int | torch.SymInt, ...]] = {}
    computed = [node for node in program.graph.nodes if node.op == "call_function"]
    pending: list[Any] = [node.meta.get("val") for node in computed]
    for query, key, *_ in (node.args for node in computed if node.target is ATTENTION):  # of which ONNX makes its parts
        query, key = query.meta["val"], key.meta["val"]
        pending.append(query.new_empty((*query.shape[:-1], key.shape[-2])))
    while pending:
        value = pending.pop()
        if isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
            found[str(value.shape)] = tuple(value.shape)
    return [*found.values()]


def _largest(shapes: Sequence[Sequence[int | torch.SymInt]], sizes: Mapping[str, int], length: int) -> int:
    return max((prod(_size(size, sizes, length) for size in shape) for shape in shapes), default=0)


def _size(size: int | torch.SymInt, sizes: Mapping[str, int], length: int) -> int:
    """Return a size; one that depends on the data, such as the items that a search keeps, is that of the history."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs({symbol: sizes.get(str(symbol), length) for symbol in expression.free_symbols}))
