"""``fuxictr-mm export --format triton``: an export as a model repository of NVIDIA Triton Inference Server.

Tables become graphs of one lookup each, so that they are loaded once: ``NAME_items``, ``NAME_context_FIELD``. Graphs of
the export are models as they are. An ensemble ``NAME`` joins them: item numbers in, predictions out.
``NAME_newest`` removes unknown items from its history and cuts it as in training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm_serving.manifest import MANIFEST, FieldEntry, Manifest, TableEntry

#: Files of the export that are kept: a client needs the vocabulary.
KEPT = ("parity.json", "vocabulary.json")

#: The ensemble's tensor of the items of a history that are read.
NEWEST = "newest_history"


@dataclass(frozen=True)
class Port:
    """An input or output: numpy dtype, and dims with -1 where they vary."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A model of an ensemble: its inputs and outputs by the names of the ensemble's tensors."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass
class Repository:
    """A folder of models."""

    source: Path  #: The export.
    folder: Path  #: Where to write.
    name: str  #: Of the ensemble; begins the names of the other models.
    manifest: Manifest  #: Of the export.
    steps: list[Step] = field(default_factory=list)
    inputs: dict[str, Port] = field(default_factory=dict)

    def write(self) -> None:
        """Write the models, the ensemble, and what a client needs."""
        for file in KEPT:
            if (self.source / file).exists():
                shutil.copy(self.source / file, self.folder / file)
        # That of the export without its files: no server but Triton can read the folder.
        document = json.loads((self.source / MANIFEST).read_text(encoding="utf-8"))
        document = {key: value for key, value in document.items() if key not in ("bytes", "sha256")}
        text = json.dumps({**document, "format": "triton"}, indent=2, ensure_ascii=False) + "\n"
        (self.folder / MANIFEST).write_text(text, encoding="utf-8")
        fields = {f"context_{f.name}": f for f in self.manifest.context}
        tables = {name: f.table for name, f in fields.items() if f.table}
        self._write_lookup("items", self.manifest.items.table, 1)
        if self.manifest.items.codes is not None:
            self._write_lookup("codes", TableEntry(file=self.manifest.items.codes.file), 1, np.int64)
        for name, entry in tables.items():
            self._write_lookup(name, entry, 2 if fields[name].type == "sequence" else 1)
        graphs = ("user", "candidates") if "user" in self.manifest.graphs else ("rows",)
        if graphs[0] == "user":
            self._write_newest()
        ports = {graph: self._write_graph(graph) for graph in graphs}
        made = {output.name for graph in graphs[:-1] for output in ports[graph][1]}
        read = {port.name for graph in graphs[1:] for port in ports[graph][0]}
        for graph in graphs:
            taken = {}
            for port in ports[graph][0]:
                is_of_items = port.name in ("items", "history", "candidates") and len(port.dims) == 2
                if is_of_items or port.name in tables:
                    table = "items" if is_of_items else port.name
                    taken[port.name] = self._look_up(table, port.name, fields.get(port.name))
                    continue
                taken[port.name] = port.name
                if port.name in ("codes", "candidate_codes"):  # of the same items as the embeddings
                    ids = "candidates" if port.name != "codes" else NEWEST if graph == "user" else "items"
                    self.steps.append(Step(f"{self.name}_codes", {"ids": ids}, {"rows": port.name}))
                elif port.name not in made:
                    self.inputs[port.name] = port
            outputs = {p.name: p.name for p in ports[graph][1] if graph == graphs[-1] or p.name in read}
            self.steps.append(Step(f"{self.name}_{graph}", taken, outputs))
        self._write_config(self.name, list(self.inputs.values()), ports[graphs[-1]][1], self.steps)
        (self.folder / self.name / "1").mkdir()

    def _look_up(self, table: str, tensor: str, spec: FieldEntry | None) -> str:
        """Add the lookup of an input of ids; returns the name of its rows."""
        length = [spec.max_len] if spec and spec.type == "sequence" else []
        of_user = [1] if spec and "user" in self.manifest.graphs else [-1]
        self.inputs[tensor] = Port(tensor, np.dtype(np.int64), (*of_user, *length))
        ids = NEWEST if tensor == "history" else tensor
        self.steps.append(Step(f"{self.name}_{table}", {"ids": ids}, {"rows": f"{tensor}_rows"}))
        return f"{tensor}_rows"

    def _write_graph(self, graph: str) -> tuple[list[Port], list[Port]]:
        import onnx

        folder = self._folder_of(f"{self.name}_{graph}")
        model = onnx.load(str(self.source / self.manifest.graphs[graph]))
        content = model.graph
        tables = self.manifest.tables
        for port in [port for port in content.input if port.name in tables]:
            file = tables[port.name].file
            values = np.load(self.source / file, mmap_mode="r", allow_pickle=False)
            tensor = _external(values, Path(file).stem, folder)
            tensor.name = port.name
            content.initializer.append(tensor)
            content.input.remove(port)
        if graph == "rows":
            for port in [port for port in content.input if port.name.startswith("context_")]:
                _require_row_per_target(content, port)
        sizes = {f"context_{f.name}": f.vocab_size for f in self.manifest.context if f.as_ids}
        for port in content.input:
            if port.name in sizes:
                _refuse_outside(content, port.name, sizes[port.name])
        onnx.save(model, str(folder / "model.onnx"))
        inputs, outputs = [_port(v) for v in content.input], [_port(v) for v in content.output]
        self._write_config(f"{self.name}_{graph}", inputs, outputs)
        return inputs, outputs

    def _write_newest(self) -> None:
        """Write a graph that keeps the newest known items of a history, as many as the model was trained with."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        all_items = np.iinfo(np.int64).max
        bounds = {"starts": -(self.manifest.items.max_len or all_items), "ends": all_items}
        folder = self._folder_of(f"{self.name}_newest")
        nodes, tensors = self._find_known(folder)
        tensors += [numpy_helper.from_array(np.array([value]), name) for name, value in bounds.items()]
        ids, newest = (helper.make_tensor_value_info(n, TensorProto.INT64, [n]) for n in ("ids", "newest"))
        nodes.append(_node("Compress", ["ids", "is_known"], ["kept"], axis=0))
        nodes.append(_node("Slice", ["kept", *bounds], ["newest"]))
        graph = helper.make_graph(nodes, "newest", [ids], [newest], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(model, str(folder / "model.onnx"))
        self._write_config(f"{self.name}_newest", [_port(ids)], [_port(newest)])
        self.steps.append(Step(f"{self.name}_newest", {"ids": "history"}, {"newest": NEWEST}))

    def _find_known(self, folder: Path) -> tuple[list[Any], list[Any]]:
        """Return the nodes that find which ``ids`` the server knows, ``is_known``, and their tensors."""
        known = np.load(self.source / self.manifest.items.known, allow_pickle=False)
        known[0] = False  # padding
        nodes, tensors = _find_outside(len(known), 0)
        return [*nodes, _node("Gather", ["known", "inside"], ["is_known"])], [
            *tensors,
            _external(known, "known", folder),
        ]

    def _write_lookup(self, name: str, table: TableEntry, id_dims: int, dtype: type[np.generic] = np.float32) -> None:
        """Write a graph ``ids -> rows`` whose table is a file beside it.

        An item that is not known is item 0, as in the server; any other id that it does not hold is refused, also one
        below 0, which would count from the end.
        """
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        folder = self._folder_of(f"{self.name}_{name}")
        values = np.load(self.source / table.file, mmap_mode="r", allow_pickle=False)
        if name in ("items", "codes"):
            nodes, tensors = self._find_known(folder)
            nodes.append(_node("Where", ["is_known", "inside", "zero"], ["found"]))
        else:
            nodes, tensors = _find_outside(len(values), len(values))
            nodes.append(_node("Identity", ["inside"], ["found"]))
        tensors.append(_external(values, "table", folder))
        nodes.append(_node("Gather", ["table", "found"], ["stored"]))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        nodes.append(_node("Cast", ["stored"], ["cast"], to=kind))
        if table.scales is not None:
            dims = table.dims or [values.shape[1]]
            tensors.append(_external(np.load(self.source / table.scales, allow_pickle=False), "scales", folder))
            fields = np.repeat(np.arange(len(dims)), dims)
            tensors.append(numpy_helper.from_array(fields, "fields"))
            nodes.append(_node("Gather", ["scales", "found"], ["of_fields"]))
            nodes.append(_node("Gather", ["of_fields", "fields"], ["factors"], axis=-1))
            nodes.append(_node("Mul", ["cast", "factors"], ["rows"]))
        else:
            nodes.append(_node("Identity", ["cast"], ["rows"]))
        letters = ["n", "length"][:id_dims]
        ids = helper.make_tensor_value_info("ids", TensorProto.INT64, letters)
        rows = helper.make_tensor_value_info("rows", kind, [*letters, values.shape[1]])
        graph = helper.make_graph(nodes, name, [ids], [rows], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(model, str(folder / "model.onnx"))
        self._write_config(f"{self.name}_{name}", [_port(ids)], [_port(rows)])

    def _folder_of(self, model: str) -> Path:
        folder = self.folder / model / "1"
        folder.mkdir(parents=True)
        return folder

    def _write_config(
        self, model: str, inputs: Iterable[Port], outputs: Iterable[Port], steps: Iterable[Step] = ()
    ) -> None:
        steps = list(steps)
        lines = [f'name: "{model}"', "max_batch_size: 0"]
        for kind, ports in (("input", inputs), ("output", outputs)):
            for port in ports:
                dims = ", ".join(map(str, port.dims))
                lines.append(f'{kind} {{ name: "{port.name}" data_type: {_type(port.dtype)} dims: [{dims}] }}')
        if steps:
            lines += ['platform: "ensemble"', "ensemble_scheduling {"]
            for step in steps:
                lines.append(f'  step {{\n    model_name: "{step.model}"\n    model_version: -1')
                for kind, pairs in (("input", step.inputs), ("output", step.outputs)):
                    lines += [f'    {kind}_map {{ key: "{key}" value: "{value}" }}' for key, value in pairs.items()]
                lines.append("  }")
            lines.append("}")
        else:
            lines += ['backend: "onnxruntime"', "instance_group { kind: KIND_CPU count: 1 }"]
            lines.append('parameters { key: "intra_op_thread_count" value { string_value: "1" } }')
        folder = self.folder / model
        folder.mkdir(exist_ok=True)
        (folder / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _find_outside(length: int, other: int, ids: str = "ids", prefix: str = "") -> tuple[list[Any], list[Any]]:
    """Return the nodes that replace ``ids`` below 0, or of ``length`` or more, by another, and their tensors."""
    from onnx import numpy_helper

    zero, last, another, below, beyond, outside, inside = (
        prefix + name for name in ("zero", "length", "other", "below", "beyond", "outside", "inside")
    )
    nodes = [
        _node("Less", [ids, zero], [below]),
        _node("GreaterOrEqual", [ids, last], [beyond]),
        _node("Or", [below, beyond], [outside]),
        _node("Where", [outside, another, ids], [inside]),
    ]
    bounds = {zero: 0, last: length, another: other}
    return nodes, [numpy_helper.from_array(np.array(value), key) for key, value in bounds.items()]


def _refuse_outside(content: Any, ids: str, length: int) -> None:
    """Let a graph that looks up ids itself refuse those below 0, or of ``length`` or more: no table has the largest."""
    prefix = f"{ids}_"
    for node in content.node:
        node.input[:] = [f"{prefix}inside" if name == ids else name for name in node.input]
    nodes, tensors = _find_outside(length, np.iinfo(np.int64).max, ids, prefix)
    for place, node in enumerate(nodes):
        content.node.insert(place, node)
    content.initializer.extend(tensors)


def _require_row_per_target(content: Any, port: Any) -> None:
    """Let a graph of rows refuse an input with more rows than targets, or fewer, of which one would be that of all."""
    from onnx import numpy_helper

    rows, count, dims, shape = (f"{port.name}_{part}" for part in ("of_targets", "count", "dims", "shape"))
    for node in content.node:
        node.input[:] = [rows if name == port.name else name for name in node.input]
    others = np.array([dim.dim_value for dim in port.type.tensor_type.shape.dim[1:]], dtype=np.int64)
    nodes = [
        _node("Shape", ["target"], [count]),
        _node("Concat", [count, dims], [shape], axis=0),
        _node("Reshape", [port.name, shape], [rows], allowzero=1),  # fails if the numbers do not fill the shape
    ]
    for place, node in enumerate(nodes):
        content.node.insert(place, node)
    content.initializer.append(numpy_helper.from_array(others, dims))


def _node(kind: str, inputs: list[str], outputs: list[str], **settings: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, **settings)


def _port(value: Any) -> Port:
    from onnx import helper

    kind = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return Port(value.name, helper.tensor_dtype_to_np_dtype(kind.elem_type), dims)


def _type(dtype: np.dtype[Any]) -> str:
    names = {"float32": "FP32", "float16": "FP16", "float64": "FP64", "bool": "BOOL"}
    return f"TYPE_{names.get(dtype.name, dtype.name.upper())}"


def _external(values: np.ndarray, name: str, folder: Path) -> Any:
    """Return a tensor whose values are in a file, written without loading them all."""
    from onnx import TensorProto, helper

    values.tofile(folder / f"{name}.data")
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=values.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=f"{name}.data")
    return tensor
