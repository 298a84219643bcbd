"""The table of strategies on small data: all strategies run, finished runs are kept, bad input ends in one line."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import embedding_strategies
from benchmarks.embedding_strategies import STRATEGIES
from benchmarks.strategy_files import find_source
from fuxictr_mm.data.synthetic.spec import SyntheticSpec
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.errors import UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.yaml_files import load_yaml
from tests.errors import check_names
from tests.paths import ROOT, TINY

DERIVED = ROOT / "data" / "tiny_mm_derived"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small dataset under the name of tiny_mm."""
    folder = tmp_path_factory.mktemp("data")
    spec = SyntheticSpec(users=200, items=120, tags=40, train_rows=800, valid_rows=200, test_rows=100)
    generate(spec, folder / "tiny_mm", progress=False)
    return folder


@pytest.fixture
def data(made, tmp_path):
    """A copy, and a configuration of few experiments beside it, which is quick to read."""
    models = load_yaml(ROOT / "model_config.yaml")
    few = {name: models[name] for name in ("Base", "DIN_tiny", "DIN_MM_tiny")}
    (tmp_path / "model_config.yaml").write_text(json.dumps(few))
    shutil.copy(ROOT / "dataset_config.yaml", tmp_path)
    return shutil.copytree(made, tmp_path / "data")


def run(data, *options, dataset_id="tiny_mm"):
    fixed = ["--config", str(data.parent), "--dataset_id", dataset_id, "--data_root", str(data), "--epochs", "1"]
    return embedding_strategies.main([*fixed, "--out", str(data.parent / "out"), *map(str, options)])


def refused(data, *options, **dataset):
    with pytest.raises(UserError) as caught:
        run(data, *options, **dataset)
    assert "\n" not in str(caught.value)
    assert not (data.parent / "out").exists()
    return str(caught.value)


@pytest.mark.slow
def test_all_strategies(data, capsys):
    labelled = data / "tiny_mm" / "test_labelled.parquet"
    report = run(data, "--seeds", 1, "--test_data", labelled)
    out = data.parent / "out"
    assert json.loads((out / "strategies.json").read_text()) == report
    table = (out / "strategies.md").read_text()
    assert table in capsys.readouterr().out
    rows = {row["strategy"]: row for row in report["rows"]}
    assert list(rows) == list(STRATEGIES)
    ids = ["likes_level", "views_level", "item_id", "item_tags"]
    read = {name: row["features"][len(ids) :] for name, row in rows.items()}
    assert all(row["features"][: len(ids)] == ids for row in rows.values())
    assert read["none"] == []
    assert read["V4"] == read["V4_plain"] == ["item_emb_v4"]
    assert read["RQ"] == ["codes_rq_text", "codes_rq_image"]
    assert read["VQ"] == ["codes_vq_text", "neighbors_vq_text", "codes_vq_image", "neighbors_vq_image"]
    assert read["aligned"] == ["item_emb_aligned"]
    for name, row in rows.items():
        assert f"| {name} | {STRATEGIES[name]} | {row['valid_auc'][0]:.4f} | {row['test_auc'][0]:.4f} |" in table
    # What each read was another thing: the small test split tells them apart.
    assert len({row["valid_auc"][0] for row in rows.values()}) == len(rows)


def test_balanced_and_plain_parts(data):
    """On their own scales the image is louder, on one scale it is not."""
    run(data, "--seeds", 1, "--strategies", "V4", "V4_plain", "--dim", 8)
    louder = {}
    for name in ("reduced", "reduced_plain"):
        (path,) = (data.parent / "out").glob(f"*/{name}.parquet")
        vectors = np.array(pq.read_table(path)["item_emb_v4"].to_pylist())
        assert vectors.shape[1] == 8
        louder[name] = vectors[:, 4:].var() / vectors[:, :4].var()
    assert louder["reduced"] == pytest.approx(1, abs=0.1)
    assert louder["reduced_plain"] > 20


def test_finished_runs_and_files_are_kept(data):
    first = run(data, "--seeds", 2, "--strategies", "V1")
    out = data.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/**/*") if path.is_file()}
    assert run(data, "--seeds", 2, "--strategies", "V1") == first
    assert {path: path.stat().st_mtime_ns for path in before} == before
    record = next(path for path in before if path.name == "DIN_MM_tiny_V1_seed2.json")
    record.unlink()
    again = run(data, "--seeds", 2, "--strategies", "V1")
    assert again["rows"][0]["valid_auc"] == first["rows"][0]["valid_auc"]
    kept = {path: time for path, time in before.items() if "seed2" not in path.name}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert record.exists()


