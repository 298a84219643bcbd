"""An export scores as its model does, for every model of the zoo; one that does not is not written."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.errors import UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.serving import export as module
from fuxictr_mm.serving import parity as parity_module
from fuxictr_mm.serving import tables
from fuxictr_mm.serving.export import export
from fuxictr_mm.serving.graph_files import quantize_weights
from fuxictr_mm.serving.graphs import has_fold, reads_codes_of_candidates
from fuxictr_mm.serving.torch_graph import TorchGraph
from fuxictr_mm.serving.triton import Repository
from fuxictr_mm_serving import Export, ServingError
from fuxictr_mm_serving.command import main as serve
from fuxictr_mm_serving.graphs import OnnxGraph
from fuxictr_mm_serving.manifest import FORMATS, CategoricalEntry, Files, TableEntry, checksum, read_manifest
from fuxictr_mm_serving.new_items import ItemRows, NewItem, NewItems
from fuxictr_mm_serving.scoring import score_file
from fuxictr_mm_serving.service import Service
from fuxictr_mm_serving.tables import quantize
from tests import ids as world
from tests.errors import raises_naming

pytest.importorskip("onnxscript")

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "model_zoo").glob("*.py"))
#: Without a softmax the sum over 1,000 items, of which training has seen 20, makes logits of any size.
DIN_ATTENTION = {"interest": "din", "din_use_softmax": True}
CASES = [
    *((f"{name}_tiny", {}) for name in NAMES),
    ("SIM_hard_tiny", {}),
    ("Transformer_DCN_published_tiny", {"max_len": 100}),  # to which it pads
    ("INFNet_v2_tiny", {}),
    ("DIN_MM_tiny", DIN_ATTENTION | {"senet": False, "cross": "mix", "bilinear": "field_each"}),
    ("DIN_MM_tiny", {"interest": "mean", "cross": "v2"}),
    ("DIN_MM_tiny", DIN_ATTENTION | {"factor_dim": 5}),
    ("DIN_MM_tiny", {"factor_dim": 5, "factor_features": ["likes_level", "item_id"]}),
]
#: Of weights that are not trained: logits are large, and their rounding errors in float32 with them.
NOISE = 2e-4

#: Lengths of histories, and candidates of each.
SIZES = ((0, 500), (1, 30), (2, 30), (100, 500), (1000, 30))


def eager(model, context, history, candidates):
    count = len(candidates)
    values = torch.tensor(history, dtype=torch.int32).repeat(count)
    batch = Batch(
        {name: torch.full((count,), value) for name, value in context.items()},
        torch.tensor(candidates),
        Jagged(values, torch.arange(count + 1) * len(history)),
    )
    with torch.no_grad():
        return model.eval()(batch)["y_pred"].flatten().numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("expid", "settings"), CASES, ids=[f"{e}-{s}" for e, s in CASES])
def test_scores_are_the_models(tmp_path, expid, settings):
    own = {"model_root": str(tmp_path), "tensorboard": False, "verbose": 0, "epochs": 1, "max_len": 1000, **settings}
    experiment = Experiment.load(expid, ROOT, **own)
    weights = experiment.fit().weights
    parity = export(experiment, tmp_path / "out", weights=weights)  # to 1e-5, or rounding errors of the model
    assert parity["rows"] == 3000
    assert parity["auc"]["export"] == pytest.approx(parity["auc"]["model"], abs=1e-4)
    exported = Export(tmp_path / "out")
    model = experiment.build_model(experiment.load_dataset({"valid": True}, weights))
    model.load_weights(weights)
    assert exported.is_folded == has_fold(model)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["format"] == FORMATS[has_fold(model) and reads_codes_of_candidates(model)]
    generator = np.random.default_rng(0)
    context = {"likes_level": 3, "views_level": 2}
    if "user_id" in model.context_fields:
        context["user_id"] = 7
    for length, count in [(length, count) for length, count in SIZES if length <= own["max_len"]]:
        history = generator.integers(1, 1001, length).tolist()
        candidates = generator.integers(1, 1001, count).tolist()
        expected = eager(model, context, history, candidates)
        found, known = exported.score_candidates(exported.user_state(context, history), candidates)
        assert known.all()
        # QIN's weights do not sum to one: far more items than in training give logits of 60 and more.
        bound = NOISE if expid == "QIN_tiny" and length >= 100 else 1e-5
        np.testing.assert_allclose(found, expected, atol=bound, rtol=0)
        one, _ = exported.score_candidates(exported.user_state(context, history), candidates[:1])
        np.testing.assert_allclose(one, expected[:1], atol=bound, rtol=0)
        rows = {name: [value] * count for name, value in context.items()}
        rows |= {"item_id": candidates, "item_seq": [history] * count}
        np.testing.assert_allclose(exported.score_rows(rows), expected, atol=bound, rtol=0)


def test_manifest_names_every_file_and_its_checksum(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert {path.name for path in exported.iterdir()} == {*manifest["sha256"], "manifest.json"}
    assert {"rows", "user", "candidates", "attention"} == manifest["graphs"].keys()
    assert manifest["format"] == FORMATS[0]  # that servers of before read as well
    parity = json.loads((exported / "parity.json").read_text())
    assert parity["largest_difference"] <= 1e-5
    assert parity["largest_difference_folded"] <= 1e-5


def test_a_table_is_in_no_graph(exported):
    items = np.load(exported / "items.npy")
    whole = b"".join((exported / f"{name}.onnx").read_bytes() for name in ("rows", "user", "candidates"))
    assert items[7].tobytes() not in whole


def test_graphs_hold_no_paths_of_this_machine(exported):
    for path in exported.glob("*.onnx"):
        assert b".py" not in path.read_bytes()


@pytest.mark.slow
def test_an_export_that_differs_is_not_written(weights_of, tmp_path, monkeypatch):
    experiment, weights = weights_of("DIN_MM_tiny")
    predict = module._predict

    def shifted(*arguments, **options):
        return predict(*arguments, **options) + 2e-5

    monkeypatch.setattr(module, "_predict", shifted)
    with pytest.raises(UserError, match="2e-05"):
        export(experiment, tmp_path / "out", weights=weights)
    assert list(tmp_path.iterdir()) == []


#: Differences of few scores, and of all, as those of the model itself.
FEW, ALL = np.array([1.0] + [0.001] * 99), np.ones(100)


@pytest.mark.parametrize(
    ("found", "own", "limit"),
    [
        (5e-6 * ALL, ALL, 1e-5),
        (3e-5 * FEW, 1e-5 * FEW, 4e-5),
        (3e-5 * ALL, 1e-5 * ALL, 4e-5),
        (3e-5 * ALL, 1e-5 * FEW, None),
        (1e-4 * ALL, 2e-4 * FEW, None),  # all scores are wrong by less than the model rounds a few
        (9e-5 * FEW, 1e-5 * FEW, None),
        (0.5 * FEW, FEW, None),
        (float("nan") * FEW, 1e-5 * FEW, None),
    ],
)
def test_rounding_errors_of_the_model_are_tolerated(found, own, limit):
    def check(rounding):
        return parity_module.check("DIN_MM_tiny", [np.zeros(9), found], 1e-5, rounding)

    if limit is None:
        with raises_naming(UserError, "DIN_MM_tiny", "--tolerance"):
            check(lambda: own)
    else:
        assert check(lambda: own) == pytest.approx(limit)
    if not found.max() <= 1e-5:
        with raises_naming(UserError, "1e-05"):
            check(None)


@pytest.mark.slow
def test_weights_that_are_not_trained_export_as_exactly_as_they_score(weights_of, tmp_path, monkeypatch):
    experiment, weights = weights_of("QIN_tiny")
    parity = export(experiment, tmp_path / "out", weights=weights)
    assert 1e-5 < parity["largest_difference"] <= parity["tolerance"] <= 1e-3
    predict = module._predict
    monkeypatch.setattr(module, "_predict", lambda *a, **options: predict(*a, **options) + 1e-4)
    with raises_naming(UserError, "--tolerance"):  # below the tolerance of before, but of all scores
        export(experiment, tmp_path / "wrong", weights=weights)


def test_folded_graphs_are_compared_with_the_model(weights_of, exported, monkeypatch):
    """What the export's rows and folded graphs have in common is no difference between these."""
    experiment, weights = weights_of("DIN_MM_tiny")
    dataset = experiment.load_dataset({"valid": True}, weights)
    model = experiment.build_model(dataset)
    model.load_weights(weights)
    expected = module._predict(experiment, model.eval(), dataset)
    score = Export.score_candidates

    def shifted(self, *arguments):
        found, known = score(self, *arguments)
        return found + np.float32(0.01), known

    monkeypatch.setattr(Export, "score_candidates", shifted)
    parity = parity_module.compare(experiment, exported, None, expected + 0.04, dataset, 0.1, None)
    assert parity["largest_difference"] == pytest.approx(0.04, abs=1e-5)
    assert parity["largest_difference_folded"] == pytest.approx(0.03, abs=1e-5)


