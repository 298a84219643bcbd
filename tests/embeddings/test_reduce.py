import dataclasses
import json
import tracemalloc

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.commands.embed.reduce import format_report, yaml_lines
from fuxictr_mm.embeddings import fit_reducer as reducer_fit
from fuxictr_mm.embeddings.fit_reducer import ReduceOptions
from fuxictr_mm.embeddings.item_files import JoinedEmbeddings, Source, read_embeddings
from fuxictr_mm.embeddings.reduce import reduce_vectors
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.reduction.reducer import Reducer
from fuxictr_mm.reduction.summary import summarize
from tests.errors import raises_naming
from tests.paths import TINY


def read(path, column):
    """Return {id: embedding}."""
    chunks = read_embeddings(Source("e", path, column))
    return {i: row for ids, rows in chunks for i, row in zip(ids.tolist(), rows, strict=True)}


def write(path, rows, ids=None):
    ids = np.arange(1, len(rows) + 1) if ids is None else ids
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float32).ravel()), rows.shape[1])
    pq.write_table(pa.table({"item_id": ids, path.stem: column}), path)
    return Source(path.stem, path, path.stem)


def write_each(folder, **modalities):
    return [write(folder / f"{name}.parquet", rows) for name, rows in modalities.items()]


def planted(items, scales=(1.0, 1.0)):
    """Modalities of 5 latent topics each, at the given scales, with a tenth of noise."""
    random = np.random.default_rng(0)
    made = []
    for scale, width in zip(scales, (10, 14), strict=True):
        view = np.linalg.qr(random.normal(size=(width, 5)))[0].T
        topics = random.normal(size=(items, 5)) * np.linspace(2, 1, 5)
        made.append(scale * (topics @ view + 0.1 * random.normal(size=(items, width)) + 0.3))
    return made


@pytest.fixture
def unequal(tmp_path):
    """Give a modality and one of ten times its scale."""
    text, image = planted(400, scales=(1.0, 10.0))
    return write_each(tmp_path, text=text, image=image)


@pytest.fixture
def sources(tmp_path):
    """Give three modalities with zero vectors, in files of different orders and items."""
    random = np.random.default_rng(5)
    made = []
    for name, width, items in (("text", 9, 120), ("image", 12, 110), ("sound", 7, 115)):
        ids = random.permutation(np.arange(1, 131))[:items]
        rows = random.normal(size=(items, width)) @ random.normal(size=(width, width)) + random.normal(size=width)
        rows[random.random(items) < 0.1] = 0
        made.append(write(tmp_path / f"{name}.parquet", rows, ids))
    return made


def fit(sources, **settings):
    with JoinedEmbeddings(sources) as joined:
        reducer = reducer_fit.fit_reducer(joined, ReduceOptions.read(settings, "reduce"))
        ids, vectors = next(joined.chunks(10**6))
    return reducer, ids, vectors


