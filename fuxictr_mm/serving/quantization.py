"""Weights of the linear layers of an ONNX graph as 8-bit integers.

Shape letters: B rows, D inputs of a layer, N outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

#: Weights use 7 of the 8 bits: with all, sums of two products overflow on CPUs without VNNI.
LARGEST_WEIGHT = 63

#: Layers with fewer inputs or outputs, such as logits, keep 32 bits: rounding takes more time than it saves.
SMALLEST_DIM = 8

#: Operations whose outputs are not negative, and use all 8 bits of an unsigned integer.
NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax")


def quantize_weights(path: Path) -> None:
    """Replace the weights of the linear layers of a graph by 8-bit integers; inputs of these layers are rounded too.

    Each output has a factor, and each row of the inputs: a score does not depend on the rows beside it, and one row
    with large numbers does not cost the others their precision, as a range that all share would.
    """
    import onnx
    import onnxruntime

    # Parts and sums of parameters become weights, which alone are quantized.
    folded = path.with_suffix(".folded")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(str(folded))
    folded.unlink()
    graph = model.graph
    layers = _Layers(graph)
    nodes = [made for node in graph.node for made in layers.replace(node)]
    del graph.node[:]
    graph.node.extend(nodes)
    read = _names_read(graph)
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    onnx.save(model, str(path))


def _names_read(graph: Any) -> set[str]:
    """Return what is read of the tensors of a graph, also in the body of a loop, whose layers keep 32 bits."""
    bodies = (one.g for node in graph.node for one in node.attribute if one.HasField("g"))
    names = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    return names.union(*map(_names_read, bodies))


class _Layers:
    """The linear layers of a graph, and what replaces them."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
        self._makers = {name: node.op_type for node in graph.node for name in node.output}
        self._inputs: dict[str, tuple[str, str, str]] = {}
        self._constants: set[str] = set()

    def replace(self, node: Any) -> list[Any]:
        """Return the nodes that take the place of one, itself unless it is a linear layer."""
        from onnx import TensorProto, helper, numpy_helper

        settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        is_plain = settings.get("alpha", 1) == settings.get("beta", 1) == 1 and not settings.get("transA")
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in self._weights or not is_plain:
            return [node]
        weight = numpy_helper.to_array(self._weights[node.input[1]])
        weight = weight.T if settings.get("transB") else weight
        if min(weight.shape) < SMALLEST_DIM or weight.dtype != np.float32:
            return [node]
        largest = np.abs(weight).max(axis=0, initial=0)
        factors = np.where(largest > 0, largest / LARGEST_WEIGHT, 1).astype(np.float32)
        (output,) = node.output
        name, has_bias = f"{output}_int8", len(node.input) > 2 and bool(node.input[2])
        product = f"{name}_product" if has_bias else output
        nodes, (values, zero, of_rows) = self._rounded(node.input[0], len(weight))
        weights = self._constant(f"{name}_weight", np.rint(weight / factors).astype(np.int8))
        nodes += [
            helper.make_node("MatMulInteger", [values, weights, zero], [f"{name}_sums"]),
            helper.make_node("Cast", [f"{name}_sums"], [f"{name}_floats"], to=TensorProto.FLOAT),
            # A product of both factors first: ONNX Runtime (1.22 to 1.32) would multiply the bias by the row's factor.
            helper.make_node("Mul", [f"{name}_floats", self._constant(f"{name}_factors", factors)], [f"{name}_rows"]),
            helper.make_node("Mul", [f"{name}_rows", of_rows], [product]),
        ]
        return [*nodes, helper.make_node("Add", [product, node.input[2]], [output])] if has_bias else nodes

    def _rounded(self, rows: str, dim: int) -> tuple[list[Any], tuple[str, str, str]]:
        """Return the nodes that round ``(..., D)`` to unsigned integers, if no other layer has, and their outputs.

        The outputs are the integers, that of zero, and a factor for each row ``(..., 1)``; D is ``dim``.
        """
        from onnx import helper

        if rows in self._inputs:
            return [], self._inputs[rows]
        name, sizes, nodes = f"{rows}_int8_input", rows, []
        zero, largest = (0, 255) if self._makers.get(rows) in NOT_NEGATIVE else (128, 127)
        if zero:
            sizes = f"{name}_sizes"
            nodes.append(helper.make_node("Abs", [rows], [sizes]))
        last = self._constant("int8_last", np.array([-1]))  # the last axis, and a shape of one that is inferred
        least = self._constant("int8_least", np.float32(1e-30))  # of a row of zeros
        offset = self._constant(f"int8_zero_{zero}", np.uint8(zero))
        divisor = self._constant(f"int8_{largest}", np.float32(largest))
        as_matrix = self._constant(f"int8_rows_of_{dim}", np.array([-1, dim]))
        nodes += [
            helper.make_node("ReduceMax", [sizes, last], [f"{name}_largest"], keepdims=1),
            helper.make_node("Max", [f"{name}_largest", least], [f"{name}_range"]),
            helper.make_node("Div", [f"{name}_range", divisor], [f"{name}_factors"]),
            # A scale per row needs a matrix, one factor for each of its rows, and as many zeros.
            helper.make_node("Reshape", [f"{name}_factors", last], [f"{name}_scales"]),
            helper.make_node("Shape", [f"{name}_scales"], [f"{name}_count"]),
            helper.make_node("Expand", [offset, f"{name}_count"], [f"{name}_zeros"]),
            helper.make_node("Reshape", [rows, as_matrix], [f"{name}_matrix"]),
            helper.make_node(
                "QuantizeLinear", [f"{name}_matrix", f"{name}_scales", f"{name}_zeros"], [f"{name}_bytes"], axis=0
            ),
            helper.make_node("Shape", [rows], [f"{name}_shape"]),
            helper.make_node("Reshape", [f"{name}_bytes", f"{name}_shape"], [f"{name}_integers"], allowzero=1),
        ]
        self._inputs[rows] = f"{name}_integers", offset, f"{name}_factors"
        return nodes, self._inputs[rows]

    def _constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name
