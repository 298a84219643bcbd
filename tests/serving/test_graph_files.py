"""Graphs with weights of 8 bits."""

import numpy as np
import pytest

from fuxictr_mm.serving import export as module
from fuxictr_mm.serving import parity as parity_module
from fuxictr_mm.serving.export import export
from fuxictr_mm.serving.graph_files import quantize_weights
from fuxictr_mm_serving.graphs import OnnxGraph

pytest.importorskip("onnxscript")


@pytest.mark.slow
def test_weights_of_8_bits(weights_of, exported, tmp_path):
    experiment, weights = weights_of("DIN_MM_tiny")
    parity = export(experiment, tmp_path / "out", weights=weights, precision="int8-weights")
    assert 1e-5 < parity["largest_difference"] <= module.TOLERANCES["int8-weights"]
    assert 1e-5 < parity["largest_difference_folded"] <= module.TOLERANCES["int8-weights"]
    folded = parity["auc_folded"]
    assert folded["rows"] == parity_module.FOLD_ROWS_INT8
    assert 0 < abs(folded["export"] - folded["model"]) < 0.01
    assert abs(parity["auc"]["export"] - parity["auc"]["model"]) < 0.01
    assert (tmp_path / "out" / "candidates.onnx").stat().st_size < (exported / "candidates.onnx").stat().st_size
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "items.npy"), np.load(exported / "items.npy"))


def test_parts_and_sums_of_parameters_are_quantized(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    parts = [np.random.default_rng(i).normal(size=(8, 4)).astype(np.float32) for i in range(2)]
    nodes = [helper.make_node("Add", ["one", "two"], ["weight"]), helper.make_node("MatMul", ["x", "weight"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", d]) for n, d in (("x", 8), ("y", 4)))
    tensors = [numpy_helper.from_array(part, name) for name, part in zip(("one", "two"), parts, strict=True)]
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    quantize_weights(path)
    assert [path] == list(tmp_path.iterdir())
    assert "MatMulInteger" in {node.op_type for node in onnx.load(path).graph.node}
    assert "MatMul" not in {node.op_type for node in onnx.load(path).graph.node}
    rows = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    found = OnnxGraph(path.read_bytes(), "graph", 1).run({"x": rows})[0]
    np.testing.assert_allclose(found, rows @ sum(parts), atol=0.2)
