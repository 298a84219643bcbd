"""Graphs with weights of 8 bits."""

import numpy as np
import pytest

from fuxictr_mm.serving import export as module
from fuxictr_mm.serving import parity as parity_module
from fuxictr_mm.serving import quantization
from fuxictr_mm.serving.export import export
from fuxictr_mm.serving.quantization import quantize_weights
from fuxictr_mm_serving import Export
from fuxictr_mm_serving.graphs import OnnxGraph

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")


@pytest.mark.slow
def test_weights_of_8_bits(weights_of, exported, tmp_path):
    experiment, weights = weights_of("DIN_MM_tiny")
    parity = export(experiment, tmp_path / "out", weights=weights, precision="int8-weights")
    assert 1e-5 < parity["largest_difference"] <= module.TOLERANCES["int8-weights"]
    assert 1e-5 < parity["largest_difference_folded"] <= module.TOLERANCES["int8-weights"]
    folded = parity["auc_folded"]
    assert folded["rows"] == parity_module.FOLD_ROWS_WITH_AUC
    assert 0 < abs(folded["export"] - folded["model"]) < 0.01
    assert abs(parity["auc"]["export"] - parity["auc"]["model"]) < 0.01
    assert (tmp_path / "out" / "candidates.onnx").stat().st_size < (exported / "candidates.onnx").stat().st_size
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "items.npy"), np.load(exported / "items.npy"))


@pytest.mark.slow
def test_rows_keep_32_bits_if_they_would_differ_too_much(weights_of, tmp_path, monkeypatch, caplog):
    def quantize(path):
        monkeypatch.setattr(quantization, "LARGEST_WEIGHT", 1 if path.name == "rows.onnx" else 63)
        quantize_weights(path)

    monkeypatch.setattr(quantization, "quantize_weights", quantize)
    experiment, weights = weights_of("DIN_MM_tiny")
    options = {"weights": weights, "precision": "int8-weights"}
    parity = export(experiment, tmp_path / "out", **options)
    assert parity["largest_difference"] <= 1e-5 < parity["largest_difference_folded"] <= parity["tolerance"]
    assert "rows keep weights of 32 bits" in caplog.text
    assert parity["weight_bits"] == {"rows": 32, "candidates": 8}
    Export(tmp_path / "out")  # the checksums are those of the files
    monkeypatch.undo()
    found = export(experiment, tmp_path / "auc", auc_loss=0.01, **options)
    assert found["auc_loss"] == 0.01
    assert found["weight_bits"] == {"rows": 8, "candidates": 8}
    assert found["largest_difference"] > 1e-5


def write_layer(path, weight, bias=None, axes=1):
    """Write a graph of one linear layer, whose weight is the sum of two parameters."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Add", ["one", "two"], ["weight"]), helper.make_node("MatMul", ["x", "weight"], ["y"])]
    tensors = [numpy_helper.from_array(part, name) for name, part in (("one", weight / 4), ("two", weight * 0.75))]
    if bias is not None:
        nodes[1] = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"])
        tensors.append(numpy_helper.from_array(bias, "bias"))
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [*"BF"[:axes], d])
        for n, d in zip("xy", weight.shape, strict=True)
    )
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


@pytest.mark.parametrize("has_bias", [False, True])
def test_each_row_has_a_range_of_its_own(tmp_path, has_bias):
    generator = np.random.default_rng(0)
    weight, bias, rows = (generator.normal(size=n).astype(np.float32) for n in ((32, 16), 16, (3, 32)))
    rows *= np.float32([[1], [1e4], [0]])
    path = tmp_path / "graph.onnx"
    write_layer(path, weight, bias if has_bias else None)
    quantize_weights(path)
    assert [path] == list(tmp_path.iterdir())
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "MatMulInteger" in kinds
    assert not kinds & {"MatMul", "Gemm"}
    graph = OnnxGraph(path.read_bytes(), "graph", 1)
    found = graph.run({"x": rows})[0]
    expected = rows @ weight + (bias if has_bias else 0)
    np.testing.assert_allclose(found[0], expected[0], atol=0.2)
    np.testing.assert_allclose(found[1], expected[1], atol=2000)
    np.testing.assert_array_equal(found[2], expected[2])
    np.testing.assert_array_equal(found[:1], graph.run({"x": rows[:1]})[0])
    assert len(graph.run({"x": rows[:0]})[0]) == 0


@pytest.mark.parametrize("shape", [(4, 3), (0, 3), (4, 0)])
def test_rows_of_several_axes(tmp_path, shape):
    path = tmp_path / "graph.onnx"
    generator = np.random.default_rng(0)
    weight, rows = (generator.normal(size=size).astype(np.float32) for size in ((32, 16), (*shape, 32)))
    write_layer(path, weight, axes=2)
    quantize_weights(path)
    assert all(node.op_type != "MatMul" for node in onnx.load(path).graph.node)
    found = OnnxGraph(path.read_bytes(), "graph", 1).run({"x": rows})[0]
    np.testing.assert_allclose(found, rows @ weight, atol=0.5)
    assert found.shape == (*shape, 16)


@pytest.mark.parametrize("shape", [(32, 1), (3, 32)])
def test_small_layers_keep_32_bits(tmp_path, shape):
    path = tmp_path / "graph.onnx"
    rows = np.random.default_rng(0).normal(size=(3, shape[0])).astype(np.float32)
    write_layer(path, np.ones(shape, np.float32))
    quantize_weights(path)
    found = OnnxGraph(path.read_bytes(), "graph", 1).run({"x": rows})[0]
    np.testing.assert_allclose(
        found, np.repeat(rows.sum(axis=1, keepdims=True), shape[1], axis=1), rtol=1e-4, atol=1e-5
    )


def test_weights_that_a_loop_reads(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=(16, 16)).astype(np.float32) for name in ("outer", "inner")}
    step = [helper.make_node("MatMul", ["row", "inner"], ["z"]), helper.make_node("Add", ["state", "z"], ["next"])]
    step.append(helper.make_node("Identity", ["next"], ["of_step"]))
    body = helper.make_graph(
        step,
        "step",
        [value("state", "B", 16), value("row", "B", 16)],
        [value("next", "B", 16), value("of_step", "B", 16)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "outer"], ["start"]),
        helper.make_node("Scan", ["start", "rows"], ["y", "steps"], body=body, num_scan_inputs=1),
    ]
    tensors = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(
        nodes, "graph", [value("x", "B", 16), value("rows", "T", "B", 16)], [value("y", "B", 16)], tensors
    )
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    quantize_weights(path)
    x, rows = (generator.normal(size=shape).astype(np.float32) for shape in ((2, 16), (3, 2, 16)))
    found = OnnxGraph(path.read_bytes(), "graph", 1).run({"x": x, "rows": rows})[0]
    np.testing.assert_allclose(found, x @ weights["outer"] + (rows @ weights["inner"]).sum(axis=0), atol=0.3)
