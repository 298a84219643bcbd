"""A Triton model repository: its configurations follow Triton's schema, and its ensemble scores as the export does."""

import json
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from fuxictr_mm.serving.export import export
from fuxictr_mm.serving.triton import Repository
from fuxictr_mm_serving import Export, ServingError
from fuxictr_mm_serving.manifest import TableEntry, checksum, read_manifest
from fuxictr_mm_serving.tables import quantize
from tests.serving.scores import load_model
from tests.serving.triton import Triton

pytest.importorskip("onnxscript")


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
    with pytest.raises(ServingError, match="Triton"):
        Export(tmp_path)


def test_items_that_are_not_known(export_copy, tmp_path):
    """They are removed from a history, and scored as item 0, as in the server."""
    known = np.load(export_copy / "known.npy")
    known[[6, 9]] = False
    np.save(export_copy / "known.npy", known)
    path = export_copy / "manifest.json"
    document = json.loads(path.read_text())
    document["sha256"]["known.npy"] = checksum(export_copy / "known.npy")
    path.write_text(json.dumps(document))
    ours = Export(export_copy)
    (tmp_path / "models").mkdir()
    Repository(export_copy, tmp_path / "models", "x", read_manifest(export_copy)).write()
    triton = Triton(tmp_path / "models")
    context = {"likes_level": 3, "views_level": 2}
    inputs = {f"context_{name}": np.array([value]) for name, value in context.items()}
    numbers = [5, 6, 7, 0, -1, len(known), *range(10, 10 + ours.items.max_len - 2)]
    for history in (numbers, [6, 9], [*range(20, 60), 9, 9, 9]):
        candidates = [8, 9, 10, len(known) + 5, -3]
        found = triton.infer("x", {"history": np.array(history), "candidates": np.array(candidates), **inputs})
        expected, are_known = ours.score_candidates(ours.user_state(context, history), candidates)
        assert are_known.tolist() == [True, False, True, False, False]
        np.testing.assert_allclose(found["prediction"][:, 0], expected, atol=1e-6)


def test_rows_of_a_model_without_fold(exported, tmp_path):
    manifest = read_manifest(exported).model_copy(update={"graphs": {"rows": "rows.onnx"}})
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
    for wrong in ([], [3], [3, 1, 1]):
        with pytest.raises(Fail):
            triton.infer("x", inputs | {"context_likes_level": np.array(wrong, dtype=np.int64)})


@pytest.mark.slow
@pytest.mark.parametrize("expid", ["DMGIN_tiny", "SIM_hard_tiny"])  # codes of the history; of the candidates, too
def test_codes_are_looked_up_with_the_items(weights_of, tmp_path, expid):
    experiment, weights = weights_of(expid)
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
    manifest = manifest.model_copy(update={"graphs": {"rows": "rows.onnx"}})
    Repository(tmp_path / "out", tmp_path / "rows", "x", manifest).write()
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
    model = load_model(experiment, weights)

    with torch.no_grad():
        expected = model.eval().embed_items(torch.tensor([0, 9])).numpy()
    np.testing.assert_allclose(rows, expected, atol=np.abs(expected).max() / 127)
    parity = json.loads((tmp_path / "models" / "parity.json").read_text())
    assert parity["largest_difference"] > 1e-7


@pytest.mark.parametrize(("name", "length"), [("items", 1), ("context_a", 1), ("context_b", 2)])
def test_lookups_for_triton(tmp_path, name, length):
    """An unknown item is item 0, as in the server, and any other unknown id is refused; factors are those of fields."""
    rows = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32) * np.repeat([100, 1, 0.01], 4)
    values, scales = quantize(rows, [4, 4, 4])
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "scales.npy", scales)
    entry = TableEntry(file="a.npy", scales="scales.npy", dims=[4, 4, 4])
    np.save(tmp_path / "known.npy", np.ones(20, dtype=bool))
    manifest = SimpleNamespace(items=SimpleNamespace(known="known.npy"))
    Repository(tmp_path, tmp_path, "x", manifest)._write_lookup(name, entry, length)
    session = onnxruntime.InferenceSession(tmp_path / f"x_{name}" / "1" / "model.onnx")

    def look_up(*ids):
        return session.run(None, {"ids": np.array(ids).reshape((-1,) * (length == 2) + (len(ids),))})[0].reshape(-1, 12)

    restored = values * np.repeat(scales, 4, axis=1)
    np.testing.assert_allclose(look_up(0, 19, 5), restored[[0, 19, 5]], rtol=1e-6)
    if name == "items":
        np.testing.assert_allclose(look_up(-1, 20, 5), restored[[0, 0, 5]], rtol=1e-6)
        return
    for number in (-1, 20):
        with pytest.raises(InvalidArgument, match="bounds"):
            look_up(number)
