"""Models with weights of ordinary size, exported without training."""

import importlib
import shutil
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import pytest
import torch
from filelock import FileLock

from fuxictr_mm.experiment import Experiment
from tests.paths import ROOT


@pytest.fixture(scope="session", autouse=True)
def functions_parsed_once():
    """Let the exports of a process share onnxscript's functions, whose source each graph would parse again."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("onnxscript") and find_spec("torch.onnx._internal.exporter._registration"):
            module = importlib.import_module("torch.onnx._internal.exporter._registration")
            if (apis := getattr(module, "onnxscript_apis", None)) is not None:
                patch.setattr(apis, "get_torchlib_ops", cache(apis.get_torchlib_ops))
        yield


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory):
    """Give an experiment and a file of disturbed weights."""

    def make(expid, **settings):
        folder = tmp_path_factory.mktemp("weights")
        experiment = Experiment.load(expid, ROOT, verbose=0, model_root=str(folder), **settings)
        torch.manual_seed(0)
        model = experiment.build_model(experiment.load_dataset({"valid": True}))
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
        path = folder / "weights.model"
        model.save_weights(path)
        return experiment, path

    return make


@pytest.fixture(scope="session")
def exported(weights_of, tmp_path_factory, worker_id):
    """Return the export of DIN_MM_tiny, which the first process to ask for it writes."""
    from fuxictr_mm.serving.export import export

    base = tmp_path_factory.getbasetemp()
    out = (base if worker_id == "master" else base.parent) / "exported" / "DIN_MM"
    with FileLock(f"{out.parent}.lock"):
        if not out.exists():  # an export is renamed when it is complete
            experiment, weights = weights_of("DIN_MM_tiny")
            export(experiment, out, weights=weights)
    return out


@pytest.fixture
def export_copy(exported, tmp_path):
    """Return a copy of the export, to change."""
    return shutil.copytree(exported, tmp_path / "export")


@contextmanager
def _client_of(exported):
    from starlette.testclient import TestClient

    from fuxictr_mm_serving.server import make_app
    from fuxictr_mm_serving.settings import Settings
    from tests.serving.server import ROWS

    with TestClient(make_app(Settings(folder=str(exported), users=ROWS, max_body=20000))) as client:
        yield client


@pytest.fixture
def client(exported):
    """Return a client of a server in this process."""
    with _client_of(exported) as client:
        yield client


@pytest.fixture(scope="module")
def shared_client(exported):
    """Return a client of a server for all tests of a file, which do not change it."""
    with _client_of(exported) as client:
        yield client
