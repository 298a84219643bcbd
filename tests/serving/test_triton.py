"""A Triton model repository: its configurations follow Triton's schema, and its ensemble scores as the export does."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fuxictr_mm.serving.export import export
from fuxictr_mm.serving.triton import Repository
from fuxictr_mm_serving import Export, ServingError
from fuxictr_mm_serving.manifest import read_manifest

pytest.importorskip("onnxscript")
pytest.importorskip("tritonclient", reason="Triton's schema")
text_format = pytest.importorskip("google.protobuf.text_format")


def load_schema() -> Any:
    """Load ``model_config.proto``, compiled, alone: the package around it needs more than the schema does."""
    folder = Path(importlib.util.find_spec("tritonclient").origin).parent
    spec = importlib.util.spec_from_file_location("model_config_pb2", folder / "grpc" / "model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


schema = load_schema()

TYPES = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_}


class Triton:
    """What the server does with a repository: every tensor is compared with the configuration of its model."""

    def __init__(self, folder):
        self.folder = folder
        self.configs, self.sessions = {}, {}
        for path in folder.glob("*/config.pbtxt"):
            config = text_format.Parse(path.read_text(), schema.ModelConfig())
            assert config.name == path.parent.name
            assert (path.parent / "1").is_dir()
            self.configs[config.name] = config
            if config.platform != "ensemble":
                model = str(path.parent / "1" / "model.onnx")
                session = self.sessions[config.name] = onnxruntime.InferenceSession(model)
                for ports, found in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
                    assert [port.name for port in ports] == [one.name for one in found]

    def check(self, ports, values):
        assert {port.name for port in ports} == values.keys()
        for port in ports:
            assert values[port.name].dtype == TYPES[schema.DataType.Name(port.data_type)]
            assert len(values[port.name].shape) == len(port.dims)
            assert all(dim in (-1, size) for dim, size in zip(port.dims, values[port.name].shape, strict=True))

    def infer(self, name, inputs):
        config = self.configs[name]
        self.check(config.input, inputs)
        if config.platform != "ensemble":
            names = [port.name for port in config.output]
            outputs = dict(zip(names, self.sessions[name].run(names, inputs), strict=True))
        else:
            tensors = dict(inputs)
            for step in config.ensemble_scheduling.step:
                found = self.infer(step.model_name, {key: tensors[value] for key, value in step.input_map.items()})
                tensors |= {value: found[key] for key, value in step.output_map.items()}
            outputs = {port.name: tensors[port.name] for port in config.output}
        self.check(config.output, outputs)
        return outputs


def test_the_ensemble_scores_candidates(exported, tmp_path):
    Repository(exported, tmp_path, "x", read_manifest(exported)).write()
    triton, ours = Triton(tmp_path), Export(exported)
    names = {"x", "x_newest", "x_items", "x_user", "x_candidates", "x_context_likes_level", "x_context_views_level"}
    assert triton.configs.keys() == names
    context = {"likes_level": 3, "views_level": 2}
    assert ours.items.max_len < 30  # of the longest, the newest items count
    for history, candidates in (([5, 6, 7], [8, 9]), ([5], [8]), ([], [8, 9, 10]), ([*range(1, 31)], [8, 9])):
        inputs = {
            "history": np.array(history, dtype=np.int64),
            "candidates": np.array(candidates, dtype=np.int64),
            **{f"context_{name}": np.array([value], dtype=np.int64) for name, value in context.items()},
        }
        expected, _ = ours.score_candidates(ours.user_state(context, history), candidates)
        np.testing.assert_allclose(triton.infer("x", inputs)["prediction"][:, 0], expected, atol=1e-6)
    with pytest.raises(ServingError, match="triton"):
        Export(tmp_path)


def test_rows_of_a_model_without_fold(exported, tmp_path):
    manifest = read_manifest(exported)
    manifest = {**manifest, "graphs": {"rows": "rows.onnx"}}
    Repository(exported, tmp_path, "x", manifest).write()
    columns = {"item_id": [8, 9], "item_seq": [[5, 6, 7], [7]], "likes_level": [3, 1], "views_level": [2, 4]}
    inputs = {
        "items": np.array([0, 5, 6, 7, 8, 9]),
        "target": np.array([4, 5]),
        "history": np.array([1, 2, 3, 3]),
        "offsets": np.array([0, 3, 4]),
        "steps": np.zeros(3, dtype=np.float32),
        "context_likes_level": np.array([3, 1]),
        "context_views_level": np.array([2, 4]),
    }
    triton = Triton(tmp_path)
    inputs = {port.name: inputs[port.name] for port in triton.configs["x"].input}
    found = triton.infer("x", inputs)["prediction"][:, 0]
    np.testing.assert_allclose(found, Export(exported).score_rows(columns), atol=1e-6)


@pytest.mark.slow
def test_codes_are_looked_up_with_the_items(weights_of, tmp_path):
    experiment, weights = weights_of("DMGIN_tiny")
    export(experiment, tmp_path / "out", weights=weights, tolerance=1e-3)
    manifest, ours = read_manifest(tmp_path / "out"), Export(tmp_path / "out")
    context = {"likes_level": 3, "views_level": 2}
    inputs = {f"context_{name}": np.array([value]) for name, value in context.items()}
    for name in ("user", "rows"):
        (tmp_path / name).mkdir()
    Repository(tmp_path / "out", tmp_path / "user", "x", manifest).write()
    found = Triton(tmp_path / "user").infer(
        "x", {"history": np.arange(5, 15), "candidates": np.array([8, 9]), **inputs}
    )
    expected, _ = ours.score_candidates(ours.user_state(context, [*range(5, 15)]), [8, 9])
    np.testing.assert_allclose(found["prediction"][:, 0], expected, atol=1e-6)
    Repository(tmp_path / "out", tmp_path / "rows", "x", manifest | {"graphs": {"rows": "rows.onnx"}}).write()
    triton = Triton(tmp_path / "rows")
    inputs |= {
        "items": np.arange(15),
        "target": np.array([9]),
        "history": np.arange(5, 15),
        "offsets": np.array([0, 10]),
        "steps": np.zeros(10, dtype=np.float32),
    }
    found = triton.infer("x", {port.name: inputs[port.name] for port in triton.configs["x"].input})
    np.testing.assert_allclose(found["prediction"][:, 0], expected[1:], atol=1e-6)


@pytest.mark.slow
def test_tables_of_8_bits(weights_of, tmp_path):
    experiment, weights = weights_of("DIN_MM_tiny")
    export(experiment, tmp_path / "models", format="triton", weights=weights, precision="int8-tables")
    triton = Triton(tmp_path / "models")
    rows = triton.infer("DIN_MM_tiny_items", {"ids": np.array([0, 9])})["rows"]
    model = experiment.build_model(experiment.load_dataset({"valid": True}, weights))
    model.load_weights(weights)
    import torch

    with torch.no_grad():
        expected = model.eval().embed_items(torch.tensor([0, 9])).numpy()
    np.testing.assert_allclose(rows, expected, atol=np.abs(expected).max() / 127)
    parity = json.loads((tmp_path / "models" / "parity.json").read_text())
    assert parity["largest_difference"] > 1e-7