@pytest.mark.slow
def test_tables_of_fewer_bits(weights_of, tmp_path):
    experiment, weights = weights_of("DIN_MM_tiny")
    sizes = {}
    for precision, kind in (("fp16", np.float16), ("int8-tables", np.int8)):
        out = tmp_path / precision
        parity = export(experiment, out, weights=weights, precision=precision)
        table = np.load(out / "items.npy", mmap_mode="r")
        assert table.dtype == kind
        assert 1e-7 < parity["largest_difference"] <= module.TOLERANCES[precision]
        assert abs(parity["auc"]["export"] - parity["auc"]["model"]) < 0.01
        sizes[precision] = table.nbytes
    assert sizes["fp16"] == 2 * sizes["int8-tables"]
    with pytest.raises(UserError, match="tolerance"):
        export(experiment, tmp_path / "out", weights=weights, precision="fp16", tolerance=0)


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
    nodes = [
        helper.make_node("Add", ["one", "two"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
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


def test_reasons_are_the_largest_weights_of_the_attention(weights_of, exported):
    experiment, weights = weights_of("DIN_MM_tiny")
    model = experiment.build_model(experiment.load_dataset({"valid": True}, weights))
    model.load_weights(weights)
    history, candidates = [5, 6, 7, 6, 11, 12], [8, 9]
    with torch.no_grad():
        items, targets = (model.eval().embed_items(torch.tensor(ids)) for ids in (history, candidates))
        layer = model.attention
        heads = (layer.num_heads, layer.head_dim)
        queries, keys = layer.W_q(targets).unflatten(1, heads), layer.W_k(items).unflatten(1, heads)
        shares = (torch.einsum("mhd,lhd->hml", queries, keys) / layer.scale).softmax(dim=2).mean(dim=0).numpy()
    ours = Export(exported)
    state = ours.user_state({"likes_level": 3, "views_level": 2}, history)
    for row, reasons in zip(shares, ours.explain(state, history, candidates), strict=True):
        total = {item: sum(share for one, share in zip(history, row, strict=True) if one == item) for item in history}
        expected = sorted(total.items(), key=lambda pair: -pair[1])[:3]
        assert [item for item, _ in reasons] == [item for item, _ in expected]
        assert [share for _, share in reasons] == pytest.approx([share for _, share in expected], abs=1e-5)
    empty = ours.user_state({"likes_level": 3, "views_level": 2}, [])
    assert ours.explain(empty, [], candidates) == [[], []]


def test_other_folders_are_not_touched(exported, weights_of, tmp_path):
    experiment, weights = weights_of("DIN_MM_tiny")
    with pytest.raises(UserError, match="overwrite"):
        export(experiment, exported, weights=weights)
    (tmp_path / "mine.txt").write_text("mine")
    with raises_naming(UserError, tmp_path):
        export(experiment, tmp_path, weights=weights, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_what_torch_cannot_export_is_one_line_that_names_the_operation(weights_of, tmp_path, monkeypatch):
    experiment, weights = weights_of("DIN_tiny")

    def logits(self, batch):
        e = self.embed(batch)
        if e.target.sum() > 0:
            return self.dnn(torch.cat([e.context, e.target, e.target], dim=-1))
        return e.target[:, :1]

    monkeypatch.setattr(experiment.model_class, "logits", logits)
    with raises_naming(UserError, "e.target.sum() > 0"):
        export(experiment, tmp_path / "out", weights=weights)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DIN_MM", "MUSE"])
def test_similarities_are_computed_from_what_is_stored_with_the_items(weights_of, tmp_path, name):
    statistics = ["mean", "max", "newest_2", "histogram_5"]
    similarity = {"name": "near", "type": "similarity", "of": "txt_emb_pca8", "statistics": statistics}
    config = Experiment.load(f"{name}_tiny", ROOT).config
    columns = [*config.dataset.feature_cols, similarity]
    experiment, weights = weights_of(f"{name}_tiny", feature_cols=columns, use_features=None)
    parity = export(experiment, tmp_path / "out", weights=weights, tolerance=NOISE)
    assert parity["auc"]["export"] == pytest.approx(parity["auc"]["model"], abs=1e-4)
    exported = Export(tmp_path / "out")
    assert not exported.is_folded
    model = experiment.build_model(experiment.load_dataset({"valid": True}, weights))
    model.load_weights(weights)
    context = {"likes_level": 3, "views_level": 2, **({"user_id": 7} if "user_id" in model.context_fields else {})}
    for history in ([], [5], [5, 8, 7, 8]):
        found, _ = exported.score_candidates(exported.user_state(context, history), [8, 9, 10])
        np.testing.assert_allclose(found, eager(model, context, history, [8, 9, 10]), atol=NOISE, rtol=0)


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory):
    """Return the settings of a dataset with a second label, which is missing in some rows."""
    folder = tmp_path_factory.mktemp("labels")
    for split in ("train", "valid", "test"):
        table = pq.read_table(ROOT / "data" / "tiny_mm" / f"{split}.parquet")
        like = [None if item % 7 == 0 else float(item % 2) for item in table["item_id"].to_pylist()]
        if "label" not in table.column_names:
            table = table.append_column("label", pa.array([0.0] * len(table)))
        pq.write_table(table.append_column("like", pa.array(like, pa.float64())), folder / f"{split}.parquet")
    labels = [{"name": name, "dtype": "float"} for name in ("label", "like")]
    return {f"{split}_data": str(folder / f"{split}.parquet") for split in ("train", "valid", "test")} | {
        "label_col": labels
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DIN_MM", "ESMM", "INFNet", "LateFusion", "LightFM", "MIND", "QIN", "SimCEN"])
def test_several_labels(weights_of, two_labels, tmp_path, name):
    # The logits of two quadratic layers of such weights are so large that float32 differs from float64 by 1e-4.
    fewer = {"num_layers": 1} if name == "QIN" else {}
    experiment, weights = weights_of(f"{name}_tiny", **two_labels, **fewer)
    parity = export(experiment, tmp_path / "out", weights=weights, tolerance=NOISE)
    assert parity["auc"]["export"].keys() == {"label", "like"}
    # Logits of weights that are not trained are large: probabilities tie in float32, and ties decide part of the AUC.
    assert parity["auc"]["export"]["like"] == pytest.approx(parity["auc"]["model"]["like"], abs=2e-2)
    assert score_file(tmp_path / "out", two_labels["test_data"], tmp_path / "scores.parquet", part_rows=1000) == 3000
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores.column_names == ["score_label", "score_like"]
    expected = experiment.predict(two_labels["test_data"], weights=weights)
    np.testing.assert_allclose(np.stack([*map(np.asarray, scores.columns)], axis=1), expected, atol=NOISE, rtol=0)
    row = pq.read_table(two_labels["test_data"]).slice(0, 1).to_pylist()[0]
    context = {name: row[name] for name in Export(tmp_path / "out").columns if name not in ("item_id", "item_seq")}
    service = Service(tmp_path / "out")
    found = service.score(context=context, history=row["item_seq"], candidates=[row["item_id"], 9]).scores
    assert [found["label"][0], found["like"][0]] == pytest.approx(expected[0].tolist(), abs=NOISE)
    assert len(found["like"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("kind", ["text", "uuid", "uint64", "negative"])
def test_ids_of_any_kind(tmp_path, monkeypatch, kind, is_large):
    monkeypatch.setattr(tables, "LARGE", 1 if is_large else 2**14)  # of vocabularies as arrays
    found = world.with_ids(world.tables(), world.KINDS[kind])
    experiment = Experiment.load("X", world.write(tmp_path, found))
    run = experiment.fit()
    export(experiment, tmp_path / "out", weights=run.weights)
    score_file(tmp_path / "out", tmp_path / "data" / "test.parquet", tmp_path / "scores.parquet")
    scores = pq.read_table(tmp_path / "scores.parquet")["score"].to_numpy()
    np.testing.assert_allclose(scores, run.predict(), atol=1e-5, rtol=0)
    exported = Export(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["format"] == FORMATS[2 if is_large else 0]
    row = found["test"].slice(0, 1).to_pylist()[0]
    state = exported.user_state({"likes_level": row["likes_level"]}, row["item_seq"])
    score, known = exported.score_candidates(state, [row["item_id"]])
    assert known.all()
    assert score[0] == pytest.approx(scores[0], abs=1e-5)
    assert exported.items.some(3) == world.KINDS[kind].slice(1, 3).to_pylist()


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
    model = experiment.build_model(experiment.load_dataset({"valid": True}, weights))
    model.load_weights(weights)
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


def test_graphs_of_torch_are_not_loaded(exported, tmp_path):
    folder = tmp_path / "pt2"
    shutil.copytree(exported, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "user.pt2").write_text("expressions that torch would evaluate")
    manifest["graphs"]["user"] = "user.pt2"
    manifest["sha256"]["user.pt2"] = checksum(folder / "user.pt2")
    manifest["bytes"]["user.pt2"] = (folder / "user.pt2").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = ROOT / "data" / "tiny_mm" / "test.parquet"
    for use in (Export, Service, lambda folder: score_file(folder, rows, tmp_path / "scores.parquet")):
        with raises_naming(ServingError, folder / "user.pt2", "--format onnx"):
            use(folder)
    with pytest.raises(SystemExit) as stopped:
        serve([str(folder), "--workers", "2"])
    assert stopped.value.code == 2


def _set(manifest, path, value):
    *parents, last = path
    for key in parents:
        manifest = manifest[key]
    if value is None:
        del manifest[last]
    else:
        manifest[last] = value


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("graphs", "user"), "../user.onnx", "../user.onnx"),
        (("graphs", "user"), "/etc/passwd", "/etc/passwd"),
        (("graphs", "rows"), "other.onnx", "other.onnx"),
        (("graphs", "rows"), "..", "graphs.rows"),
        (("graphs", "rows"), "a\0b", "graphs.rows"),
        (("items", "max_len"), "5", "items.max_len"),
        (("items", "table", "file"), "other.npy", "other.npy"),
        (("items", "known"), "a/known.npy", "a/known.npy"),
        (("items", "contents", "txt_emb_pca8", "file"), "../x.npy", "../x.npy"),
        (("items", "codes"), {"file": "codes.npy", "columns": {}}, "codes.npy"),
        (("context", 0, "table", "scales"), "x.npy", "x.npy"),
        (("context", 0, "table"), None, "context.0"),
        (("context", 0, "vocab_size"), None, "context.0"),
        (("vocabulary",), "../vocabulary.json", "../vocabulary.json"),
        (("sha256", "../x"), "0", "../x"),
        (("sha256", "x"), "0", "x"),
        (("bytes", "items.npy"), None, "items.npy"),
        (("items",), None, "items"),
        (("items", "max_len"), "x", "items.max_len"),
        (("graphs", "candidates"), None, "candidates"),
        (("labels",), [], "labels"),
    ],
)
def test_a_manifest_that_is_not_complete_is_refused(exported, tmp_path, path, value, named):
    manifest = json.loads((exported / "manifest.json").read_text())
    _set(manifest, path, value)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with raises_naming(ServingError, tmp_path / "manifest.json", named):
        read_manifest(tmp_path)


def test_a_manifest_has_fields_by_their_types(exported, tmp_path):
    content = json.loads((exported / "manifest.json").read_text())
    number = {"name": "age", "column": "age", "type": "numeric", "fill_na": 3.0, "shift": 1, "scale": 2.0}
    content["context"].append(number)
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "of a later version": 1}))
    found = read_manifest(tmp_path)
    assert (found.items.target, found.items.codes, found.vocabulary) == ("item_id", None, None)
    ids, age = found.context[0], found.context[-1]
    assert isinstance(ids, CategoricalEntry)
    assert (ids.vocab_size, ids.scale, age.table) == (content["context"][0]["vocab_size"], 1, None)
    assert (age.fill_na, age.shift, age.scale) == (3, 1, 2)
    with pytest.raises(ValidationError, match="frozen"):
        found.items.max_len = 3


def npy(header, data=b""):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, header)
    return head.getvalue() + data


