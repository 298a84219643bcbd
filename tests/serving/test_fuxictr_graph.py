"""Models of FuxiCTR and of the challenge export with their tables beside the graph, and score as they do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from fuxictr_mm.cli import main
from fuxictr_mm.data.batch import Batch, make_formatter
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.errors import UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.serving.export import export
from fuxictr_mm.serving.fuxictr_graph import embedding_tables
from fuxictr_mm.serving.triton import Repository
from fuxictr_mm_serving import Export
from fuxictr_mm_serving.manifest import read_manifest
from fuxictr_mm_serving.new_items import NewItem
from fuxictr_mm_serving.scoring import score_file
from fuxictr_mm_serving.service import Service
from tests import ids as world
from tests.errors import raises_naming
from tests.fuxictr_models import ALL, CHALLENGE, HISTORY, LINEAR, MODEL, SEQUENCE
from tests.paths import ROOT
from tests.projects import write_project
from tests.serving.server import ROWS
from tests.two_labels import write_world

pytest.importorskip("onnxscript")

MAX_LEN = 20

#: A number of rows that torch can follow: ``len`` gives Python's integer.
TRACEABLE = CHALLENGE.replace("len(mask)", "mask.shape[0]")
#: FuxiCTR's layers of inner products take the products of each pair of fields so.
SELECTING = MODEL.replace(
    "    def forward(self, inputs):\n",
    "    def forward(self, inputs):\n"
    "        fields = self.embedding_layer(self.get_inputs(inputs), flatten_emb=False)\n"
    "        products = fields @ fields.transpose(1, 2)\n"
    "        mask = products.new_ones(products.shape[1:]).triu(1).bool()\n"
    "        y_pred = products.masked_select(mask).view(-1, 3).sum(1, keepdim=True).sigmoid()\n"
    '        return {"y_pred": y_pred}\n',
)
CASES = {
    "sequence": (SEQUENCE, {"din_target_field": "item_id", "din_sequence_field": "item_seq", **HISTORY}),
    "flat": (LINEAR, {"use_features": ALL}),
    "challenge": (TRACEABLE, {"batch_view": "challenge", "use_features": ALL}),
    "masked_select": (SELECTING, {}),
}


@pytest.fixture(scope="module")
def weights_of_file(tmp_path_factory):
    """Return a function that gives the experiment of a model file, and a file of disturbed weights."""

    def make(text, **settings):
        folder = tmp_path_factory.mktemp("file")
        experiment = {"model": "Plain", "dataset_id": "tiny_mm", "max_len": MAX_LEN, "batch_size": 1000}
        experiment |= {"embedding_dim": 4, "use_features": ["likes_level", "item_id", "item_tags"], **settings}
        write_project(folder, {"Plain_tiny": experiment})
        (folder / "Plain.py").write_text(text)
        sys.modules.pop("fuxictr_mm.model_zoo.Plain", None)
        return _with_weights(Experiment.load("Plain_tiny", folder, model_zoo=folder, verbose=0), folder)

    return make


def _with_weights(experiment, folder, *, padding=True):
    """Save weights of which all are disturbed, with or without those of the padding, which training leaves at zero."""
    torch.manual_seed(0)
    model = experiment.build_model(experiment.load_dataset({"valid": True}))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and not padding:
            module.weight.data[module.padding_idx] = 0
    model.save_weights(folder / "weights.model")
    return experiment, folder / "weights.model"


@pytest.fixture(scope="module")
def sequence(weights_of_file, tmp_path_factory):
    """Return experiment, weights and export of a model with a sequence."""
    model, settings = CASES["sequence"]
    experiment, weights = weights_of_file(model, **settings)
    out = tmp_path_factory.mktemp("export") / "out"
    export(experiment, out, weights=weights)
    return experiment, weights, out


def rows_of_any_length():
    """Return rows with histories that are empty, short, full and longer than the model reads."""
    generator = np.random.default_rng(0)
    lengths = [0, 1, 2, 3, MAX_LEN, MAX_LEN + 10, 0, 7]
    return pl.DataFrame(
        {
            "user_id": list(range(1, 9)),
            "item_id": generator.integers(1, 1001, 8).tolist(),
            "item_seq": [generator.integers(1, 1001, n).tolist() for n in lengths],
            "likes_level": generator.integers(0, 5, 8).tolist(),
            "views_level": generator.integers(0, 5, 8).tolist(),
        }
    )


def assert_scores_as(exported, experiment, weights):
    rows = rows_of_any_length()
    expected = experiment.predict(rows, weights=weights)
    assert expected.std() > 1e-3
    for size in (1, 3, 8):
        parts = [rows.slice(start, size).to_dict(as_series=False) for start in range(0, 8, size)]
        found = np.concatenate([exported.score_rows(part) for part in parts])
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    for row, score in zip(rows.to_dicts(), expected, strict=True):
        # Among other candidates, and alone.
        state = exported.user_state({name: row[name] for name in ("likes_level", "views_level")}, row["item_seq"])
        for candidates in ([row["item_id"]], [row["item_id"], 5, 6, 7, 7]):
            found, known = exported.score_candidates(state, candidates)
            assert known.all()
            assert found[0] == pytest.approx(score, abs=1e-5)


def test_a_file_with_a_sequence_scores_as_it_does(sequence):
    experiment, weights, out = sequence
    parity = json.loads((out / "parity.json").read_text())
    assert parity["rows"] == 3000
    assert parity["largest_difference"] <= 1e-5
    assert_scores_as(Export(out), experiment, weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"sequence"}))
def test_files_score_as_they_do(weights_of_file, tmp_path, name):
    model, settings = CASES[name]
    experiment, weights = weights_of_file(model, **settings)
    export(experiment, tmp_path / "out", weights=weights)
    assert_scores_as(Export(tmp_path / "out"), experiment, weights)


@pytest.mark.parametrize("padding", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sequences_without_entries(tmp_path, padding):
    """FuxiCTR pools the context's sequence, the tags and the history; each of them may be empty."""
    found = world.tables(300)
    tags = [[] if number % 3 else row for number, row in enumerate(found["items"]["item_tags"].to_pylist(), 1)]
    found["items"] = world.put(found["items"], "item_tags", pa.array(tags, pa.list_(pa.int64())))
    for split in ("train", "valid", "test"):
        recent = [[*range(1, 1 + row % 4)] for row in range(len(found[split]))]
        found[split] = found[split].append_column("recent", pa.array(recent, pa.list_(pa.int64())))

    def change(dataset, experiment):
        spec = {"name": "recent", "dtype": "int", "type": "sequence", "max_len": 3, "vocab_size": 5}
        dataset["feature_cols"].append(spec)
        experiment |= {"model": "Plain", "use_features": ["likes_level", "item_id", "item_tags", "recent", "item_seq"]}
        experiment["feature_specs"] = [{"name": "item_seq", "type": "sequence", "share_embedding": "item_id"}]
        for key in ("num_heads", "dnn_hidden_units"):
            del experiment[key]

    (tmp_path / "Plain.py").write_text(MODEL)
    sys.modules.pop("fuxictr_mm.model_zoo.Plain", None)
    experiment = Experiment.load("X", world.write(tmp_path, found, change), model_zoo=tmp_path)
    experiment, weights = _with_weights(experiment, tmp_path, padding=padding)
    export(experiment, tmp_path / "out", weights=weights)
    rows = pl.DataFrame(
        {
            "item_id": [1, 1, 3, 3],
            "item_seq": [[], [5, 6], [], [3]],
            "likes_level": [3, 1, 2, 4],
            "recent": [[], [], [1, 2], [4, 1, 2]],
            "user_id": ["1"] * 4,
        }
    )
    expected = experiment.predict(rows, weights=weights)
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 1e-3
    exported = Export(tmp_path / "out")
    np.testing.assert_allclose(exported.score_rows(rows.to_dict(as_series=False)), expected, atol=1e-5, rtol=0)
    for row, score in zip(rows.to_dicts(), expected, strict=True):
        state = exported.user_state({name: row[name] for name in ("likes_level", "recent")}, row["item_seq"])
        assert exported.score_candidates(state, [row["item_id"]])[0] == pytest.approx([score], abs=1e-5)


