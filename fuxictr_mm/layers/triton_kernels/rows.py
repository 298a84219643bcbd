"""Rows of a table ``(R, C)`` in a kernel: a block of some rows and columns is read, or added to, by their numbers.

Also ReLU, which both kinds of attention need.
"""

import triton
import triton.language as tl


@triton.jit
def gather(table, rows, columns, width, exists):
    """Return a block ``(n, c)`` of a table of ``width`` columns in float32; zero where no row or column exists."""
    inside = exists[:, None] & (columns < width)[None, :]
    return tl.load(table + rows[:, None] * width + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def scatter_add(table, rows, columns, width, exists, values):
    """Add a block ``(n, c)`` to rows of a float32 table, of which several may be the same, by atomic operations."""
    inside = exists[:, None] & (columns < width)[None, :]
    tl.atomic_add(table + rows[:, None] * width + columns[None, :], values.to(tl.float32), mask=inside, sem="relaxed")


@triton.jit
def store(table, rows, columns, width, exists, values):
    """Write a block ``(n, c)`` to rows of a table."""
    inside = exists[:, None] & (columns < width)[None, :]
    tl.store(table + rows[:, None] * width + columns[None, :], values, mask=inside)


@triton.jit
def relu(x):
    """Return ReLU; of NaN it is NaN, for which ``tl.maximum`` returns 0 on a GPU, but not in the interpreter."""
    return tl.where(x <= 0, 0.0, x)
