"""Codebooks: NumPy's codes equal faiss's, decoding, scalings, files, and what a broken file gives."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from fuxictr_mm.embeddings.codebooks import Codebook, Modality, Space, fit_codebook, load_codebooks, save_codebooks
from fuxictr_mm.errors import ConfigError, DataError, UserError
from tests.errors import raises_naming

METHODS = ("vq", "rq", "pq", "opq")


def random_embeddings(items=600, seed=0):
    generator = np.random.default_rng(seed)
    topics = generator.normal(size=(items, 4)) @ generator.normal(size=(4, 16))
    return (topics + 0.3 * generator.normal(size=(items, 16)) + 2.0).astype(np.float32)


def make_book(method="rq", levels=4, codes=16, x=None, scaling="modality", seed=3):
    x = random_embeddings() if x is None else x
    space = Space.fit(x, [Modality("text", "emb", x.shape[1])], scaling)
    return fit_codebook(method, space, space.transform(x), 1 if method == "vq" else levels, codes, seed)


def errors(book, x):
    z = book.space.transform(x)
    return [float(np.square(z - known).sum() / np.square(z).sum()) for known in book.reconstructions(book.encode(x))]


def plain_codes(book, x):
    """The same codes by loops in float64."""
    z = (x.astype(np.float64) - book.space.mean) / book.space.scale
    centroids = book.centroids.astype(np.float64)
    z = z if book.rotation is None else z @ book.rotation.T.astype(np.float64)
    product = book.method in ("pq", "opq")
    codes = np.zeros((len(z), book.levels), dtype=np.int64)
    for item, row in enumerate(z):
        left = row.copy()
        for level in range(book.levels):
            part = row.reshape(book.levels, -1)[level] if product else left
            codes[item, level] = min(range(book.codes), key=lambda c: ((part - centroids[level, c]) ** 2).sum())
            if not product:
                left = left - centroids[level, codes[item, level]]
    return codes


@pytest.mark.parametrize("method", METHODS)
def test_codes_are_the_nearest_centroids_of_a_plain_search(method):
    x = random_embeddings(50, seed=9)
    book = make_book(method)
    assert (book.encode(x) == plain_codes(book, x)).all()


@pytest.mark.parametrize("codes", [8, 256])
def test_rq_is_that_of_faiss_with_a_beam_of_one(codes):
    import faiss

    book = make_book("rq", codes=codes)
    x = random_embeddings(300, seed=4)
    index = faiss.index_factory(16, f"RQ4x{codes.bit_length() - 1}")
    faiss.copy_array_to_vector(book.centroids.ravel(), index.rq.codebooks)
    index.rq.max_beam_size = 1
    index.rq.is_trained = index.is_trained = True
    packed = index.rq.compute_codes(book.space.transform(x))
    assert (book.encode(x) == faiss.unpack_bitstrings(packed, 4, codes.bit_length() - 1)).all()
    expected = book.space.inverse_transform(index.rq.decode(packed))
    np.testing.assert_allclose(book.decode(book.encode(x)), expected, atol=1e-5)


def test_pq_is_that_of_faiss():
    import faiss

    x = random_embeddings(300, seed=5)
    book = make_book("pq")
    index = faiss.index_factory(16, "PQ4x4")
    index.do_polysemous_training = False
    index.pq.cp.niter, index.pq.cp.seed, index.pq.cp.min_points_per_centroid = 25, 3, 1
    index.train(book.space.transform(random_embeddings()))
    z = book.space.transform(x)
    assert (book.encode(x) == faiss.unpack_bitstrings(index.sa_encode(z), 4, 4)).all()
    decoded = book.space.inverse_transform(index.sa_decode(index.sa_encode(z)))
    np.testing.assert_allclose(book.decode(book.encode(x)), decoded, atol=1e-5)


@pytest.mark.parametrize("method", ["rq", "pq", "opq"])
def test_error_falls_with_every_level(method):
    after = errors(make_book(method), random_embeddings())
    assert after[0] < 1.0
    assert all(later < earlier for earlier, later in pairwise(after))


def test_opq_rotates_and_beats_pq_where_few_directions_hold_the_variance():
    generator = np.random.default_rng(1)
    x = (generator.normal(size=(800, 16)) * 0.5 ** np.arange(16)).astype(np.float32)
    pq, opq = (make_book(method, x=x, scaling="none") for method in ("pq", "opq"))
    np.testing.assert_allclose(opq.rotation @ opq.rotation.T, np.eye(16), atol=1e-5)
    assert errors(opq, x)[-1] < 0.7 * errors(pq, x)[-1]


def test_one_seed_one_codebook():
    first, again, other = (make_book("rq", seed=s).centroids for s in (1, 1, 2))
    assert (first == again).all()
    assert not np.allclose(first, other)


def test_a_codebook_of_all_embeddings_loses_nothing():
    x = random_embeddings(16)
    book = make_book("vq", x=x)
    np.testing.assert_allclose(book.decode(book.encode(x)), x, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_decoding_and_encoding_again_keeps_product_codes(levels, dim, seed):
    """An embedding that is made of centroids has their codes; semantic ids of different levels differ."""
    generator = np.random.default_rng(seed)
    centroids = generator.normal(size=(levels, 8, dim)).astype(np.float32)
    centroids[:, :, 0] += 8 * np.arange(8)  # so that rounding does not make two of them equally near
    space = Space((Modality("a", "a", levels * dim),), "none", np.zeros(levels * dim), np.ones(levels * dim))
    book = Codebook("pq", space, centroids)
    codes = generator.integers(0, 8, size=(20, levels))
    assert (book.encode(book.decode(codes).astype(np.float32)) == codes).all()
    ids = book.semantic_ids(codes)
    assert ids.min() >= 1
    assert ids.max() < book.vocab_size
    assert ((ids - 1) // 8 == np.arange(levels)).all()
    assert ((ids - 1) % 8 == codes).all()


def test_scalings_by_hand():
    x = np.array([[3, 4, 0, 10], [-3, 4, 20, 10], [3, -4, 0, 10], [-3, -4, 20, 10]], np.float32)
    modalities = [Modality("a", "a", 2), Modality("b", "b", 2)]
    by = {s: Space.fit(x, modalities, s).transform(x)[0].tolist() for s in ("none", "modality", "standard", "l2")}
    assert by["none"] == [3, 4, -10, 0]
    assert by["modality"] == pytest.approx([3 / 5, 4 / 5, -1, 0])
    assert by["standard"] == pytest.approx([1 / 2**0.5, 1 / 2**0.5, -1 / 2**0.5, 0])
    mean = np.array([[0, 1], [20, 10] / np.sqrt(500)]).mean(axis=0)
    assert by["l2"] == pytest.approx([0.6, 0.8, 0 - mean[0], 1 - mean[1]])


@pytest.mark.parametrize("scaling", ["none", "modality", "standard"])
def test_the_inverse_transform_restores_embeddings(scaling):
    x = random_embeddings()
    space = Space.fit(x, [Modality("a", "a", 6), Modality("b", "b", 10)], scaling)
    np.testing.assert_allclose(space.inverse_transform(space.transform(x)), x, atol=1e-4)


def test_embeddings_of_any_length_have_length_1_by_l2():
    x = np.array([[3e19, 4e19], [3e-24, 4e-24], [0, 0]], dtype=np.float32)
    space = Space((Modality("text", "emb", 2),), "l2", np.zeros(2, np.float32), np.ones(2, np.float32))
    np.testing.assert_allclose(space.transform(x), [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)


def test_a_missing_modality_is_its_mean():
    x = random_embeddings()
    space = Space.fit(x, [Modality("a", "a", 6), Modality("b", "b", 10)], "modality")
    missing = x[:1].copy()
    missing[:, 6:] = 0.0
    assert space.present(missing).tolist() == [[True, False]]
    assert (space.transform(missing)[:, 6:] == 0.0).all()
    assert (space.transform(missing)[:, :6] == space.transform(x[:1])[:, :6]).all()


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_read_again_without_faiss(method, tmp_path, monkeypatch):
    book, x = make_book(method), random_embeddings(40, seed=8)
    save_codebooks({"codes_a": book}, tmp_path / "book.safetensors")
    monkeypatch.setitem(sys.modules, "faiss", None)
    read = load_codebooks(tmp_path / "book.safetensors")["codes_a"]
    assert read.space.modalities == book.space.modalities
    assert (read.encode(x) == book.encode(x)).all()
    assert (read.decode(read.encode(x)) == book.decode(book.encode(x))).all()
    with raises_naming(UserError, "faiss"):
        make_book()


def test_the_form_of_the_file_stays(tmp_path):
    save_codebooks({"codes_a": make_book("opq")}, tmp_path / "book")
    with safe_open(tmp_path / "book", framework="numpy") as file:
        assert sorted(file.keys()) == [f"codes_a.{name}" for name in ("centroids", "mean", "rotation", "scale")]
        assert '"width": 16' in file.metadata()["fuxictr_mm.codebook"]


@pytest.mark.parametrize("method", [*METHODS, "vqvae"])
def test_a_codebook_of_version_0_1_gives_the_same_codes(method):
    fixtures = Path(__file__).parents[1] / "fixtures" / "codebooks_0.1"
    stored = np.load(fixtures / "items.npz")
    (book,) = load_codebooks(fixtures / f"{method}.safetensors").values()
    assert (book.semantic_ids(book.encode(stored["x"])) == stored[method]).all()


def test_other_files_are_refused(tmp_path):
    save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    with raises_naming(DataError, "model.safetensors"):
        load_codebooks(tmp_path / "model.safetensors")
    book = make_book()
    space = Space(book.space.modalities, "modality", book.space.mean[:5], book.space.scale)
    save_codebooks({"codes_a": Codebook("rq", space, book.centroids)}, tmp_path / "books")
    with raises_naming(DataError, "books"):
        load_codebooks(tmp_path / "books")


def test_codes_that_cannot_be():
    book = make_book()
    with raises_naming(DataError, "(2, 3)"):
        book.decode(np.zeros((2, 3), dtype=np.int64))
    with raises_naming(DataError, "16"):
        book.decode(np.array([[0, 0, 0, 16]]))


def test_levels_that_do_not_divide_the_dim():
    with raises_naming(ConfigError, "--levels 3", "16"):
        make_book("pq", levels=3)
