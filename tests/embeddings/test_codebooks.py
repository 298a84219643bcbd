"""Codebooks in NumPy: equal to faiss, back and forth, to disk, and what a broken file says."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fuxictr_mm.embeddings import quantize as quantizers
from fuxictr_mm.embeddings.codebooks import (
    Codebook,
    Fitted,
    Layer,
    Modality,
    Space,
    apply_layers,
    load_codebooks,
    nearest_centroid,
    save_codebooks,
)
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError

FITS = {"vq": quantizers.fit_vq, "rq": quantizers.fit_rq, "pq": quantizers.fit_pq, "opq": quantizers.fit_opq}


def random_vectors(items=600, width=16, seed=0):
    generator = np.random.default_rng(seed)
    topics = generator.normal(size=(items, 4)) @ generator.normal(size=(4, width))
    return (topics + 0.3 * generator.normal(size=(items, width)) + 2.0).astype(np.float32)


def make_book(method="rq", levels=4, codes=16, vectors=None, scaling="modality", seed=3):
    vectors = random_vectors() if vectors is None else vectors
    space = Space.fit(vectors, [Modality("text", "emb", vectors.shape[1])], scaling)
    levels = 1 if method == "vq" else levels
    return Codebook(method, space, FITS[method](space.enter(vectors), levels, codes, seed))


def errors(book, vectors):
    z = book.space.enter(vectors)
    codes = book.encode(vectors)
    return [float(np.square(z - known).sum() / np.square(z).sum()) for known in book.approximations(codes)]


def plain_codes(book, vectors):
    """The same codes by loops in float64."""
    z = (vectors.astype(np.float64) - book.space.mean) / book.space.scale
    centroids = book.fitted.centroids.astype(np.float64)
    rotation = book.fitted.rotation
    z = z if rotation is None else z @ rotation.T.astype(np.float64)
    product = book.method in ("pq", "opq")
    codes = np.zeros((len(z), book.levels), dtype=np.int64)
    for item, vector in enumerate(z):
        left = vector.copy()
        for level in range(book.levels):
            piece = vector.reshape(book.levels, -1)[level] if product else left
            codes[item, level] = min(range(book.codes), key=lambda c: ((piece - centroids[level, c]) ** 2).sum())
            if not product:
                left = left - centroids[level, codes[item, level]]
    return codes


@pytest.mark.parametrize("method", FITS)
def test_codes_are_the_nearest_centroids_of_a_plain_search(method):
    book = make_book(method)
    vectors = random_vectors(50, seed=9)
    assert (book.encode(vectors) == plain_codes(book, vectors)).all()


@pytest.mark.parametrize("codes", [8, 256])
def test_rq_codes_are_those_of_faiss_with_one_beam(codes):
    import faiss

    book = make_book("rq", codes=codes)
    vectors = random_vectors(300, seed=4)
    z = book.space.enter(vectors)
    quantizer = faiss.ResidualQuantizer(16, 4, codes.bit_length() - 1)
    faiss.copy_array_to_vector(book.fitted.centroids.ravel(), quantizer.codebooks)
    quantizer.max_beam_size = 1
    quantizer.is_trained = True
    packed = quantizer.compute_codes(z)
    expected = faiss.unpack_bitstrings(packed, 4, codes.bit_length() - 1)
    assert (book.encode(vectors) == expected).all()
    np.testing.assert_allclose(book.decode(book.encode(vectors)), book.space.leave(quantizer.decode(packed)), atol=1e-5)


@pytest.mark.parametrize("method", ["pq", "opq"])
def test_pq_codes_are_those_of_faiss(method):
    import faiss

    book = make_book(method)
    vectors = random_vectors(300, seed=5)
    z = book.space.enter(vectors)
    rotated = z if book.fitted.rotation is None else np.ascontiguousarray(z @ book.fitted.rotation.T)
    quantizer = faiss.ProductQuantizer(16, 4, 4)
    faiss.copy_array_to_vector(book.fitted.centroids.ravel(), quantizer.centroids)
    expected = faiss.unpack_bitstrings(quantizer.compute_codes(rotated), 4, 4)
    assert (book.encode(vectors) == expected).all()


@pytest.mark.parametrize("method", ["rq", "pq", "opq"])
def test_error_falls_with_every_level(method):
    after = errors(make_book(method), random_vectors())
    assert after[0] < 1.0
    assert all(later < earlier for earlier, later in pairwise(after))


def test_error_of_pq_falls_with_the_number_of_pieces():
    vectors = random_vectors()
    last = [errors(make_book("pq", levels), vectors)[-1] for levels in (1, 2, 4, 8, 16)]
    assert all(later < earlier for earlier, later in pairwise(last))


def test_opq_beats_pq_where_few_directions_hold_the_variance():
    generator = np.random.default_rng(1)
    vectors = (generator.normal(size=(800, 16)) * 0.5 ** np.arange(16)).astype(np.float32)
    pq, opq = (errors(make_book(m, vectors=vectors, scaling="none"), vectors)[-1] for m in ("pq", "opq"))
    assert opq < 0.7 * pq


def test_rotation_keeps_lengths():
    rotation = make_book("opq").fitted.rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-5)


def test_one_seed_one_codebook():
    first, again, other = (make_book("rq", seed=s).fitted.centroids for s in (1, 1, 2))
    assert (first == again).all()
    assert not np.allclose(first, other)


def test_a_codebook_of_all_vectors_loses_nothing():
    vectors = random_vectors(16)
    book = make_book("vq", vectors=vectors)
    np.testing.assert_allclose(book.decode(book.encode(vectors)), vectors, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_decoding_and_encoding_again_keeps_product_codes(levels, width, seed):
    """A vector that is made of centroids is its own nearest; ids of different levels never meet."""
    generator = np.random.default_rng(seed)
    centroids = generator.normal(size=(levels, 8, width)).astype(np.float32)
    space = Space((Modality("a", "a", levels * width),), "none", np.zeros(levels * width), np.ones(levels * width))
    book = Codebook("pq", space, Fitted(centroids))
    codes = generator.integers(0, 8, size=(20, levels))
    assert (book.encode(book.decode(codes).astype(np.float32)) == codes).all()
    ids = book.semantic_ids(codes)
    assert (book.codes_of(ids) == codes).all()
    assert ids.min() >= 1
    assert ids.max() < book.vocab_size
    assert ((ids - 1) // 8 == np.arange(levels)).all()


def test_of_equally_near_centroids_the_first_is_taken():
    assert nearest_centroid(np.zeros((1, 2), np.float32), np.array([[1, 0], [-1, 0]], np.float32)).tolist() == [0]


def test_a_network_is_its_layers_with_relu_between():
    layers = [
        Layer(np.array([[1.0], [-1.0]], np.float32), np.array([0.0, 1.0], np.float32)),
        Layer(np.array([[2.0, 3.0]], np.float32), np.array([-1.0], np.float32)),
    ]
    # 2 -> (2, -1) -> (2, 0) -> 4 - 1;  -2 -> (-2, 3) -> (0, 3) -> 9 - 1
    assert apply_layers(layers, np.array([[2.0], [-2.0]], np.float32)).tolist() == [[3.0], [8.0]]


def test_scalings_by_hand():
    vectors = np.array([[3, 4, 0, 10], [-3, 4, 20, 10], [3, -4, 0, 10], [-3, -4, 20, 10]], np.float32)
    modalities = [Modality("a", "a", 2), Modality("b", "b", 2)]
    by = {
        s: Space.fit(vectors, modalities, s).enter(vectors)[0].tolist() for s in ("none", "modality", "standard", "l2")
    }
    assert by["none"] == [3, 4, -10, 0]
    assert by["modality"] == pytest.approx([3 / 5, 4 / 5, -1, 0])
    assert by["standard"] == pytest.approx([1 / 2**0.5, 1 / 2**0.5, -1 / 2**0.5, 0])
    mean = np.array([[0, 1], [20, 10] / np.sqrt(500)]).mean(axis=0)
    assert by["l2"] == pytest.approx([0.6, 0.8, 0 - mean[0], 1 - mean[1]])


def test_the_space_is_left_as_it_was_entered():
    vectors = random_vectors()
    for scaling in ("none", "modality", "standard"):
        space = Space.fit(vectors, [Modality("a", "a", 6), Modality("b", "b", 10)], scaling)
        np.testing.assert_allclose(space.leave(space.enter(vectors)), vectors, atol=1e-4)


def test_a_modality_that_an_item_lacks_is_its_mean():
    vectors = random_vectors()
    space = Space.fit(vectors, [Modality("a", "a", 6), Modality("b", "b", 10)], "modality")
    lacking = vectors[:1].copy()
    lacking[:, 6:] = 0.0
    assert space.present(lacking).tolist() == [[True, False]]
    assert (space.enter(lacking)[:, 6:] == 0.0).all()
    assert (space.enter(lacking)[:, :6] == space.enter(vectors[:1])[:, :6]).all()


@pytest.mark.parametrize("method", FITS)
def test_saved_and_read_again(method, tmp_path):
    book, vectors = make_book(method), random_vectors(40, seed=8)
    save_codebooks({"codes_a": book}, tmp_path / "book.safetensors")
    read = load_codebooks(tmp_path / "book.safetensors")["codes_a"]
    assert read.space.modalities == book.space.modalities
    assert (read.encode(vectors) == book.encode(vectors)).all()
    assert (read.decode(read.encode(vectors)) == book.decode(book.encode(vectors))).all()


def test_applying_needs_no_faiss(tmp_path, monkeypatch):
    book, vectors = make_book(), random_vectors(40)
    save_codebooks({"codes_a": book}, tmp_path / "book")
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    assert (load_codebooks(tmp_path / "book")["codes_a"].encode(vectors) == book.encode(vectors)).all()
    with pytest.raises(ValueError, match=r'pip install "fuxictr-mm\[quantize\]"'):
        make_book()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b[: len(b) // 2], "is damaged as a codebook"),
        (lambda b: b"", "is damaged as a codebook"),
        (lambda b: b"PAR1" + b[4:], "is damaged as a codebook"),
        (lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:], "its checksum is not that of its contents"),
    ],
)
def test_a_damaged_file(damage, said, tmp_path):
    path = tmp_path / "book.safetensors"
    save_codebooks({"codes_a": make_book()}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=said) as caught:
        load_codebooks(path)
    assert str(path) in str(caught.value)


def test_another_safetensors_file(tmp_path):
    save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="is no codebook; expected a file that `fuxictr-mm embed quantize --save`"):
        load_codebooks(tmp_path / "model.safetensors")


def test_parts_that_do_not_fit_together(tmp_path):
    book = make_book()
    space = Space(book.space.modalities, "modality", book.space.mean[:5], book.space.scale)
    save_codebooks({"codes_a": Codebook("rq", space, book.fitted)}, tmp_path / "book")
    with pytest.raises(DataError, match="book: is damaged as a codebook"):
        load_codebooks(tmp_path / "book")


def test_a_missing_file_names_the_nearest(tmp_path):
    save_codebooks({"codes_a": make_book()}, tmp_path / "books.safetensors")
    with pytest.raises(MissingFileError, match=r"did you mean 'books.safetensors'"):
        load_codebooks(tmp_path / "book.safetensors")


def test_codes_that_cannot_be():
    book = make_book()
    with pytest.raises(DataError, match=r"shape \(2, 3\), expected \(items, 4\)"):
        book.decode(np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(DataError, match="from 0 to 16, expected 0 to 15"):
        book.decode(np.array([[0, 0, 0, 16]]))


def test_a_width_that_levels_do_not_divide():
    with pytest.raises(ConfigError, match=r"--levels 3 does not divide the width 16.*use one of 2, 4, 8, 16"):
        make_book("pq", levels=3)


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_neighbors_are_those_of_a_full_sort(metric):
    vectors = random_vectors(60, 4)
    ids = np.random.default_rng(0).permutation(1000)[:60] + 1

    def read():
        for start in range(0, 60, 7):
            yield ids[start : start + 7], vectors[start : start + 7]

    found = quantizers.nearest_items(read, vectors, ids, 5, metric)
    full = vectors.astype(np.float64)
    scores = full @ full.T if metric == "inner_product" else -np.square(full[:, None] - full[None]).sum(axis=2)
    np.fill_diagonal(scores, -np.inf)
    assert (found == ids[np.argsort(-scores, axis=1)[:, :5]]).all()


def test_fewer_items_than_neighbors():
    vectors = np.eye(3, dtype=np.float32)
    ids = np.array([5, 6, 7])
    found = quantizers.nearest_items(lambda: [(ids, vectors)], vectors, ids, 4, "l2")
    assert [sorted(row) for row in found.tolist()] == [[0, 0, 6, 7], [0, 0, 5, 7], [0, 0, 5, 6]]
    assert (found[:, 2:] == 0).all()


def test_metadata_is_plain_json(tmp_path):
    from safetensors import safe_open

    save_codebooks({"codes_a": make_book("opq")}, tmp_path / "book")
    with safe_open(tmp_path / "book", framework="numpy") as file:
        said = json.loads(file.metadata()["fuxictr_mm.codebook"])["codebooks"]["codes_a"]
    assert said["method"] == "opq"
    assert (said["levels"], said["codes"], said["scaling"]) == (4, 16, "modality")
    assert said["modalities"] == [{"name": "text", "column": "emb", "width": 16}]