def definition(vectors, names, width, scale, whiten):
    """PCA by the singular vectors, of the items that have all the modalities; the others' missing parts are 0."""
    scaled, present = [], []
    for name in names:
        rows = vectors[name].astype(np.float64)
        known = rows.any(axis=1)
        if scale == "l2":
            rows[known] /= np.linalg.norm(rows[known], axis=1)[:, None]
        if scale == "standard":
            rows = rows / rows[known].std(axis=0, ddof=1)
        scaled.append(rows)
        present.append(known)
    whole = np.logical_and.reduce(present)
    mean = [rows[whole].mean(axis=0) for rows in scaled]
    centred = np.concatenate([(r - m) * k[:, None] for r, m, k in zip(scaled, mean, present, strict=True)], axis=1)
    _, values, components = np.linalg.svd(centred[whole], full_matrices=False)
    components = components[:width]
    components = components * np.sign(components[range(width), np.abs(components).argmax(axis=1)])[:, None]
    reduced = centred @ components.T
    return reduced / (values[:width] / np.sqrt(whole.sum() - 1)) if whiten else reduced


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("scale", ["none", "l2", "standard"])
def test_strategies_equal_their_definition_whatever_the_chunks(sources, scale, whiten, monkeypatch):
    results = {}
    for rows in (50, 1000):
        monkeypatch.setattr(reducer_fit, "rows_of", lambda *_, rows=rows: rows)
        reducer, _, vectors = fit(sources, dim=5, scaling=scale, whiten=whiten)
        results[rows] = reducer.transform(vectors)
    assert list(results[50]) == ["text", "image", "sound", "joint", "apart"]
    names = ["text", "image", "sound"]
    expected = {name: definition(vectors, [name], 5, scale, whiten) for name in names}
    expected["joint"] = definition(vectors, names, 5, scale, whiten)
    parts = [definition(vectors, [n], k, scale, whiten) for n, k in zip(names, (2, 2, 1), strict=True)]
    if not whiten:
        variances = [p[p.any(axis=1)].var(axis=0, ddof=1).mean() for p in parts]
        common = np.prod(variances) ** (1 / len(parts))
        parts = [p * np.sqrt(common / variance) for p, variance in zip(parts, variances, strict=True)]
    expected["apart"] = np.concatenate(parts, axis=1)
    for name, rows in expected.items():
        np.testing.assert_allclose(results[50][name], rows, atol=1e-5 * np.abs(rows).max(), err_msg=name)
        np.testing.assert_allclose(results[50][name], results[1000][name], atol=1e-6, err_msg=name)


def test_zero_vectors_stay_zero_and_change_nothing(tmp_path):
    made = dict(zip(("text", "image"), planted(100), strict=True))
    one, _, vectors = fit(write_each(tmp_path, **made), dim=4)
    with_zeros = {name: np.pad(rows, ((0, 30), (0, 0))) for name, rows in made.items()}
    other, _, more = fit(write_each(tmp_path, **with_zeros), dim=4)
    assert [m.missing for m in other.modalities] == [30, 30]
    for name, rows in one.transform(vectors).items():
        reduced = other.transform(more)[name]
        np.testing.assert_allclose(reduced[:100], rows, atol=1e-5)
        assert rows.any(axis=1).all()
        assert not reduced[100:].any()


def test_a_share_of_variance_gives_the_smallest_width(tmp_path):
    random = np.random.default_rng(3)
    # Orthogonal columns of exact variances: 70, 20, 9, 1 and 50, 50.
    basis = np.linalg.qr(np.concatenate([np.ones((60, 1)), random.normal(size=(60, 6))], axis=1))[0][:, 1:]
    text = basis[:, :4] * np.sqrt([70, 20, 9, 1]) + 1
    image = basis[:, 4:] * np.sqrt([50, 50]) + 1
    reducer, *_ = fit(write_each(tmp_path, t=text, i=image), variance=0.9)
    assert {s.name: s.dims for s in reducer.strategies} == {
        "v1": {"t": 2},
        "v2": {"i": 2},
        "v3": {"joint": 4},
        "v4": {"t": 2, "i": 2},
    }
    kept = {s["column"]: s["kept"] for s in summarize(reducer, "x")["strategies"]}
    assert kept == pytest.approx({"x_v1": 0.9, "x_v2": 1.0, "x_v3": 190 / 200, "x_v4": 190 / 200}, rel=1e-5)


def test_dim_is_shared_out_and_names_follow_the_count(sources):
    assert [s.name for s in fit(sources[:1], dim=3)[0].strategies] == ["text"]
    pair = fit(sources[:2], dim=5)[0].strategies
    assert [(s.name, s.dims) for s in pair] == [
        ("v1", {"text": 5}),
        ("v2", {"image": 5}),
        ("v3", {"joint": 5}),
        ("v4", {"text": 3, "image": 2}),
    ]
    assert [s.name for s in fit(sources[:2], dim=5, strategies=["apart", "text"])[0].strategies] == ["v1", "v4"]


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"dim": 1}, "dim is 1, .*3"),
        ({"dim": 8}, " 8 .*'sound'.* 7"),
        ({"variance": 1.5}, "1.5"),
        ({"dim": 3, "variance": 0.5}, "dim .*variance"),
        ({"scaling": "standrad"}, "scaling is 'standrad'"),
        ({"strategies": ["jiont"]}, "did you mean 'joint'"),
    ],
)
def test_wrong_settings_are_one_line(sources, options, value):
    with pytest.raises(ConfigError, match=value):
        fit(sources, **options)


