"""Graphs that torch runs score as the model does."""

import json

import numpy as np
import pytest
import torch

from fuxictr_mm.serving.export import export
from fuxictr_mm.serving.torch_graph import TorchGraph
from fuxictr_mm_serving import Export
from tests.serving.scores import NOISE, eager, load_model

pytest.importorskip("onnxscript")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BST", "DIN_MM", "DMGIN", "SIM_hard"])
def test_graphs_of_torch(weights_of, tmp_path, name):
    experiment, weights = weights_of(f"{name}_tiny", max_len=1000)
    parity = export(experiment, tmp_path / "out", weights=weights, format="pt2", tolerance=NOISE)
    assert parity["largest_difference"] <= NOISE
    assert parity["largest_difference_folded"] <= NOISE
    ports = json.loads((tmp_path / "out" / "manifest.json").read_text())["ports"]
    programs = {name: torch.export.load(tmp_path / "out" / f"{name}.pt2") for name in ports}
    graphs = {name: TorchGraph(programs[name], **ports[name]) for name in ports}
    exported = Export(tmp_path / "out", graphs=graphs)
    model = load_model(experiment, weights)
    context = {"likes_level": 3, "views_level": 2}
    for length in (0, 1, 40):
        history = list(range(5, 5 + length))
        found, _ = exported.score_candidates(exported.user_state(context, history), [8, 9, 10])
        np.testing.assert_allclose(found, eager(model, context, history, [8, 9, 10]), atol=NOISE, rtol=0)
    graphs = b"".join(path.read_bytes() for path in (tmp_path / "out").glob("*.pt2"))
    layers = [layer for name, layer in model.named_modules() if not name.startswith("position")]
    tables = [layer.weight for layer in layers if isinstance(layer, torch.nn.Embedding)]
    assert all(table[1:4].detach().numpy().tobytes() not in graphs for table in tables)
    assert b".py" not in graphs
