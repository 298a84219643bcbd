"""Codebooks: fitted by faiss, applied by NumPy, saved as safetensors.

Shape letters: M items, D dim of an item's embedding (all modalities concatenated), L levels, C codes of a level, W dim
of a centroid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.files import StrPath
from fuxictr_mm.reduction.reducer import scale_rows
from fuxictr_mm.reduction.saved import SavedFormat

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]

Method = Literal["vq", "rq", "pq", "opq", "vqvae"]
METHODS: tuple[Method, ...] = get_args(Method)

#: Methods whose levels each describe a part of the embedding; those of the others describe the residual of all of it.
PRODUCT_METHODS = ("pq", "opq")

#: How modalities are brought to one scale before they are quantized.
Scaling = Literal["modality", "none", "l2", "standard"]

SAVED = SavedFormat("codebook", "quantize --save")

#: Embeddings converted to float64 at a time.
_CHUNK_ROWS = 4096


class Modality(NamedTuple):
    """A modality: its name, the column it was read from, and its dim."""

    name: str
    column: str
    dim: int


@dataclass(frozen=True)
class Space:
    r"""The space in which embeddings are quantized: modalities concatenated, scaled and centered.

    .. math:: z = (x - \mu) / s

    With ``scaling`` ``modality``, s is one number per modality, the root of its total variance, so that every modality
    has a total variance of 1; with ``standard``, s is a number per column, its standard deviation times the root of the
    modality's dim, which gives the same total; with ``l2``, each item's part is first divided by its norm; with
    ``none``, s is 1. A modality that is missing for an item (all zeros) is replaced by the mean, z = 0.
    """

    modalities: tuple[Modality, ...]  #: In the order of concatenation.
    scaling: str  #: A ``Scaling``.
    mean: Floats  #: mu, ``(D,)``.
    scale: Floats  #: s, ``(D,)``.

    @classmethod
    def fit(cls, x: Floats, modalities: Sequence[Modality], scaling: str) -> Space:
        """Return the space of embeddings ``(M, D)`` of items without missing modalities."""
        parts = _parts(modalities)
        if scaling == "l2":
            x = _normalize_parts(x, parts)
        mean = x.mean(axis=0, dtype=np.float64)
        variance = np.zeros_like(mean)
        for start in range(0, len(x), _CHUNK_ROWS):
            variance += np.square(x[start : start + _CHUNK_ROWS] - mean).sum(axis=0) / len(x)
        scale = np.ones_like(mean)
        for part in parts:
            if scaling == "modality":
                scale[part] = np.sqrt(variance[part].sum())
            elif scaling == "standard":
                scale[part] = np.sqrt(variance[part] * (part.stop - part.start))
        scale[scale < 1e-12] = 1.0  # constant columns
        return cls(tuple(modalities), scaling, mean.astype(np.float32), scale.astype(np.float32))

    @property
    def dim(self) -> int:
        """D."""
        return sum(m.dim for m in self.modalities)

    @property
    def parts(self) -> list[slice]:
        """The columns of each modality."""
        return _parts(self.modalities)

    def present(self, x: Floats) -> NDArray[np.bool_]:
        """Return which modalities each item has, ``(M, modalities)``: those that are not all zeros."""
        return np.stack([x[:, part].any(axis=1) for part in self.parts], axis=1)

    def transform(self, x: Floats, center: bool = True) -> Floats:
        """Return z ``(M, D)`` of embeddings ``(M, D)``; scaled only, without ``center``."""
        scaled = _normalize_parts(x, self.parts) if self.scaling == "l2" else x
        z = scaled - self.mean if center else scaled.astype(np.float32, copy=True)
        z /= self.scale
        for part, has in zip(self.parts, self.present(x).T, strict=True):
            if not has.all():
                z[~has, part] = 0.0
        return z

    def inverse_transform(self, z: Floats) -> Floats:
        """Return the embeddings ``(M, D)`` of z; with ``l2`` their norm is lost and about 1."""
        return z * self.scale + self.mean


def _parts(modalities: Sequence[Modality]) -> list[slice]:
    ends = np.cumsum([m.dim for m in modalities]).tolist()
    return [slice(end - m.dim, end) for end, m in zip(ends, modalities, strict=True)]


def _normalize_parts(x: Floats, parts: Sequence[slice]) -> Floats:
    unit = np.empty(x.shape, dtype=np.float32)
    for part in parts:
        unit[:, part] = scale_rows(x[:, part], "l2")
    return unit


class Layer(NamedTuple):
    """A linear layer ``x W^T + b``: weight ``(out, in)`` and bias ``(out,)``, float32."""

    weight: Floats
    bias: Floats


def apply_mlp(layers: Sequence[Layer], x: Floats) -> Floats:
    """Return the output of linear layers with ReLU in between, for ``x`` ``(M, in)``.

    Examples
    --------
    >>> hidden, output = Layer(np.array([[1], [-1]]), np.array([0, 1])), Layer(np.array([[2, 3]]), np.array([-1]))
    >>> apply_mlp([hidden, output], np.array([[2.0], [-2.0]])).tolist()
    [[3.0], [8.0]]
    """
    for number, layer in enumerate(layers):
        if number:
            x = np.maximum(x, 0.0)
        x = x @ layer.weight.T + layer.bias
    return x


@dataclass(frozen=True)
class Codebook:
    r"""A space and the centroids in it.

    RQ and VQ (one level) take the centroid nearest to the residual of the levels before (greedily, a beam of 1); PQ and
    OPQ split the embedding into L subvectors and take the nearest centroid of each:

    .. math::

        c_l = \arg\min_c \lVert r_l - e_{l,c} \rVert^2, \quad r_1 = z, \quad r_{l+1} = r_l - e_{l,c_l}
        \qquad\text{and}\qquad c_l = \arg\min_c \lVert (R z)_l - e_{l,c} \rVert^2

    Examples
    --------
    >>> space = Space((Modality("text", "emb", 2),), "none", np.zeros(2, np.float32), np.ones(2, np.float32))
    >>> book = Codebook("rq", space, np.array([[[0, 0], [4, 0]], [[0, 0], [0, 1]]], dtype=np.float32))
    >>> codes = book.encode(np.array([[4.0, 1.1], [0.1, 0.2]], dtype=np.float32))
    >>> codes.tolist(), book.decode(codes).tolist(), book.semantic_ids(codes).tolist()
    ([[1, 1], [0, 0]], [[4.0, 1.0], [0.0, 0.0]], [[2, 4], [1, 3]])
    """

    method: str  #: One of ``METHODS``.
    space: Space  #: Of the centroids.
    centroids: Floats = field(repr=False)  #: ``(L, C, W)``; W is D / L for PQ and OPQ, else that of the latents, or D.
    rotation: Floats | None = field(default=None, repr=False)  #: R of OPQ, ``(D, D)`` orthonormal.
    encoder: tuple[Layer, ...] = field(default=(), repr=False)  #: MLP of ``vqvae``, D to W.
    decoder: tuple[Layer, ...] = field(default=(), repr=False)  #: MLP of ``vqvae``, W to D.

    @property
    def levels(self) -> int:
        """L."""
        return self.centroids.shape[0]

    @property
    def codes(self) -> int:
        """C."""
        return self.centroids.shape[1]

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table of the semantic ids, that of the padding included."""
        return 1 + self.levels * self.codes

    def encode(self, x: Floats) -> Codes:
        """Return the codes ``(M, L)``, 0 to C - 1, of embeddings ``(M, D)``."""
        left = self.space.transform(x)
        is_product, dim = self.method in PRODUCT_METHODS, self.centroids.shape[2]
        if self.rotation is not None:
            left = left @ self.rotation.T
        left = apply_mlp(self.encoder, left)
        codes = np.empty((len(x), self.levels), dtype=np.int64)
        for level, centroids in enumerate(self.centroids):
            part = left[:, level * dim : (level + 1) * dim] if is_product else left
            # |x - e|^2 less |x|^2, which is the same for every centroid
            distances = np.square(centroids).sum(axis=1) - 2.0 * (part @ centroids.T)
            codes[:, level] = distances.argmin(axis=1)
            if not is_product:
                left -= centroids[codes[:, level]]
        return codes

    def reconstructions(self, codes: Codes) -> Iterator[Floats]:
        """Yield the reconstruction of z, ``(M, D)``, from the first level, the first two, ..., all levels."""
        is_product, dim = self.method in PRODUCT_METHODS, self.centroids.shape[2]
        z = np.zeros((len(codes), dim * self.levels if is_product else dim), dtype=np.float32)
        for level, centroids in enumerate(self.centroids):
            part = slice(level * dim, (level + 1) * dim) if is_product else slice(None)
            z[:, part] += centroids[codes[:, level]]
            yield apply_mlp(self.decoder, z.copy() if self.rotation is None else z @ self.rotation)

    def decode(self, codes: Codes) -> Floats:
        """Return the reconstructed embeddings ``(M, D)`` of codes ``(M, L)``, in the units of the input."""
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise DataError(f"codes of shape {codes.shape}, expected (items, {self.levels}), one per level")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codes:
            raise DataError(f"codes from {codes.min()} to {codes.max()}, expected 0 to {self.codes - 1}")
        *_, last = self.reconstructions(codes)
        return self.space.inverse_transform(last)

    def semantic_ids(self, codes: Codes) -> Codes:
        """Return ``1 + l C + c`` of the code c at level l: one embedding table with separate rows for every level."""
        return codes + 1 + np.arange(self.levels) * self.codes


