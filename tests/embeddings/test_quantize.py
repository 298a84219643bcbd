"""The stage ``quantize``: files in, files out, the command line, and models that read the codes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fuxictr_mm.cli import main
from fuxictr_mm.embeddings.codebooks import load_codebooks
from fuxictr_mm.embeddings.item_files import Source
from fuxictr_mm.embeddings.quantize import QuantizeOptions, apply_codebooks, quantize, yaml_lines
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "data" / "tiny_mm"
FEATURES = TINY / "item_feature.parquet"
TINY_SOURCES = [Source("text", FEATURES, "txt_emb_BERT"), Source("image", FEATURES, "img_emb_CLIPRN50")]


def column(path, name):
    table = pq.read_table(path)
    return dict(zip(table["item_id"].to_pylist(), map(tuple, table[name].to_pylist()), strict=True))


def write_items(path, ids, **vectors):
    pq.write_table(pa.table({"item_id": ids, **{n: v.tolist() for n, v in vectors.items()}}), path)


@pytest.fixture
def items(tmp_path):
    """200 items, of which 3 has no text, 4 no image, 5 neither."""
    generator = np.random.default_rng(0)
    ids = generator.permutation(np.arange(1, 201))
    text, image = (generator.normal(size=(200, d)).astype(np.float32) + 1 for d in (8, 12))
    text[np.isin(ids, (3, 5))] = 0
    image[np.isin(ids, (4, 5))] = 0
    write_items(tmp_path / "items.parquet", ids, text=text, image=image)
    return [Source(n, tmp_path / "items.parquet", n) for n in ("text", "image")]


def small(method="rq", **options):
    return QuantizeOptions(method=method, codes=16, levels=None if method == "vq" else 2, **options)


@pytest.mark.parametrize("method", ["vq", "rq", "pq", "opq"])
def test_codes_per_modality(method, items, tmp_path):
    report = quantize(items, tmp_path / "codes.parquet", small(method), codebook=tmp_path / "book", quiet=True)
    books = load_codebooks(tmp_path / "book")
    assert list(report) == list(books) == [f"codes_{method}_text", f"codes_{method}_image"]
    stored = pq.read_table(items[0].path)
    for source in items:
        name = f"codes_{method}_{source.name}"
        codes, book = column(tmp_path / "codes.parquet", name), books[name]
        assert len(codes) == 201
        assert codes[0] == (0,) * book.levels
        for item, vector in zip(stored["item_id"].to_pylist(), stored[source.name].to_pylist(), strict=True):
            vector = np.array([vector], dtype=np.float32)
            expected = book.semantic_ids(book.encode(vector))[0] if vector.any() else np.zeros(book.levels)
            assert codes[item] == tuple(expected)
        errors = report[name]["relative_error"]
        assert sorted(errors, reverse=True) == errors
        assert report[name]["items_without_vector"] == 2


def test_joint_codes_use_the_mean_for_a_missing_modality(items, tmp_path):
    report = quantize(items, tmp_path / "codes.parquet", small(joint=True), codebook=tmp_path / "book", quiet=True)
    assert list(report) == ["codes_rq"]
    assert report["codes_rq"]["items_without_a_modality"] == 2
    assert report["codes_rq"]["items_without_vector"] == 1
    book = load_codebooks(tmp_path / "book")["codes_rq"]
    codes = column(tmp_path / "codes.parquet", "codes_rq")
    assert codes[5] == (0, 0)
    stored = pq.read_table(items[0].path).to_pylist()
    row = next(r for r in stored if r["item_id"] == 3)
    filled = np.concatenate([book.space.mean[:8], np.array(row["image"], dtype=np.float32)])[None]
    assert codes[3] == tuple(book.semantic_ids(book.encode(filled))[0])


def test_zero_vectors_take_no_part_in_the_fit(items, tmp_path):
    """The same codebook with and without the items that have none."""
    quantize(items[:1], tmp_path / "a.parquet", small(), codebook=tmp_path / "a", quiet=True)
    table = pq.read_table(items[0].path)
    kept = [any(v) for v in table["text"].to_pylist()]
    pq.write_table(table.filter(pa.array(kept)), tmp_path / "kept.parquet")
    source = Source("text", tmp_path / "kept.parquet", "text")
    quantize([source], tmp_path / "b.parquet", small(), codebook=tmp_path / "b", quiet=True)
    first, second = (load_codebooks(tmp_path / n)["codes_rq_text"] for n in "ab")
    assert (first.fitted.centroids == second.fitted.centroids).all()
    assert (first.space.mean == second.space.mean).all()


def test_applied_codebooks_give_the_same_codes(items, tmp_path):
    report = quantize(items, tmp_path / "a.parquet", small("opq"), codebook=tmp_path / "book", quiet=True)
    again = apply_codebooks(items, tmp_path / "b.parquet", tmp_path / "book", quiet=True)
    assert again == report
    for name in report:
        assert column(tmp_path / "a.parquet", name) == column(tmp_path / "b.parquet", name)


def test_decoded_vectors_are_those_of_the_codes(items, tmp_path):
    quantize(items[:1], tmp_path / "a.parquet", small(), codebook=tmp_path / "book", decoded=True, quiet=True)
    book = load_codebooks(tmp_path / "book")["codes_rq_text"]
    codes, decoded = (column(tmp_path / "a.parquet", n) for n in ("codes_rq_text", "decoded_rq_text"))
    assert not any(decoded[3])
    for item in (1, 2, 77):
        np.testing.assert_allclose(decoded[item], book.decode(book.codes_of(np.array([codes[item]])))[0], atol=1e-5)


def test_neighbors_leave_out_the_item_itself_and_zero_vectors(items, tmp_path):
    quantize(items, tmp_path / "a.parquet", small("vq", scaling="none"), neighbors=4, quiet=True)
    found = column(tmp_path / "a.parquet", "neighbors_vq_text")
    rows = {r["item_id"]: np.array(r["text"]) for r in pq.read_table(items[0].path).to_pylist()}
    known = [i for i in rows if rows[i].any()]
    assert found[0] == found[3] == (0, 0, 0, 0)
    for item in known[:30]:
        others = sorted((i for i in known if i != item), key=lambda i: np.square(rows[i] - rows[item]).sum())
        assert found[item] == tuple(others[:4])


def test_report_counts_collisions_and_use(tmp_path):
    """Three places, of 50, 30 and 20 equal items."""
    places = np.repeat(np.array([[0.0, 1.0], [5.0, 0.0], [9.0, 9.0]], np.float32), [50, 30, 20], axis=0)
    write_items(tmp_path / "items.parquet", np.arange(1, 101), text=places)
    source = Source("text", tmp_path / "items.parquet", "text")
    options = QuantizeOptions(method="vq", codes=4)
    report = quantize([source], tmp_path / "a.parquet", options, quiet=True)["codes_vq_text"]
    assert report["colliding_items"] == 100
    assert report["largest_collision"] == 50
    assert report["codes_used"] == [0.75]
    share = np.array([0.5, 0.3, 0.2])
    assert report["perplexity"][0] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert report["relative_error"][0] == pytest.approx(0, abs=1e-5)


def test_scaling_keeps_one_modality_from_drowning_the_other(items, tmp_path):
    table = pq.read_table(items[0].path)
    loud = np.array(table["image"].to_pylist(), dtype=np.float32) * 100
    path = tmp_path / "loud.parquet"
    write_items(path, table["item_id"], text=np.array(table["text"].to_pylist(), dtype=np.float32), image=loud)
    sources = [Source(n, path, n) for n in ("text", "image")]
    errors = {}
    for scaling in ("none", "modality"):
        options = small(joint=True, scaling=scaling)
        report = quantize(sources, tmp_path / f"{scaling}.parquet", options, quiet=True)["codes_rq"]
        errors[scaling] = report["relative_error_by_modality"]["text"][-1]
    assert errors["none"] > errors["modality"] + 0.1


def test_a_sample_bounds_the_fit(items, tmp_path):
    quantize(items[:1], tmp_path / "a.parquet", small(fit_items=50), codebook=tmp_path / "a", quiet=True)
    quantize(items[:1], tmp_path / "b.parquet", small(), codebook=tmp_path / "b", quiet=True)
    means = [load_codebooks(tmp_path / n)["codes_rq_text"].space.mean for n in "ab"]
    assert not np.allclose(*means)
    assert len(column(tmp_path / "a.parquet", "codes_rq_text")) == 201


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "rp"}, "--method rp, expected one of vq, rq, pq, opq, vqvae"),
        ({"scaling": "max"}, "--scaling max, expected one of"),
        ({"codes": 100}, "--codes 100, expected a power of two"),
        ({"codes": 1}, "--codes 1, expected a power of two"),
        ({"levels": 0}, "--levels 0, expected 1 or more"),
        ({"method": "vq", "levels": 4}, "--levels 4, but --method vq has one level; use --method rq"),
        ({"fit_items": 10}, "--fit-items 10 is below --codes 256"),
        ({"seed": -1}, "--seed -1, expected 0 to"),
        ({"steps": 5}, "--steps is of --method vqvae only"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        QuantizeOptions(**options)


def test_more_codes_than_items(items, tmp_path):
    with pytest.raises(ConfigError, match=r"--codes 256 needs as many items .*, but text has 198 that are not zero"):
        quantize(items, tmp_path / "a.parquet", QuantizeOptions(), quiet=True)
    assert not (tmp_path / "a.parquet").exists()


def test_codebooks_of_other_modalities_or_widths(items, tmp_path):
    quantize(items, tmp_path / "a.parquet", small(), codebook=tmp_path / "book", quiet=True)
    out = tmp_path / "b.parquet"
    with pytest.raises(DataError, match=r"book: was fitted on image \(12 wide, image\), got none; give each"):
        apply_codebooks(items[:1], out, tmp_path / "book", quiet=True)
    with pytest.raises(DataError, match=r"no codebook of a modality 'audio' \(it has: image, text\)"):
        apply_codebooks([*items, Source("audio", items[0].path, "text")], out, tmp_path / "book", quiet=True)
    swapped = [Source("text", items[0].path, "image"), Source("image", items[0].path, "text")]
    with pytest.raises(DataError, match=r"'text' \(image\) is 12 wide, expected 8 as in the codebook"):
        apply_codebooks(swapped, out, tmp_path / "book", quiet=True)
    assert not out.exists()


def test_neighbors_of_another_method(items, tmp_path):
    with pytest.raises(ConfigError, match="--neighbors goes with --method vq, not with rq"):
        quantize(items, tmp_path / "a.parquet", small(), neighbors=3, quiet=True)


def test_neighbors_of_new_items_are_of_the_catalogue(items, tmp_path, capsys):
    book = tmp_path / "book"
    quantize(items, tmp_path / "a.parquet", small(method="vq"), codebook=book, neighbors=3, quiet=True)
    table = pq.read_table(items[0].path)
    ids = np.asarray(table["item_id"]) + 10_000  # strangers with known vectors
    pq.write_table(table.set_column(table.schema.get_field_index("item_id"), "item_id", pa.array(ids)), tmp_path / "n")
    new = [Source(s.name, tmp_path / "n", s.column) for s in items]
    out = tmp_path / "b.parquet"
    with pytest.raises(ConfigError, match="--neighbors with --apply needs --among NAME=FILE:COLUMN"):
        apply_codebooks(new, out, book, neighbors=3, quiet=True)
    with pytest.raises(ConfigError, match="--among has no effect without --neighbors"):
        apply_codebooks(new, out, book, among=items, quiet=True)
    with pytest.raises(DataError, match="was fitted on image"):
        apply_codebooks(new, out, book, among=items[:1], neighbors=3, quiet=True)
    assert not out.exists()
    names = [f"{s.name}={tmp_path / 'n'}:{s.column}" for s in items]
    among = [f"{s.name}={s.path}:{s.column}" for s in items]
    applied = ["--apply", str(book), "--neighbors", "3", "--among", *among]
    main(["embed", "quantize", *names, *applied, "--out", str(out)])
    largest = max(np.asarray(table["item_id"]).tolist()) + 10_000
    assert f"max_len: 3, vocab_size: {largest + 1}, share_embedding: item_id" in capsys.readouterr().out
    known = {item for item, vector in column(items[0].path, "text").items() if any(vector)}
    for item, neighbors in column(out, "neighbors_vq_text").items():
        if any(neighbors):
            assert set(neighbors) <= known
            assert neighbors[0] == item - 10_000  # the known item of the same vector
        else:
            assert item - 10_000 not in known
    with pytest.raises(SystemExit, match="2"):
        main(["embed", "quantize", *names, "--among", *among, "--out", str(tmp_path / "c.parquet")])
    assert "--among is for --apply" in capsys.readouterr().err


def test_nothing_is_replaced_unasked(items, tmp_path):
    (tmp_path / "book").write_text("mine")
    with pytest.raises(ConfigError, match="book: exists already; add --overwrite"):
        quantize(items, tmp_path / "a.parquet", small(), codebook=tmp_path / "book", quiet=True)
    with pytest.raises(ConfigError, match="book: exists already"):
        quantize(items, tmp_path / "book", small(), quiet=True)
    assert (tmp_path / "book").read_text() == "mine"


def test_command_line(items, tmp_path, capsys):
    source = f"text={items[0].path}:text"
    files = {n: str(tmp_path / n) for n in ("a.parquet", "b.parquet", "book", "report.json")}
    command = ["embed", "quantize", source]
    fit = ["--codes", "16", "--levels", "2", "--save", files["book"], "--report", files["report.json"]]
    main([*command, *fit, "--out", files["a.parquet"]])
    printed = capsys.readouterr().out
    assert "codes_rq_text: rq of text (scaling modality), 200 items, 2 without a vector" in printed
    line = "- {name: codes_rq_text, active: False, dtype: int, type: sequence, source: item, max_len: 2, vocab_size: 33"
    assert line in printed
    report = json.loads((tmp_path / "report.json").read_text())["codes_rq_text"]
    assert f"{report['relative_error'][1]:.4f}" in printed
    main([*command, "--apply", files["book"], "--out", files["b.parquet"], "--quiet"])
    assert capsys.readouterr().out == ""
    assert column(files["a.parquet"], "codes_rq_text") == column(files["b.parquet"], "codes_rq_text")
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--apply", files["book"], "--codes", "8", "--out", files["b.parquet"]])
    assert capsys.readouterr().err == (
        "error: --codes has no effect with --apply, which takes all from the codebook; leave it out\n"
    )


def test_models_read_codes_and_neighbors(tmp_path):
    """The pasted lines are enough to read them; codes tell what ids cannot, codes of other items do not.

    The margin is half of the smallest gap that seeds 1 to 4 left.
    """
    report = quantize(TINY_SOURCES, tmp_path / "pq.parquet", QuantizeOptions(method="pq", codes=16), quiet=True)
    lines = yaml_lines(report)
    options = QuantizeOptions(method="vq", codes=16)
    report = quantize(TINY_SOURCES, tmp_path / "vq.parquet", options, neighbors=5, quiet=True)
    lines += yaml_lines(report, neighbors=5, largest_id=1000)
    codes = pq.read_table(tmp_path / "pq.parquet")
    order = np.random.default_rng(0).permutation(len(codes))
    pq.write_table(codes.take(order).set_column(0, "item_id", codes["item_id"]), tmp_path / "others.parquet")

    columns = [f"{kind}_{name}" for kind in ("codes_pq", "codes_vq", "neighbors_vq") for name in ("text", "image")]
    dataset = yaml.safe_load((ROOT / "dataset_config.yaml").read_text())["tiny_mm"]
    dataset["feature_cols"] = [c for c in dataset["feature_cols"] if not {*columns} & {*np.atleast_1d(c["name"])}]
    dataset["feature_cols"] += yaml.safe_load("\n".join(lines))
    (tmp_path / "dataset_config.yaml").write_text(yaml.safe_dump({"tiny_mm": dataset}))
    models = yaml.safe_load((ROOT / "model_config.yaml").read_text())
    none = {**models["DIN_MM_none_tiny"], "epochs": 2, "seed": 1, "verbose": 0, "model_root": str(tmp_path)}
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump({"Base": models["Base"], "none": none}))

    def setup(item_file, *features):
        settings = {
            "use_features": [*none["use_features"], *features],
            "item_info": [str(tmp_path / item_file), str(TINY / "item_info.parquet")],
            **{f"{split}_data": str(TINY / f"{split}.parquet") for split in ("train", "valid", "test")},
        }
        return Experiment.load("none", tmp_path, model_zoo=ROOT / "model_zoo", **settings)

    runs = {
        "none": setup("pq.parquet"),
        "codes": setup("pq.parquet", *columns[:2]),
        "others": setup("others.parquet", *columns[:2]),
    }
    auc = {name: run.fit().valid["AUC"] for name, run in runs.items()}
    assert auc["codes"] > auc["none"] + 0.06
    assert auc["codes"] > auc["others"] + 0.06

    experiment = setup("vq.parquet", *columns[2:])
    model = experiment.build_model(experiment.load_dataset({"valid": True}))
    layers = model.embedding_layer.embedding_layer.embedding_layers
    assert layers["neighbors_vq_text"] is layers["neighbors_vq_image"] is layers["item_id"]
    assert layers["codes_vq_text"] is not layers["codes_vq_image"]
