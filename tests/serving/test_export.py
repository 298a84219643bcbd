"""An export scores as its model does, for every model of the zoo; one that does not is not written."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.errors import UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.serving import tables
from fuxictr_mm.serving.export import export
from fuxictr_mm.serving.graphs import reads_codes_of_candidates
from fuxictr_mm.serving.user_graphs import has_fold
from fuxictr_mm_serving import Export
from fuxictr_mm_serving.manifest import FORMATS
from fuxictr_mm_serving.scoring import score_file
from fuxictr_mm_serving.service import Service
from tests import ids as world
from tests.errors import raises_naming
from tests.paths import ROOT, TINY
from tests.serving.scores import NOISE, eager, load_model

pytest.importorskip("onnxscript")

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
    ("DIN_MM_tiny", {"factor_dim": 5, "factor_features": ["likes_level", "item_id"], "factor_history": True}),
]

#: Lengths of histories, and candidates of each.
SIZES = ((0, 500), (1, 30), (2, 30), (100, 500), (1000, 30))


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
    model = load_model(experiment, weights)
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


def test_graphs_hold_no_paths_of_this_machine(exported):
    for path in exported.glob("*.onnx"):
        assert b".py" not in path.read_bytes()


def test_reasons_are_the_largest_weights_of_the_attention(weights_of, exported):
    experiment, weights = weights_of("DIN_MM_tiny")
    model = load_model(experiment, weights)
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
@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("DIN_MM", "txt_emb_pca8"),
        ("MUSE", "txt_emb_pca8"),
        ("DIN_MM", "item_tags"),
        ("SEMINAR", "item_tags"),
        ("DMGIN", "item_tags"),  # whose user has fewer groups than items
        ("InterFormer", "item_tags"),  # which has no fold
    ],
)
def test_similarities_are_computed_from_what_is_stored_with_the_items(weights_of, tmp_path, name, of):
    statistics = ["mean", "max", "newest_2", "histogram_5"]
    similarity = {"name": "near", "type": "similarity", "of": of, "statistics": statistics}
    config = Experiment.load(f"{name}_tiny", ROOT).config
    columns = [*config.dataset.feature_cols, similarity]
    used = [*names, "near"] if (names := config.to_dict()["use_features"]) else None
    experiment, weights = weights_of(f"{name}_tiny", feature_cols=columns, use_features=used)
    parity = export(experiment, tmp_path / "out", weights=weights, tolerance=NOISE)
    assert parity["auc"]["export"] == pytest.approx(parity["auc"]["model"], abs=1e-4)
    exported = Export(tmp_path / "out")
    assert (exported.is_folded, exported.explains) == (name != "InterFormer", name == "DIN_MM")
    if exported.is_folded:
        assert exported.manifest.numbers_per_pair["candidates"] <= 64
    model = load_model(experiment, weights)
    context = {"likes_level": 3, "views_level": 2, **({"user_id": 7} if "user_id" in model.context_fields else {})}
    for history, count in (([], 500), ([5], 3), ([5, 8, 7, 8], 30), ([*range(5, 25)], 500)):
        candidates = [*range(8, 8 + count)]
        state = exported.user_state(context, history)
        found, _ = exported.score_candidates(state, candidates)
        np.testing.assert_allclose(found, eager(model, context, history, candidates), atol=NOISE, rtol=0)
        columns = {name: [value] * count for name, value in context.items()}
        columns |= {"item_id": candidates, "item_seq": [history] * count}
        np.testing.assert_allclose(found, exported.score_rows(columns), atol=NOISE, rtol=0)
        if exported.explains:
            reasons = exported.explain(state, history, candidates)
            assert all(bool(one) == bool(history) and {item for item, _ in one} <= {*history} for one in reasons)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["txt_emb_pca8", "item_tags"])
@pytest.mark.parametrize("choice", [{"precision": "fp16"}, {"precision": "int8-tables"}, {"format": "pt2"}])
def test_similarities_in_every_form(weights_of, tmp_path, of, choice):
    """Folded scores equal those of rows; a histogram of rounded embeddings would differ from the model's."""
    similarity = {"name": "near", "type": "similarity", "of": of, "statistics": ["mean", "max", "newest_2"]}
    columns = [*Experiment.load("DIN_tiny", ROOT).config.dataset.feature_cols, similarity]
    experiment, weights = weights_of("DIN_tiny", feature_cols=columns)
    parity = export(experiment, tmp_path / "out", weights=weights, tolerance=0.5, **choice)  # weights are not trained
    assert parity["largest_difference_folded"] <= (NOISE if "format" in choice else 0.5)
    if "format" not in choice:  # of torch: is compared as it is written
        exported, context = Export(tmp_path / "out"), {"likes_level": 3, "views_level": 2}
        columns = {name: [value] * 9 for name, value in context.items()}
        for history in ([], [5], [5, 8, 7, 8]):
            found, _ = exported.score_candidates(exported.user_state(context, history), [*range(8, 17)])
            rows = exported.score_rows(columns | {"item_id": [*range(8, 17)], "item_seq": [history] * 9})
            np.testing.assert_allclose(found, rows, atol=1e-5, rtol=0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["graphs"].keys() == {"rows", "user", "candidates", "attention"}
    assert manifest["format"] == FORMATS[of == "item_tags"]


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory):
    """Return the settings of a dataset with a second label, which is missing in some rows."""
    folder = tmp_path_factory.mktemp("labels")
    for split in ("train", "valid", "test"):
        table = pq.read_table(TINY / f"{split}.parquet")
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
    scores = pq.read_table(tmp_path / "scores.parquet")  # after the ids of the rows
    assert scores.column_names[-2:] == ["score_label", "score_like"]
    expected = experiment.predict(two_labels["test_data"], weights=weights)
    np.testing.assert_allclose(np.stack([*map(np.asarray, scores.columns[-2:])], axis=1), expected, atol=NOISE, rtol=0)
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
