"""A graph of ``torch.export`` in memory, as the scores of an export need it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class TorchGraph:
    """A program, as it was traced, as a function of named arrays; its threads are torch's.

    ``torch.export.load`` would evaluate expressions of a file. The names are in the order of the program.
    """

    def __init__(self, program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.inputs, self.outputs = list(inputs), list(outputs)
        self._nested, self._module = program.call_spec.in_spec, program.module()

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of tables, which are read-only, as is their use here
            tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.inputs]
        args, _ = pytree.tree_unflatten(tensors, self._nested)
        with torch.no_grad():
            found = self._module(*args)
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple | list) else [found])]