def test_other_vectors_are_other_files(data):
    first = run(data, "--seeds", 1, "--strategies", "V1")
    path = data / "tiny_mm" / "item_feature.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.set_column(table.schema.get_field_index("txt_emb_BERT"), "txt_emb_BERT", table["img_emb_CLIPRN50"]), path
    )
    second = run(data, "--seeds", 1, "--strategies", "V1")
    assert second["rows"][0]["valid_auc"] != first["rows"][0]["valid_auc"]
    assert len(list((data.parent / "out").glob("*/reduced.parquet"))) == 2


def test_unknown_names(data):
    check_names(refused(data, dataset_id="tiny_m"), "'tiny_m'", "'tiny_mm'")
    check_names(refused(data, "--strategies", "v4"), "--strategies v4", "none, V1")
    check_names(refused(data, "--expid", "DIN_tiny"), "--expid DIN_tiny", "DIN_MM")
    check_names(refused(data, "--seeds", 0), "--seeds 0")


def test_missing_columns(data):
    check_names(refused(data, "--image", "img_emb_CLIP"), "'img_emb_CLIP'", "--image")
    for name in ("item_feature", "item_emb"):
        path = data / "tiny_mm" / f"{name}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([n for n in table.column_names if n.startswith("txt_emb")]), path)
    check_names(refused(data), "txt_emb_*")


def test_raw_embeddings_are_those_of_largest_dim(data):
    """Two item files in one folder, each with columns of its own, and a file that is not made yet."""
    folder = data / "items"
    folder.mkdir()
    for name in ("item_emb", "item_feature"):
        shutil.copy(data / "tiny_mm" / f"{name}.parquet", folder)
    source = find_source("text", "txt_emb_", [str(data / "later.parquet"), str(folder)])
    assert (source.path, source.column) == (folder / "item_feature.parquet", "txt_emb_BERT")
    assert find_source("text", "txt_emb_", [str(folder)], "txt_emb_pca8").path == folder / "item_emb.parquet"
    (folder / "item_emb.parquet").unlink()
    assert find_source("text", "txt_emb_", [str(folder)]).path == folder


def test_a_dataset_without_an_experiment(data):
    (data.parent / "model_config.yaml").write_text(json.dumps({"X": {"model": "DIN", "dataset_id": "tiny_mm"}}))
    check_names(refused(data), "DIN_MM", "tiny_mm")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_apart_beats_joint_where_one_modality_is_louder(seed, tmp_path):
    """tiny_mm's image vectors vary a hundred times as much as its text vectors."""
    auc = {}
    for expid in ("DIN_MM_V3_tiny", "DIN_MM_V4_tiny"):
        settings = {"seed": seed, "epochs": 2, "model_root": str(tmp_path), "verbose": 0}
        auc[expid] = Experiment.load(expid, ROOT, **settings).fit().valid["AUC"]
    assert auc["DIN_MM_V4_tiny"] > auc["DIN_MM_V3_tiny"] + 0.02


@pytest.mark.parametrize("expid", ["DIN_MM_RQ_tiny", "DIN_MM_PQ_tiny", "DIN_MM_VQ_tiny", "DIN_MM_aligned_tiny"])
def test_experiments_on_the_derived_files(expid, tmp_path):
    settings = {"epochs": 1, "model_root": str(tmp_path), "verbose": 0}
    assert Experiment.load(expid, ROOT, **settings).fit().valid["AUC"] > 0.6


def test_derived_files_fit_the_items():
    items = pq.read_table(TINY / "item_info.parquet")["item_id"].to_pylist()
    for method, levels in (("rq", 4), ("pq", 4), ("vq", 1)):
        table = pq.read_table(DERIVED / f"item_codes_{method}.parquet")
        assert sorted(table["item_id"].to_pylist()) == sorted(items)
        for modality in ("text", "image"):
            codes = np.array(table[f"codes_{method}_{modality}"].to_pylist())
            assert not codes[np.array(table["item_id"]) == 0].any()
            level = (codes[np.array(table["item_id"]) != 0] - 1) // 16
            assert (level == np.arange(levels)).all()
    table = pq.read_table(DERIVED / "item_emb_aligned.parquet")
    assert sorted(table["item_id"].to_pylist()) == sorted(items)
    vectors = np.array(table["item_emb_aligned"].to_pylist())[np.array(table["item_id"]) != 0]
    np.testing.assert_allclose(np.square(vectors).sum(axis=1), 16, rtol=1e-4)
