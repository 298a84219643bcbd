"""Graphs of an export, in ONNX Runtime or, where torch is installed, in torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

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
    path : Path
        The graph.
    threads : int
        Threads that it uses.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [port.name for port in self._session.get_inputs()]
        self.outputs = [port.name for port in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs."""
        return self._session.run(None, {name: inputs[name] for name in self.inputs})


class TorchGraph:
    """A graph by ``torch.export.save``; its threads are torch's.

    Parameters
    ----------
    path : Path
        The graph.
    ports : mapping
        Names of ``inputs`` and ``outputs``, by the manifest.

    Raises
    ------
    ServingError
        torch is missing, or the file holds more than tensors and a graph.
    """

    def __init__(self, path: Path, ports: Mapping[str, list[str]]) -> None:
        try:
            import torch
        except ImportError:
            raise ServingError(f"{path}: graphs of --format pt2 need torch; export with --format onnx") from None
        check_archive(path)
        program = torch.export.load(str(path))
        self.inputs, self.outputs = ports["inputs"], ports["outputs"]
        self._nested, self._module = program.call_spec.in_spec, program.module()

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs."""
        import torch
        from torch.utils import _pytree as pytree

        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.inputs]
        args, _ = pytree.tree_unflatten(tensors, self._nested)
        with torch.no_grad():
            found = self._module(*args)
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple | list) else [found])]


#: Whole names, and beginnings of names, of the files in an archive by ``torch.export.save``, without those that hold
#: pickled objects or compiled code.
ARCHIVE_FILES = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
ARCHIVE_FOLDERS = ("models/model.json", "data/weights/weight_", "data/constants/tensor_")


def check_archive(path: Path) -> None:
    """Refuse an archive in which torch would execute anything, such as pickled objects.

    Raises
    ------
    ServingError
        It is none, or holds more than tensors and a graph.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.partition("/")[2]
                if name.startswith(("data/weights/", "data/constants/")) and name.endswith("_config.json"):
                    entries = json.loads(archive.read(info))["config"].values()
                    allowed = not any(entry["use_pickle"] for entry in entries)
                elif name == "data/sample_inputs/model.pt":
                    allowed = info.file_size == 0
                else:
                    allowed = name in ARCHIVE_FILES or name.startswith(ARCHIVE_FOLDERS)
                if not allowed:
                    raise ServingError(f"{path}: holds {name}, which is no tensor; export again")
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServingError(f"{path}: is no graph by torch.export.save ({error}); export again") from None


def open_graph(folder: Path, manifest: Mapping[str, Any], name: str, threads: int) -> Graph:
    """Return a graph of an export."""
    path = folder / manifest["graphs"][name]
    return TorchGraph(path, manifest["ports"][name]) if path.suffix == ".pt2" else OnnxGraph(path, threads)
