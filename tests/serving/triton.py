"""What Triton does with a repository, by its schema; a test that imports this is skipped without ``tritonclient``."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

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