def of_shape(*shape, descr="<f4"):
    return {"descr": descr, "fortran_order": False, "shape": shape}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.npy", npy(of_shape(10**12, 10**6))),
        ("items.npy", npy(of_shape(2**62, 2**62))),
        ("items.npy", npy(of_shape(2, 3), bytes(24))),
        ("items.npy", npy(of_shape(1001, -1), bytes(24))),
        ("items.npy", npy(of_shape(1001), bytes(4004))),
        ("items.npy", b"no array"),
        ("items.npy", b""),
        ("known.npy", npy(of_shape(1001, descr="|O"), pickle.dumps([0]))),
        ("known.npy", npy(of_shape(1001), bytes(4004))),
        ("context_likes_level.npy", npy(of_shape(3, 8), bytes(96))),
        ("project_txt_emb_pca8.npy", npy(of_shape(2, 3), bytes(24))),
        ("rows.onnx", b"no graph"),
    ],
)
def test_files_that_are_no_arrays_are_refused(exported, tmp_path, name, content):
    """Also where the checksum is right: whoever wrote the file may have written the manifest."""
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name], manifest["bytes"][name] = checksum(folder / name), len(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with raises_naming(ServingError, name if name != "project_txt_emb_pca8.npy" else folder):
        Export(folder)


def test_what_is_no_file_is_refused(exported, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    (folder / "known.npy").unlink()
    os.mkfifo(folder / "known.npy")
    with raises_naming(ServingError, "known.npy"):
        Export(folder)


def test_what_is_checked_is_what_is_used(exported, tmp_path, monkeypatch):
    """A folder that changes between the check of a file and its use changes no score."""
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    check, swapped = Files._check, []

    def swap(files, name, content):
        check(files, name, content)
        (folder / "other").write_bytes(b"other")
        os.replace(folder / "other", folder / name)
        swapped.append(name)

    monkeypatch.setattr(Files, "_check", swap)
    found = Export(folder)
    assert {"items.npy", "known.npy", "rows.onnx", "user.onnx", "candidates.onnx"} <= set(swapped)
    whole, context = Export(exported), {"likes_level": 3, "views_level": 2}
    scores = [e.score_candidates(e.user_state(context, [5, 6, 7]), [8, 9, 10])[0].tolist() for e in (found, whole)]
    assert scores[0] == scores[1]


def test_codes_beyond_their_vocabulary_are_refused():
    items = NewItems({}, {"a": 1, "b": 2}, {"a": 17})
    unseen = ItemRows(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.int64))
    assert items.rows([NewItem({}, {"a": [16], "b": [99, 3]})], unseen).codes.tolist() == [[16, 99, 3]]
    for code in (17, -1, 2**40):
        with raises_naming(ServingError, "'a'", "16"):
            items.rows([NewItem({}, {"a": [code]})], unseen)


def test_a_new_item_by_its_ids(exported):
    found, item = Export(exported), 9
    table = pq.read_table(
        ROOT / "data" / "tiny_mm" / "item_feature.parquet", columns=["item_id", "item_tags"]
    ).to_pylist()
    tags = next([*filter(None, row["item_tags"])] for row in table if row["item_id"] == item)
    fields = found.manifest.items.fields
    start = sum([*fields.values()][: [*fields].index("item_tags")])
    columns = slice(start, start + fields["item_tags"])
    row, stored = found.embed_new([NewItem({}, {"item_tags": tags})]), found.items.table.rows(np.array([0, item]))
    np.testing.assert_allclose(row.values[0, columns], stored[1, columns], atol=1e-6)
    assert np.abs(row.values[0, columns]).max() > 1e-3
    row.values[0, columns] = stored[0, columns]
    np.testing.assert_array_equal(row.values[0], stored[0])
    for wrong in ([], [1] * 6, [10**6], [-1], ["x"]):
        with raises_naming(ServingError, "item_tags"):
            found.embed_new([NewItem({}, {"item_tags": wrong})])


def test_fields_of_8_bits_have_factors_of_their_own():
    rows = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32) * np.repeat([100, 1, 0.01], 4)
    rows[3, 4:8] = 0
    values, scales = quantize(rows, [4, 4, 4])
    restored = values * np.repeat(scales, 4, axis=1)
    bounds = np.abs(rows).reshape(20, 3, 4).max(axis=2) / 127 / 2
    assert (np.abs(restored - rows).reshape(20, 3, 4).max(axis=2) <= bounds * 1.001).all()


