"""``embed pretrain``: from files to pretrained embeddings, on a planted signal, and on to SEMINAR."""

import json
from contextlib import redirect_stdout

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.cli import main
from fuxictr_mm.data.synthetic.spec import SyntheticSpec
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.experiment import Experiment
from tests.errors import exits_naming
from tests.projects import write_project

FUSED = "item_emb_pretrained"
QUICK = ["--dim", 8, "--steps", 200, "--evaluate-every", 100, "--batch-size", 128, "--learning-rate", 0.005]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small world, in which users click items of the topics that they like."""
    folder = tmp_path_factory.mktemp("pretrain") / "world"
    generate(SyntheticSpec(users=600, items=200, train_rows=3000, valid_rows=300, test_rows=10), folder, progress=False)
    return folder


def command(*words):
    main(["embed", "pretrain", *map(str, words)])


def sources(folder):
    features = folder / "item_feature.parquet"
    return [f"text={features}:txt_emb_BERT", f"image={features}:img_emb_CLIPRN50"]


@pytest.fixture(scope="module")
def pretrained(world, tmp_path_factory):
    """A folder with what one run of the command writes."""
    folder = tmp_path_factory.mktemp("pretrained")
    files = ["--out", folder / "out.parquet", "--save", folder / "unit.safetensors"]
    with (folder / "report.json").open("w") as stream, redirect_stdout(stream):
        command(*sources(world), "--train", world / "train.parquet", *QUICK, *files, "--quiet", "--json")
    return folder


def read(path, column=FUSED):
    return np.array(pq.read_table(path).sort_by("item_id")[column].to_pylist(), dtype=np.float32)


def test_the_auc_of_held_out_users_rises(pretrained):
    report = json.loads((pretrained / "report.json").read_text())
    assert report["after"] > report["before"] + 0.1, report
    assert report["after"] == max(report["history"])
    assert list(report["columns"]) == [FUSED, f"{FUSED}_id", f"{FUSED}_text", f"{FUSED}_image"]


def test_one_modality(world, tmp_path):
    out = tmp_path / "out.parquet"
    command(sources(world)[0], "--train", world / "train.parquet", "--out", out, "--steps", 1, "--dim", 80, "--quiet")
    assert pq.read_schema(out).names == ["item_id", FUSED, f"{FUSED}_id", f"{FUSED}_text"]
    assert read(out).shape == (201, 80)  # more than there are components


def test_every_item_has_contents_and_clicked_items_have_ids(world, pretrained):
    path = pretrained / "out.parquet"
    assert read(path).shape == (201, 8)
    assert (read(path, f"{FUSED}_text")[1:] != 0).any(axis=1).all()
    train = pq.read_table(world / "train.parquet")
    clicked = {i for row in train["item_seq"].to_pylist() for i in row} | set(train["item_id"].to_pylist())
    has = np.flatnonzero((read(path, f"{FUSED}_id") != 0).any(axis=1))
    assert len(has) > 50
    assert set(has.tolist()) <= clicked - {0}


def test_a_saved_unit_gives_the_same_embeddings(world, pretrained, tmp_path):
    unit = ["--apply", pretrained / "unit.safetensors", "--quiet"]
    command(*sources(world), "--out", tmp_path / "again.parquet", *unit)
    expected = pq.read_table(pretrained / "out.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(expected)
    # Of other items in another order, one of which is new and without an image.
    table = pq.read_table(world / "item_feature.parquet")
    last = table.take([150, 3, 77])
    image = np.array(last["img_emb_CLIPRN50"].to_pylist(), dtype=np.float32)
    image[1] = 0
    ids = last["item_id"].to_pylist()
    columns = {"item_id": [ids[0], 10**6, ids[2]], "txt_emb_BERT": last["txt_emb_BERT"]}
    pq.write_table(pa.table({**columns, "img_emb_CLIPRN50": image.tolist()}), tmp_path / "item_feature.parquet")
    command(*sources(tmp_path), "--out", tmp_path / "new.parquet", *unit)
    found = pq.read_table(tmp_path / "new.parquet")
    for column in expected.column_names[1:]:
        rows = np.array(found[column].to_pylist(), dtype=np.float32)
        theirs = read(pretrained / "out.parquet", column)
        np.testing.assert_allclose(rows[[1, 3]], theirs[[ids[0], ids[2]]], rtol=1e-5, atol=1e-6)
    new = found.slice(2, 1).to_pylist()[0]
    assert not np.any(new[f"{FUSED}_id"])
    assert not np.any(new[f"{FUSED}_image"])
    assert np.any(new[FUSED])


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ([], ["--train", "--apply"]),
        (["--apply", "U", "--train", "T"], ["--train", "--apply"]),
        (["--apply", "U", "--dim", "8"], ["--dim"]),
        (["--apply", "U", "--label", "like"], ["--label"]),
        (["--apply", "U", "--save", "x.safetensors"], ["--save"]),
        (["--apply", "nowhere"], ["nowhere"]),
        (["--train", "nowhere"], ["nowhere"]),
        (["--train", "T", "--label", "like"], ["'like'", "--label"]),
        (["--train", "T", "--roles", "history=clicked"], ["'clicked'"]),
        (["--train", "T", "--dim", "6", "--num-heads", "4"], ["dim is 6", "4"]),
        (["--train", "T", "--held-out", "1"], ["held_out is 1.0"]),
        (["--train", "T", "--save", "T"], ["train.parquet"]),
        (["--train", "T", "--steps", "1", "--evaluate-every", "1", "--learning-rate", "1e30"], ["step 1"]),
    ],
)
def test_wrong_calls(world, pretrained, tmp_path, capsys, options, wrong):
    names = {"U": pretrained / "unit.safetensors", "T": world / "train.parquet"}
    words = [str(names.get(option, option)) for option in options]
    with exits_naming(capsys, *wrong):
        command(*sources(world), *words, "--out", tmp_path / "out.parquet", "--quiet")
    assert not list(tmp_path.iterdir())


def test_outputs_and_inputs_that_do_not_fit(world, pretrained, tmp_path, capsys):
    train, unit = ["--train", world / "train.parquet"], ["--apply", pretrained / "unit.safetensors"]
    (tmp_path / "out.parquet").write_text("old")
    out = ["--out", tmp_path / "out.parquet"]
    with exits_naming(capsys, "out.parquet", "--overwrite"):
        command(*sources(world), *train, *out)
    assert (tmp_path / "out.parquet").read_text() == "old"
    with exits_naming(capsys, "'id'"):
        command(sources(world)[0].replace("text=", "id="), *train, *out, "--overwrite")
    with exits_naming(capsys, "'image'"):
        command(sources(world)[0], *unit, *out, "--overwrite")
    with exits_naming(capsys, "dim"):
        command(
            *sources(world)[:1],
            sources(world)[1].replace("img_emb_CLIPRN50", "txt_emb_BERT"),
            *unit,
            *out,
            "--overwrite",
        )
    damaged = tmp_path / "unit.safetensors"
    damaged.write_bytes(unit[1].read_bytes().replace(b"fields.gate", b"fields.date"))
    with exits_naming(capsys, "unit.safetensors"):
        command(*sources(world), "--apply", damaged, *out, "--overwrite")
    assert (tmp_path / "out.parquet").read_text() == "old"


def test_few_clicks(world, tmp_path, capsys):
    def write(**columns):
        empty = {
            "user_id": [1, 2],
            "item_id": [3, 4],
            "item_seq": pa.array([[], []], pa.list_(pa.int64())),
            "label": [1, 1],
        }
        pq.write_table(pa.table(empty | columns), tmp_path / "train.parquet")

    for columns in ({}, {"item_seq": [[10**6, 10**6 + 1], []]}, {"item_seq": [[1, 2], []]}):
        write(**columns)
        with exits_naming(capsys, "expected" if not columns else "too few"):
            command(*sources(world), "--train", tmp_path / "train.parquet", "--out", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_from_pretraining_to_codes_to_training(world, pretrained, tmp_path):
    """The fields of SEMINAR start from the pretrained embeddings, and its search reads their product codes."""
    pytest.importorskip("faiss")
    modalities = [f"{name}={pretrained / 'out.parquet'}:{FUSED}_{name}" for name in ("text", "image")]
    codes = ["--method", "pq", "--levels", "2", "--codes", "8", "--out", str(tmp_path / "codes.parquet"), "--quiet"]
    main(["embed", "quantize", *modalities, *codes])
    files = [str(world / "item_info.parquet"), str(pretrained / "out.parquet"), str(tmp_path / "codes.parquet")]
    stored = {
        "active": True,
        "dtype": "float",
        "type": "embedding",
        "source": "item",
        "feature_encoder": "nn.Identity()",
    }
    coded = {"active": True, "dtype": "int", "type": "sequence", "source": "item", "embedded": False}
    columns = [
        {"name": ["user_id", "item_seq"], "active": True, "dtype": "int", "type": "meta"},
        {"name": "item_id", "active": False, "dtype": "int", "type": "categorical", "source": "item"},
        {**stored, "name": f"{FUSED}_id", "freeze_emb": False},
        {**stored, "name": [f"{FUSED}_text", f"{FUSED}_image"]},
        {**coded, "name": ["codes_pq_text", "codes_pq_image"]},
    ]
    dataset = {
        **{f"{split}_data": str(world / f"{split}.parquet") for split in ("train", "valid")},
        "item_info": files,
        "feature_cols": columns,
        "label_col": {"name": "label", "dtype": "float"},
    }
    experiment = {
        "model": "SEMINAR",
        "dataset_id": "world",
        "codes": ["codes_pq_text", "codes_pq_image"],
        "aligned": [f"{FUSED}_{name}" for name in ("id", "text", "image")],
        **{"embedding_dim": 8, "dnn_hidden_units": [8], "epochs": 1, "batch_size": 500, "learning_rate": 1e-3},
    }
    write_project(tmp_path, {"SEMINAR_world": experiment}, {"world": dataset})
    loaded = Experiment.load("SEMINAR_world", tmp_path, model_root=str(tmp_path / "runs"))
    model = loaded.build_model(loaded.load_dataset({"valid": True}))
    fields = model.embed_items(torch.tensor([5])).unflatten(1, (3, 8))[0]
    for name, field in zip(model.item_fields, fields, strict=True):
        np.testing.assert_array_equal(field.detach().numpy(), read(pretrained / "out.parquet", name)[5])
    assert loaded.fit().metrics