def test_tables_are_beside_the_graph(sequence):
    experiment, weights, out = sequence
    manifest = json.loads((out / "manifest.json").read_text())
    model = experiment.build_model(experiment.load_dataset({}, weights))
    model.load_weights(weights)
    assert [*manifest["tables"]] == embedding_tables(model)
    name = "embedding_layer.embedding_layers.item_id.weight"
    table = np.load(out / manifest["tables"][name]["file"])
    np.testing.assert_array_equal(table, model.get_parameter(name).detach())
    graph = (out / "rows.onnx").read_bytes()
    assert table[7].tobytes() not in graph
    assert b".py" not in graph


WITHOUT_TORCH = """
import sys

sys.modules.update(dict.fromkeys(("torch", "fuxictr", "fuxictr_mm")))
from fuxictr_mm_serving.scoring import score_file

print(score_file(*sys.argv[1:]))
"""


def test_a_file_scores_without_torch(sequence, tmp_path):
    experiment, weights, out = sequence
    command = [sys.executable, "-c", WITHOUT_TORCH, str(out), str(ROWS), str(tmp_path / "scores.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "3000"), done.stderr
    scores = pq.read_table(tmp_path / "scores.parquet")["score"].to_numpy()
    np.testing.assert_allclose(scores, experiment.predict(ROWS, weights=weights), atol=1e-5, rtol=0)


def test_the_service_scores_known_and_new_items(sequence):
    """A new item scores as one of the files that is new since training, with the same content."""
    experiment, weights, out = sequence
    dataset = experiment.load_dataset({"valid": True}, weights)
    model = experiment.build_model(dataset)
    model.load_weights(weights)
    old, history = dataset.items, [5, 6, 7]
    columns = {name: torch.cat([old.stored(name), old.stored(name)[9:10]]) for name in old.names}
    items = ItemTable(columns, torch.cat([old.known, torch.tensor([True])]), num_trained=old.num_items)
    count = 2
    batch = Batch(
        {"likes_level": torch.full((count,), 3)},
        torch.tensor([9, old.num_items]),
        Jagged(torch.tensor(history * count), torch.arange(count + 1) * len(history)),
    )
    with torch.no_grad():
        formatted = make_formatter("flat", model.feature_map, items, MAX_LEN)(batch)
        expected = model.eval().forward(formatted)["y_pred"].flatten().tolist()
    content = {name: columns[name][-1].tolist() for name in ("item_emb_d16", "item_tags")}
    new = [NewItem({"item_emb_d16": content["item_emb_d16"]}, {"item_tags": content["item_tags"]})]
    answer = Service(out).score(context={"likes_level": 3}, history=history, candidates=[9], new_items=new)
    assert answer.scores == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-4
    given = Export(out).embed_new([NewItem()])
    assert given.codes.sum() == 0


def test_the_operation_that_stops_an_export_is_named(weights_of_file, tmp_path, capsys):
    experiment, weights = weights_of_file(CHALLENGE, batch_view="challenge", use_features=ALL)
    folder = str(Path(experiment.model_zoo))
    command = ["export", "--expid", "Plain_tiny", "--config", folder, "--model_zoo", folder, "--quiet"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--weights", str(weights), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Plain.py, line 23" in message
    assert "len(mask)" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("x = x * 2 if x.sum() > 0 else x", "x.sum() > 0"),
        ("x = torch.from_numpy(x.numpy())", "x.numpy()"),
        ("x = x + torch.ones(len(x), 1)", "len(x)"),
        ("x = x * (1 if x.shape[0] > 5 else 2)", "x.shape[0] > 5"),
        ("x = torch.special.i1e(x)", "bessel_i1e"),
    ],
)
def test_operations_that_stop_an_export_are_named(weights_of_file, tmp_path, line, named):
    lines = f"        x = inputs['likes_level'].float().unsqueeze(1)\n        {line}\n        return {{"
    text = MODEL.replace("        return {", lines).replace(".sigmoid()}", ".add(x).sigmoid()}")
    experiment, weights = weights_of_file(f"import torch\n{text}")
    with raises_naming(UserError, "Plain (rows.onnx)", named):
        export(experiment, tmp_path / "out", weights=weights)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_model_whose_scores_are_no_numbers_is_not_exported(weights_of_file, tmp_path):
    experiment, weights = weights_of_file(MODEL.replace(".sigmoid()}", ".sigmoid() * float('nan')}"))
    with raises_naming(UserError, "Plain_tiny", "3,000 scores of the model", "nan"):
        export(experiment, tmp_path / "out", weights=weights)


@pytest.mark.parametrize("precision", ["fp16", "int8-tables"])
def test_tables_of_fewer_bits_are_refused(sequence, tmp_path, precision):
    experiment, weights, _ = sequence
    with raises_naming(UserError, precision, "Plain"):
        export(experiment, tmp_path / "out", weights=weights, precision=precision)


@pytest.mark.slow
def test_several_labels(tmp_path):
    write_world(tmp_path, rows=400)
    experiment = Experiment.load("Towers", tmp_path, model_zoo=tmp_path / "zoo")
    experiment, weights = _with_weights(experiment, tmp_path)
    parity = export(experiment, tmp_path / "out", weights=weights)
    assert parity["auc"]["export"].keys() == {"click", "like"}
    score_file(tmp_path / "out", tmp_path / "test.parquet", tmp_path / "scores.parquet")
    scores = pq.read_table(tmp_path / "scores.parquet")  # after the ids of the rows
    assert scores.column_names[-2:] == ["score_click", "score_like"]
    expected = experiment.predict(weights=weights)
    np.testing.assert_allclose(np.stack([*map(np.asarray, scores.columns[-2:])], axis=1), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_graph_of_torch(weights_of_file, tmp_path):
    model, settings = CASES["challenge"]
    experiment, weights = weights_of_file(model, **settings)
    parity = export(experiment, tmp_path / "out", weights=weights, format="pt2")
    assert parity["largest_difference"] <= 1e-5
    names = json.loads((tmp_path / "out" / "manifest.json").read_text())["ports"]["rows"]["inputs"]
    assert names[:5] == ["items", "codes", "target", "history", "offsets"]
    assert torch.export.load(tmp_path / "out" / "rows.pt2").module()


@pytest.mark.slow
def test_a_repository_of_triton_has_the_tables(sequence, tmp_path):
    pytest.importorskip("tritonclient", reason="Triton's schema")
    from tests.serving.triton import Triton

    _, _, out = sequence
    Repository(out, tmp_path, "x", read_manifest(out)).write()
    served = Triton(tmp_path)
    assert served.configs.keys() == {"x", "x_rows", "x_items", "x_codes"}
    inputs = {
        "items": np.array([0, 5, 6, 7, 8, 9]),
        "target": np.array([4, 5]),
        "history": np.array([1, 2, 3, 3]),
        "offsets": np.array([0, 3, 4]),
        "context_likes_level": np.array([3, 1]),
    }
    columns = {"item_id": [8, 9], "item_seq": [[5, 6, 7], [7]], "likes_level": [3, 1]}
    found = served.infer("x", inputs)["prediction"][:, 0]
    np.testing.assert_allclose(found, Export(out).score_rows(columns), atol=1e-6)
    # Also ids below 0, which would count from the end of the table.
    for number in (-1, 11):
        with pytest.raises(InvalidArgument):
            served.infer("x", inputs | {"context_likes_level": np.array([3, number])})