@pytest.mark.parametrize(("name", "length"), [("items", 1), ("context_a", 1), ("context_b", 2)])
def test_lookups_for_triton(tmp_path, name, length):
    """An unknown item is item 0, as in the server, and any other unknown id is refused; factors are those of fields."""
    rows = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32) * np.repeat([100, 1, 0.01], 4)
    values, scales = quantize(rows, [4, 4, 4])
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "scales.npy", scales)
    entry = TableEntry(file="a.npy", scales="scales.npy", dims=[4, 4, 4])
    Repository(tmp_path, tmp_path, "x", manifest=None)._write_lookup(name, entry, length)
    session = onnxruntime.InferenceSession(tmp_path / f"x_{name}" / "1" / "model.onnx")

    def look_up(*ids):
        return session.run(None, {"ids": np.array(ids).reshape((-1,) * (length == 2) + (len(ids),))})[0].reshape(-1, 12)

    restored = values * np.repeat(scales, 4, axis=1)
    np.testing.assert_allclose(look_up(0, 19, 5), restored[[0, 19, 5]], rtol=1e-6)
    if name == "items":
        np.testing.assert_allclose(look_up(-1, 20, 5), restored[[0, 0, 5]], rtol=1e-6)
        return
    for number in (-1, 20):
        with pytest.raises(Exception, match="bounds"):
            look_up(number)


