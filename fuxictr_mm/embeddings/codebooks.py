"""Codebooks: a few whole numbers in place of a vector, and back. NumPy alone: faiss and torch only fit them.

Shape letters: M items, D width of an item's vector (all modalities side by side), L levels, C codes of a level, W width
of a centroid.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.embeddings.item_files import SavedFormat
from fuxictr_mm.errors import DataError

Vectors = NDArray[np.float32]
Codes = NDArray[np.int64]

#: Methods whose levels each describe a part of the vector; those of the others describe what is left of all of it.
PRODUCT_METHODS = ("pq", "opq")
METHODS = ("vq", "rq", *PRODUCT_METHODS, "vqvae")

#: How modalities are brought to one scale before they are quantised.
SCALINGS = ("modality", "none", "l2", "standard")

#: Vectors taken to float64 at once.
_ROWS = 4096

SAVED = SavedFormat("codebook", "quantize --save")


@dataclass(frozen=True)
class Modality:
    """Where a part of the vectors came from.

    Parameters
    ----------
    name : str
        ``text``, ``image`` or any other.
    column : str
        Column it was read from.
    width : int
        Numbers per item.
    """

    name: str
    column: str
    width: int


@dataclass(frozen=True)
class Space:
    r"""The space that vectors are quantised in: modalities side by side, on one scale, around their mean.

    .. math:: z = (x - \mu) / s

    With ``scaling`` ``modality``, s is one number per modality, its total deviation, so that every modality has a
    variance of 1 in all; with ``standard``, s is a number per column, its deviation times the root of the modality's
    width, which comes to the same total; with ``l2``, each item's part is first divided by its length; with ``none``, s
    is 1. A modality that an item lacks (all zeros) becomes the mean, z = 0.

    Parameters
    ----------
    modalities : tuple of Modality
        In the order in which they stand side by side.
    scaling : str
        One of ``SCALINGS``.
    mean, scale : ndarray
        ``(D,)`` float32, mu and s.
    """

    modalities: tuple[Modality, ...]
    scaling: str
    mean: Vectors
    scale: Vectors

    @classmethod
    def fit(cls, vectors: Vectors, modalities: Sequence[Modality], scaling: str) -> Space:
        """Return the space of the vectors ``(M, D)``, none of which lacks a modality."""
        parts = _parts(modalities)
        if scaling == "l2":
            vectors = _unit_parts(vectors, parts)
        mean = vectors.mean(axis=0, dtype=np.float64)
        variance = np.zeros_like(mean)
        for start in range(0, len(vectors), _ROWS):
            variance += np.square(vectors[start : start + _ROWS] - mean).sum(axis=0) / len(vectors)
        scale = np.ones_like(mean)
        for part in parts:
            if scaling == "modality":
                scale[part] = np.sqrt(variance[part].sum())
            elif scaling == "standard":
                scale[part] = np.sqrt(variance[part] * (part.stop - part.start))
        # What never varies says nothing, and stays at its mean.
        scale[scale < 1e-12] = 1.0
        return cls(tuple(modalities), scaling, mean.astype(np.float32), scale.astype(np.float32))

    @property
    def width(self) -> int:
        """D."""
        return sum(m.width for m in self.modalities)

    @property
    def parts(self) -> list[slice]:
        """Where each modality stands in a vector."""
        return _parts(self.modalities)

    def present(self, vectors: Vectors) -> NDArray[np.bool_]:
        """Return which modalities each item has, ``(M, modalities)``: those of which any number is not zero."""
        return np.stack([vectors[:, part].any(axis=1) for part in self.parts], axis=1)

    def enter(self, vectors: Vectors, center: bool = True) -> Vectors:
        """Return z of the vectors ``(M, D)``, ``(M, D)``; on the same scale but not around the mean on request."""
        scaled = _unit_parts(vectors, self.parts) if self.scaling == "l2" else vectors
        z = scaled - self.mean if center else scaled.astype(np.float32, copy=True)
        z /= self.scale
        for part, has in zip(self.parts, self.present(vectors).T, strict=True):
            if not has.all():
                z[~has, part] = 0.0
        return z

    def leave(self, z: Vectors) -> Vectors:
        """Return the vectors ``(M, D)`` of z; with ``l2`` their length is not known any more and about 1."""
        return z * self.scale + self.mean


def _parts(modalities: Sequence[Modality]) -> list[slice]:
    ends = np.cumsum([m.width for m in modalities]).tolist()
    return [slice(end - m.width, end) for end, m in zip(ends, modalities, strict=True)]


def _unit_parts(vectors: Vectors, parts: Sequence[slice]) -> Vectors:
    unit = vectors.astype(np.float32, copy=True)
    for part in parts:
        length = np.linalg.norm(unit[:, part], axis=1, keepdims=True)
        unit[:, part] /= np.where(length > 0, length, 1.0)
    return unit


@dataclass(frozen=True)
class Layer:
    """A linear layer, ``x W^T + b``.

    Parameters
    ----------
    weight : ndarray
        ``(out, in)`` float32.
    bias : ndarray
        ``(out,)`` float32.
    """

    weight: Vectors
    bias: Vectors


def apply_layers(layers: Sequence[Layer], x: Vectors) -> Vectors:
    """Return an MLP's output for ``x`` ``(M, in)``: linear layers with ReLU in between."""
    for place, layer in enumerate(layers):
        if place:
            x = np.maximum(x, 0.0)
        x = x @ layer.weight.T + layer.bias
    return x