def import_faiss() -> Any:
    """Return faiss, or raise a UserError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError('faiss is not installed; pip install "fuxictr-mm[quantize]"') from error
    return faiss


def fit_codebook(method: str, space: Space, z: Floats, levels: int, codes: int, seed: int) -> Codebook:
    """Fit a codebook by faiss.

    - VQ: k-means, which is RQ of one level.
    - RQ: Chen, Guan and Wang, "Approximate Nearest Neighbor Search by Residual Vector Quantization", Sensors 2010,
      https://doi.org/10.3390/s101211259. K-means puts most residuals of a large dim in one cluster; each level is
      therefore fitted on the first principal components of its residuals, then on more and more of them: Liu, Lu and
      Shao, 2015, https://arxiv.org/abs/1509.05195.
    - PQ: Jégou, Douze and Schmid, IEEE TPAMI 2011, https://doi.org/10.1109/TPAMI.2010.57.
    - OPQ: Ge, He, Ke and Sun, "Optimized Product Quantization", CVPR 2013, https://doi.org/10.1109/CVPR.2013.379.

    Parameters
    ----------
    method : {"vq", "rq", "pq", "opq"}
        Method.
    space : Space
        Space of ``z``.
    z : ndarray
        ``(M, D)`` float32; for PQ and OPQ, D is a multiple of L.
    levels, codes : int
        L and C, a power of two.
    seed : int
        Seed of k-means.
    """
    faiss = import_faiss()
    dim, bits = z.shape[1], codes.bit_length() - 1
    if method not in PRODUCT_METHODS:
        quantizer = _with_kmeans(faiss.ResidualQuantizer(dim, levels, bits), seed)
        quantizer.train_type = faiss.ResidualQuantizer.Train_progressive_dim
        quantizer.max_beam_size = 1  # as codes are found by ``encode``
        quantizer.train(z)
        return Codebook(method, space, faiss.vector_to_array(quantizer.codebooks).reshape(levels, codes, dim))
    if dim % levels:
        fitting = [str(n) for n in range(2, min(dim, 64) + 1) if dim % n == 0]
        raise ConfigError(
            f"--levels {levels} does not divide the dim {dim} of the embeddings, which PQ and OPQ require; "
            f"use one of {', '.join(fitting[:8]) or 1}"
        )
    quantizer, rotation = _with_kmeans(faiss.ProductQuantizer(dim, levels, bits), seed), None
    if method == "opq":
        matrix = faiss.OPQMatrix(dim, levels)
        matrix.niter = 20  # more iterations reduce the error by less than 1%
        matrix.pq = _with_kmeans(faiss.ProductQuantizer(dim, levels, bits), seed)
        matrix.train(z)
        rotation = faiss.vector_to_array(matrix.A).reshape(dim, dim)
        z = np.ascontiguousarray(z @ rotation.T)
    quantizer.train(z)
    centroids = faiss.vector_to_array(quantizer.centroids).reshape(levels, codes, dim // levels)
    return Codebook(method, space, centroids, rotation)


def _with_kmeans(quantizer: Any, seed: int) -> Any:
    quantizer.cp.niter, quantizer.cp.seed = 25, seed
    quantizer.cp.min_points_per_centroid = 1  # no warning: the report says how many codes are used
    return quantizer


def save_codebooks(codebooks: Mapping[str, Codebook], path: StrPath) -> None:
    """Write codebooks, by the columns of their codes, to a safetensors file; raises UserError as ``SavedFormat``."""
    arrays: dict[str, Floats] = {}
    described: dict[str, Any] = {}
    for column, book in codebooks.items():
        own = {"mean": book.space.mean, "scale": book.space.scale, "centroids": book.centroids}
        if book.rotation is not None:
            own["rotation"] = book.rotation
        for name, layers in (("encoder", book.encoder), ("decoder", book.decoder)):
            for number, layer in enumerate(layers):
                own |= {f"{name}.{number}.weight": layer.weight, f"{name}.{number}.bias": layer.bias}
        arrays |= {f"{column}.{name}": array.astype(np.float32) for name, array in own.items()}
        described[column] = {
            "method": book.method,
            "levels": book.levels,
            "codes": book.codes,
            "scaling": book.space.scaling,
            "modalities": [{"name": m.name, "column": m.column, "width": m.dim} for m in book.space.modalities],
            "encoder": len(book.encoder),
            "decoder": len(book.decoder),
        }
    SAVED.save(path, {"codebooks": described}, arrays)


def load_codebooks(path: StrPath) -> dict[str, Codebook]:
    """Read a file of ``save_codebooks``; raises MissingFileError or DataError as ``SavedFormat``."""
    return SAVED.load(
        path, lambda content, arrays: {c: _codebook(spec, c, arrays) for c, spec in content["codebooks"].items()}
    )


def _codebook(spec: Mapping[str, Any], column: str, arrays: Mapping[str, Any]) -> Codebook:
    own = {name.removeprefix(f"{column}."): array for name, array in arrays.items() if name.startswith(f"{column}.")}
    modalities = tuple(Modality(m["name"], m["column"], m["width"]) for m in spec["modalities"])
    space = Space(modalities, spec["scaling"], own["mean"], own["scale"])
    encoder, decoder = (
        tuple(Layer(own[f"{name}.{i}.weight"], own[f"{name}.{i}.bias"]) for i in range(spec[name]))
        for name in ("encoder", "decoder")
    )
    book = Codebook(spec["method"], space, own["centroids"], own.get("rotation"), encoder, decoder)
    if book.method not in METHODS or (book.levels, book.codes) != (spec["levels"], spec["codes"]):
        raise ValueError(f"{column}: {book.method} of {spec['levels']} levels, {book.centroids.shape}")
    # Shapes that do not fit together show on one embedding.
    book.decode(book.encode(np.ones((1, space.dim), dtype=np.float32)))
    return book