def test_vectors_that_cannot_be_reduced_are_named(tmp_path):
    same, nothing, joint = write_each(tmp_path, same=np.ones((5, 3)), nothing=np.eye(1, 3), joint=np.eye(3))
    with raises_naming(DataError, "'same'"):
        fit([same], dim=2)
    with raises_naming(DataError, "'nothing'"):
        fit([nothing], dim=2)
    with raises_naming(ConfigError, "'joint'"):
        fit([joint, same], dim=2)


def test_the_parts_of_v4_are_of_one_scale_unless_asked_otherwise(unequal):
    ratios = {}
    for balance in (True, False):
        reducer, _, vectors = fit(unequal, dim=6, balance=balance, strategies=["v4"])
        variances = reducer.transform(vectors)["v4"].var(axis=0, ddof=1)
        ratios[balance] = variances[3:].mean() / variances[:3].mean()
    assert ratios[True] == pytest.approx(1, rel=1e-4)
    assert 80 < ratios[False] < 125


def test_items_without_a_common_vector_have_no_joint_pca(tmp_path):
    random = np.random.default_rng(1)
    a = write(tmp_path / "a.parquet", random.normal(size=(6, 3)), np.arange(1, 7))
    b = write(tmp_path / "b.parquet", random.normal(size=(6, 3)), np.arange(7, 13))
    with raises_naming(DataError, "modalities: 0", "--strategies v1,v2,v4"):
        fit([a, b], dim=2)
    assert fit([a, b], dim=2, strategies=["v4"])[0].strategies[0].dim == 2