@dataclass(frozen=True)
class Fitted:
    """What a method learned.

    Parameters
    ----------
    centroids : ndarray
        ``(L, C, W)`` float32; W is D / L for product quantisation, else the width that is quantised.
    rotation : ndarray, optional
        ``(D, D)`` orthonormal, of OPQ: ``z R^T`` is quantised.
    encoder, decoder : tuple of Layer
        The networks of a VQ-VAE, from D to W and back; empty for the others.
    """

    centroids: Vectors
    rotation: Vectors | None = None
    encoder: tuple[Layer, ...] = ()
    decoder: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Codebook:
    r"""A space and the centroids in it.

    RQ and VQ (one level) take the nearest centroid of what the levels before have left, one level after the other
    (greedy, that is a beam of 1); PQ and OPQ cut the vector into L pieces and take the nearest centroid of each:

    .. math::

        c_l = \arg\min_c \lVert r_l - e_{l,c} \rVert^2, \quad r_1 = z, \quad r_{l+1} = r_l - e_{l,c_l}
        \qquad\text{and}\qquad c_l = \arg\min_c \lVert (R z)_l - e_{l,c} \rVert^2

    Parameters
    ----------
    method : str
        One of ``METHODS``.
    space : Space
        What vectors are brought to first.
    fitted : Fitted
        What the method learned.

    Examples
    --------
    >>> space = Space((Modality("text", "emb", 2),), "none", np.zeros(2, np.float32), np.ones(2, np.float32))
    >>> centroids = np.array([[[0, 0], [4, 0]], [[0, 0], [0, 1]]], dtype=np.float32)
    >>> book = Codebook("rq", space, Fitted(centroids))
    >>> codes = book.encode(np.array([[4.0, 1.1], [0.1, 0.2]], dtype=np.float32))
    >>> codes.tolist()
    [[1, 1], [0, 0]]
    >>> book.decode(codes).tolist()
    [[4.0, 1.0], [0.0, 0.0]]
    >>> book.semantic_ids(codes).tolist()
    [[2, 4], [1, 3]]
    """

    method: str
    space: Space
    fitted: Fitted = field(repr=False)

    @property
    def levels(self) -> int:
        """L."""
        return self.fitted.centroids.shape[0]

    @property
    def codes(self) -> int:
        """C."""
        return self.fitted.centroids.shape[1]

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table that the semantic ids need, the padding's included."""
        return 1 + self.levels * self.codes

    def encode(self, vectors: Vectors) -> Codes:
        """Return the codes of vectors ``(M, D)``, ``(M, L)``, each from 0 to C - 1."""
        return self.encode_in_space(self.space.enter(vectors))

    def encode_in_space(self, z: Vectors) -> Codes:
        """Return the codes ``(M, L)`` of vectors that are in the codebook's space, ``(M, D)``."""
        codes = np.empty((len(z), self.levels), dtype=np.int64)
        if self.method in PRODUCT_METHODS:
            pieces = z if self.fitted.rotation is None else z @ self.fitted.rotation.T
            width = self.fitted.centroids.shape[2]
            for level, centroids in enumerate(self.fitted.centroids):
                codes[:, level] = nearest_centroid(pieces[:, level * width : (level + 1) * width], centroids)
            return codes
        left = apply_layers(self.fitted.encoder, z).astype(np.float32, copy=True)
        for level, centroids in enumerate(self.fitted.centroids):
            codes[:, level] = nearest_centroid(left, centroids)
            left -= centroids[codes[:, level]]
        return codes

    def approximations(self, codes: Codes) -> Iterator[Vectors]:
        """Yield what the first level, the first two, ... up to all tell of z, each ``(M, D)``."""
        product = self.method in PRODUCT_METHODS
        width = self.fitted.centroids.shape[2]
        known = np.zeros((len(codes), self.space.width if product else width), dtype=np.float32)
        for level, centroids in enumerate(self.fitted.centroids):
            chosen = centroids[codes[:, level]]
            if product:
                known[:, level * width : (level + 1) * width] = chosen
                yield known.copy() if self.fitted.rotation is None else known @ self.fitted.rotation
            else:
                known += chosen
                yield apply_layers(self.fitted.decoder, known) if self.fitted.decoder else known.copy()

    def decode(self, codes: Codes) -> Vectors:
        """Return the vectors ``(M, D)`` that codes ``(M, L)`` stand for, in the units of the input.

        Raises
        ------
        DataError
            Codes of another number of levels, or beyond C.
        """
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise DataError(f"codes of shape {codes.shape}, expected (items, {self.levels}), one per level")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codes:
            raise DataError(f"codes from {codes.min()} to {codes.max()}, expected 0 to {self.codes - 1}")
        *_, last = self.approximations(codes)
        return self.space.leave(last)

    def semantic_ids(self, codes: Codes) -> Codes:
        """Return ``1 + l C + c`` of the code c at level l: every level has rows of its own in one embedding table."""
        return codes + 1 + np.arange(self.levels) * self.codes

    def codes_of(self, semantic_ids: Codes) -> Codes:
        """Return the codes of semantic ids; the inverse of ``semantic_ids``, for items that are no padding."""
        return semantic_ids - 1 - np.arange(self.levels) * self.codes