#: Experiments whose models read contents or codes of the items, and what else they are given.
NEW = [("DIN_MM_tiny", "similarity"), ("DIN_MM_VQ_tiny", ""), ("MUSE_tiny", ""), ("SEMINAR_tiny", "")]


@pytest.mark.slow
@pytest.mark.parametrize(("expid", "kind"), NEW, ids=[name for name, _ in NEW])
def test_new_items_have_the_posted_content_in_every_use(weights_of, tmp_path, expid, kind):
    """They score as an item of the files that is new since training, with the same content and nothing else."""
    settings = {}
    if kind:
        of = {"name": "near", "type": "similarity", "of": "txt_emb_pca8", "statistics": ["mean", "max"]}
        columns = [*Experiment.load(expid, ROOT).config.dataset.feature_cols, of]
        settings = {"feature_cols": columns, "use_features": None}
    experiment, weights = weights_of(expid, max_len=1000, **settings)
    export(experiment, tmp_path / "out", weights=weights, tolerance=NOISE)
    model = experiment.build_model(experiment.load_dataset({"valid": True}, weights))
    model.load_weights(weights)
    generator = torch.Generator().manual_seed(1)
    entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["items"]
    embeddings = {n: torch.randn(c["dim"], generator=generator) for n, c in entry["contents"].items()}
    counts = entry["codes"]["columns"] if "codes" in entry else {}
    if counts:
        assert entry["codes"]["vocab_sizes"] == dict.fromkeys(counts, 65)  # of dataset_config.yaml
    codes = {name: torch.randint(1, 16, (count,), generator=generator) for name, count in counts.items()}
    codes |= {e["name"]: torch.randint(1, e["vocab_size"], (e["max_len"],), generator=generator) for e in entry["ids"]}
    given = NewItem({n: v.tolist() for n, v in embeddings.items()}, {n: v.tolist() for n, v in codes.items()})
    number = model.items.num_items
    columns = {}
    for column in model.items.names:
        old = model.items.stored(column)
        row = {**embeddings, **codes}.get(column, torch.zeros(1)).expand(old[0].shape).to(old.dtype)[None]
        columns[column] = torch.cat([old, row])
    known = torch.cat([model.items.known, torch.tensor([True])])
    more = ItemTable(columns, known, num_trained=number, scales=model.items.scales)
    model.items = more
    if "codes" in dict(model.named_buffers()):
        model.codes = torch.cat([more.stored(column) for column in model.per_item_codes], dim=1)
    for name, layer in model.similarities.items():
        model.similarities[name] = type(layer)(more.stored("txt_emb_pca8"), layer.statistics)
    exported = Export(tmp_path / "out")
    context = {"likes_level": 3, "views_level": 2, "user_id": 7}
    context = {name: value for name, value in context.items() if name in model.context_fields}
    for history in ([], list(range(1, 60))):
        state = exported.user_state(context, history)
        found = exported.score_items(state, exported.embed_new([given, NewItem()]))
        np.testing.assert_allclose(found[:1], eager(model, context, history, [number]), atol=NOISE, rtol=0)
        # Content that is no field counts by its similarity to the history alone.
        assert not history or abs(found[0] - found[1]) > NOISE


def test_a_file_that_is_cut_short_ends_no_process(exported, tmp_path):
    """A small table is not mapped: to read what a mapped file no longer has would be SIGBUS."""
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    found, context = Export(folder), {"likes_level": 3, "views_level": 2}
    before = found.score_candidates(found.user_state(context, [5]), [8])[0]
    with (folder / "items.npy").open("r+b") as stream:
        stream.truncate(10)
    assert found.score_candidates(found.user_state(context, [5]), [8])[0] == before
