"""``embed quantize``: files in, files out, the command line, and models that read the codes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fuxictr_mm.cli import main
from fuxictr_mm.embeddings.codebooks import load_codebooks
from fuxictr_mm.embeddings.item_files import Source
from fuxictr_mm.embeddings.quantize import QuantizeOptions, nearest_items, quantize
from fuxictr_mm.embeddings.quantize_report import yaml_lines
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.experiment import Experiment
from tests.errors import raises_naming
from tests.paths import ROOT, TINY


def column(path, name):
    table = pq.read_table(path)
    return dict(zip(table["item_id"].to_pylist(), map(tuple, table[name].to_pylist()), strict=True))


def write_items(path, ids, **columns):
    pq.write_table(pa.table({"item_id": ids, **{name: x.tolist() for name, x in columns.items()}}), path)


@pytest.fixture
def items(tmp_path):
    """200 items, of which 3 has no text, 4 no image, 5 neither."""
    generator = np.random.default_rng(0)
    ids = generator.permutation(np.arange(1, 201))
    text, image = (generator.normal(size=(200, d)).astype(np.float32) + 1 for d in (8, 12))
    text[np.isin(ids, (3, 5))] = 0
    image[np.isin(ids, (4, 5))] = 0
    write_items(tmp_path / "items.parquet", ids, text=text, image=image)
    return [Source(name, tmp_path / "items.parquet", name) for name in ("text", "image")]


@pytest.fixture
def fit(tmp_path):
    """Fit with few codes into a.parquet and book; returns the report and the codebooks."""

    def run(sources, method="rq", out="a.parquet", book="book", neighbors=0, decoded=False, **options):
        options = {"codes": 16, "levels": None if method == "vq" else 2, **options}
        given = QuantizeOptions.read({"method": method, **options}, "quantize")
        more = {"save": tmp_path / book, "neighbors": neighbors, "decoded": decoded, "overwrite": True}
        report = quantize(sources, tmp_path / out, given, quiet=True, **more)
        return report, load_codebooks(tmp_path / book)

    return run


@pytest.mark.parametrize("method", ["vq", "rq", "pq", "opq"])
def test_codes_per_modality(method, items, fit, tmp_path):
    report, books = fit(items, method)
    assert list(report) == list(books) == [f"codes_{method}_text", f"codes_{method}_image"]
    stored = pq.read_table(items[0].path)
    for source in items:
        name = f"codes_{method}_{source.name}"
        codes, book = column(tmp_path / "a.parquet", name), books[name]
        assert len(codes) == 201
        assert codes[0] == (0,) * book.levels
        for item, x in zip(stored["item_id"].to_pylist(), stored[source.name].to_pylist(), strict=True):
            x = np.array([x], dtype=np.float32)
            expected = book.semantic_ids(book.encode(x))[0] if x.any() else np.zeros(book.levels)
            assert codes[item] == tuple(expected)
        errors = report[name]["relative_error"]
        assert sorted(errors, reverse=True) == errors
        assert report[name]["items_without_vector"] == 2


def test_joint_codes_use_the_mean_for_a_missing_modality(items, fit, tmp_path):
    report, books = fit(items, joint=True)
    assert list(report) == ["codes_rq"]
    assert report["codes_rq"]["items_without_a_modality"] == 2
    assert report["codes_rq"]["items_without_vector"] == 1
    codes, book = column(tmp_path / "a.parquet", "codes_rq"), books["codes_rq"]
    assert codes[5] == (0, 0)
    row = next(row for row in pq.read_table(items[0].path).to_pylist() if row["item_id"] == 3)
    filled = np.concatenate([book.space.mean[:8], np.array(row["image"], dtype=np.float32)])[None]
    assert codes[3] == tuple(book.semantic_ids(book.encode(filled))[0])


def test_items_without_embedding_take_no_part_in_the_fit(items, fit, tmp_path):
    _, first = fit(items[:1])
    table = pq.read_table(items[0].path)
    pq.write_table(table.filter(pa.array([any(x) for x in table["text"].to_pylist()])), tmp_path / "kept.parquet")
    _, second = fit([Source("text", tmp_path / "kept.parquet", "text")], out="b.parquet", book="other")
    first, second = first["codes_rq_text"], second["codes_rq_text"]
    assert (first.centroids == second.centroids).all()
    assert (first.space.mean == second.space.mean).all()


def test_applied_codebooks_give_the_same_codes(items, fit, tmp_path):
    report, _ = fit(items, "opq")
    assert quantize(items, tmp_path / "b.parquet", apply=tmp_path / "book", quiet=True) == report
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))


def test_decoded_embeddings_are_those_of_the_codes(items, fit, tmp_path):
    _, books = fit(items[:1], decoded=True)
    book = books["codes_rq_text"]
    decoded = column(tmp_path / "a.parquet", "decoded_rq_text")
    assert not any(decoded[3])
    known = {row["item_id"]: row["text"] for row in pq.read_table(items[0].path).to_pylist()}
    for item in (1, 2, 77):
        codes = book.encode(np.array([known[item]], dtype=np.float32))
        np.testing.assert_allclose(decoded[item], book.decode(codes)[0], atol=1e-5)


def test_neighbors_exclude_the_item_itself_and_items_without_embedding(items, fit, tmp_path):
    fit(items, "vq", scaling="none", neighbors=4)
    found = column(tmp_path / "a.parquet", "neighbors_vq_text")
    rows = {row["item_id"]: np.array(row["text"]) for row in pq.read_table(items[0].path).to_pylist()}
    known = [item for item in rows if rows[item].any()]
    assert found[0] == found[3] == (0, 0, 0, 0)
    for item in known[:30]:
        others = sorted((i for i in known if i != item), key=lambda i: np.square(rows[i] - rows[item]).sum())
        assert found[item] == tuple(others[:4])


def test_the_report_counts_collisions_and_use(fit, tmp_path):
    """Three distinct embeddings, of 50, 30 and 20 items."""
    x = np.repeat(np.array([[0.0, 1.0], [5.0, 0.0], [9.0, 9.0]], np.float32), [50, 30, 20], axis=0)
    write_items(tmp_path / "items.parquet", np.arange(1, 101), text=x)
    report = fit([Source("text", tmp_path / "items.parquet", "text")], "vq", codes=4)[0]["codes_vq_text"]
    assert report["colliding_items"] == 100
    assert report["largest_collision"] == 50
    assert report["codes_used"] == [0.75]
    share = np.array([0.5, 0.3, 0.2])
    assert report["perplexity"][0] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert report["relative_error"][0] == pytest.approx(0, abs=1e-5)


def test_scaling_keeps_one_modality_from_dominating_the_other(items, fit, tmp_path):
    table = pq.read_table(items[0].path)
    text, image = (np.array(table[name].to_pylist(), dtype=np.float32) for name in ("text", "image"))
    write_items(tmp_path / "large.parquet", table["item_id"], text=text, image=100 * image)
    sources = [Source(name, tmp_path / "large.parquet", name) for name in ("text", "image")]
    none, modality = (
        fit(sources, joint=True, scaling=scaling)[0]["codes_rq"]["relative_error_by_modality"]["text"][-1]
        for scaling in ("none", "modality")
    )
    assert none > modality + 0.1


def test_a_sample_bounds_the_fit(items, fit, tmp_path):
    _, sampled = fit(items[:1], fit_items=50)
    _, whole = fit(items[:1])
    assert not np.allclose(sampled["codes_rq_text"].space.mean, whole["codes_rq_text"].space.mean)
    assert len(column(tmp_path / "a.parquet", "codes_rq_text")) == 201


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"method": "rp"}, "method .*'rp'"),
        ({"scaling": "max"}, "scaling .*'max'"),
        ({"codes": 100}, "codes is 100"),
        ({"codes": 1}, "codes is 1"),
        ({"levels": 0}, "levels is 0"),
        ({"method": "vq", "levels": 4}, "levels is 4"),
        ({"fit_items": 10}, "fit_items is 10"),
        ({"seed": -1}, "seed is -1"),
        ({"method": "vqvae", "learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"method": "vqvae", "steps": 0}, "steps is 0"),
        ({"method": "vqvae", "hidden_units": [8, 0]}, "hidden_units is"),
        ({"steps": 5}, "steps"),
    ],
)
def test_options_that_cannot_be(options, wrong):
    with pytest.raises(ConfigError, match=wrong):
        QuantizeOptions.read(options, "quantize")


def test_more_codes_than_items(items, fit, tmp_path):
    with raises_naming(ConfigError, "--codes 256", "text", "198"):
        fit(items, codes=256)
    assert not (tmp_path / "a.parquet").exists()


def test_codebooks_of_other_modalities_or_dims(items, fit, tmp_path):
    fit(items)
    swapped = [Source("text", items[0].path, "image"), Source("image", items[0].path, "text")]
    with raises_naming(ConfigError, "book: ", "'text'", "12", "8"):
        quantize(swapped, tmp_path / "b.parquet", apply=tmp_path / "book", quiet=True)
    assert not (tmp_path / "b.parquet").exists()


def test_neighbors_of_new_items_are_of_the_catalogue(items, fit, tmp_path, capsys):
    fit(items, "vq", neighbors=3)
    table = pq.read_table(items[0].path)
    ids = np.asarray(table["item_id"]) + 10_000  # new items with known embeddings
    pq.write_table(table.set_column(table.schema.get_field_index("item_id"), "item_id", pa.array(ids)), tmp_path / "n")
    new = [Source(source.name, tmp_path / "n", source.column) for source in items]
    out = tmp_path / "b.parquet"
    with raises_naming(ConfigError, "--among"):
        quantize(new, out, apply=tmp_path / "book", neighbors=3, quiet=True)
    with raises_naming(ConfigError, "--among"):
        quantize(new, out, apply=tmp_path / "book", among=items, quiet=True)
    with raises_naming(ConfigError, "image"):
        quantize(new, out, apply=tmp_path / "book", among=items[:1], neighbors=3, quiet=True)
    assert not out.exists()
    names = [f"{s.name}={tmp_path / 'n'}:{s.column}" for s in items]
    among = ["--among", *(f"{s.name}={s.path}:{s.column}" for s in items)]
    main(
        ["embed", "quantize", *names, "--apply", f"{tmp_path / 'book'}", "--neighbors", "3", *among, "--out", f"{out}"]
    )
    assert f"max_len: 3, vocab_size: {10_201}, share_embedding: item_id" in capsys.readouterr().out
    known = {item for item, x in column(items[0].path, "text").items() if any(x)}
    for item, neighbors in column(out, "neighbors_vq_text").items():
        if any(neighbors):
            assert set(neighbors) <= known
            assert neighbors[0] == item - 10_000  # the known item of the same embedding
        else:
            assert item - 10_000 not in known
    with pytest.raises(SystemExit, match="2"):
        main(["embed", "quantize", *names, *among, "--out", f"{tmp_path / 'c.parquet'}"])


def test_neighbors_of_another_method(items, fit):
    with raises_naming(ConfigError, "--neighbors", "rq"):
        fit(items, neighbors=3)


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_neighbors_are_those_of_a_full_sort(metric):
    generator = np.random.default_rng(0)
    x, ids = generator.normal(size=(60, 4)).astype(np.float32), generator.permutation(1000)[:60] + 1
    chunks = [(ids[start : start + 7], x[start : start + 7]) for start in range(0, 60, 7)]
    found = nearest_items(chunks, x, ids, 5, metric)
    full = x.astype(np.float64)
    scores = full @ full.T if metric == "inner_product" else -np.square(full[:, None] - full[None]).sum(axis=2)
    np.fill_diagonal(scores, -np.inf)
    assert (found == ids[np.argsort(-scores, axis=1)[:, :5]]).all()


def test_fewer_items_than_neighbors():
    x, ids = np.eye(3, dtype=np.float32), np.array([5, 6, 7])
    found = nearest_items([(ids, x)], x, ids, 4, "l2").tolist()
    assert [sorted(row[:2]) for row in found] == [[6, 7], [5, 7], [5, 6]]
    assert all(row[2:] == [0, 0] for row in found)


def test_existing_files_are_kept(items, tmp_path):
    (tmp_path / "book").write_text("mine")
    options = QuantizeOptions(codes=16)
    with raises_naming(ConfigError, "book"):
        quantize(items, tmp_path / "a.parquet", options, save=tmp_path / "book", quiet=True)
    with raises_naming(ConfigError, "book"):
        quantize(items, tmp_path / "book", options, quiet=True)
    assert (tmp_path / "book").read_text() == "mine"
    source = tmp_path / "items.parquet"
    with raises_naming(ConfigError, source):
        quantize(items, source, options, quiet=True, overwrite=True)
    with raises_naming(ConfigError, source):
        quantize(items, tmp_path / "a.parquet", options, report=source, quiet=True, overwrite=True)
    assert pq.read_metadata(source).num_rows == 200


def test_command_line(items, tmp_path, capsys):
    files = {name: str(tmp_path / name) for name in ("a.parquet", "b.parquet", "book", "report.json")}
    command = ["embed", "quantize", f"text={items[0].path}:text"]
    fit = ["--codes", "16", "--levels", "2", "--save", files["book"], "--report", files["report.json"]]
    main([*command, *fit, "--out", files["a.parquet"]])
    printed = capsys.readouterr().out
    line = "- {name: codes_rq_text, active: False, dtype: int, type: sequence, source: item, max_len: 2, vocab_size: 33"
    assert line in printed
    report = json.loads((tmp_path / "report.json").read_text())["codes_rq_text"]
    assert report["items"] == 200
    assert f"{report['relative_error'][1]:.4f}" in printed
    main([*command, "--apply", files["book"], "--out", files["b.parquet"], "--quiet"])
    assert capsys.readouterr().out == ""
    assert column(files["a.parquet"], "codes_rq_text") == column(files["b.parquet"], "codes_rq_text")
    for option, value in (("--codes", "8"), ("--save", "other")):
        with pytest.raises(SystemExit, match="2"):
            main([*command, "--apply", files["book"], option, value, "--out", str(tmp_path / "c.parquet")])
        assert capsys.readouterr().err.startswith(f"error: {option} ")


@pytest.mark.slow
def test_models_read_codes_and_neighbors(tmp_path):
    """The printed lines are enough to read them; codes add information, codes of other items do not.

    The margin is half of the smallest gap of the seeds 1 to 4.
    """
    features = TINY / "item_feature.parquet"
    sources = [Source("text", features, "txt_emb_BERT"), Source("image", features, "img_emb_CLIPRN50")]
    report = quantize(sources, tmp_path / "pq.parquet", QuantizeOptions(method="pq", codes=16), quiet=True)
    lines = yaml_lines(report)
    options = QuantizeOptions(method="vq", codes=16)
    report = quantize(sources, tmp_path / "vq.parquet", options, neighbors=5, quiet=True)
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