def nearest_centroid(vectors: Vectors, centroids: Vectors) -> Codes:
    """Return the nearest centroid ``(M,)`` of vectors ``(M, W)`` among ``(C, W)``, the first of equals.

    ``|x - e|^2`` is ``|x|^2 - 2 x e + |e|^2``, whose first term is the same for every centroid.
    """
    return (np.square(centroids).sum(axis=1) - 2.0 * (vectors @ centroids.T)).argmin(axis=1)


def save_codebooks(codebooks: Mapping[str, Codebook], path: str | os.PathLike[str]) -> None:
    """Write codebooks, by the names of the columns that they make, to one safetensors file.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {}
    for column, book in codebooks.items():
        fitted = book.fitted
        own = {"mean": book.space.mean, "scale": book.space.scale, "centroids": fitted.centroids}
        if fitted.rotation is not None:
            own["rotation"] = fitted.rotation
        for name in ("encoder", "decoder"):
            for place, layer in enumerate(getattr(fitted, name)):
                own[f"{name}.{place}.weight"], own[f"{name}.{place}.bias"] = layer.weight, layer.bias
        tensors.update({f"{column}.{k}": np.asarray(v, dtype=np.float32) for k, v in own.items()})
        described[column] = {
            "method": book.method,
            "levels": book.levels,
            "codes": book.codes,
            "scaling": book.space.scaling,
            "modalities": [asdict(m) for m in book.space.modalities],
            "encoder": len(fitted.encoder),
            "decoder": len(fitted.decoder),
        }
    SAVED.save(path, {"codebooks": described}, tensors)


def load_codebooks(path: str | os.PathLike[str]) -> dict[str, Codebook]:
    """Read what ``save_codebooks`` wrote.

    Raises
    ------
    MissingFileError
        There is no such file.
    DataError
        It is no file of codebooks, or damaged.
    """
    return SAVED.load(path, _codebooks)


def _codebooks(content: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Codebook]:
    return {column: _codebook(spec, column, tensors) for column, spec in content["codebooks"].items()}


def _codebook(spec: Mapping[str, Any], column: str, tensors: Mapping[str, np.ndarray]) -> Codebook:
    own = {k.removeprefix(f"{column}."): v for k, v in tensors.items() if k.startswith(f"{column}.")}
    modalities = tuple(Modality(**m) for m in spec["modalities"])
    space = Space(modalities, spec["scaling"], own["mean"], own["scale"])
    layers = {
        name: tuple(Layer(own[f"{name}.{i}.weight"], own[f"{name}.{i}.bias"]) for i in range(spec[name]))
        for name in ("encoder", "decoder")
    }
    book = Codebook(spec["method"], space, Fitted(own["centroids"], own.get("rotation"), **layers))
    if spec["method"] not in METHODS or book.fitted.centroids.shape[:2] != (spec["levels"], spec["codes"]):
        raise ValueError(f"{column}: {spec['method']} of {spec['levels']} levels, {book.fitted.centroids.shape}")
    # Shapes that do not fit together show on one vector.
    book.decode(book.encode(np.ones((1, space.width), dtype=np.float32)))
    return book


def check_matches(book: Codebook, given: Sequence[Modality], where: str) -> None:
    """Raise unless the codebook was fitted on modalities of these names and widths, in this order.

    Raises
    ------
    DataError
        Which modality is missing or of another width.
    """
    fitted = {m.name: m for m in book.space.modalities}
    listing = ", ".join(f"{m.name} ({m.width} wide, {m.column})" for m in book.space.modalities)
    if [m.name for m in given] != list(fitted):
        names = ", ".join(m.name for m in given) or "none"
        raise DataError(f"{where}: was fitted on {listing}, got {names}; give each of these as NAME=FILE:COLUMN")
    for modality in given:
        if modality.width != fitted[modality.name].width:
            raise DataError(
                f"{where}: '{modality.name}' ({modality.column}) is {modality.width} wide, expected "
                f"{fitted[modality.name].width} as in the codebook; it was fitted on {listing}"
            )
