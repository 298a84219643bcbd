import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.reduction.pca import Moments


def by_svd(vectors, deviations=None):
    """Components by the definition: the singular vectors of what is centred."""
    centred = (vectors - vectors.mean(axis=0)) / (1 if deviations is None else deviations)
    _, values, components = np.linalg.svd(centred, full_matrices=False)
    most = min(len(vectors) - 1, vectors.shape[1])
    components, variances = components[:most], values[:most] ** 2 / (len(vectors) - 1)
    return components * np.sign(components[range(most), np.abs(components).argmax(axis=1)])[:, None], variances


def in_chunks(vectors, size):
    moments = Moments(vectors.shape[1])
    for start in range(0, len(vectors), size):
        moments.update(vectors[start : start + size])
    return moments


@pytest.mark.parametrize("mean", [0, 1e4])
@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize(("items", "width"), [(200, 12), (8, 12)])
def test_components_equal_the_definition_whatever_the_chunks(items, width, standard, mean):
    vectors = np.random.default_rng(1).normal(size=(items, width)) * np.geomspace(3, 0.1, width) + mean
    deviations = vectors.std(axis=0, ddof=1) if standard else None
    components, variances = by_svd(vectors, deviations)
    for size in (1, 7, items):
        pca = in_chunks(vectors, size).components(deviations)
        np.testing.assert_allclose(pca.variances, variances, rtol=1e-8)
        np.testing.assert_allclose(pca.components, components, atol=1e-6)
        np.testing.assert_allclose(pca.mean, vectors.mean(axis=0), rtol=1e-12, atol=1e-12)
        assert pca.total == pytest.approx(variances.sum())
        assert pca.count == items


def test_directions_without_variance_are_zero():
    random = np.random.default_rng(2)
    pca = in_chunks(random.normal(size=(50, 3)) @ random.normal(size=(3, 6)) + 5, 9).components()
    assert pca.rank == 3
    assert not pca.components[3:].any()
    assert not pca.variances[3:].any()
    assert pca.dim_for(1.0) == 3


def test_dim_for_a_share():
    # Columns of variance 6, 3 and 1: orthogonal and centred by construction.
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    pca = in_chunks(signs * np.sqrt(np.array([6, 3, 1]) * 3 / 4), 4).components()
    np.testing.assert_allclose(pca.variances, [6, 3, 1])
    assert [pca.dim_for(share) for share in (0.1, 0.6, 0.61, 0.9, 0.91, 1.0)] == [1, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(pca.keep(2).components, np.eye(3)[:2], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from([0.0, 1e6]))
def test_moments_do_not_depend_on_the_chunks(sizes, mean):
    sizes = [2, *sizes]
    vectors = np.random.default_rng(sum(sizes)).normal(size=(sum(sizes), 4)) + mean
    split, merged, start = Moments(4), Moments(2), 0
    for size in sizes:
        part = Moments(4)
        part.update(vectors[start : start + size])
        split.update(vectors[start : start + size])
        merged.merge_columns(part, slice(1, 3))
        start += size
    np.testing.assert_allclose(split.covariance, np.cov(vectors.T), atol=1e-8)
    np.testing.assert_allclose(merged.covariance, np.cov(vectors[:, 1:3].T), atol=1e-8)
