"""Graphs of an export, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fuxictr_mm_serving.errors import ServingError


class Graph(Protocol):
    """A function of named arrays."""

    inputs: list[str]
    outputs: list[str]

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs."""
        ...


class OnnxGraph:
    """A graph in ONNX Runtime.

    Parameters
    ----------
    content : bytes
        The graph.
    name : str
        Its name in errors.
    threads : int
        Threads that it uses.
    keeps_memory : bool
        Whether it keeps the memory of a run for the next, which is faster, and takes up to twice as much as it needs.

    Raises
    ------
    ServingError
        It is not a graph, or ONNX Runtime is not installed.
    """

    def __init__(self, content: bytes, name: str, threads: int, *, keeps_memory: bool = True) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise ServingError("onnxruntime is not installed: pip install 'fuxictr-mm[serving]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = keeps_memory
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many types
            reason = " ".join(str(error).split())[:200]
            raise ServingError(f"{name}: is not a graph that ONNX Runtime reads ({reason}); export again") from None
        self._name = name
        self.inputs = [port.name for port in self._session.get_inputs()]
        self.outputs = [port.name for port in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs."""
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        try:
            return self._session.run(None, {name: inputs[name] for name in self.inputs})
        except InvalidArgument as error:
            raise ServingError(f"{self._name}: refuses an input ({' '.join(str(error).split())[:200]})") from None