def test_a_modality_that_is_constant_where_items_have_all_leaves_no_file(tmp_path):
    text, image = np.random.default_rng(0).normal(size=(2, 20, 4))
    text[:3], image[3:] = 1, 0
    pair = write_each(tmp_path, text=text, image=image)
    with raises_naming(DataError, "'text'", "--strategies v1,v2,v4"):
        reduce_vectors(pair, tmp_path / "out.parquet", dim=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.parquet", "text.parquet"]


def test_no_file_without_its_reducer(sources, tmp_path, monkeypatch):
    def full(self, path):
        raise UserError(f"{path}: no space left")

    monkeypatch.setattr(Reducer, "save", full)
    with raises_naming(UserError, "out.reducer.safetensors"):
        reduce_vectors(sources, tmp_path / "out.parquet", dim=3)
    assert not list(tmp_path.glob("out.*"))


def test_the_report_tells_equal_variances_from_unequal_ones(tmp_path):
    reports = {}
    for ratio in (1, 100):
        text, image = planted(800, scales=(1.0, np.sqrt(ratio)))
        pair = write_each(tmp_path, **{f"text{ratio}": text, f"image{ratio}": image})
        reducer, _, vectors = fit(pair, dim=6)
        reports[ratio] = summarize(reducer, "item_emb")
        # By the definition: what the projection on the joint components leaves of each modality.
        joint = reports[ratio]["strategies"][2]
        both = np.concatenate([v.astype(np.float64) for v in vectors.values()], axis=1)
        both -= both.mean(axis=0)
        components = np.linalg.svd(both, full_matrices=False)[2][:6]
        left = ((both - both @ components.T @ components) ** 2).sum(axis=0)
        whole = (both**2).sum(axis=0)
        kept = [1 - left[c].sum() / whole[c].sum() for c in (slice(0, 10), slice(10, None))]
        np.testing.assert_allclose(list(joint["kept_of"].values()), kept, rtol=1e-4)
        assert joint["kept"] == pytest.approx(1 - left.sum() / whole.sum(), rel=1e-5)
        assert sum(joint["made_of"].values()) == pytest.approx(1)
    equal, unequal = (list(reports[r]["strategies"][2]["made_of"].values()) for r in (1, 100))
    assert min(equal) > 0.4
    assert unequal[0] < 0.03
    assert reports[1]["warnings"] == []
    (sentence,) = reports[100]["warnings"]
    assert all(word in sentence for word in ("image100", "text100", "v3", "v4"))
    assert f"warning: {sentence}" in format_report(reports[100])


def test_scaling_ends_the_domination(unequal):
    warned = {s: bool(summarize(fit(unequal, dim=6, scaling=s)[0], "x")["warnings"]) for s in ("none", "l2")}
    assert warned == {"none": True, "l2": False}


def test_a_saved_reducer_gives_the_same(sources, tmp_path):
    reducer, _, vectors = fit(sources, dim=4, scaling="standard", whiten=True)
    path = tmp_path / "r.safetensors"
    reducer.save(path)
    loaded = Reducer.load(path)
    for name, rows in reducer.transform(vectors).items():
        assert np.array_equal(loaded.transform(vectors)[name], rows)
    assert summarize(loaded, "x") == summarize(reducer, "x")
    assert [m.column for m in loaded.modalities] == ["text", "image", "sound"]


def test_a_mismatch_with_the_reducer_is_one_line(sources):
    reducer, _, vectors = fit(sources, dim=4)
    with raises_naming(ConfigError, "'image'", "11", "12"):
        reducer.transform({**vectors, "image": vectors["image"][:, 1:]})


def test_a_reducer_that_does_not_fit_together_is_one_line(sources, tmp_path):
    path = tmp_path / "r.safetensors"
    reducer = fit(sources, dim=4)[0]
    text = reducer.modalities[0]
    broken = [
        {"strategies": (dataclasses.replace(reducer.strategies[0], dims={"text": 99}),)},
        {"modalities": (dataclasses.replace(text, pca=dataclasses.replace(text.pca, mean=np.zeros(3))),)},
        {"modalities": (dataclasses.replace(text, divisors=np.zeros(9)), *reducer.modalities[1:])},
    ]
    for changes in broken:
        dataclasses.replace(reducer, **changes).save(path)
        with raises_naming(DataError, "r.safetensors") as caught:
            Reducer.load(path)
        assert "\n" not in str(caught.value)


def test_files_for_items_new_items_and_fuxictr(sources, tmp_path, monkeypatch):
    from fuxictr.pytorch.layers.embeddings.pretrained_embedding import PretrainedEmbedding

    out = tmp_path / "out" / "emb.parquet"
    names = ["text", "image", "sound", "joint", "apart"]
    reducer, report = reduce_vectors(
        sources, out, dim=4, prefix="e_d4", report=tmp_path / "r.json", h5=tmp_path / "h5" / "e"
    )
    assert sorted(p.name for p in out.parent.iterdir()) == ["emb.parquet", "emb.reducer.safetensors"]
    assert json.loads((tmp_path / "r.json").read_text()) == report
    with JoinedEmbeddings(sources) as joined:
        ids, vectors = next(joined.chunks(10**6))
    for name, rows in reducer.transform(vectors).items():
        written = read(out, f"e_d4_{name}")
        np.testing.assert_allclose([written[i] for i in ids], rows, atol=1e-6)
        with h5py.File(tmp_path / "h5" / f"e_{name}.h5") as file:
            assert set(file) == {"key", "value"}
            assert file["key"][:].tolist() == ids.tolist()
            np.testing.assert_allclose(file["value"][:], rows, atol=1e-6)
    assert yaml_lines(report).splitlines()[3] == (
        "- {name: e_d4_joint, active: False, dtype: float, type: embedding, source: item, pretrain_dim: 4}"
    )
    again = tmp_path / "new.parquet"
    reduce_vectors(sources[::-1], again, apply=out.with_suffix(".reducer.safetensors"), prefix="e_d4")
    for name in names:
        one, other = read(out, f"e_d4_{name}"), read(again, f"e_d4_{name}")
        np.testing.assert_allclose([one[i] for i in sorted(one)], [other[i] for i in sorted(one)], atol=1e-6)
    assert not (tmp_path / "new.reducer.safetensors").exists()

    vocab = {"item_id": {"__PAD__": 0, **{str(i): n for n, i in enumerate(ids.tolist(), 1)}}, "other": {}}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    layer = PretrainedEmbedding(
        "item_id",
        {"vocab_size": len(ids) + 2, "oov_idx": len(ids) + 1, "freeze_emb": True, "padding_idx": 0},
        str(tmp_path / "h5" / "e_joint.h5"),
        str(tmp_path / "vocab.json"),
        embedding_dim=4,
        pretrain_dim=4,
    )
    seen = layer(torch.arange(1, len(ids) + 1)).detach().numpy()
    np.testing.assert_allclose(seen, reducer.transform(vectors)["joint"], atol=1e-6)


def test_nothing_is_overwritten_or_left_half_written(sources, tmp_path, monkeypatch):
    out = tmp_path / "out" / "emb.parquet"
    with raises_naming(ConfigError, "text.parquet"):
        reduce_vectors(sources, sources[0].path, dim=4, overwrite=True)
    out.parent.mkdir()
    (out.parent / "e_joint.h5").write_text("old")
    with raises_naming(ConfigError, "e_joint.h5"):
        reduce_vectors(sources, out, dim=4, h5=out.parent / "e")
    with monkeypatch.context() as patched:
        patched.setattr(Reducer, "transform", lambda *_: (_ for _ in ()).throw(UserError("stop")))
        with raises_naming(UserError, "stop"):
            reduce_vectors(sources, out, dim=4, h5=out.parent / "e", overwrite=True)
    assert [(p.name, p.read_text()) for p in out.parent.iterdir()] == [("e_joint.h5", "old")]


def test_memory_does_not_grow_with_the_items(tmp_path, monkeypatch):
    monkeypatch.setattr("fuxictr_mm.embeddings.item_files.CHUNK_ROWS", 1024)
    monkeypatch.setattr(reducer_fit, "CHUNK_BYTES", 1 << 19)
    peaks = {}
    for items in (4096, 32768):
        rows = np.random.default_rng(0).normal(size=(items, 64))
        pair = write_each(tmp_path, a=rows, b=rows)
        tracemalloc.start()
        with JoinedEmbeddings(pair) as joined:
            reducer_fit.fit_reducer(joined, ReduceOptions(dim=8))
        peaks[items] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    more_vectors = (32768 - 4096) * 2 * 64 * 4
    assert peaks[32768] - peaks[4096] < more_vectors / 5


def test_tiny_mm_is_reduced_as_its_own_columns_are(tmp_path):
    pair = [
        Source(name, TINY / "item_feature.parquet", column)
        for name, column in (("text", "txt_emb_BERT"), ("image", "img_emb_CLIPRN50"))
    ]
    reducer, *_ = fit(pair, dim=16)
    with JoinedEmbeddings(pair) as joined:
        ids, vectors = next(joined.chunks(10**6))
    order = np.argsort(ids)
    reduced = {name: rows[order] for name, rows in reducer.transform(vectors).items()}
    for name, column in (("v1", "v1"), ("v2", "v2"), ("v3", "v3"), ("v4", "e4")):
        found = read(TINY / "item_emb.parquet", f"item_emb_d16_{column}")
        own = np.array([found[i] for i in sorted(found)])
        ours = reduced[name]
        if name == "v4":
            # The generator's parts are of mean variance 1; ours keep the scale that they have together.
            ours = ours / ours.std(axis=0).mean() * own.std(axis=0).mean()
        np.testing.assert_allclose(own.var(axis=0), ours.var(axis=0), rtol=2e-3)  # they are rounded to float16
        for one, other in zip(own.T, ours.T, strict=True):
            assert abs(np.corrcoef(one, other)[0, 1]) > 0.999
